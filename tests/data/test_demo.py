"""The demo on nilearn's template, with random weights and a coarse grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.data.demo import run_demo

pytest.importorskip("nilearn")
PAIRED = ("hippocampus", "thalamus", "caudate", "putamen", "lateral ventricle", "cerebellum cortex")
SINGLE = ("Brain-stem", "3rd ventricle", "4th ventricle")
ASKED = [*(f"{side} {name}" for name in PAIRED for side in ("Left", "Right")), *SINGLE]


def test_demo_segments_the_template(bundle_dir: Path, tmp_path: Path) -> None:
    parser = ConfigParser()
    parser.read_config(bundle_dir / "configs" / "inference.json")
    parser["bundle_root"] = str(bundle_dir)
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    report = run_demo(
        tmp_path / "out",
        weights=str(tmp_path / "model.pt"),
        spacing=[8.0, 8.0, 8.0],
        roi_size=[32, 32, 32],
        refinements=0,
        device="cpu",
        logging_file=False,
    )
    assert sorted(s["name"] for s in report["structures"]) == sorted(ASKED)
    image = nib.load(tmp_path / "out" / "mni152_t1.nii.gz")
    assert image.shape == (197, 233, 189)
    assert len(np.unique(image.get_fdata())) > 100  # the template's own header would leave two grey values
    assert (tmp_path / "out" / "mni152_t1_preview.png").stat().st_size <= 300_000
