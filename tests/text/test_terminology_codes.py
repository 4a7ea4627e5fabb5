"""The terminology's codes, the rules of its format, how fast it loads, and that an entry is all a new concept needs."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.text import PromptParser, Terminology
from scripts.text.codes import is_snomed_identifier
from scripts.text.concepts import Code, Codes, Concept

LEFT, RIGHT = Code("7771000", "SCT", "Left"), Code("24028007", "SCT", "Right")
ANATOMICAL = Code("123037004", "SCT", "Anatomical Structure")
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
KIDNEY = Code("64033007", "SCT", "Kidney")

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def terminology() -> Terminology:
    return Terminology.load()


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    path = Path(__file__).resolve().parents[2] / "bundle" / "configs" / "terminology.json"
    return json.loads(path.read_text(encoding="utf-8"))


def small() -> dict[str, Any]:
    """The smallest terminology in which every section has an entry."""

    def kidney(number: int, side: str, other: str) -> dict[str, Any]:
        return {
            "id": number,
            "name": f"{side.capitalize()} kidney",
            "kind": "anatomy",
            "modalities": {"CT": {}},
            "group": "organs",
            "color": [number, 100, 100],
            "laterality": side,
            "pair": f"{other.capitalize()} kidney",
            "synonyms": [f"{side} ren"],
            "codes": {"category": "anatomical", "type": ["64033007", "Kidney"]},
        }

    return {
        "version": 1,
        "coding": {
            "scheme": "SCT",
            "categories": {
                "anatomical": ["123037004", "Anatomical Structure"],
                "abnormal": ["49755003", "Morphologically Abnormal Structure"],
            },
            "sides": {"left": ["7771000", "Left"], "right": ["24028007", "Right"]},
        },
        "groups": ["organs", "lesions"],
        "modalities": {"CT": {"index": 0, "keywords": ["ct"]}, "MRI": {"index": 1, "keywords": ["mri"]}},
        "windows": {"soft_tissue": [400, 40]},
        "policy_defaults": {
            "stages": [1, 2],
            "refine_steps": [1, 1],
            "roi_margin": 1.1,
            "unit_spacing": False,
            "spacing_factor": [1.0, 1.0],
            "spacing_divisor": [1.2, 1.2],
            "max_patches": 2.0,
            "roi_max_patches": 2.0,
            "filter_components": False,
        },
        "concepts": [
            kidney(1, "left", "right"),
            kidney(2, "right", "left"),
            {
                "id": 3,
                "name": "Liver",
                "kind": "anatomy",
                "modalities": {"CT": {}, "MRI": {}},
                "group": "organs",
                "color": [3, 100, 100],
                "synonyms": ["hepar"],
            },
        ],
        "collections": [{"name": "kidneys", "members": ["Left kidney", "Right kidney"]}],
        "language": {"sides": {"left": "left", "right": "right", "both": "both"}, "separators": ["and"]},
    }


def put(*path: str | int, value: Any) -> Change:
    """A change that sets one place of the content."""

    def change(content: dict[str, Any]) -> None:
        place: Any = content
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


def concept_codes(**codes: Any) -> Change:
    return put("concepts", 2, "codes", value={"category": "anatomical", "type": ["10200004", "Liver"]} | codes)


# --- the shipped codes -------------------------------------------------------------------------------------------


def coded(terminology: Terminology) -> list[Concept]:
    return [concept for concept in terminology.concepts if concept.codes is not None]


def test_most_concepts_are_coded(terminology: Terminology) -> None:
    assert len(coded(terminology)) >= 190
    assert len(terminology.concepts) - len(coded(terminology)) <= 27


@pytest.mark.parametrize(
    ("name", "modality", "codes"),
    [
        ("Liver", "CT", Codes(ANATOMICAL, Code("10200004", "SCT", "Liver"))),
        ("Left kidney", "CT", Codes(ANATOMICAL, KIDNEY, LEFT)),
        ("Right kidney", "MRI", Codes(ANATOMICAL, KIDNEY, RIGHT)),
        ("Left kidney cyst", "CT", Codes(ABNORMAL, Code("367643001", "SCT", "Cyst"), None, KIDNEY, LEFT)),
        (
            "Liver tumors",
            "CT",
            Codes(ABNORMAL, Code("108369006", "SCT", "Neoplasm"), region=Code("10200004", "SCT", "Liver")),
        ),
    ],
)
def test_codes_of_known_structures(terminology: Terminology, name: str, modality: str, codes: Codes) -> None:
    assert terminology.target(name, modality).concept.codes == codes


def test_uncertain_structures_have_no_code(terminology: Terminology) -> None:
    assert terminology.target("Prostate/uterus", "CT").concept.codes is None


def test_meanings_are_those_of_pydicom(terminology: Terminology) -> None:
    concepts_dict = pytest.importorskip("pydicom.sr._concepts_dict", reason="pydicom's code dictionary is absent")
    meanings: dict[str, set[str]] = {}
    for entry in concepts_dict.concepts["SCT"].values():
        for value, (meaning, _) in entry.items():
            meanings.setdefault(value, set()).add(meaning.casefold())
    known = 0
    for concept in coded(terminology):
        codes = concept.codes
        for code in (codes.category, codes.type, codes.modifier, codes.region, codes.region_modifier):
            if code is not None and code.value in meanings:
                assert code.meaning.casefold() in meanings[code.value], (concept.name, code)
                known += 1
    assert known > 400


def test_pairs_differ_in_their_side_only(terminology: Terminology) -> None:
    for concept in coded(terminology):
        if concept.pair is None:
            continue
        other = terminology.target(concept.pair, next(iter(concept.modalities)), concept.kind).concept
        mine, theirs = concept.codes, other.codes
        assert (mine.category, mine.type, mine.region) == (theirs.category, theirs.type, theirs.region)
        sides = [codes.region_modifier if codes.region else codes.modifier for codes in (mine, theirs)]
        assert set(sides) == {LEFT, RIGHT}
        assert sides[0] == (LEFT if concept.laterality == "left" else RIGHT)


def test_lesions_are_abnormal_structures(terminology: Terminology) -> None:
    for concept in coded(terminology):
        if concept.group == "lesions" and concept.name != "Lymph node":
            assert concept.codes.category == ABNORMAL, concept.name


@given(st.from_regex(r"[1-9][0-9]{5,16}", fullmatch=True))
def test_one_digit_in_ten_completes_an_identifier(stem: str) -> None:
    right = [digit for digit in "0123456789" if is_snomed_identifier(stem + digit)]
    assert len(right) == 1
    swapped = stem[0] + stem[2] + stem[1] + stem[3:]
    assert swapped == stem or not is_snomed_identifier(swapped + right[0])  # exchanged neighbours are noticed


# --- the rules of the format -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # sections
        (put("version", value=2), "version: this program reads version 1"),
        (put("concept", value=[]), "file: unknown field concept"),
        (lambda content: content.pop("windows"), "file: missing windows"),
        (put("concepts", value={}), "concepts: a list of objects"),
        (put("concepts", 2, value="Liver"), "concept 'Liver': an object is wanted"),
        # modalities
        (put("modalities", value={}), "modalities: at least one"),
        (put("modalities", "MRI", "index", value=0), "modality 'MRI': index 0 is taken by 'CT'"),
        (put("modalities", "MRI", "index", value=-1), "modality 'MRI', index: a whole number from 0"),
        (put("modalities", "MRI", "keywords", value="mri"), "modality 'MRI', keywords: a list of non-empty strings"),
        (put("modalities", "MRI", "keywords", value=["CT"]), "modality 'MRI': keyword 'CT' already names 'CT'"),
        (put("modalities", "MRI", "aliases", value=["ct"]), "modality 'MRI': 'ct' is already a name of 'CT'"),
        (put("modalities", "MRI", "weak_keywords", value=["Tesla"]), "weak_keywords: lower case is wanted"),
        (put("modalities", "MRI", "keyword", value=[]), "modality 'MRI': unknown field keyword"),
        # windows
        (put("windows", value={"lung": [1500, -160]}), "windows: missing soft_tissue"),
        (put("windows", "soft_tissue", value=[400]), r"window 'soft_tissue': \[width, level\]"),
        (put("windows", "soft_tissue", value=[0, 40]), "width: a number above 0"),
        (put("windows", "soft_tissue", value=[400, "40"]), "level: a number is wanted"),
        # policy
        (lambda content: content["policy_defaults"].pop("stages"), "policy_defaults: missing stages"),
        (put("policy_defaults", "stages", value=[2, 1]), r"stages is \[1\], \[2\] or \[1, 2\]"),
        (put("policy_defaults", "refine_steps", value=[1, -1]), "refine_steps: a whole number from 0"),
        (put("policy_defaults", "refine_steps", value=[1, 0.5]), "refine_steps: a whole number from 0"),
        (put("policy_defaults", "roi_margin", value=0.9), "roi_margin: a number of at least 1"),
        (put("policy_defaults", "unit_spacing", value=1), "unit_spacing: true or false"),
        (put("policy_defaults", "spacing_factor", value=[1, 0]), "spacing_factor: a number above 0"),
        (put("policy_defaults", "spacing_divisor", value=1.2), r"spacing_divisor is \[stage 1, stage 2\]"),
        (put("policy_defaults", "max_patches", value=True), "max_patches: a number above 0"),
        (put("policy_defaults", "roi_max_patches", value=float("nan")), "roi_max_patches: a number above 0"),
        (
            put("concepts", 2, "modalities", "CT", value={"filter_components": "yes"}),
            "concept 'Liver', CT, filter_components: true or false",
        ),
        # concepts
        (put("concepts", 2, "id", value=True), "concept 'Liver': id is a whole number from 1"),
        (put("concepts", 2, "name", value=" "), "name: a text without blanks around it"),
        (put("concepts", 2, "modalities", value=["CT"]), "modalities are among CT, MRI"),
        (put("concepts", 2, "modalities", value={}), "modalities are among CT, MRI"),
        (put("concepts", 2, "group", value="organ"), "group is one of organs, lesions"),
        (put("concepts", 2, "color", value=[1.0, 2, 3]), "color is"),
        (put("concepts", 2, "synonyms", value=["hepar", "Hepar"]), "'hepar' is given twice"),
        (put("concepts", 2, "synonyms", value=["liver "]), "a list of non-empty strings"),
        (put("concepts", 2, "synonyms", value=["left ren"]), "synonym 'left ren' already means 'Left kidney' in CT"),
        (put("concepts", 2, "cues", value=["Each"]), "cues: lower case"),
        (put("concepts", 2, "sideless", value="no"), "sideless: true or false"),
        (put("concepts", 2, "generic", value=1), "generic: true or false"),
        (put("concepts", 2, "window", value=["soft_tissue"]), "window is one of soft_tissue"),
        (put("concepts", 0, "pair", value="Liver"), "pair 'Liver' must exist and name it"),
        (put("concepts", 1, "laterality", value="left"), "a pair is one left and one right"),
        # collections
        (put("collections", 0, "members", value=["Left kidny"]), "members are names of anatomy concepts; unknown"),
        (put("collections", 0, "members", value=["Liver", "Liver"]), "members are wanted, each once"),
        (put("collections", 0, "members", value=[]), "members are wanted, each once"),
        (put("collections", 0, "synonyms", value=["hepar "]), "a list of non-empty strings"),
        (put("collections", 0, "synonyms", value=["left ren"]), "'left ren' already means the concept 'Left kidney'"),
        (put("collections", 0, "synonyms", value=["Kidneys"]), "'Kidneys' already names the collection 'kidneys'"),
        (put("collections", 0, "kind", value="organ"), "kind is one of anatomy, lesion"),
        # language
        (put("language", "plurls", value={}), "language: unknown field plurls"),
        (put("language", "separators", value="and"), "language, separators: a list of non-empty strings"),
        (put("language", "separators", value=["And"]), "language, separators: lower case is wanted"),
        (put("language", "variants", value=["renal"]), "language, variants: an object is wanted"),
        (put("language", "plurals", value={"ribs": 1}), "language, plurals: a list of non-empty strings"),
        (put("language", "sequences", value=["l1", "l2"]), "language, sequences: a list of non-empty strings"),
        (put("language", "trailers", value={"organ": ["tissue"]}), "language, trailers: group is one of"),
        (put("language", "trailers", value={"organs": "tissue"}), "language, trailers, organs: a list of"),
        (put("language", "sides", value={"port": "larboard"}), "stands for left, right or both, got larboard"),
        # codes
        (lambda content: content.pop("coding"), "concept 'Left kidney', codes: codes need the section 'coding'"),
        (lambda content: content["coding"]["sides"].pop("left"), "coding, sides: missing left"),
        (put("coding", "categories", "organ", value="123037004"), "coding, category 'organ': a code is"),
        (concept_codes(category="organ"), "concept 'Liver', codes: category is one of anatomical, abnormal"),
        (concept_codes(category=["123037004"]), "category is one of"),
        (concept_codes(type="10200004"), "concept 'Liver', codes, type: a code is"),
        (concept_codes(type=["10200005", "Liver"]), "a SNOMED CT identifier .* got '10200005'"),
        (concept_codes(type=["T-62000", "Liver"]), "a SNOMED CT identifier .* got 'T-62000'"),
        (concept_codes(type=["10200004", ""]), "type, meaning: a text"),
        (concept_codes(type=["10200004", "l" * 65]), "a meaning of at most 64 characters"),
        (concept_codes(type=["64033007", "Liver"]), "64033007 means 'Kidney' elsewhere in the file, got 'Liver'"),
        (concept_codes(types=[]), "concept 'Liver', codes: unknown field types"),
        (lambda content: content["concepts"][0].pop("codes"), "one of a pair has codes, the other has none"),
        (put("concepts", 0, "codes", "category", value="abnormal"), "a pair shares its codes .* category differ"),
        (put("concepts", 0, "codes", "modifier", value=["7771000", "Left"]), "modifier is the side already"),
    ],
)
def test_a_broken_rule_is_named(change: Change, message: str) -> None:
    content = small()
    Terminology.from_dict(copy.deepcopy(content))
    change(content)
    with pytest.raises(ValueError, match=message) as caught:
        Terminology.from_dict(content, "my.json")
    assert str(caught.value).startswith("my.json: ")
    assert "\n" not in str(caught.value)


def test_cues_let_two_kinds_share_their_synonyms() -> None:
    content = small()
    twin = copy.deepcopy(content["concepts"][2]) | {"id": 4, "kind": "lesion", "color": [4, 100, 100]}
    content["concepts"].append(twin)
    with pytest.raises(ValueError, match="synonym 'hepar' already means 'Liver'"):
        Terminology.from_dict(content)
    twin["cues"] = ["each"]
    assert len(Terminology.from_dict(content).concepts) == 4


# --- loading and extending ---------------------------------------------------------------------------------------


def test_loading_is_fast_and_needs_no_torch(bundle_dir: Path) -> None:
    code = (
        "import sys, time; start = time.perf_counter(); from scripts.text import Terminology; Terminology.load(); "
        "seconds = time.perf_counter() - start; heavy = {'torch', 'numpy', 'transformers'} & set(sys.modules); "
        "print(seconds, *heavy)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=bundle_dir, check=True, capture_output=True, text=True).stdout
        for _ in range(3)
    ]
    assert all(len(run.split()) == 1 for run in runs), runs
    assert min(float(run.split()[0]) for run in runs) < 1.0  # 0.1 s on an idle machine


def test_an_entry_is_all_that_a_new_concept_needs(shipped: dict[str, Any], bundle_dir: Path) -> None:
    guide = (bundle_dir.parent / "docs" / "terminology.md").read_text(encoding="utf-8")
    example = guide.split("```json\n", 1)[1].split("```", 1)[0]
    left, right = json.loads(f"[{example}]")  # the guide's worked example: left and right patella
    content = copy.deepcopy(shipped)
    content["concepts"] += [left | {"id": 901}, right | {"id": 902}]
    extended = Terminology.from_dict(content)
    parser = PromptParser(extended)
    for prompt, ids in [
        ("Left patella", [901]),
        ("please outline the right kneecap on this CT", [902]),
        ("patella, right-sided", [902]),
        ("both patellae", [901, 902]),
        ("left ptaella and liver", [901, 101]),
        ("patella sinistra", [901]),
    ]:
        assert [target.id for target in parser.parse(prompt, "CT")] == ids, prompt
    target = extended.target("left patella", "CT")
    assert extended.policy(target) == extended.policy("CT_Left patella")
    assert extended.policy(target).roi_margin == 1.3
    assert extended.policy(target).refine_steps == extended.default_policy.refine_steps
    assert extended.window(target) == extended.windows["bone"]
    assert list(target.color) == left["color"]
    assert target.concept.codes == Codes(ANATOMICAL, Code("64234005", "SCT", "Patella"), LEFT)
    assert extended.other_side(target).name == "Right patella"
    assert {"left patella", "left kneecap", "patella sinistra"} <= set(extended.all_sentences())
    assert target in extended.targets("CT", group="bones")
    with pytest.raises(ValueError, match="patella"):
        PromptParser(Terminology.from_dict(shipped)).parse("left patella", "CT")
