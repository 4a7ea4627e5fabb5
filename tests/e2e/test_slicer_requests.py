"""3D Slicer's requests, as its plugin sends them: its client is MONAI Label's, the parameters are in its order.

The plugin sends a model's whole `config` (of a list the first item), then the format of the result, and maps value k
of the answer to the k-th name of `label_names`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
from monailabel.client import MONAILabelClient

pytestmark = pytest.mark.e2e


@pytest.fixture
def client(folder_server: Any, tmp_path: Path) -> MONAILabelClient:
    return MONAILabelClient(folder_server.url, tmpdir=str(tmp_path), client_id="slicer-1")


class Slicer:
    """What the plugin does between the user's button and the segments on the screen."""

    def __init__(self, client: MONAILabelClient) -> None:
        self.client = client
        self.info = client.info()

    def models(self, *kinds: str) -> dict[str, Any]:
        return {name: model for name, model in self.info["models"].items() if model["type"] in kinds}

    def params(self, model: str, **more: Any) -> dict[str, Any]:
        """Options as the developer mode shows them, then what the button adds."""
        config = self.info["models"][model]["config"]
        options = {key: value[0] if isinstance(value, list) else value for key, value in config.items()}
        return {**options, **more, "result_extension": ".nrrd", "result_dtype": "uint8"}

    def infer(self, model: str, image: str, label_in: str | None = None, **more: Any) -> dict[str, np.ndarray]:
        """Segments by name."""
        file, answer = self.client.infer(model, image, self.params(model, **more), label_in=label_in)
        assert file, "the plugin cannot use an answer without an image"
        labels = np.asarray(itk.array_from_image(itk.imread(file))).transpose(2, 1, 0)
        names = answer.get("label_names") or self.info["models"][model]["labels"]
        ordered = [name for name, _ in sorted(names.items(), key=lambda item: item[1]) if name != "background"]
        assert labels.max() <= len(ordered), "value k goes to the k-th name"
        return {name: labels == k for k, name in enumerate(ordered, start=1)}


@pytest.fixture
def slicer(client: MONAILabelClient) -> Slicer:
    return Slicer(client)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def test_every_section_of_the_plugin_has_a_model(slicer: Slicer) -> None:
    assert slicer.models("segmentation")
    assert slicer.models("deepgrow", "deepedit")
    assert slicer.models("scribbles")


def test_auto_segmentation_with_and_without_a_text(slicer: Slicer) -> None:
    (model,) = slicer.models("segmentation")
    everything = slicer.infer(model, "head_a")
    assert len(everything) >= 20
    asked = slicer.infer(model, "head_a", prompt="both hippocampi")
    assert list(asked) == ["Left hippocampus", "Right hippocampus"]
    for name, mask in asked.items():
        assert overlap(mask, everything[name]) > 0.7


def test_smart_edit_adds_and_takes_away(slicer: Slicer) -> None:
    (model,) = slicer.models("deepedit")
    labels = [name for name in slicer.info["models"][model]["labels"] if name != "background"]
    empty: dict[str, Any] = {name: [] for name in ["background", *labels]}
    name = "Left thalamus"
    before = slicer.infer("medal_s_mri", "head_a", prompt=name)[name]
    inside = np.argwhere(before)[len(np.argwhere(before)) // 2].tolist()
    grown = slicer.infer(model, "head_a", **{**empty, name: [inside]}, label=name)
    assert grown[name][tuple(inside)]
    without = slicer.infer(
        model, "head_a", **{**empty, name: [[*inside[:2], inside[2]]], "background": [inside]}, label=name
    )
    assert not without[name][tuple(inside)]


def test_scribbles(slicer: Slicer, folder_with_heads: Path, tmp_path: Path) -> None:
    (model,) = slicer.models("scribbles")
    image = nib.load(folder_with_heads / "head_a.nii.gz")
    name = "Left putamen"
    present = slicer.infer("medal_s_mri", "head_a", prompt=name)[name]
    edge = np.argwhere(present)[-1]
    drawn = np.zeros(image.shape, np.uint8)
    drawn[present] = 3
    stroke = tuple(np.clip(edge + step, 0, np.array(image.shape) - 1) for step in range(2))
    for place in stroke:
        drawn[tuple(place)] = 2
    nib.save(nib.Nifti1Image(drawn, image.affine), tmp_path / "scribbles.nii.gz")
    info = [{"name": n, "id": k} for k, n in enumerate(["background_scribbles", "foreground_scribbles", name], 1)]
    answer = slicer.infer(
        model,
        "head_a",
        label_in=str(tmp_path / "scribbles.nii.gz"),
        roi=[],
        label_info=info,
        selected_label_name=name,
    )
    assert all(answer[name][tuple(place)] for place in stroke)
    assert overlap(answer[name], present) > 0.4


def test_a_local_volume_through_a_session(slicer: Slicer, client: MONAILabelClient, folder_with_heads: Path) -> None:
    session = client.create_session(str(folder_with_heads / "head_b.nii.gz"))["session_id"]
    params = slicer.params("medal_s_mri", prompt="the brain-stem")
    file, answer = client.infer("medal_s_mri", "", params, session_id=session)
    assert answer["label_names"] == {"Brain-stem": 1}
    assert set(np.unique(itk.array_from_image(itk.imread(file)))) == {0, 1}


def test_submit_label(slicer: Slicer, client: MONAILabelClient, folder_with_heads: Path, tmp_path: Path) -> None:
    image = nib.load(folder_with_heads / "head_a.nii.gz")
    asked = slicer.infer("medal_s_mri", "head_a", prompt="both hippocampi")
    drawn = np.zeros(image.shape, np.uint8)
    for k, mask in enumerate(asked.values(), start=1):
        drawn[mask] = k
    nib.save(nib.Nifti1Image(drawn, image.affine), tmp_path / "label.nii.gz")
    info = [{"name": name, "idx": k} for k, name in enumerate(asked, start=1)]
    client.save_label("head_a", str(tmp_path / "label.nii.gz"), params={"label_info": info, "model": "medal_s_mri"})
    back = nib.load(client.download_label("head_a", "final"))
    assert np.array_equal(np.asarray(back.dataobj), drawn)
