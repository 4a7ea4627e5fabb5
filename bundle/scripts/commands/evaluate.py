"""``evaluate``: score label maps of any tool against the truth, as the challenge does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .output import console, print_json, print_note, print_table

if TYPE_CHECKING:
    from scripts.evaluation.runner import Evaluation
    from scripts.evaluation.summary import Summary

IDS = "ids"
TITLES = {"dsc": "DSC", "nsd": "NSD", "f1": "F1", "dsc_tp": "DSC-TP"}
SHOWN = 20  # cases that were not scored, on a terminal


def evaluate(
    predictions: Annotated[Path, typer.Option(help="Folder of label maps to score, or of NPZ files with segs.")],
    truth: Annotated[
        Path,
        typer.Option(help="Folder of label maps, or a source as of prepare: list, images/ and labels/, NPZ files."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the tables and the plot.")],
    names: Annotated[
        Path | None, typer.Option(help='Table of the truth\'s label names, JSON: {"1": "liver", ...}.')
    ] = None,
    prediction_names: Annotated[
        str | None,
        typer.Option(help="Table of the predictions' label names; ids: as this bundle writes them; default: --names."),
    ] = None,
    modality: Annotated[str | None, typer.Option(help="CT, MRI, US, PET or Microscopy; needed with --names.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Dataset of cases that do not say.")] = None,
    prompts_json: Annotated[
        Path | None, typer.Option(help="Sentences of the datasets: {dataset: {label: [sentence, ...]}}.")
    ] = None,
    section: Annotated[str | None, typer.Option(help="Only cases of this section of a list: validation.")] = None,
    instances: Annotated[
        bool, typer.Option("--instances", help="Label maps number objects: F1 and DSC of the matched ones.")
    ] = False,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out label names that the terminology lacks.")
    ] = False,
    tolerance: Annotated[float, typer.Option(min=0.01, help="Of the NSD, mm.")] = 2.0,
    iou: Annotated[float, typer.Option(min=0.01, max=1, help="Least overlap of matched objects.")] = 0.5,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples for the 95 % intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each takes some GB for large volumes.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Write the summary as JSON.")] = False,
) -> None:
    """Score label maps that any tool wrote: DSC and NSD of each structure, F1 and DSC-TP of numbered objects.

    A prediction belongs to the case of its name; endings such as _seg, _pred or _gt do not count. Both must lie on one
    grid. A bad or missing case is listed, the others are scored; the exit code is then 1.

    Writes scores.csv (each case and structure), summary.csv and summary.json (each structure, each modality, all, with
    95 % intervals), scores.png, and not_scored.csv.

    Examples:
      python -m scripts.cli evaluate --predictions out --truth labels \\
          --names labels.json --modality CT -o scores
      python -m scripts.cli evaluate --predictions segs --truth 3D_val_npz -o scores
    """
    from scripts.data.case_sources import read_label_table
    from scripts.evaluation import EvaluationRunner, read_references

    table = None if names is None else read_label_table(names)
    theirs: Mapping[str, object] | str | None = prediction_names
    if prediction_names is not None and prediction_names != IDS:
        theirs = read_label_table(Path(prediction_names))
    references = read_references(
        truth, table, modality, dataset, instances or None, prompts_json, section, skip_unknown
    )
    with _progress(len(references)) as advance:
        evaluation = EvaluationRunner(
            references, predictions, output, theirs, tolerance, iou, resamples, seed, workers, advance=advance
        ).run()
    if evaluation is not None:  # of several processes, the first one speaks
        _report(evaluation, output, as_json)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str, str | None], None]]:
    """A progress bar on the error stream; cases that are not scored are named as they come."""
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True)) as progress:
        task = progress.add_task("scoring", total=total)

        def advance(name: str, error: str | None) -> None:
            progress.advance(task)
            if error is not None:
                progress.console.print(f"not scored: {name}: {error}", soft_wrap=True)

        yield advance


def _report(evaluation: Evaluation, output: Path, as_json: bool) -> None:
    """Show the summary; exit code 1 where a case was not scored."""
    if as_json:
        summaries = [asdict(item) for item in evaluation.summaries]
        print_json({"folder": str(output), "not_scored": evaluation.failed, "summary": summaries})
    else:
        _print_summary(evaluation.summaries)
        console().print(f"tables and plot -> {output}", soft_wrap=True)
    if evaluation.failed:
        shown = [f"{name}: {error}" for name, error in list(evaluation.failed.items())[:SHOWN]]
        more = ["all of them are in not_scored.csv"] if len(evaluation.failed) > SHOWN else []
        print_note("\n".join([f"{len(evaluation.failed)} cases were not scored", *shown, *more]))
        raise typer.Exit(1)


def _print_summary(summaries: Sequence[Summary]) -> None:
    """A line for each mean and structure, with a column for each score that there is."""
    scores = list(dict.fromkeys(item.score for item in summaries))
    lines: dict[tuple[str, str], dict[str, Summary]] = {}
    for item in summaries:
        lines.setdefault((item.modality, item.structure or item.over), {})[item.score] = item
    rows = [
        [
            modality,
            name,
            *(_cell(found.get(score)) for score in scores),
            str(max(item.cases for item in found.values())),
        ]
        for (modality, name), found in lines.items()
    ]
    print_table(("modality", "structure", *(f"{TITLES[score]} (95 % interval)#" for score in scores), "cases#"), rows)


def _cell(item: Summary | None) -> str:
    if item is None:
        return "-"
    return f"{item.mean:.3f}" + (" (-)" if item.low is None else f" ({item.low:.3f}-{item.high:.3f})")
