"""MONAI Label's own bundle task, which knows nothing of words, gets an answer about all that the weights know."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monailabel.tasks.infer.bundle import BundleInferTask

from scripts.interactive import Session
from scripts.metadata import read_metadata, trained_structures

AFFINE = np.array([[0, 0, 3.0, -60], [-3.0, 0, 0, 60], [0, 3.0, 0, -60], [0, 0, 0, 1]])


@pytest.mark.slow
def test_default_targets(bundle_dir: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(100, 20, (34, 38, 30)).clip(0).astype(np.float32)
    values[8:26, 8:30, 6:24] += 150
    image = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(values, AFFINE), image)
    task = BundleInferTask(str(bundle_dir), {})
    known = trained_structures(read_metadata(bundle_dir))
    assert list(task.labels) == [name.lower() for name in known]
    file, answer = task({"image": str(image), "device": "cpu", "model": "medal_s"})
    found = nib.load(file)
    assert found.shape == values.shape
    assert np.array_equal(found.affine, AFFINE)
    session = Session.from_bundle(bundle_dir, device="cpu", stages=[1])
    session.set_image(image)
    assert np.array_equal(np.asarray(found.dataobj), session.segment(known).label_map)
    assert answer["label_names"] == task.labels
    assert not (bundle_dir / "eval" / "image_seg.nii.gz").exists(), "the task writes the answer, not the bundle"
    Path(file).unlink()
