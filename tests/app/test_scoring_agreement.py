"""Scores of saved labels against the model's answers, on a real datastore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monailabel.datastore.local import LocalDatastore

from lib.scoring import methods
from scripts.text import Terminology

AFFINE = np.diag([2.0, 1.0, 1.0, 1.0])
LEFT, RIGHT, STEM = "Left hippocampus", "Right hippocampus", "Brain-stem"
SHAPE = (12, 12, 12)


@pytest.fixture
def datastore(tmp_path: Path) -> LocalDatastore:
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("one", "two"):
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), AFFINE), folder / f"{name}.nii.gz")
    return LocalDatastore(str(folder))


def save(
    store: LocalDatastore, image: str, tag: str, label: np.ndarray, info: Any, affine: np.ndarray = AFFINE
) -> None:
    file = Path(store._datastore_path).parent / "upload.nii.gz"
    nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), file)
    store.save_label(image, str(file), tag, info)


def answer(names: dict[str, int]) -> dict[str, Any]:
    """As the app saves its own answers."""
    return {"model": "medal_s_text_mri", "params": {"label_names": names}}


def drawn(*entries: tuple[str, int]) -> dict[str, Any]:
    """As viewers save."""
    return {"label_info": [{"name": name, "idx": value} for name, value in entries]}


def score(store: LocalDatastore, **request: Any) -> dict[str, Any]:
    return methods(Terminology.load(), "MRI")["agreement"](request, store)


def box(*sides: tuple[int, int]) -> tuple[slice, ...]:
    return tuple(slice(*side) for side in sides)


def test_scores_are_by_name_and_kept_with_the_image(datastore: LocalDatastore):
    truth, model = np.zeros(SHAPE), np.zeros(SHAPE)
    truth[box((2, 6), (2, 6), (2, 6))] = 5  # the same cube, another value
    model[box((2, 6), (2, 6), (2, 6))] = 1
    truth[box((8, 10), (2, 6), (2, 6))] = 7  # half of it was missed
    model[box((8, 9), (2, 6), (2, 6))] = 2
    save(datastore, "one", "original", model, answer({LEFT: 1, STEM: 2}))
    save(datastore, "one", "final", truth, drawn(("left hippocampus", 5), (STEM, 7)))
    result = score(datastore)
    assert result.keys() == {"one"}
    found = result["one"]["structures"]
    assert found[LEFT] == {"dsc": 1.0, "nsd": 1.0}
    assert found[STEM]["dsc"] == pytest.approx(2 / 3, abs=1e-3)
    assert result["one"]["dsc"] == pytest.approx((1 + 2 / 3) / 2, abs=1e-3)
    assert 0 < found[STEM]["nsd"] <= 1
    kept = LocalDatastore(str(datastore._datastore_path)).get_image_info("one")["agreement"]
    assert kept["structures"] == found


def test_a_structure_of_one_side_only_scores_nothing_whichever_side(datastore: LocalDatastore):
    truth, model = np.zeros(SHAPE), np.zeros(SHAPE)
    truth[box((2, 6), (2, 6), (2, 6))] = 1
    model[box((7, 9), (2, 6), (2, 6))] = 2
    names = {LEFT: 1, RIGHT: 2, STEM: 3}
    save(datastore, "one", "original", model, answer(names))
    save(datastore, "one", "final", truth, drawn(*names.items()))
    nothing = {"dsc": 0.0, "nsd": 0.0}
    assert score(datastore)["one"]["structures"] == {LEFT: nothing, RIGHT: nothing}


def test_what_the_reader_was_not_asked_for_does_not_count(datastore: LocalDatastore):
    truth, model = np.zeros(SHAPE), np.zeros(SHAPE)
    truth[box((2, 6), (2, 6), (2, 6))] = 1
    model[box((2, 6), (2, 6), (2, 6))] = 1
    model[box((7, 9), (2, 6), (2, 6))] = 2
    save(datastore, "one", "original", model, answer({LEFT: 1, RIGHT: 2}))
    save(datastore, "one", "final", truth, drawn((LEFT, 1)))
    assert score(datastore)["one"]["structures"].keys() == {LEFT}


def test_what_the_model_was_asked_for_and_missed_counts(datastore: LocalDatastore):
    """An answer names the values that it has; what else was asked for stands in ``understood``."""
    truth = np.zeros(SHAPE)
    truth[box((2, 6), (2, 6), (2, 6))] = 1
    info = {"params": {"label_names": {}, "understood": [{"name": LEFT}, {"name": STEM}]}}
    save(datastore, "one", "original", np.zeros(SHAPE), info)
    save(datastore, "one", "final", truth, drawn((LEFT, 1)))
    assert score(datastore)["one"]["structures"] == {LEFT: {"dsc": 0.0, "nsd": 0.0}}


def test_the_tolerance_is_in_millimetres(datastore: LocalDatastore):
    truth, model = np.zeros(SHAPE), np.zeros(SHAPE)
    truth[box((2, 6), (2, 6), (2, 6))] = 1
    model[box((3, 7), (2, 6), (2, 6))] = 1  # one voxel of 2 mm further
    save(datastore, "one", "original", model, answer({LEFT: 1}))
    save(datastore, "one", "final", truth, drawn((LEFT, 1)))
    assert score(datastore, tolerance_mm=2.1)["one"]["nsd"] == 1.0
    assert score(datastore, tolerance_mm=0.5)["one"]["nsd"] < 1.0


def test_a_pair_is_scored_again_only_when_it_changed(datastore: LocalDatastore):
    cube = np.zeros(SHAPE)
    cube[box((2, 6), (2, 6), (2, 6))] = 1
    save(datastore, "one", "original", cube, answer({LEFT: 1}))
    save(datastore, "one", "final", cube, drawn((LEFT, 1)))
    first = score(datastore)["one"]
    # Were the files read again, this would be seen.
    Path(datastore.get_label_uri("one", "final")).write_bytes(b"unreadable")
    assert score(datastore)["one"] == first
    datastore.update_label_info("one", "final", {"ts": 1})
    assert "error" in score(datastore)["one"]


def test_a_pair_that_cannot_be_scored_stops_no_other(datastore: LocalDatastore):
    cube = np.zeros(SHAPE)
    cube[box((2, 6), (2, 6), (2, 6))] = 1
    for image in ("one", "two"):
        save(datastore, image, "original", cube, answer({LEFT: 1}))
    save(datastore, "one", "final", cube[:6], drawn((LEFT, 1)))
    save(datastore, "two", "final", cube, drawn((LEFT, 1)))
    result = score(datastore)
    assert "resample it to the grid" in result["one"]["error"]
    assert result["one"]["dsc"] is None
    assert result["two"]["dsc"] == 1.0
