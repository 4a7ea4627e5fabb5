"""What the terminology is made of: concepts, their policy, modalities, and the targets that a prompt resolves to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

KINDS = ("anatomy", "lesion")
SIDES = ("left", "right")


@dataclass(frozen=True)
class Policy:
    """How one target is inferred; two-element tuples hold (stage 1, stage 2). Defaults: ``policy_defaults``."""

    stages: tuple[int, ...]
    """Which of the two stages are run, e.g. ``(1,)`` for stage 1 only."""
    refine_steps: tuple[int, int]
    """Extra self-refinement passes, used for instance (lesion) targets."""
    roi_margin: float
    """Factor by which the stage-1 box grows about its centre."""
    unit_spacing: bool
    """Whether the stored spacing is disregarded and taken as 1.0 mm."""
    spacing_factor: tuple[float, float]
    """Factor on the working spacing after all other rules."""
    spacing_divisor: tuple[float, float]
    """Divisor of a spacing above 1 mm when the target is asked for alone."""
    max_patches: float
    """Length limit of an axis in patches when the target is asked for alone."""
    roi_max_patches: float
    """The same limit in the geometry of the region of interest."""
    filter_components: bool
    """Whether components are filtered by probability (Algorithm 3)."""


@dataclass(frozen=True)
class Modality:
    """An imaging modality: its index in the modality embedding and the words that announce it in a prompt."""

    name: str
    index: int
    keywords: tuple[str, ...]
    """Words and phrases, matched whatever their case."""
    cased_keywords: tuple[str, ...] = ()
    """Abbreviations that count only as written ("US" is ultrasound, "us" is not)."""
    weak_keywords: tuple[str, ...] = ()
    """Words that decide only where no other modality is named and the target exists there."""
    aliases: tuple[str, ...] = ()
    """Other names by which a caller may give the modality, e.g. DICOM's codes."""
    context: tuple[str, ...] = ()
    """Words that in this modality only tell what was imaged ("brain vessels" under the microscope)."""


@dataclass(frozen=True)
class Code:
    """A coded term, as DICOM writes it: value, coding scheme designator, meaning (arguments as in pydicom)."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Codes:
    """What a segment of a DICOM SEG is called; the fields follow the sequences of the Segment Description Macro."""

    category: Code
    """SegmentedPropertyCategoryCodeSequence: anatomical structure, morphologically abnormal structure, ..."""
    type: Code
    """SegmentedPropertyTypeCodeSequence: the structure, or what is wrong with a region."""
    modifier: Code | None = None
    """SegmentedPropertyTypeModifierCodeSequence: the side of the structure, or a qualifier of the finding."""
    region: Code | None = None
    """AnatomicRegionSequence: where a finding lies."""
    region_modifier: Code | None = None
    """AnatomicRegionModifierSequence: the side of that region."""


@dataclass(frozen=True)
class Concept:
    """One entry of the terminology."""

    id: int
    name: str
    kind: str
    modalities: Mapping[str, Policy] = field(hash=False, repr=False)
    group: str = field(repr=False)
    color: tuple[int, int, int] = field(repr=False)
    laterality: str | None = None
    pair: str | None = None
    synonyms: tuple[str, ...] = field(default=(), repr=False)
    window: str | None = field(default=None, repr=False)
    cues: tuple[str, ...] = field(default=(), repr=False)
    """Words that choose this concept among those that share its name."""
    sideless: bool = field(default=False, repr=False)
    """True where "left" or "right" may be said although the class holds both sides (e.g. lesions)."""
    generic: bool = field(default=False, repr=False)
    """True where an unknown word before the name changes its meaning ("... lesion", "... nucleus")."""
    codes: Codes | None = field(default=None, repr=False)
    """DICOM codes; None where no code is certain."""


@dataclass(frozen=True)
class Target:
    """A concept in one modality, as asked for: what the parser returns and the rest of the pipeline works with."""

    concept: Concept
    modality: str
    matched: str = field(default="", compare=False)
    """The words of the prompt that were understood as this target."""
    how: str = field(default="name", compare=False)
    """How they matched: ``name``, ``synonym``, ``fuzzy`` or ``group``."""
    score: float = field(default=1.0, compare=False)
    """1 for an exact name, lower for misspelt words (similarity in 0..1)."""

    @property
    def id(self) -> int:
        return self.concept.id

    @property
    def name(self) -> str:
        return self.concept.name

    @property
    def kind(self) -> str:
        return self.concept.kind

    @property
    def color(self) -> tuple[int, int, int]:
        return self.concept.color

    @property
    def key(self) -> str:
        """Policy key, e.g. ``CT_Liver``."""
        return f"{self.modality}_{self.concept.name}"

    @property
    def sentence(self) -> str:
        """The canonical sentence, as it is looked up in an embedding bank."""
        return normalise_sentence(self.concept.name)


@dataclass(frozen=True)
class Collection:
    """A word for several targets, e.g. "basal ganglia"."""

    name: str
    synonyms: tuple[str, ...]
    members: tuple[str, ...]
    kind: str = "anatomy"


def normalise_sentence(text: str) -> str:
    """The form in which sentences are embedded and looked up: lower case, single spaces, no surrounding blanks."""
    return " ".join(text.lower().split())
