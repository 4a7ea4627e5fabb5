"""What holds for every concept, every form of a prompt and every text, with examples drawn at random."""

from __future__ import annotations

import contextlib
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.text import PromptParser, Target, Terminology, UnknownPromptError

TERMINOLOGY = Terminology.load()
PARSER = PromptParser(TERMINOLOGY)
TARGETS = TERMINOLOGY.targets()
SIDED = [target for target in TARGETS if target.concept.pair]
MODALITY_WORDS = {"CT": "CT", "MRI": "MRI", "US": "ultrasound", "PET": "PET", "Microscopy": "microscopy"}

CARRIERS = (
    "{}",
    "{}.",
    "  {}  ",
    "the {}",
    "please segment the {}",
    "I need a mask for the {}, thanks",
    "could you outline the {} for me?",
    "show me where the {} is",
    "Delineation of the {}",
    "Boundaries of the {} in this scan",
    "{} segmentation",
    "{}, please!",
    "automatic contouring of the {} for treatment planning",
    "The patient's {} should be highlighted",
    "\u201c{}\u201d",
    "- {}",
)
SIDE_FORMS = (
    "{side} {name}",
    "{name} {side}",
    "{name}, {side}",
    "{name} ({letter})",
    "{name} [{side}]",
    "{short} {name}",
    "{short}. {name}",
    "{letter} {name}",
    "{side}-sided {name}",
    "{side} sided {name}",
    "{under}_{side}",
    "{side}_{under}",
    "{under}_{letter}",
    "{name} on the {side}",
    "{name} on the {side} side",
    "{name} of the {side} side",
    "the {side}-hand {name}",
)
SEPARATORS = (", ", "; ", " and ", " + ", "\n", " / ", ", and ", " & ", " plus ", " as well as ", " | ")


def identities(targets: list[Target]) -> set[tuple[str, str]]:
    return {(target.modality, target.name) for target in targets}


def without_side(target: Target) -> str:
    return " ".join(word for word in target.name.lower().split() if word != target.concept.laterality)


def names_itself(target: Target, sentence: str) -> bool:
    """Whether a sentence of a target means it and no other: some name another modality or an older name."""
    try:
        return identities(PARSER.parse(sentence, target.modality)) == {(target.modality, target.name)}
    except UnknownPromptError:
        return False


SENTENCES = [(target, sentence) for target in TARGETS for sentence in TERMINOLOGY.sentences(target)]


def test_every_sentence_means_its_concept_alone() -> None:
    """Canonical names always do; few synonyms do not, since they are a name elsewhere ("thyroid gland" in CT)."""
    astray = [(target.key, sentence) for target, sentence in SENTENCES if not names_itself(target, sentence)]
    assert not [sentence for key, sentence in astray if key.endswith(f"_{sentence}")]
    assert len(astray) < 0.005 * len(SENTENCES), astray


@settings(max_examples=400)
@given(choice=st.sampled_from(SENTENCES), carrier=st.sampled_from(CARRIERS), style=st.sampled_from(["", "up", "title"]))
def test_a_carrier_sentence_changes_nothing(choice: tuple[Target, str], carrier: str, style: str) -> None:
    target, sentence = choice
    if not names_itself(target, sentence):
        return
    term = {"": sentence, "up": sentence.upper(), "title": sentence.title()}[style]
    assert identities(PARSER.parse(carrier.format(term), target.modality)) == {(target.modality, target.name)}


@settings(max_examples=300)
@given(target=st.sampled_from(SIDED), form=st.sampled_from(SIDE_FORMS))
def test_every_form_of_a_side(target: Target, form: str) -> None:
    side, name = target.concept.laterality, without_side(target)
    assert side is not None
    letter, short = side[0].upper(), {"left": "Lt", "right": "Rt"}[side]
    text = form.format(side=side, name=name, letter=letter, short=short, under=name.replace(" ", "_"))
    (found,) = PARSER.parse(text, target.modality)
    assert found.id == target.id, text


@pytest.mark.parametrize("form", ["both {}", "bilateral {}", "{} on both sides", "left and right {}", "{} bilaterally"])
def test_both_sides_of_every_pair(form: str) -> None:
    for target in SIDED:
        found = PARSER.parse(form.format(without_side(target)), target.modality)
        assert [item.concept.laterality for item in found] == ["left", "right"], target.name
        assert target.id in {item.id for item in found}


@settings(max_examples=200)
@given(
    modality=st.sampled_from(["CT", "MRI"]),
    seed=st.integers(0, 10_000),
    count=st.integers(2, 8),
    repeats=st.booleans(),
)
def test_a_list_gives_its_concepts_in_order_each_once(modality: str, seed: int, count: int, repeats: bool) -> None:
    chooser = random.Random(seed)
    pool = [target for target in TERMINOLOGY.targets(modality) if not target.concept.generic]
    chosen = chooser.sample([target for target in pool if not _is_also_a_whole(target)], count)
    asked = chosen + ([chosen[0]] if repeats else [])
    text = asked[0].name
    for target in asked[1:]:
        text += chooser.choice(SEPARATORS) + target.name
    found = PARSER.parse(text, modality)
    assert [item.name for item in found] == [item.name for item in chosen], text


def _is_also_a_whole(target: Target) -> bool:
    """Names with "and" or "/" in them can run into their neighbours in a list."""
    return bool(re.search(r"\band\b|/", target.name))


