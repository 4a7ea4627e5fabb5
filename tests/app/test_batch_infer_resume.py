"""Batch inference through MONAI Label's app: it goes on past bad images, and on from where it was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from lib.activelearning import BatchInference
from scripts.errors import InputError
from scripts.transforms.reading import LoadVolume

SHAPE = (8, 8, 8)


class Threshold(InferTask):
    """A model that takes a moment to describe: what is brighter than the request's threshold."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(InferType.SEGMENTATION, ["bright"], 3, "brighter than a threshold")
        self.scratch, self.asked = scratch, 0

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        self.asked += 1
        volume: Any = LoadVolume()(request["image"])
        if float(volume.max()) == 0:
            raise InputError("the image is empty")
        label = (volume[0].numpy() > request.get("threshold", 0.5)).astype(np.uint8)
        file = self.scratch / f"answer_{self.asked}.nii.gz"
        nib.save(nib.Nifti1Image(label, volume.affine.numpy()), file)
        return str(file), {"label_names": {"bright": 1}}


class App(MONAILabelApp):
    """The base app with one model and our batch."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.model, self.version = Threshold(scratch), 1
        super().__init__(str(scratch), str(folder), {})

    def init_infers(self) -> dict[str, InferTask]:
        return {"bright": self.model}

    def init_batch_infer(self) -> BatchInference:
        return BatchInference(lambda: {"weights": self.version})


@pytest.fixture
def app(tmp_path: Path) -> App:
    folder, scratch = tmp_path / "studies", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "c", "d"):
        nib.save(nib.Nifti1Image(rng.random(SHAPE).astype(np.float32), np.eye(4)), folder / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.eye(4)), folder / "b.nii.gz")
    return App(folder, scratch)


def statuses(result: Mapping[str, Any]) -> dict[str, str]:
    return {image: entry["status"] for image, entry in result.items()}


# What MONAI Label's endpoint sends where the client says nothing.
PLAIN = {
    "model": "bright",
    "device": "cpu",
    "multi_gpu": True,
    "gpus": "all",
    "label_tag": "original",
    "max_workers": 1,
}


def test_one_bad_image_stops_no_other(app: App):
    result = app.batch_infer(dict(PLAIN))
    assert statuses(result) == {"a": "done", "b": "failed", "c": "done", "d": "done"}
    assert result["b"]["error"] == "the image is empty"
    store = app.datastore()
    for image in ("a", "c", "d"):
        label = nib.load(store.get_label_uri(image, "original")).get_fdata()
        image_values = nib.load(store.get_image_uri(image)).get_fdata()
        assert np.array_equal(label, image_values > 0.5)
    assert not list((Path(app.app_dir)).glob("answer_*"))


def test_a_batch_goes_on_where_it_was_stopped(app: App):
    first = app.batch_infer({**PLAIN, "max_batch_size": 1})
    assert statuses(first) == {"a": "done"}
    rest = app.batch_infer(dict(PLAIN))
    assert statuses(rest) == {"a": "skipped", "b": "failed", "c": "done", "d": "done"}
    asked = app.model.asked
    again = app.batch_infer({**PLAIN, "client_id": "somebody else"})
    assert statuses(again) == {"a": "skipped", "b": "failed", "c": "skipped", "d": "skipped"}
    assert app.model.asked == asked + 1


def test_another_question_or_other_weights_are_asked_anew(app: App):
    app.batch_infer(dict(PLAIN))
    assert statuses(app.batch_infer({**PLAIN, "threshold": 0.9}))["a"] == "done"
    label = nib.load(app.datastore().get_label_uri("a", "original")).get_fdata()
    assert np.array_equal(label, nib.load(app.datastore().get_image_uri("a")).get_fdata() > 0.9)
    app.version = 2
    assert statuses(app.batch_infer({**PLAIN, "threshold": 0.9}))["a"] == "done"
    assert statuses(app.batch_infer({**PLAIN, "threshold": 0.9}))["a"] == "skipped"
    assert statuses(app.batch_infer({**PLAIN, "threshold": 0.9, "again": True}))["a"] == "done"


def test_images_with_a_final_label_can_be_left_alone(app: App):
    app.datastore().save_label("a", app.datastore().get_image_uri("a"), "final", {})
    assert "a" not in app.batch_infer({**PLAIN, "images": "unlabeled"})
    assert statuses(app.batch_infer({**PLAIN, "images": ["c"], "again": True})) == {"c": "done"}


def test_a_model_that_is_not_there_fails_the_batch_at_once(app: App):
    with pytest.raises(MONAILabelException, match="no model 'dark'"):
        app.batch_infer({**PLAIN, "model": "dark"})
    assert app.model.asked == 0
