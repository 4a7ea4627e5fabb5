"""``prepare``: make a training set of labelled cases, cropped, resampled and stored for fast reading of patches."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scripts.errors import InputError

from .output import console, print_json, print_note

if TYPE_CHECKING:
    from scripts.data.preparation_run import Outcome

logger = logging.getLogger(__name__)
SHOWN = 20  # failed cases on a terminal; the JSON has all


def prepare(
    source: Annotated[
        Path | None, typer.Argument(help="Folder or list (.json, .jsonl) of labelled cases; see below.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the training set.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Dataset of cases that do not say; default: see below.")] = None,
    modality: Annotated[
        str | None, typer.Option(help="Modality where the dataset's name does not begin with it.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help='Table of label names, JSON: {"1": "liver", ...} or {"Liver": 1, ...}.')
    ] = None,
    prompts_json: Annotated[
        Path | None, typer.Option(help="Sentences of the datasets: {dataset: {label: [sentence, ...]}}.")
    ] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out label names that the terminology lacks.")
    ] = False,
    patch: Annotated[tuple[int, int, int], typer.Option(help="Patch of training, voxels.")] = (192, 192, 192),
    spacing: Annotated[tuple[float, float, float], typer.Option(help="Target spacing, mm.")] = (1.0, 1.0, 1.0),
    rule: Annotated[
        str, typer.Option(help="training: spacing from each case's smallest target; fixed: always --spacing.")
    ] = "training",
    orientation: Annotated[str, typer.Option(help="Axis codes, as inference's orientation.")] = "RAS",
    intensity: Annotated[
        str, typer.Option(help="scaled: to 0..255 by modality, uint8; stored: the file's values, float16.")
    ] = "scaled",
    antialias: Annotated[bool, typer.Option("--antialias", help="Smooth what is resampled coarser.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the stored voxels of each class.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each takes some GB for large volumes.")] = min(
        4, os.cpu_count() or 1
    ),
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare stored files with their checksums; without SOURCE, do only that."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the outcome as JSON.")] = False,
) -> None:
    """Prepare a training set: crop to non-zero, resample, store as Blosc2 with places of each class, and list it.

    SOURCE is a folder with NPZ files of the challenge (imgs, gts, spacing, text_prompts), however deep; a folder with
    images/ and labels/ and a table of names in labels.json; a JSON list with labels, training and validation; or a
    JSONL list with image, label, dataset, ... per line.

    Cases that are there already, from the same files and in the same way, are skipped: run it again after an
    interruption. A bad case is reported, the others go on; the exit code is then 1.

    Examples:
      python -m scripts.cli prepare 3D_train_npz -o prepared \\
          --prompts-json CVPR25_TextSegFMData_with_class.json
      python -m scripts.cli prepare my_cases -o prepared --modality CT \\
          --labels labels.json --rule fixed --spacing 1.5 1.5 1.5 --patch 96 96 96
      python -m scripts.cli prepare -o prepared --verify
    """
    if output is None:
        raise InputError("prepare: no folder for the training set; give one with --output")
    if source is None:
        if not verify:
            raise InputError("prepare: no SOURCE; give a folder or a list of cases, or --verify to check what is there")
        from scripts.data.preparation_run import case_folders, verify_all

        places = case_folders(output)
        if not places:
            raise InputError(f"prepare: no prepared cases in {output}; give the folder that prepare wrote to")
        with _progress("verifying", len(places)) as advance:
            outcomes = verify_all(output, advance)
        _report(outcomes, output, as_json, only_verified=True)
        return
    from scripts.data.case_sources import SourceDefaults, find_cases, read_label_table
    from scripts.data.case_targets import TargetReader
    from scripts.data.preparation import PrepareSettings
    from scripts.data.preparation_run import prepare_all
    from scripts.data.prompt_sentences import PromptSentences

    settings = PrepareSettings(
        patch_size=patch,
        spacing=spacing,
        rule=rule,
        orientation=orientation,
        intensity=intensity,
        antialias=antialias,
        seed=seed,
    )
    table = None if labels is None else read_label_table(labels)
    reader = TargetReader(PromptSentences.load(prompts_json))
    cases = find_cases(source, reader, SourceDefaults(dataset, modality, table, skip_unknown))
    sentences = None if prompts_json is None else str(prompts_json.resolve())
    with _progress("preparing", len(cases)) as advance:
        outcomes = prepare_all(cases, output, settings, sentences, workers, verify, advance)
    _report(outcomes, output, as_json)


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[Outcome], None]]:
    """A progress bar on the error stream; bad cases are named as they come."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)

        def advance(outcome: Outcome) -> None:
            progress.advance(task)
            if outcome.error is not None:
                progress.console.print(f"skipped {outcome.key}: {outcome.error}", soft_wrap=True)

        yield advance


def _report(outcomes: Sequence[Outcome], output: Path, as_json: bool, only_verified: bool = False) -> None:
    """Say what was done; exit code 1 where a case was bad."""
    bad = {outcome.key: outcome.error for outcome in outcomes if outcome.error is not None}
    made = sum(outcome.made for outcome in outcomes)
    kept = len(outcomes) - made - len(bad)
    if as_json:
        print_json({"folder": str(output), "made": made, "kept": kept, "bad": bad})
    else:
        what = f"{kept} sound" if only_verified else f"{made} prepared, {kept} there already"
        console().print(f"{what}, {len(bad)} bad -> {output}", soft_wrap=True)
    if bad:
        shown = [f"{key}: {error}" for key, error in list(bad.items())[:SHOWN]]
        more = [f"and {len(bad) - SHOWN} more: --json has all"] if len(bad) > SHOWN else []
        print_note("\n".join([f"{len(bad)} of {len(outcomes)} cases are bad", *shown, *more]))
        raise typer.Exit(1)
