"""Which structure each value of a label map means, from what the client said and the terminology."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.data.dicom_seg import MAX_LABEL, Segment
from scripts.errors import InputError
from scripts.text.concepts import Concept, normalise_sentence
from scripts.text.terminology import Terminology

BACKGROUND = "background"
UNKNOWN_COLOR = (255, 0, 0)


def name_values(values: Sequence[int], info: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """What a client called each value that is present, as ``{value: {"name": ..., ...}}``.

    Looked at in this order:

    1. ``info["label_info"]``, a list of ``{"name", "idx"}``: entries with an ``idx`` name that value, whichever values
       are present (MONAI Label itself goes by position and so gives a structure another one's name);
    2. ``label_info`` without any ``idx``: one entry for each value present, in ascending order, or one for each value
       from 1 on;
    3. ``label_names`` of an answer of ours, ``{name: value}``, in ``info`` or its ``params``.

    Args:
        values: the values present but 0, ascending.
        info: the ``params`` of the request that saves.

    Raises:
        InputError: a value without a name: a wrong one in a patient's record is worse than none.
    """
    names = _by_entry(values, info.get("label_info")) or _by_table(info)
    nameless = [value for value in values if value not in names]
    if nameless:
        raise InputError(
            f"the label map holds the values {', '.join(map(str, nameless))} without a name: give each one in "
            'label_info, as [{"name": "Left hippocampus", "idx": 14}]'
        )
    return {value: names[value] for value in values}


def segments_of(named: Mapping[int, Mapping[str, Any]], terminology: Terminology, modality: str) -> list[Segment]:
    """Segments of a DICOM SEG: the name as the client gave it, codes and colour of the concept that it means.

    A name that the terminology does not know keeps generic codes.

    Args:
        named: from ``name_values``.
        terminology: of the bundle.
        modality: DICOM code of the image, which chooses among concepts of one name.
    """
    known = _concepts(terminology, modality)
    segments = []
    for value, entry in named.items():
        name = str(entry["name"]).strip()
        concept = known.get(normalise_sentence(name))
        color = tuple(concept.color) if concept else _color(entry.get("color"))
        kind, codes = (concept.kind, concept.codes) if concept else ("anatomy", None)
        segments.append(Segment(value, name[:MAX_LABEL], kind, color, codes))
    return segments


def _by_entry(values: Sequence[int], entries: Any) -> dict[int, dict[str, Any]]:
    if entries is None or entries == []:
        return {}
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and entry.get("name") for entry in entries):
        raise InputError('label_info must be a list of {"name": ..., "idx": ...}')
    entries = [entry for entry in entries if str(entry["name"]).strip().lower() != BACKGROUND]
    numbered = {value: dict(entry) for entry in entries if (value := _number(entry.get("idx"))) is not None}
    if numbered:
        return numbered
    if len(entries) == len(values):
        return {value: dict(entry) for value, entry in zip(values, entries, strict=True)}
    if not values or max(values) <= len(entries):
        return {value: dict(entry) for value, entry in enumerate(entries, start=1)}
    raise InputError(
        f"label_info has {len(entries)} names without idx for {len(values)} values: give each name the idx of its value"
    )


def _by_table(info: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    inner = info.get("params")
    for holder in (info, inner if isinstance(inner, Mapping) else {}):
        table = holder.get("label_names")
        if isinstance(table, Mapping):
            return {
                value: {"name": str(name)} for name, given in table.items() if (value := _number(given)) is not None
            }
    return {}


def _number(value: Any) -> int | None:
    """A label value, given as a number or as digits; None for anything else."""
    if isinstance(value, bool):
        return None
    return int(value) if isinstance(value, int) or (isinstance(value, str) and value.strip().isdigit()) else None


def _color(value: Any) -> tuple[int, ...]:
    """sRGB of a client, 0..255."""
    if isinstance(value, (list, tuple)) and len(value) >= 3:
        try:
            color = tuple(int(part) for part in value[:3])
        except (TypeError, ValueError):
            return UNKNOWN_COLOR
        return color if all(0 <= part <= 255 for part in color) else UNKNOWN_COLOR
    return UNKNOWN_COLOR


def _concepts(terminology: Terminology, modality: str) -> dict[str, Concept]:
    """Every sentence that means a concept; the image's modality and canonical names come first."""
    try:
        targets = [*terminology.targets(modality), *terminology.targets()]
    except ValueError:  # a DICOM modality that the terminology does not have
        targets = terminology.targets()
    found: dict[str, Concept] = {}
    for target in targets:
        found.setdefault(normalise_sentence(target.name), target.concept)
    for target in targets:
        for sentence in terminology.sentences(target):
            found.setdefault(sentence, target.concept)
    return found
