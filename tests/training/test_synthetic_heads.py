"""Whole synthetic scans: image and truth on one grid, with names that the scorer understands."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from typer.testing import CliRunner

from scripts.cli import app

CONFIGS = ("train", "small_network", "brain", "brain_heads")


@pytest.fixture(scope="module")
def scans(bundle_dir: Path, label_maps: Path, small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    sizes = {"head_size": [40, 40, 40], "final_size": [40, 40, 10], "heads": 2}
    workflow = ConfigWorkflow(
        config_file=[str(bundle_dir / "configs" / f"{name}.json") for name in CONFIGS],
        workflow_type="train",
        run_id="writing",
        bundle_root=str(bundle_dir),
        data_dir=str(label_maps),
        **{**small, **sizes, "output_dir": str(folder)},
    )
    workflow.initialize()
    workflow.run()
    return folder


def test_images_and_truth_share_their_grid(scans: Path):
    for name in ("scan_000.nii.gz", "scan_001.nii.gz"):
        image, truth = nib.load(scans / "images" / name), nib.load(scans / "labels" / name)
        assert image.shape == truth.shape == (40, 40, 10)
        np.testing.assert_allclose(image.affine, truth.affine)
        assert image.header.get_zooms() == (1.0, 1.0, 4.0)
        values = np.asarray(truth.dataobj)
        grey = np.asarray(image.dataobj)
        assert len(np.unique(values)) == 3
        inside = [grey[values == value].mean() for value in np.unique(values)[1:]]
        assert abs(inside[0] - inside[1]) > 30, "T1-like: the two structures have the contrast of the tissue table"


def test_the_folder_is_a_source_for_scoring(scans: Path, tmp_path: Path):
    shutil.copytree(scans / "labels", tmp_path / "predictions")
    arguments = ["--predictions", tmp_path / "predictions", "--truth", scans]
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--modality", "MRI", "-o", str(tmp_path / "s")])
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "s" / "summary.csv").open()))
    assert {row["structure"] for row in rows} >= {"Left hippocampus", "Brain-stem"}
    assert all(float(row["mean"]) == 1 for row in rows if row["score"] == "dsc")
