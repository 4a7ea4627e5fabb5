"""Segment a real head by words: the MNI152 T1 template, from the bundle's own inference config.

Run in the bundle's root: ``python -m scripts.data.demo --output_dir DIR``.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.errors import InputError, install_excepthook

logger = logging.getLogger(__name__)
BUNDLE_ROOT = Path(__file__).resolve().parents[2]
PROMPTS = (
    "both hippocampi and thalami",
    "caudates, putamina and lateral ventricles",
    "cerebellar cortices",
    "brain-stem",
    "3rd and 4th ventricle",
)


def write_template(path: Path) -> Path:
    """Write nilearn's MNI152 T1 template (1 mm, skull-stripped, comes with nilearn) as NIfTI.

    Raises:
        InputError: nilearn is not installed.
    """
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as e:
        raise InputError("the demo takes its head from nilearn: pip install nilearn, or run make demo") from e
    template = load_mni152_template(resolution=1)
    # Its header says uint8 while its values are fractions of 1: saved as it is, all grey would be lost.
    image = nib.Nifti1Image(template.get_fdata(dtype=np.float32), template.affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def run_demo(output_dir: str | Path, **override: Any) -> dict:
    """Segment the template and return its report.

    Args:
        output_dir: folder for the image and the results, made if absent.
        override: replaces keys of ``configs/inference.json``.
    """
    from monai.bundle import ConfigWorkflow

    from scripts.results import prepare_folder

    folder = prepare_folder(output_dir)
    image = write_template(folder / "mni152_t1.nii.gz")
    keys: dict[str, Any] = {
        "bundle_root": str(BUNDLE_ROOT),
        "image": str(image),
        "prompts": list(PROMPTS),
        "output_dir": str(folder),
        **override,
    }
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE_ROOT / "configs" / "inference.json"), workflow_type="infer", **keys
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return json.loads((folder / "mni152_t1_seg.json").read_text(encoding="utf-8"))


def main(arguments: list[str] | None = None) -> None:
    """Command line entry."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output_dir", default="demo_output", help="folder for the image and the results")
    folder = Path(parser.parse_args(arguments).output_dir)
    install_excepthook()
    run_demo(folder)  # logs the table
    logger.info("%.0f s in all; the picture: %s", time.perf_counter() - started, folder / "mni152_t1_preview.png")


if __name__ == "__main__":
    main()
