"""``parse``: what a text would be understood as, without segmenting anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scripts.text.prompt_parser import PromptParser
from scripts.text.terminology import Terminology

from .output import print_json, print_note, print_table


def parse(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What you would ask for, in quotes.")],
    modality: Annotated[
        str | None,
        typer.Option("--modality", "-m", help="What the study is; a modality named in the text wins over it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
    terminology_file: Annotated[
        Path | None, typer.Option("--terminology", help="Terminology file; default: configs/terminology.json.")
    ] = None,
) -> None:
    """Show what a text would be understood as: the targets, from which words, how they matched.

    A match is by name, synonym, group (one word for several targets) or fuzzy (misspelt); the score is 1 for an
    exact name. Text that names no known target ends with the nearest names and exit code 1.

    Examples:
      python -m scripts.cli parse "both kidneys and the IVC" --modality CT
      python -m scripts.cli parse "Please outline the rigth hippocampus on this MRI"
      python -m scripts.cli parse "L1-L3" --modality CT --json
    """
    terminology = Terminology.load(terminology_file)
    given = None if modality is None else terminology.modality(modality).name
    targets = PromptParser(terminology).parse(text, given)
    understood = targets[0].modality
    overridden = given is not None and understood != given
    if overridden:
        print_note(f"the text names {understood}, which wins over the given {given}")
    if as_json:
        records = [
            {
                "id": target.id,
                "name": target.name,
                "modality": target.modality,
                "kind": target.kind,
                "matched": target.matched,
                "how": target.how,
                "score": target.score,
            }
            for target in targets
        ]
        modalities = {"given": given, "understood": understood, "text_won": overridden}
        print_json({"text": text, "modality": modalities, "targets": records})
        return
    rows = [
        [t.name, t.modality, t.kind, str(t.id), " ".join(t.matched.split()), t.how, f"{t.score:.2f}"] for t in targets
    ]
    print_table(["target", "modality", "kind", "id#", "matched words", "how", "score#"], rows)
