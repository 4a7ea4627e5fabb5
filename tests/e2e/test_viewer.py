"""OHIF in a headless Chromium: connect, type a prompt, run, class prompts, point prompts, save, open the saved SEG.

The pictures of the documentation are taken here: set MEDAL_S_PICTURES to the folder that shall have them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import requests

from clinic.viewer import AUTO, CLASSES, POINTS, Viewer, browse

pytestmark = pytest.mark.e2e
TEXT, CLICKS = "medal_s_mri", "medal_s_points_mri"
PROMPT = "both hippocampi and the brain-stem"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("MEDAL_S_PICTURES")
    return Path(given) if given else tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def labels(clinic: Any) -> dict[str, int]:
    models = requests.get(f"{clinic.server.url}/info/").json()["models"]
    return {name: int(value) for name, value in models[TEXT]["labels"].items()}


@pytest.fixture(scope="module")
def viewer(clinic: Any, pictures: Path) -> Iterator[Viewer]:
    pytest.importorskip("playwright")
    try:
        with browse(clinic.server.url) as opened:
            opened.open(clinic.study)
            opened.picture(pictures / "ohif_connected.png")
            yield opened
    except RuntimeError as e:
        pytest.skip(str(e))


def volume(answer: bytes, folder: Path) -> np.ndarray:
    """The label map ``[x, y, z]`` that the viewer got."""
    path = folder / "answer.nrrd"
    path.write_bytes(answer)
    return np.asarray(itk.array_from_image(itk.imread(str(path)))).transpose(2, 1, 0)


def sent(viewer: Viewer) -> dict[str, Any]:
    """The parameters of the viewer's last request."""
    body = viewer.requests[-1].post_data
    return json.loads(body[body.index("{") : body.rindex("}") + 1])


def test_text_prompt(viewer: Viewer, clinic: Any, labels: dict[str, int], pictures: Path, tmp_path: Path) -> None:
    viewer.set_option(TEXT, "prompt", PROMPT, pictures / "ohif_prompt.png")
    found = volume(viewer.run(viewer.choose(AUTO, TEXT)), tmp_path)
    viewer.picture(pictures / "ohif_text.png")
    assert sent(viewer)["prompt"] == PROMPT
    wanted = {labels[name] for name in ("Left hippocampus", "Right hippocampus", "Brain-stem")}
    assert set(np.unique(found)) == wanted | {0}
    file, answer = clinic.client.infer(TEXT, clinic.series, {"prompt": PROMPT})
    reference = np.asarray(nib.load(file).dataobj)
    for name, value in answer["label_names"].items():
        assert np.array_equal(found == labels[name], reference == value)


def test_class_prompt_after_a_text(viewer: Viewer, labels: dict[str, int], pictures: Path, tmp_path: Path) -> None:
    body = viewer.choose(CLASSES, TEXT)
    viewer.tick(body, "Left thalamus")
    found = volume(viewer.run(body), tmp_path)
    viewer.picture(pictures / "ohif_classes.png")
    assert sent(viewer)["label_prompt"] == [labels["Left thalamus"]]
    assert (found == labels["Left thalamus"]).sum() > 100, "the ticked class must come whatever text was typed before"


def test_point_prompt(viewer: Viewer, labels: dict[str, int], pictures: Path, tmp_path: Path) -> None:
    body = viewer.choose(POINTS, CLICKS)
    viewer.click_image(body, "Left caudate", 0.60, 0.47)
    found = volume(viewer.run(body), tmp_path)
    viewer.picture(pictures / "ohif_points.png")
    params = sent(viewer)
    assert params["label_prompt"] == [labels["Left caudate"]]
    (point,) = params["points"]
    assert found[tuple(point)] == labels["Left caudate"], "the clicked voxel belongs to the structure"


def test_words_that_mean_nothing_are_refused_with_suggestions(viewer: Viewer) -> None:
    viewer.set_option(TEXT, "prompt", "hippocampus of the unicorn and the flux capacitor")
    with pytest.raises(RuntimeError, match=r"400.*[Hh]ippocampus"):
        viewer.run(viewer.choose(AUTO, TEXT))
    viewer.set_option(TEXT, "prompt", PROMPT)
    viewer.run(viewer.choose(AUTO, TEXT))  # and it goes on


def test_saved_label_opens_again(viewer: Viewer, clinic: Any, pictures: Path) -> None:
    clinic.forget_segs()
    file, answer = clinic.client.infer(TEXT, clinic.series, {"prompt": PROMPT})
    info = [{"name": name, "idx": value} for name, value in answer["label_names"].items()]
    clinic.client.save_label(clinic.series, file, params={"label_info": info})
    viewer.open_saved(clinic.study, "Right hippocampus")
    viewer.picture(pictures / "ohif_saved.png")
    text = viewer.page.inner_text("body")
    for name in answer["label_names"]:
        assert name in text