@settings(max_examples=400)
@given(
    target=st.sampled_from([target for target in TARGETS if len(without_side(target)) >= 8]),
    kind=st.sampled_from(["drop", "double", "swap", "change"]),
    place=st.integers(1, 100),
    letter=st.sampled_from("abcdefghijklmnoprstuvwy"),
)
def test_a_misspelt_name_is_corrected_or_refused(target: Target, kind: str, place: int, letter: str) -> None:
    """One wrong letter in a long name never makes another concept of it."""
    name = target.name.lower()
    longest = max(re.findall("[a-z]{7,}", name) or [""], key=len)
    if not longest or longest in ("left", "right"):
        return
    at = 1 + place % (len(longest) - 2)
    wrong = {
        "drop": longest[:at] + longest[at + 1 :],
        "double": longest[:at] + longest[at] + longest[at:],
        "swap": longest[:at] + longest[at + 1] + longest[at] + longest[at + 2 :],
        "change": longest[:at] + letter + longest[at + 1 :],
    }[kind]
    try:
        found = PARSER.parse(name.replace(longest, wrong), target.modality)
    except UnknownPromptError:
        return
    assert identities(found) == {(target.modality, target.name)}, wrong


FREQUENT = """
left right both of the in and near without CT MRI L1-L5 stones fracture tumor xyz 12 T1-weighted
, ; ( ) / - . : \u00e9 \u202e \U0001fac0
"""
VOCABULARY = sorted({word for _, sentence in SENTENCES for word in sentence.split()}) + FREQUENT.split() + ["\n"]


@settings(max_examples=300)
@given(
    text=st.one_of(
        st.text(max_size=200),
        st.lists(st.sampled_from(VOCABULARY), max_size=14).map(" ".join),
        st.lists(st.one_of(st.sampled_from(VOCABULARY), st.text(max_size=4)), max_size=10).map("".join),
    ),
    modality=st.sampled_from([None, "CT", "MRI", "US", "PET", "Microscopy"]),
)
def test_any_text_is_understood_or_refused(text: str, modality: str | None) -> None:
    with contextlib.suppress(UnknownPromptError):
        found = PARSER.parse(text, modality)
        assert found
        assert len({item.id for item in found}) == len(found)
        for item in found:
            assert item.matched
            assert item.matched in text
            assert item.how in ("name", "synonym", "fuzzy", "group")
            assert 0 < item.score <= 1
            assert item.modality in item.concept.modalities


@settings(max_examples=200)
@given(target=st.sampled_from(TARGETS), context=st.sampled_from([None, *MODALITY_WORDS]))
def test_a_modality_in_the_text_wins_over_the_context(target: Target, context: str | None) -> None:
    found = PARSER.parse(f"{target.name} on {MODALITY_WORDS[target.modality]}", context)
    assert identities(found) == {(target.modality, target.name)}


@settings(max_examples=150)
@given(target=st.sampled_from(TARGETS), modality=st.sampled_from([*MODALITY_WORDS]))
def test_a_target_of_another_modality_is_told(target: Target, modality: str) -> None:
    """The text is understood in the modality asked for, or the error says where else, its own names first."""
    found, error = outcome(target.name, modality)
    if error is None:
        spoken = "FLAIR" in target.name  # a name that says the modality
        assert {item.modality for item in found} == {target.modality if spoken else modality}
        return
    assert modality in str(error)
    if "is known for" in str(error):
        assert target.modality in str(error)
        assert target.name in error.suggestions
    ours = {item.name for item in TERMINOLOGY.targets(modality)}
    own = [name in ours for name in error.suggestions[:2]]
    assert own == sorted(own, reverse=True)


def outcome(text: str, modality: str) -> tuple[list[Target], UnknownPromptError | None]:
    try:
        return PARSER.parse(text, modality), None
    except UnknownPromptError as error:
        return [], error


ANATOMY_WORDS = """
ileum ilium ischium ileal iliacus peroneal perineal peritoneal perineum peritoneum ureter ureteral urethra
urethral malleus malleolus trochlea trochanter radius ulna carina hilum carpus tarsus carpal tarsal jejunum
jugum vagus vagina valve vulva uvula uvea ovary oviduct omentum mesentery meninges meniscus menisci pharynx
phalanx palate palatine patella parietal perianal pineal pinna pleura plexus pubis pylorus retina sclera septum
sinus sternum styloid tarsi tendon testis tibia fibula tibial tonsil tongue turbinate tympanum umbilicus
vitreous vomer xiphoid zygoma coccyx cornea costal cricoid cuboid cuneiform cystic dermis diaphragm dura
epididymis epiglottis fascia fibular fornix fundus gingiva hymen hyoid hypothalamus incus insula labrum lamina
ligament lunate mandible manubrium mastoid maxilla mesenteric metatarsal nasal nasopharynx nerve nipple oblique
occipital olecranon orbit oropharynx hypopharynx parathyroid bronchiole bronchiolus cervix clitoris choroid
chorion clavus calculus calcaneus callus capitate colostrum condyle corium corpuscle fovea lumen lymphoma
myeloma splenule splenium splenius sacroiliac scalene scaphoid sublingual submental subthalamic subscapularis
supraspinatus
"""


@pytest.mark.parametrize("modality", ["CT", "MRI", "US"])
def test_no_anatomical_word_is_corrected_into_another(modality: str) -> None:
    """Words of anatomy that are no target are refused, however near they are to one."""
    for word in ANATOMY_WORDS.split():
        for text in (word, f"left {word}", f"segment the {word}"):
            with contextlib.suppress(UnknownPromptError):
                found = PARSER.parse(text, modality)
                raise AssertionError(f"{text!r} became {[item.name for item in found]}")
