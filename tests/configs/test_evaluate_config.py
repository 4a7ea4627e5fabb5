"""``evaluate.json``: labelled cases are segmented and scored in one run, by one process or two; bad ones are listed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from scripts.errors import find_user_error
from scripts.metrics import class_scores

CONFIGS = ("inference", "batch_inference", "evaluate")
AFFINE = np.diag([5.0, 5, 6, 1])
SPACING = (5, 5, 6)
THALAMI = {"Left thalamus": 3, "Right thalamus": 9}


@pytest.fixture
def case_list(tmp_path: Path) -> Path:
    """Two sound cases and one whose image ends too early."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(3):
        truth = np.zeros((20, 18, 22), np.uint8)
        truth[4:9, 5:12, 6:15], truth[11:16, 5:12, 6:15] = 3, 9
        image = (rng.normal(0, 10, truth.shape) + 40 * truth).astype(np.float32)
        for kind, volume in (("image", image), ("label", truth)):
            nib.save(nib.Nifti1Image(volume, AFFINE), tmp_path / f"{kind}_{number}.nii.gz")
        cases.append({"image": f"image_{number}.nii.gz", "label": f"label_{number}.nii.gz", "name": f"head_{number}"})
    (tmp_path / "image_1.nii.gz").write_bytes((tmp_path / "image_1.nii.gz").read_bytes()[:5000])
    content = {"labels": THALAMI, "dataset": "heads", "modality": "MRI", "training": [], "validation": cases}
    (tmp_path / "cases.json").write_text(json.dumps(content))
    return tmp_path / "cases.json"


@pytest.fixture
def options(quick: dict[str, Any], random_weights: Path, case_list: Path) -> dict[str, Any]:
    """Overrides of every run here."""
    return {**quick, "weights": str(random_weights), "data_list": str(case_list)}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def run(bundle_dir: Path, output: Path, options: dict[str, Any]) -> None:
    files = [str(bundle_dir / "configs" / f"{name}.json") for name in CONFIGS]
    keys = {**options, "bundle_root": str(bundle_dir), "output_dir": str(output / "predictions")}
    workflow = ConfigWorkflow(config_file=files, workflow_type="infer", logging_file=False, **keys)
    workflow.initialize()
    workflow.run()


def test_cases_are_segmented_and_scored(bundle_dir: Path, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r".*") as caught:
        run(bundle_dir, tmp_path / "out", options)
    assert "1 of 3 cases failed" in str(find_user_error(caught.value))
    scores = tmp_path / "out" / "scores"
    assert [row["case"] for row in rows_of(scores / "not_scored.csv")] == ["head_1"]
    rows = rows_of(scores / "scores.csv")
    assert {row["case"] for row in rows} == {"head_0", "head_2"}
    ids = {row["structure"]: int(row["label"]) for row in rows_of(tmp_path / "out" / "predictions" / "summary.csv")}
    for row in rows:
        number, name = row["case"][-1], row["structure"]
        truth = np.asarray(nib.load(tmp_path / f"label_{number}.nii.gz").dataobj) == THALAMI[name]
        found = np.asarray(nib.load(tmp_path / "out" / "predictions" / f"head_{number}_seg.nii.gz").dataobj)
        expected = class_scores(found == ids[name], truth, [1], SPACING)[1]
        assert float(row["dsc"]) == pytest.approx(expected["dsc"])
        assert float(row["nsd"]) == pytest.approx(expected["nsd"])


def test_missing_weights_are_the_error_and_nothing_is_scored(
    bundle_dir: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=r".*") as caught:
        run(bundle_dir, tmp_path / "out", {**options, "weights": str(tmp_path / "absent.pt")})
    assert str(find_user_error(caught.value)).startswith("no weights at")
    assert not (tmp_path / "out" / "scores").exists()


@pytest.mark.slow
def test_two_processes_score_what_one_does(bundle_dir: Path, options: dict[str, Any], tmp_path: Path) -> None:
    """torchrun with ``multi_gpu_evaluate.json``: the tables are those of one process, byte for byte."""
    with pytest.raises(Exception, match=r".*"):
        run(bundle_dir, tmp_path / "one", options)
    configs = str([f"configs/{name}.json" for name in (*CONFIGS, "multi_gpu_evaluate")])
    given = {**options, "device": "cpu", "output_dir": tmp_path / "two" / "predictions"}
    pairs = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "monai.bundle", "run", "--config_file", configs, *pairs],
        cwd=bundle_dir,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "1 of 3 cases failed" in done.stderr + done.stdout
    for name in ("scores.csv", "summary.csv", "summary.json", "not_scored.csv"):
        assert (tmp_path / "two" / "scores" / name).read_bytes() == (tmp_path / "one" / "scores" / name).read_bytes()
