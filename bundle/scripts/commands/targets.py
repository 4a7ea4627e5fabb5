"""``targets``: which structures can be asked for, by what names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from scripts.errors import InputError
from scripts.text.concepts import KINDS, Concept, normalise_sentence
from scripts.text.terminology import Terminology

from .output import print_json, print_table, swatch

_WRAP_AT_MOST = 20  # rows; of a longer list only the beginning of the synonyms is shown, so that it can be scanned


def targets(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Part of a name or synonym; all when left out.")
    ] = None,
    modality: Annotated[str | None, typer.Option("--modality", "-m", help="CT, MRI, US, PET or Microscopy.")] = None,
    group: Annotated[str | None, typer.Option("--group", "-g", help="One of those that --groups lists.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", "-k", help=f"{' or '.join(KINDS)}.")] = None,
    groups: Annotated[bool, typer.Option("--groups", help="List the groups and how many targets each has.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
    terminology_file: Annotated[
        Path | None, typer.Option("--terminology", help="Terminology file; default: configs/terminology.json.")
    ] = None,
) -> None:
    """List what can be asked for: id, name, modalities, kind, group, side, colour, codes (SNOMED CT), synonyms.

    Into a pipe, every target is one line with all of its synonyms.

    Examples:
      python -m scripts.cli targets kidney
      python -m scripts.cli targets --modality CT --group vessels
      python -m scripts.cli targets --kind lesion --json
      python -m scripts.cli targets --groups --modality MRI
    """
    terminology = Terminology.load(terminology_file)
    filters = _checked_filters(terminology, modality, group, kind)
    found = _find(terminology, text, filters)
    if not found:
        raise _nothing_found(terminology, text, filters)
    if groups:
        _show_groups(found, as_json)
    elif as_json:
        print_json([_record(concept) for concept in found])
    else:
        _show(found, text)


def _checked_filters(
    terminology: Terminology, modality: str | None, group: str | None, kind: str | None
) -> dict[str, str]:
    """The filters that were given, in the terminology's own spelling."""
    known = {"group": sorted({concept.group for concept in terminology.concepts}), "kind": list(KINDS)}
    filters = {} if modality is None else {"modality": terminology.modality(modality).name}
    for name, value in (("group", group), ("kind", kind)):
        if value is None:
            continue
        spelled = {item.lower(): item for item in known[name]}.get(value.strip().lower())
        if spelled is None:
            raise InputError(f"targets: unknown {name} {value!r}; known: {', '.join(known[name])}")
        filters[name] = spelled
    return filters


def _find(terminology: Terminology, text: str | None, filters: Mapping[str, str]) -> list[Concept]:
    """Concepts, each once and in file order, that pass the filters and have ``text`` in a name or synonym."""
    concepts = {target.id: target.concept for target in terminology.targets(**filters)}
    wanted = normalise_sentence(text or "")
    return [c for c in concepts.values() if any(wanted in sentence for sentence in terminology.sentences(c))]


def _nothing_found(terminology: Terminology, text: str | None, filters: Mapping[str, str]) -> InputError:
    """The refusal: what exists without the filters, else the nearest names, else where to look."""
    where = " of " + ", ".join(f"{name} {value}" for name, value in filters.items()) if filters else ""
    if text is None:
        return InputError(f"targets: there is none{where}; leave out a filter, or list the groups with --groups")
    message = f"targets: none{where} has {text!r} in its name or synonyms"
    elsewhere = [f"{c.name} ({c.group}; {', '.join(c.modalities)})" for c in _find(terminology, text, {})]
    if elsewhere:
        more = f" and {len(elsewhere) - 5} more" if len(elsewhere) > 5 else ""
        return InputError(f"{message}; without the filters: {', '.join(elsewhere[:5])}{more}")
    if nearest := terminology.nearest_names(text, filters.get("modality")):
        return InputError(f"{message}; nearest names: {', '.join(nearest)}")
    return InputError(f"{message}, and none is like it; list the groups with --groups")


def _show(concepts: Sequence[Concept], text: str | None) -> None:
    columns = ["id#", "name", "modalities", "kind", "group", "side", "colour", "codes", "synonyms"]
    wanted = normalise_sentence(text or "")
    rows = []
    for concept in concepts:
        # what matched comes first
        synonyms = sorted(concept.synonyms, key=lambda synonym: wanted not in normalise_sentence(synonym))
        rows.append(
            [
                str(concept.id),
                concept.name,
                ", ".join(concept.modalities),
                concept.kind,
                concept.group,
                concept.laterality or "",
                swatch(concept.color),
                " + ".join(f"{code['scheme']} {code['value']}" for role, code in _codes(concept) if role != "category"),
                "; ".join(synonyms),
            ]
        )
    print_table(columns, rows, below=2, cut_below=len(rows) > _WRAP_AT_MOST)


def _show_groups(concepts: Sequence[Concept], as_json: bool) -> None:
    """Groups in file order, with their number of concepts, in all and by modality."""
    counts = Counter(concept.group for concept in concepts)
    by_modality = {name: Counter(m for c in concepts if c.group == name for m in c.modalities) for name in counts}
    if as_json:
        print_json([{"group": n, "targets": counts[n], "modalities": dict(by_modality[n])} for n in counts])
        return
    rows = [
        [name, str(count), ", ".join(f"{modality} {n}" for modality, n in by_modality[name].items())]
        for name, count in counts.items()
    ]
    print_table(["group", "targets#", "modalities"], rows)


def _record(concept: Concept) -> dict[str, Any]:
    return {
        "id": concept.id,
        "name": concept.name,
        "modalities": list(concept.modalities),
        "kind": concept.kind,
        "group": concept.group,
        "side": concept.laterality,
        "pair": concept.pair,
        "color": list(concept.color),
        "synonyms": list(concept.synonyms),
        "codes": dict(_codes(concept)) or None,
    }


def _codes(concept: Concept) -> list[tuple[str, dict[str, str]]]:
    """The DICOM codes of a concept: (role, {value, scheme, meaning}) for each role that has one."""
    codes = asdict(concept.codes) if concept.codes is not None else {}
    return [(role, code) for role, code in codes.items() if code is not None]
