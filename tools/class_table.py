"""Write docs/classes.md: every structure that can be asked for, from the terminology and the bundle's metadata.

Run ``python tools/class_table.py``, or ``make docs``; ``--check`` only says whether the page is up to date.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated

import typer

from generated_page import BUNDLE, REPOSITORY, run, table
from scripts.metadata import read_metadata, trained_structures
from scripts.text.concepts import Concept
from scripts.text.terminology import Terminology

SYNONYMS = 4  # shown of each; `python -m scripts.cli targets` lists all
PAGE = REPOSITORY / "docs" / "classes.md"

HEAD = """# What can be asked for

<!-- Written by tools/class_table.py (make docs) from bundle/configs/terminology.json. Do not edit. -->

{concepts} concepts, some of them in several modalities: {modalities}.

The shipped weights know those marked ●; the others can be asked of weights that were trained for them, such as the
[published ones](published_weights.md). The number is the value in label maps. Text is understood far beyond the names
and the first synonyms shown here (sides, lists, ranges, misspellings): `python -m scripts.cli parse TEXT` shows how,
and `python -m scripts.cli targets NAME` lists all synonyms. A lesion is found as single objects, anatomy as one mask.
Adding a structure: [tutorials/add_structure.md](tutorials/add_structure.md).

The policy column names what differs from the default, in pairs `[stage 1, stage 2]`; its words are explained in
[terminology.md](terminology.md#policy_defaults).
"""


def make_page() -> str:
    """The whole page."""
    terminology = Terminology.load()
    trained = set(trained_structures(read_metadata(BUNDLE)))
    counts = Counter(target.modality for target in terminology.targets())
    head = HEAD.format(
        concepts=len(terminology.concepts),
        modalities=", ".join(f"{name} {count}" for name, count in counts.items()),
    )
    groups: dict[str, list[Concept]] = {}
    for concept in terminology.concepts:
        groups.setdefault(concept.group, []).append(concept)
    sections = [f"## {group}\n\n{_table(terminology, concepts, trained)}" for group, concepts in groups.items()]
    return "\n\n".join([head.rstrip(), *sections]) + "\n"


def _table(terminology: Terminology, concepts: Sequence[Concept], trained: set[str]) -> str:
    rows = [
        [
            str(concept.id),
            concept.name + (" ●" if concept.name in trained else ""),
            ", ".join(concept.modalities),
            concept.kind,
            f"{concept.codes.type.scheme} {concept.codes.type.value}" if concept.codes else "",
            "; ".join(concept.synonyms[:SYNONYMS]) + (" …" if len(concept.synonyms) > SYNONYMS else ""),
            _policy(terminology, concept),
        ]
        for concept in concepts
    ]
    return table(["id", "name", "modalities", "kind", "code", "synonyms", "policy"], rows)


def _policy(terminology: Terminology, concept: Concept) -> str:
    """What differs from the default policy, by modality where there are several."""
    differences = []
    for modality, policy in concept.modalities.items():
        changed = [
            f"{field.name} {_plain(getattr(policy, field.name))}"
            for field in fields(policy)
            if getattr(policy, field.name) != getattr(terminology.default_policy, field.name)
        ]
        if changed:
            differences.append(("" if len(concept.modalities) == 1 else f"{modality}: ") + ", ".join(changed))
    return "; ".join(differences)


def _plain(value: object) -> str:
    return json.dumps(value)


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where it is out of date.")] = False,
) -> None:
    """Write docs/classes.md."""
    run(PAGE, make_page, check)


if __name__ == "__main__":
    typer.run(main)
