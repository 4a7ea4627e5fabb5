"""``import-weights``: make weights and embedding bank for an overlay from the files that the authors released."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from scripts.errors import InputError

from .embed import build_with_progress
from .output import console, print_json


class Dtype(str, enum.Enum):
    """Type of the numbers in the files written."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def import_weights(
    source: Annotated[
        str | None,
        typer.Argument(help="Folder with the released files, or a repository of the hub, such as owner/name."),
    ] = None,
    coarse: Annotated[Path | None, typer.Option(help="The (coarse) network's checkpoint.")] = None,
    fine: Annotated[Path | None, typer.Option(help="The fine network's checkpoint.")] = None,
    text_encoder: Annotated[Path | None, typer.Option(help="The text encoder's checkpoint.")] = None,
    language_model: Annotated[
        str | None,
        typer.Option(help="Folder or hub name of the text encoder's language model: its configuration and tokenizer."),
    ] = None,
    overlay: Annotated[
        str, typer.Option(help="Which release: published (Medal S-V1.0), sat (SAT-Nano), or an overlay's file.")
    ] = "published",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the results; default: the bundle's models/.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights written; default: as in the checkpoint.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of the repository.")] = None,
    sha256: Annotated[
        list[str] | None, typer.Option(metavar="FILE=HASH", help="Hash that a file has to have; may be repeated.")
    ] = None,
    download_dir: Annotated[
        Path | None, typer.Option(help="Where downloads go; default: the hub client's cache.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files of an earlier import.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Convert published weights: both networks of Medal S-V1.0 (or SAT-Nano) and the embedding bank.

    Every tensor is accounted for, nothing in the files is run, and the converted network is compared with the
    published layers. Files appear complete and all together, with a report of their hashes and of what was left out.

    Examples:
      python -m scripts.cli import-weights DOWNLOADED_FOLDER
      python -m scripts.cli import-weights spc819/Medal-S-V1.0 --dtype float16
      python -m scripts.cli import-weights --coarse coarse.pth --fine fine.pth
      python -m scripts.cli import-weights zzh99/SAT --overlay sat
    """
    # torch and MONAI, which --help does without
    from scripts.published import importing

    given = {"weights": coarse, "fine_weights": fine, "text_encoder": text_encoder}
    request = importing.Request(
        source=source,
        files={role: file for role, file in given.items() if file is not None},
        language_model=language_model,
        overlay=overlay,
        output=importing.MODELS if output is None else output.expanduser(),
        dtype=None if dtype is None else dtype.value,
        revision=revision,
        hashes=_hashes(sha256 or []),
        download_folder=download_dir,
        force=force,
    )
    report, files = importing.import_weights(request, build_with_progress)
    if as_json:
        print_json(report.to_dict())
        return
    screen = console()
    screen.print(report.to_text(), soft_wrap=True)
    screen.print(f"written to {request.output}: {', '.join(file.name for file in files)}", soft_wrap=True)


def _hashes(given: list[str]) -> dict[str, str]:
    pairs = [item.rpartition("=") for item in given]
    if wrong := [item for item, (name, _, _) in zip(given, pairs, strict=True) if not name]:
        raise InputError(f"--sha256 wants FILE=HASH, got {wrong[0]!r}")
    return {Path(name).name: value for name, _, value in pairs}
