"""MONAI Label's own Python client, and the examples of the README, against the running server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException

pytestmark = pytest.mark.e2e
MODEL = "medal_s_mri"


@pytest.fixture
def client(folder_server: Any, tmp_path: Path) -> MONAILabelClient:
    return MONAILabelClient(folder_server.url, tmpdir=str(tmp_path), client_id="test")


def values(file: str) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def test_info_lists_what_viewers_need(client: MONAILabelClient) -> None:
    info = client.info()
    kinds = {model["type"] for model in info["models"].values()}
    assert {"segmentation", "vista3d", "deepedit", "scribbles"} <= kinds
    for model in info["models"].values():
        ids = [value for name, value in model["labels"].items() if name != "background"]
        assert len(set(ids)) == len(ids) <= 255
        assert min(ids) >= 1
    assert isinstance(info["labels"], list)
    assert all(info[part] for part in ("trainers", "strategies", "scoring"))


def test_next_sample_and_infer(client: MONAILabelClient, folder_with_heads: Path) -> None:
    sample = client.next_sample("first", {})
    file, answer = client.infer(MODEL, sample["id"], {"prompt": "both hippocampi – and the brain-stem"})
    image, found = nib.load(folder_with_heads / f"{sample['id']}.nii.gz"), nib.load(file)
    assert found.shape == image.shape
    assert np.array_equal(found.affine, image.affine)
    assert sorted(answer["label_names"]) == ["Brain-stem", "Left hippocampus", "Right hippocampus"]
    for name, value in answer["label_names"].items():
        measured = answer["structures"][name]
        voxels = int((values(file) == value).sum())
        assert voxels == measured["voxels"] > 0
        assert measured["volume_ml"] == pytest.approx(voxels * 64 / 1000, rel=1e-3)
        assert 0.5 <= measured["mean_probability"] <= 1
    assert answer["latencies"]["total"] > 0


def test_orientation_of_the_file_changes_nothing(client: MONAILabelClient) -> None:
    found = []
    for image in ("head_a", "head_b"):
        file, answer = client.infer(MODEL, image, {"prompt": "both hippocampi"})
        found.append({n: np.asarray(s["centroid_mm"]) for n, s in answer["structures"].items()})
        assert nib.load(file).shape == ((50, 59, 48) if image == "head_a" else (59, 48, 50))
    for name in found[0]:
        assert np.linalg.norm(found[0][name] - found[1][name]) < 2.0


def test_session_and_uploaded_file_give_the_answer_of_the_datastore(
    client: MONAILabelClient, folder_with_heads: Path
) -> None:
    path = str(folder_with_heads / "head_a.nii.gz")
    question = {"prompt": "the brain-stem"}
    expected = values(client.infer(MODEL, "head_a", dict(question))[0])
    session = client.create_session(path)["session_id"]
    assert np.array_equal(values(client.infer(MODEL, "", dict(question), session_id=session)[0]), expected)
    assert np.array_equal(values(client.infer(MODEL, "", dict(question), file=path)[0]), expected)
    client.remove_session(session)


def test_label_upload_is_a_mask_prompt(client: MONAILabelClient, tmp_path: Path) -> None:
    first, answer = client.infer(MODEL, "head_a", {"prompt": "left hippocampus"})
    info = [{"name": name, "idx": value} for name, value in answer["label_names"].items()]
    again, _ = client.infer(MODEL, "head_a", {"prompt": "left hippocampus", "label_info": info}, label_in=first)
    before, after = values(first) > 0, values(again) > 0
    assert 2 * (before & after).sum() / (before.sum() + after.sum()) > 0.5


def test_save_and_download(client: MONAILabelClient) -> None:
    file, answer = client.infer(MODEL, "head_b", {"prompt": "both hippocampi"})
    info = [{"name": name, "idx": value} for name, value in answer["label_names"].items()]
    client.save_label("head_b", file, params={"label_info": info})
    assert np.array_equal(values(client.download_label("head_b", "final")), values(file))
    assert client.datastore()["objects"]["head_b"]["labels"]["final"]["info"]["label_info"] == info


@pytest.mark.parametrize(
    ("model", "image", "params", "status", "words"),
    [
        (MODEL, "head_a", {"prompt": "hippocampus of the unicorn and the flux capacitor"}, 400, "hippocampus"),
        (MODEL, "no_such_head", {"prompt": "brain-stem"}, 404, "no such image"),
        ("no_such_model", "head_a", {"prompt": "brain-stem"}, 404, "no_such_model"),
        (MODEL, "../../etc/passwd", {"prompt": "brain-stem"}, None, ""),
        ("medal_s_points_mri", "head_a", {"label_prompt": [14], "points": [[900, 1, 1]], "point_labels": [1]}, 400, ""),
    ],
)
def test_wrong_questions_get_one_clear_line(
    client: MONAILabelClient, model: str, image: str, params: dict[str, Any], status: int | None, words: str
) -> None:
    with pytest.raises(MONAILabelClientException) as refused:
        client.infer(model, image, params)
    text = str(refused.value)
    found = int(text.split("Status: ")[1][:3])
    assert found == status if status else 400 <= found < 500
    assert words.lower() in text.lower()
    assert "Traceback" not in text


def test_examples_of_the_readme(folder_server: Any, folder_with_heads: Path, tmp_path: Path) -> None:
    """The REST examples of apps/medal_s_label/README.md, as `requests` sends what `curl -F` sends."""
    url = f"{folder_server.url}/infer/{MODEL}?image=head_a"
    form = {"params": (None, json.dumps({"prompt": "both hippocampi", "result_extension": ".nii.gz"}))}
    label = requests.post(f"{url}&output=image", files=form, timeout=120)
    (tmp_path / "seg.nii.gz").write_bytes(label.content)
    assert set(np.unique(values(str(tmp_path / "seg.nii.gz")))) == {0, 1, 2}
    report = requests.post(f"{url}&output=json", files=form, timeout=120).json()
    assert report["label_names"] == {"Left hippocampus": 1, "Right hippocampus": 2}
    info = [{"name": name, "idx": value} for name, value in report["label_names"].items()]
    saved = requests.put(
        f"{folder_server.url}/datastore/label?image=head_a&tag=final",
        files={"params": (None, json.dumps({"label_info": info})), "label": (tmp_path / "seg.nii.gz").open("rb")},
        timeout=120,
    )
    assert saved.json() == {"image": "head_a", "label": "head_a"}
