"""The strategy and the measurement behind it, on the shipped weights and small heads from label maps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monailabel.datastore.local import LocalDatastore

from lib.activelearning import Uncertainty, strategies
from lib.activelearning.uncertainty import disagreement
from scripts.pipeline import Pipeline
from scripts.text import Terminology

NAMES = ["Left hippocampus", "Right hippocampus", "Brain-stem"]


@pytest.fixture(scope="module")
def pipeline(bundle_dir: Path) -> Pipeline:
    return Pipeline.from_bundle(bundle_dir, device="cpu", stages=[1])


@pytest.fixture(scope="module")
def head(shared: Path) -> nib.Nifti1Image:
    """The middle of a T1-like head at 4 mm, painted from a label map; one window of the network."""
    file = sorted((shared / "data" / "brain_label_maps").glob("*.nii.gz"))[0]
    source = nib.load(file).slicer[::4, ::4, ::4]
    label = np.asarray(source.dataobj).astype(int)
    middle = np.argwhere(label > 0).mean(axis=0).astype(int)
    cut = tuple(slice(max(0, at - 22), at + 22) for at in middle)
    grey = np.random.default_rng(0).permutation(np.linspace(20, 250, label.max() + 1))
    image = np.where(label > 0, grey[label], 0).astype(np.float32)
    return nib.Nifti1Image(image, source.affine).slicer[cut]


@pytest.fixture
def datastore(head: nib.Nifti1Image, tmp_path: Path) -> LocalDatastore:
    """A head, noise, and a file that is no image."""
    folder = tmp_path / "studies"
    folder.mkdir()
    nib.save(head, folder / "b_head.nii.gz")
    noise = np.random.default_rng(1).normal(100, 1, (16, 16, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, head.affine), folder / "a_noise.nii.gz")
    (folder / "c_broken.nii.gz").write_bytes(b"no image")
    return LocalDatastore(str(folder))


class App:
    """What the strategy is given, and how often the network was used."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.loaded, self.asked, self.version = pipeline, 0, 1

    @contextlib.contextmanager
    def turn(self) -> Iterator[Pipeline]:
        self.asked += 1
        yield self.loaded

    def uncertainty(self) -> Uncertainty:
        return Uncertainty(self.turn, lambda _: NAMES, Terminology.load(), "MRI", lambda: {"weights": self.version})


def label(store: LocalDatastore, image: str) -> None:
    store.save_label(image, store.get_image_uri("b_head"), "final", {})


def test_masked_predictions_are_compared_and_the_pipeline_stays_as_it_was(pipeline: Pipeline, head, tmp_path: Path):
    nib.save(head, tmp_path / "head.nii.gz")
    settings = dict(vars(pipeline.inferer))
    found = disagreement(pipeline, tmp_path / "head.nii.gz", NAMES, "MRI")
    assert dict(vars(pipeline.inferer)) == settings
    assert found.keys() <= set(NAMES)
    assert found, "nothing was found in the head"
    assert all(0 <= value <= 1 for value in found.values())
    assert max(found.values()) > 0
    assert disagreement(pipeline, tmp_path / "head.nii.gz", NAMES, "MRI") == found


def test_the_least_certain_study_is_proposed_and_nothing_is_measured_twice(
    pipeline: Pipeline, datastore: LocalDatastore
):
    app = App(pipeline)
    strategy = strategies(app.uncertainty())["least_certain"]
    first = strategy({"strategy": "least_certain", "seconds": 600}, datastore)
    values = {image: datastore.get_image_info(image)["uncertainty"] for image in datastore.list_images()}
    assert app.asked == 3
    best = max((one["value"] for one in values.values() if one["value"] is not None), default=None)
    assert first is not None
    assert values[first["id"]]["value"] == best == first["weight"]
    assert "error" in values["c_broken"]
    # Another process, the same datastore: nothing is computed again.
    again = strategies(app.uncertainty())["least_certain"]({}, LocalDatastore(str(datastore._datastore_path)))
    assert again == first
    assert app.asked == 3


def test_labelled_studies_are_not_proposed_and_none_is_left_at_last(pipeline: Pipeline, datastore: LocalDatastore):
    strategy = strategies(App(pipeline).uncertainty())["least_certain"]
    proposed = []
    while found := strategy({"seconds": 600}, datastore):
        proposed.append(found["id"])
        label(datastore, found["id"])
    assert sorted(proposed) == ["a_noise", "b_head", "c_broken"]
    assert proposed[-1] == "c_broken"  # what cannot be read comes last


def test_measuring_stops_when_the_time_is_over_and_goes_on_at_the_next_request(
    pipeline: Pipeline, datastore: LocalDatastore
):
    app = App(pipeline)
    strategy = strategies(app.uncertainty())["least_certain"]
    assert strategy({"seconds": 0}, datastore) is not None
    assert app.asked == 0
    for count in (1, 2, 3, 3):
        strategy({"seconds": 0.005}, datastore)  # enough to begin one measurement, which then takes longer
        assert app.asked == count


def test_new_weights_make_measurements_old_but_not_useless(pipeline: Pipeline, datastore: LocalDatastore):
    app = App(pipeline)
    strategy = strategies(app.uncertainty())["least_certain"]
    first = strategy({"seconds": 600}, datastore)
    app.version = 2
    assert strategy({"seconds": 0}, datastore) == first
    strategy({"seconds": 600}, datastore)
    assert app.asked == 6


def test_among_equals_the_one_that_was_not_proposed_yet_comes_first(pipeline: Pipeline, datastore: LocalDatastore):
    uncertainty = App(pipeline).uncertainty()
    strategy = strategies(uncertainty)["least_certain"]
    assert strategy({"seconds": 0}, datastore)["id"] == "a_noise"
    # As the server's endpoint notes it.
    datastore.update_image_info("a_noise", {"strategy": {"least_certain": {"ts": 5}}})
    assert strategy({"seconds": 0}, datastore)["id"] == "b_head"
