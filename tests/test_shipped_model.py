"""The shipped weights on a real head: what was asked for is where anatomy puts it, and left is the patient's left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from scripts.data.demo import PROMPTS, write_template

pytest.importorskip("nilearn", reason="the real head is nilearn's MNI152 template: pip install nilearn")


def segment(bundle_dir: Path, image: Path, output: Path, prompts: list[str]) -> dict[str, dict[str, Any]]:
    """Report entries by structure name."""
    workflow = ConfigWorkflow(
        config_file=str(bundle_dir / "configs" / "inference.json"),
        workflow_type="infer",
        bundle_root=str(bundle_dir),
        image=str(image),
        prompts=prompts,
        output_dir=str(output),
        progress=False,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    report = json.loads((output / f"{image.name.split('.')[0]}_seg.json").read_text())
    return {entry["name"]: entry for entry in report["structures"]}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_template(tmp_path_factory.mktemp("head") / "head.nii.gz")


@pytest.fixture(scope="module")
def found(bundle_dir: Path, head: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The demo's structures and the amygdalae."""
    return segment(bundle_dir, head, tmp_path_factory.mktemp("out"), [*PROMPTS, "amygdalae"])


def test_every_structure_is_found_on_both_sides(found: dict):
    assert len(found) == 17
    assert [name for name, entry in found.items() if not entry["voxels"]] == []


def test_left_and_right_never_swap(found: dict):
    """RAS millimetres of the template: the patient's left is at negative x."""
    sides = {name: entry["centroid_mm"][0] for name, entry in found.items() if name.startswith(("Left", "Right"))}
    assert len(sides) == 14
    assert all(x < 0 for name, x in sides.items() if name.startswith("Left"))
    assert all(x > 0 for name, x in sides.items() if name.startswith("Right"))


def test_volumes_are_those_of_an_adult_brain(found: dict):
    """Generous ranges in ml around published adult means; a collapsed or leaking structure falls outside."""
    ranges = {
        "Left cerebellum cortex": (25, 100),
        "Left thalamus": (3, 15),
        "Left putamen": (2, 10),
        "Left hippocampus": (1.5, 8),
        "Brain-stem": (12, 40),
        "3rd ventricle": (0.3, 5),
    }
    for name, (low, high) in ranges.items():
        for side in {name, name.replace("Left", "Right")}:
            assert low < found[side]["volume_ml"] < high, (side, found[side]["volume_ml"])


def test_sides_resemble_each_other(found: dict):
    for name, entry in found.items():
        if name.startswith("Left"):
            other = found[name.replace("Left", "Right")]["volume_ml"]
            assert 0.4 < entry["volume_ml"] / other < 2.5, name


def test_neighbours_are_neighbours(found: dict):
    """Front to back and bottom to top, in RAS millimetres."""
    y = {name: entry["centroid_mm"][1] for name, entry in found.items()}
    z = {name: entry["centroid_mm"][2] for name, entry in found.items()}
    for side in ("Left", "Right"):
        assert y[f"{side} caudate"] > y[f"{side} thalamus"] > y[f"{side} cerebellum cortex"]
        assert y[f"{side} amygdala"] > y[f"{side} hippocampus"]
        assert z[f"{side} thalamus"] > z[f"{side} hippocampus"] > z[f"{side} cerebellum cortex"]
    assert z["3rd ventricle"] > z["4th ventricle"]


def test_nothing_lies_outside_the_head(head: Path, bundle_dir: Path, tmp_path: Path):
    found = segment(bundle_dir, head, tmp_path, ["both hippocampi", "brain-stem"])
    labels = np.asarray(nib.load(tmp_path / "head_seg.nii.gz").dataobj)
    image = np.asarray(nib.load(head).dataobj)
    assert labels.shape == image.shape
    assert set(np.unique(labels)) == {0, *(entry["label"] for entry in found.values())}
    assert (labels[image <= 0] > 0).mean() < 1e-4


def test_a_mirrored_head_keeps_the_patients_left_on_the_left(head: Path, bundle_dir: Path, tmp_path: Path):
    """The voxels mirrored, the affine unchanged: another patient, whose left hippocampus is still at negative x."""
    image = nib.load(head)
    mirrored = np.asarray(image.dataobj)[::-1]
    affine = image.affine.copy()
    affine[0, 3] = -(affine[0, 3] + affine[0, 0] * (mirrored.shape[0] - 1))
    nib.save(nib.Nifti1Image(np.ascontiguousarray(mirrored), affine), tmp_path / "mirror.nii.gz")
    found = segment(bundle_dir, tmp_path / "mirror.nii.gz", tmp_path, ["hippocampi", "left putamen"])
    assert found["Left hippocampus"]["centroid_mm"][0] < -10
    assert found["Right hippocampus"]["centroid_mm"][0] > 10
    assert found["Left putamen"]["centroid_mm"][0] < -10


def test_what_was_not_trained_is_refused_by_name(head: Path, bundle_dir: Path, tmp_path: Path):
    with pytest.raises(RuntimeError) as caught:
        segment(bundle_dir, head, tmp_path, ["liver"])
    messages, error = [], caught.value
    while error is not None:
        messages.append(str(error))
        error = error.__cause__
    assert any("Liver" in message and "hippocampus" in message for message in messages)
    assert not list(tmp_path.iterdir())
