"""docs/tutorials: every page word for word, on a head or on tiny cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

Follow = Callable[..., list[str]]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head at 3 mm: the template that segment.md writes, coarser."""
    template = pytest.importorskip("nilearn.datasets").load_mni152_template(resolution=3)
    file = tmp_path_factory.mktemp("head") / "head.nii.gz"
    nib.save(nib.Nifti1Image(template.get_fdata(dtype=np.float32), template.affine), file)
    return file


@pytest.fixture
def images(shipped: Path, head: Path) -> Path:
    """``my_images`` with the head, and ``my_results``, beside the bundle."""
    (shipped / "my_images").mkdir()
    (shipped / "my_images" / "head.nii.gz").symlink_to(head)
    (shipped / "my_results").mkdir()
    return shipped


def report_of(file: Path) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in json.loads(file.read_text())["structures"]}


def test_segment(shipped: Path, follow: Follow) -> None:
    pytest.importorskip("nilearn")
    outputs = follow("tutorials/segment.md", shipped / "bundle")
    results = shipped / "my_results"
    found = report_of(results / "head_seg.json")
    assert sorted(found) == ["Brain-stem", "Left hippocampus", "Right hippocampus"]
    assert found["Left hippocampus"]["centroid_mm"][0] < 0 < found["Right hippocampus"]["centroid_mm"][0]
    assert all(name in outputs[4] for name in found)  # what the page prints of the report
    refined = report_of(results / "refined" / "head_seg.json")
    assert 0.5 < refined["Left hippocampus"]["volume_ml"] / found["Left hippocampus"]["volume_ml"] < 2
    assert list(report_of(results / "all" / "head_seg.json")) == ["Brain-stem"]
    assert "Brain-stem" in (results / "volumes.csv").read_text()


def test_correct(images: Path, follow: Follow) -> None:
    (output,) = follow("tutorials/correct.md", images / "bundle")
    assert "voxels added" in output
    labels = np.asarray(nib.load(images / "my_results" / "head_corrected.nii.gz").dataobj)
    found = report_of(images / "my_results" / "head_corrected.json")
    to_voxels = np.linalg.inv(nib.load(images / "my_images" / "head.nii.gz").affine)
    clicked = tuple(np.rint(to_voxels @ (-26.0, -18.0, -18.0, 1.0))[:3].astype(int))
    assert labels[clicked] == found["Left hippocampus"]["label"]


def test_fine_tune(
    tiny: Path,
    write_cases: Callable[[Path, int], None],
    blocks: Callable[[str], list[Any]],
    follow: Follow,
    small_runs: Any,
) -> None:
    cases = tiny / "my_cases"
    write_cases(cases, 3)
    (listed,) = (block.text for block in blocks("tutorials/fine_tune.md") if block.language == "json")
    (cases / "cases.json").write_text(listed)
    follow("tutorials/fine_tune.md", tiny / "bundle", small_runs)
    for when in ("before", "after"):
        assert "Left hippocampus" in (cases / when / "scores" / "summary.json").read_text()
    assert (cases / "run" / "model.pt").is_file()


def test_add_structure(tiny: Path, follow: Follow, small_runs: Any, head: Path) -> None:
    (tiny / "my_images").mkdir()
    (tiny / "my_images" / "head.nii.gz").symlink_to(head)
    outputs = follow("tutorials/add_structure.md", tiny / "bundle", small_runs)
    assert "1101" in outputs[1]
    assert "Right claustrum" in outputs[2]
    found = report_of(tiny / "my_words" / "answer" / "head_seg.json")
    assert {name: entry["label"] for name, entry in found.items()} == {
        "Left claustrum": 1101,
        "Right claustrum": 1102,
        "Brain-stem": 13,
    }
