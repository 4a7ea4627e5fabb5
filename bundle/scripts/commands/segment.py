"""``segment``: segment an image, or all of a folder or list, through the bundle's own configs."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scripts.config_files import BUNDLE, config_file
from scripts.errors import InputError

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow

TO_SCREEN = "-"
EVALUATED = ("$", "@", "%")  # a text that begins so is a piece of program to the config


class Stage(str, enum.Enum):
    """Which of the two networks run."""

    coarse = "1"
    fine = "2"
    both = "both"


class Format(str, enum.Enum):
    """In what kind of file the label map is written."""

    nifti = "nifti"
    nrrd = "nrrd"
    dicom_seg = "dicom_seg"
    npz = "npz"


def segment(
    image: Annotated[
        Path,
        typer.Option("--image", "-i", help="NIfTI, NRRD, MHA, NPZ, DICOM folder or zip; or a folder or list of such."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results, made if absent.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="What to segment, in words; may be given repeatedly.")
    ] = None,
    modality: Annotated[str | None, typer.Option("--modality", "-m", help="CT, MRI, US, PET or Microscopy.")] = None,
    series: Annotated[
        int | None, typer.Option(min=1, help="Which DICOM series of several, as the error lists them.")
    ] = None,
    prompt_mask: Annotated[
        list[Path] | None, typer.Option(help="Label map on the image's grid to start from, or one mask per structure.")
    ] = None,
    preview: Annotated[
        bool | None, typer.Option("--preview/--no-preview", help="Draw a picture of the result.")
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write volumes as CSV, a row for each structure; - is the screen."),
    ] = None,
    masks: Annotated[
        bool, typer.Option("--masks", help="Also write a mask for each structure; these may overlap.")
    ] = False,
    output_format: Annotated[Format | None, typer.Option("--format", help="Of the label map.")] = None,
    stage: Annotated[Stage | None, typer.Option(help="Run the coarse network (1), the fine one (2), or both.")] = None,
    refinements: Annotated[
        str | None, typer.Option(help="Self-refinements of each structure: a number, or policy (as in the paper).")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of the coarse network.")] = None,
    fine_weights: Annotated[Path | None, typer.Option(help="Weights of the fine network.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0, ...; default: a GPU where there is one.")] = None,
    memory_gb: Annotated[float | None, typer.Option(min=0.01, help="Memory for probabilities, GiB.")] = None,
    allow_untrained: Annotated[
        bool,
        typer.Option("--allow-untrained", help="Ask also for what the weights were not trained for: no use but tests."),
    ] = False,
    config: Annotated[
        list[str] | None,
        typer.Option(help="Overlay to apply: one of configs/ by name, such as challenge, or a file; repeatable."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do cases of a folder again that are done.")] = False,
) -> None:
    """Segment what is named in words, in one image or in all of a folder or list.

    For each image: NAME_seg.nii.gz (label map), NAME_seg.json (volumes, positions) and NAME_preview.png.

    Of a folder or list (CSV, JSON, JSONL with image, prompts, ...) each image is done for itself; what is done already
    is skipped, failures are listed at the end and in failures.csv, volumes in summary.csv.

    Examples:
      python -m scripts.cli segment -i head.nii.gz -o out -p "left hippocampus, thalami"
      python -m scripts.cli segment -i ct_series/ -o out -p liver -p "both kidneys" -m CT --format dicom_seg
      python -m scripts.cli segment -i images/ -o out -p "brain stem" --no-preview
      python -m scripts.cli segment -i cases.csv -o out --statistics volumes.csv
      python -m scripts.cli segment -i inputs/ -o outputs/ --config challenge
    """
    output_dir = output.expanduser().resolve()
    given: dict[str, Any] = {
        "modality": modality,
        "prompts": list(prompt) if prompt else None,
        "series": series,
        "prompt_mask": _paths(prompt_mask),
        "save_preview": preview,
        "save_masks": masks or None,
        "output_format": output_format.value if output_format else None,
        "stages": stage.value if stage else None,
        "refinements": _refinements(refinements),
        "weights": str(weights.resolve()) if weights else None,
        "fine_weights": str(fine_weights.resolve()) if fine_weights else None,
        "device": device,
        "memory_gb": memory_gb,
        "allow_untrained": allow_untrained or None,
        "output_dir": str(output_dir),
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    _refuse_expressions(overrides)
    source = str(image.expanduser().resolve())
    overlays = [config_file(name, "segment") for name in config or ()]
    if _is_many(image.expanduser()):
        _refuse_for_many(overrides)
        summary = statistics if statistics not in (None, TO_SCREEN) else None
        extra = {
            "images": source,
            "overwrite": overwrite,
            **({"summary": str(Path(summary).resolve())} if summary else {}),
        }
        _run([config_file("batch_inference", "segment"), *overlays], {**overrides, **extra})
        if statistics == TO_SCREEN:
            typer.echo((output_dir / "summary.csv").read_text(encoding="utf-8"), nl=False)
        return
    workflow = _run(overlays, {**overrides, "image": source})
    if statistics is not None:
        _write_statistics(workflow, statistics)


def _is_many(path: Path) -> bool:
    """Whether a path stands for several images: a list, or a folder that is no DICOM series itself."""
    # Reading formats brings torch and MONAI, which --help does without.
    from scripts.data.jobs import LIST_SUFFIXES, holds_dicom

    if path.is_dir():
        return not holds_dicom(path)
    return path.is_file() and path.suffix.lower() in LIST_SUFFIXES


def _refuse_for_many(overrides: dict[str, Any]) -> None:
    if "prompt_mask" in overrides:
        raise InputError("segment: --prompt-mask is for one image; give a list of cases a column prompt_mask instead")


def _paths(paths: list[Path] | None) -> str | list[str] | None:
    """One label map as a path, several masks as a list."""
    if not paths:
        return None
    found = [str(path.expanduser().resolve()) for path in paths]
    return found[0] if len(found) == 1 else found


def _refinements(text: str | None) -> str | int | None:
    if text is None or text == "policy":
        return text
    if not text.isdigit():
        raise InputError(f"segment: --refinements is a number from 0 on, or policy, got {text!r}")
    return int(text)


def _refuse_expressions(overrides: dict[str, Any]) -> None:
    """A config evaluates some texts; what a user types is never meant so."""
    for key, value in overrides.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.lstrip().startswith(EVALUATED):
                raise InputError(f"segment: {key} must not begin with {' '.join(EVALUATED)}, got {text!r}")


def _run(overlays: list[str], overrides: dict[str, Any]) -> ConfigWorkflow:
    """Run the inference config with overlays and overrides."""
    from monai.bundle import ConfigWorkflow

    files = [config_file("inference", "segment"), *overlays]
    workflow = ConfigWorkflow(config_file=files, workflow_type="infer", bundle_root=str(BUNDLE), **overrides)
    workflow.initialize()
    workflow.run()
    return workflow


def _write_statistics(workflow: ConfigWorkflow, place: str) -> None:
    from scripts.batch.tables import STRUCTURE_COLUMNS, format_csv, structure_rows, write_csv
    from scripts.transforms.reading import image_name

    (case,) = workflow.evaluator.state.output
    rows = structure_rows(image_name(case["report"]["image"]["name"]), case["report"])
    if place == TO_SCREEN:
        typer.echo(format_csv(STRUCTURE_COLUMNS, rows), nl=False)
    else:
        write_csv(Path(place).expanduser(), STRUCTURE_COLUMNS, rows)
