"""``export``: write the networks as files of torch.export, which run without the network's Python code."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from scripts.config_files import BUNDLE, config_file
from scripts.errors import InputError


class Part(str, enum.Enum):
    """Which of the two networks."""

    coarse = "coarse"
    fine = "fine"
    both = "both"


def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the files; default: models/ of the bundle.")
    ] = None,
    network: Annotated[
        Part, typer.Option("--network", "-n", help="Which; both leaves out the fine one where none is used.")
    ] = Part.both,
    weights: Annotated[Path | None, typer.Option(help="Weights of the coarse network.")] = None,
    fine_weights: Annotated[Path | None, typer.Option(help="Weights of the fine network.")] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(help="Overlay to apply: one of configs/ by name, such as published, or a file; repeatable."),
    ] = None,
) -> None:
    """Export the networks to NAME.pt2 (NAME of their weights), checked against the networks themselves.

    A run takes them in the networks' place with the overlay exported.json.

    Examples:
      python -m scripts.cli export
      python -m scripts.cli export --config published -o exported/
      python -m scripts.cli segment -i head.nii.gz -o out -p thalami --config exported
    """
    # torch and MONAI, which --help does without
    from scripts.export.stages import export_stage, read_export_config
    from scripts.request import as_stages
    from scripts.results import prepare_folder

    folder = prepare_folder(BUNDLE / "models" if output is None else output)
    given = {"weights": weights, "fine_weights": fine_weights}
    overrides = {key: str(path.resolve()) for key, path in given.items() if path is not None}
    parser = read_export_config(BUNDLE, [config_file(name, "export") for name in config or ()], **overrides)
    stages = [network.value] if network != Part.both else ["coarse"]
    fine = 2 in as_stages(parser.get_parsed_content("stages"))
    if network == Part.both and fine and Path(parser.get_parsed_content("fine_weights")).is_file():
        stages.append("fine")
    names = {Path(parser.get_parsed_content("weights")).stem, Path(parser.get_parsed_content("fine_weights")).stem}
    if len(stages) > 1 and len(names) == 1:
        raise InputError("export: both networks are in files of one name: export them one by one, with -n and -o")
    for stage in stages:
        done = export_stage(parser, stage, folder)
        typer.echo(
            f"{done.path}: {done.path.stat().st_size:,} bytes, any patch of multiples of {done.facts.divisor} voxels "
            f"from {done.facts.smallest_side} on; largest difference from the network {done.difference:.1e}"
        )
