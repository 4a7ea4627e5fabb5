"""The shipped system on the head of the demo: trained weights and a real image, for what depends on them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from monai.data import MetaTensor

from scripts.benchmarks.measuring import Settings
from scripts.data.demo import write_template
from scripts.pipeline import Pipeline

MODALITY = "MRI"


def pipeline(settings: Settings, **options: Any) -> Pipeline:
    """Stage 1 of the inference config with the shipped weights; ``options`` replace keys of the config."""
    common = {"device": str(settings.device), "stages": [1], "uncertainty": False, "save_masks": False}
    return Pipeline.from_bundle(settings.bundle_root, **{**common, **options})


def known_structures(settings: Settings) -> list[str]:
    """Names of the structures that the shipped weights know."""
    return list(settings.parser().get_parsed_content("trained_structures"))


def head(settings: Settings) -> MetaTensor:
    """The MNI152 head ``[1, H, W, D]`` at 1 mm, as the pipeline reads it.

    Raises:
        InputError: nilearn, which it comes with, is not installed.
    """
    with TemporaryDirectory() as folder:
        return pipeline(settings).read(write_template(Path(folder) / "head.nii.gz"))
