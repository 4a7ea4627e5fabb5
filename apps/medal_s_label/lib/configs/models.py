"""The models that the viewers list: one of each kind for every modality that the weights cover.

Every kind is the same network and differs only in the panel that offers it:

| kind | MONAI Label's type | OHIF | Slicer |
|---|---|---|---|
| `text` | `segmentation` | Auto-Segmentation, Class Prompts | Auto Segmentation |
| `points` | `vista3d` | Auto-Segmentation, Class Prompts, Point Prompts | not listed |
| `edit` | `deepedit` | Point Prompts | Smart Edit |
| `scribbles` | `scribbles` | not listed | Scribbles |

A model's labels are the names of the structures that its weights know in its modality. The values are the
terminology's ids where none exceeds what viewers can hold, else the places of the names in the terminology.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scripts.errors import InputError
from scripts.text import Terminology

MAX_LABEL = 255
"""Viewers hold labels in uint8."""
BACKGROUND = "background"
"""The viewers' own name for what belongs to no structure: a click there takes away."""
PREFIX = "medal_s"
TYPES: Mapping[str, str] = {"text": "segmentation", "points": "vista3d", "edit": "deepedit", "scribbles": "scribbles"}
PURPOSES: Mapping[str, str] = {
    "text": "Segment what is named in words (option prompt), or the ticked classes, or all that the model knows",
    "points": "Segment the ticked classes, and correct one class with points",
    "edit": "Correct structures with clicks",
    "scribbles": "Correct one structure with foreground and background scribbles",
}
# What the viewers show as fields; they cast what is typed to the type of the default.
OPTIONS: Mapping[str, Mapping[str, Any]] = {"text": {"prompt": ""}, "points": {}, "edit": {}, "scribbles": {}}


@dataclass(frozen=True)
class ModelConfig:
    """A model as the viewers list it.

    Attributes:
        name: as in ``/infer/NAME``.
        kind: one of ``TYPES``.
        modality: of the studies that it is for.
        labels: label value of each structure, 1 to ``MAX_LABEL``.
        description: one line.
        options: fields that the viewers show, with their defaults.
    """

    name: str
    kind: str
    modality: str
    labels: Mapping[str, int]
    description: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """MONAI Label's type of the model."""
        return TYPES[self.kind]

    @property
    def listed_labels(self) -> dict[str, int]:
        """Labels as the viewers are told; for clicks with the background, which Slicer wants as a segment to click."""
        return {BACKGROUND: 0, **self.labels} if self.kind == "edit" else dict(self.labels)

    def name_of(self, value: int) -> str:
        """The structure of a label value.

        Raises:
            InputError: no structure has it.
        """
        for name, own in self.labels.items():
            if own == value:
                return name
        raise InputError(
            f"{self.name}: no label has the value {value}; values run {min(self.labels.values())} to "
            f"{max(self.labels.values())}, see /info/"
        )


def plan_models(
    terminology: Terminology,
    trained: Collection[str],
    modalities: Sequence[str] = (),
    kinds: Sequence[str] = (),
) -> list[ModelConfig]:
    """The models to offer.

    Args:
        terminology: the bundle's.
        trained: names of the structures that the weights know.
        modalities: of the models; all that the weights cover where empty.
        kinds: of the models; all of ``TYPES`` where empty.

    Raises:
        InputError: an unknown kind or modality, one that the weights do not cover, or more structures of a modality
            than viewers can tell apart.
    """
    unknown = [kind for kind in kinds if kind not in TYPES]
    if unknown:
        raise InputError(f"conf models: {unknown[0]!r} is no kind of model; kinds are {', '.join(TYPES)}")
    chosen = [terminology.modality(name).name for name in modalities]
    covered = {name: _labels(terminology, trained, name) for name in terminology.modalities}
    for name in chosen:
        if not covered[name]:
            known = ", ".join(known for known, labels in covered.items() if labels)
            raise InputError(f"conf modality: the weights know no structure in {name}; they cover {known}")
    return [
        ModelConfig(
            name="_".join([PREFIX, *([] if kind == "text" else [kind]), name.lower()]),
            kind=kind,
            modality=name,
            labels=labels,
            description=f"{PURPOSES[kind]} ({name})",
            options=OPTIONS[kind],
        )
        for name, labels in covered.items()
        if labels and (not chosen or name in chosen)
        for kind in (kinds or TYPES)
    ]


def _labels(terminology: Terminology, trained: Collection[str], modality: str) -> dict[str, int]:
    """Label value of each structure that the weights know in a modality, in the terminology's order."""
    known = {name.lower() for name in trained}
    concepts = [target.concept for target in terminology.targets(modality) if target.concept.name.lower() in known]
    names = list(dict.fromkeys(concept.name for concept in concepts))
    if len(names) > MAX_LABEL:
        raise InputError(f"{modality}: {len(names)} structures, but viewers hold {MAX_LABEL}: shorten channel_def")
    if len(names) == len(concepts) and all(concept.id <= MAX_LABEL for concept in concepts):
        return {concept.name: concept.id for concept in concepts}
    return {name: value for value, name in enumerate(names, start=1)}
