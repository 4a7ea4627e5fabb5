"""The infer tasks on a network whose answer is known: what comes back, where it lies, and how it can be corrected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest

from lib.configs import ModelConfig, plan_models
from lib.infers import MedalSInfer, Service
from scripts.text import Terminology

OHIF = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}
SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz"}
THALAMUS, PUTAMEN, STEM, HIPPOCAMPUS = "Left thalamus", "Left putamen", "Brain-stem", "Left hippocampus"
EMPTY = (20, 12, 16)  # a voxel where nothing is

Ask = Callable[..., Any]
Save = Callable[..., str]


def test_text_finds_what_it_names(ask: Ask, save: Save, head: dict[str, Any]) -> None:
    answer = ask("text", save(), prompt="brain stem and the left putamen")
    assert answer.names == {STEM: 1, PUTAMEN: 2}
    for name in answer.names:
        assert np.array_equal(answer.mask(name), head["truth"](name)), name
    assert np.allclose(answer.affine, head["affine"])


def test_the_answer_says_what_was_understood_and_measured(ask: Ask, save: Save) -> None:
    params = ask("text", save(), prompt="the left putamen, left hippocampus, right thalamus").params
    assert json.loads(json.dumps(params, allow_nan=False)) == params
    assert [item["name"] for item in params["understood"]] == [PUTAMEN, HIPPOCAMPUS, "Right thalamus"]
    found = params["structures"][PUTAMEN]
    assert (found["voxels"], found["volume_ml"]) == (512, 0.512)
    assert found["mean_probability"] == pytest.approx(0.9975, abs=1e-3)
    assert found["centroid_mm"] == pytest.approx([6.5, -11.5, -9.5])
    assert params["centroids"][PUTAMEN] == ["1", "31.5", "15.5", "23.5"]
    assert params["structures"]["Right thalamus"]["voxels"] is None
    assert "Right thalamus" not in params["label_names"]
    assert set(params["latencies"]) == {"read", "wait", "infer", "write", "total"}


def test_slicers_values_are_1_to_k_and_ohifs_are_the_models(
    ask: Ask, save: Save, models: dict[str, ModelConfig]
) -> None:
    image = save()
    slicer = ask("text", image, prompt="brainstem, right putamen, left thalamus", **SLICER)
    assert list(slicer.names.values()) == [1, 2]
    assert sorted(np.unique(slicer.labels)) == [0, 1, 2]
    ohif = ask("text", image, prompt="brainstem, right putamen, left thalamus", **OHIF)
    assert ohif.names == {name: models["text"].labels[name] for name in (STEM, "Right putamen", THALAMUS)}
    assert set(np.unique(ohif.labels)) == {0, ohif.names[STEM], ohif.names[THALAMUS]}
    assert np.array_equal(ohif.mask(STEM), slicer.mask(STEM))


def test_nothing_given_finds_everything(ask: Ask, save: Save, head: dict[str, Any]) -> None:
    answer = ask("text", save())
    assert set(answer.names) == set(head["levels"])
    answer = ask("points", save(), label_prompt=[13, 9], **OHIF)
    assert answer.names == {STEM: 13, PUTAMEN: 9}


def test_ohif_gets_plain_voxels(ask: Ask, save: Save) -> None:
    answer = ask("text", save(), prompt="brainstem", **OHIF)
    header = answer.path.read_bytes().split(b"\n\n")[0]
    assert b"encoding: raw" in header
    assert b"type: unsigned char" in header or b"type: uint8" in header


def _oblique() -> np.ndarray:
    turn = nib.eulerangles.euler2mat(0.3, -0.2, 0.4)
    return nib.affines.from_matvec(turn @ np.diag([1.0, -1.0, 1.0]), [12.5, -7.25, 3.0])


GRIDS = {
    "oblique": _oblique(),
    "LPS": np.diag([-1.0, -1.0, 1.0, 1.0]),
    "RAS": np.eye(4),
    "SAR": np.array([[0, 0, 1.0, 5], [0, 1.0, 0, 6], [1.0, 0, 0, 7], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("form", [OHIF, SLICER, {}])
def test_the_answer_lies_on_the_images_grid(
    ask: Ask, save: Save, head: dict[str, Any], grid: str, form: dict[str, Any]
) -> None:
    answer = ask("text", save(affine=GRIDS[grid]), prompt="brainstem and left thalamus", **form)
    # Oblique grids are turned for the network by whole axes only, so every voxel is found on all of them.
    for name in (STEM, THALAMUS):
        assert np.array_equal(answer.mask(name), head["truth"](name)), name
    if answer.path.suffix == ".nrrd":
        origin, spacing = np.asarray(answer.itk.GetOrigin()), np.asarray(answer.itk.GetSpacing())
        direction = itk.array_from_matrix(answer.itk.GetDirection())
        lps = np.diag([-1.0, -1.0, 1.0])
        assert np.allclose(lps @ direction @ np.diag(spacing), GRIDS[grid][:3, :3], atol=1e-5)
        assert np.allclose(lps @ origin, GRIDS[grid][:3, 3], atol=1e-5)
    else:
        assert np.allclose(answer.affine, GRIDS[grid], atol=1e-6)


def test_thick_slices_keep_their_grid(ask: Ask, save: Save, head: dict[str, Any]) -> None:
    thick = np.diag([1.0, 1.0, 3.0, 1.0])
    answer = ask("text", save(affine=thick), prompt="left putamen")
    assert answer.labels.shape == head["shape"]
    assert np.allclose(answer.affine, thick)
    truth = head["truth"](PUTAMEN)
    overlap = 2 * (answer.mask(PUTAMEN) & truth).sum() / (answer.mask(PUTAMEN).sum() + truth.sum())
    assert overlap > 0.7


def test_points_add_and_take_away(ask: Ask, save: Save, head: dict[str, Any]) -> None:
    image, inside = save(), (31, 15, 23)
    request = {"label_prompt": [9], "points": [list(EMPTY), list(inside)], "point_labels": [1, 0]}
    answer = ask("points", image, **request, **OHIF)
    assert answer.names == {PUTAMEN: 9}
    mask = answer.mask(PUTAMEN)
    assert mask[EMPTY]
    assert not mask[inside]
    # Only what is asked for comes back, and the other structures stay as they were.
    assert set(np.unique(answer.labels)) == {0, 9}
    assert np.array_equal(ask("text", image, prompt="brainstem").mask(STEM), head["truth"](STEM))


def test_the_same_points_again_ask_no_network(ask: Ask, save: Save, finder: Any) -> None:
    image = save()
    request = {"label_prompt": [9], "points": [list(EMPTY)], "point_labels": [1]}
    first = ask("points", image, **request)
    asked = finder.asked
    again = ask("points", image, **request)
    assert finder.asked == asked
    assert np.array_equal(first.labels, again.labels)
    more = ask("points", image, **{**request, "points": [list(EMPTY), [5, 20, 25]], "point_labels": [1, 1]})
    assert more.mask(PUTAMEN)[EMPTY]
    assert more.mask(PUTAMEN)[5, 20, 25]


def test_a_point_that_was_taken_back_is_gone(ask: Ask, save: Save, head: dict[str, Any]) -> None:
    image = save()
    ask("points", image, label_prompt=[9], points=[list(EMPTY), [5, 20, 25]])
    answer = ask("points", image, label_prompt=[9], points=[[5, 20, 25]])
    assert not answer.mask(PUTAMEN)[EMPTY]
    assert answer.mask(PUTAMEN)[5, 20, 25]
    plain = ask("points", image, label_prompt=[9])
    assert np.array_equal(plain.mask(PUTAMEN), head["truth"](PUTAMEN))


def test_points_of_another_structure_do_not_count(ask: Ask, save: Save, head: dict[str, Any]) -> None:
    """OHIF after its options were saved: a class request repeats the points of the structure clicked before."""
    image = save()
    points = {"points": [list(EMPTY)], "point_labels": [1]}
    ask("points", image, label_prompt=[9], **points, **OHIF)
    ask("text", image, prompt="brainstem", **points, **OHIF)
    stale = ask("points", image, label_prompt=[13], **points, **OHIF)
    assert np.array_equal(stale.mask(STEM), head["truth"](STEM))
    assert any(PUTAMEN in warning for warning in stale.params["warnings"])


def test_a_text_starts_anew(ask: Ask, save: Save, head: dict[str, Any]) -> None:
    image = save()
    ask("text", image, prompt="left putamen and brainstem")
    ask("points", image, label_prompt=[9], points=[list(EMPTY)])
    again = ask("text", image, prompt="left putamen and brainstem")
    assert np.array_equal(again.mask(PUTAMEN), head["truth"](PUTAMEN))


def test_clicks_on_several_structures_and_the_background(ask: Ask, save: Save, head: dict[str, Any]) -> None:
    image, in_stem = save(), (19, 5, 27)
    ask("text", image, prompt="left putamen and brainstem and left thalamus")
    clicks = {"background": [list(in_stem)], PUTAMEN: [list(EMPTY)], THALAMUS: [[5, 20, 25]]}
    answer = ask("edit", image, **clicks, **OHIF)
    assert answer.names == {PUTAMEN: 9, THALAMUS: 7, STEM: 13}
    assert answer.mask(PUTAMEN)[EMPTY]
    assert answer.mask(THALAMUS)[5, 20, 25]
    assert not answer.mask(STEM)[in_stem]
    again = ask("edit", image, **clicks, **OHIF)
    assert np.array_equal(answer.labels, again.labels)
    fewer = ask("edit", image, **{**clicks, PUTAMEN: []}, label=PUTAMEN, **OHIF)
    assert np.array_equal(fewer.mask(PUTAMEN), head["truth"](PUTAMEN))
    assert not fewer.mask(STEM)[in_stem]


def test_a_background_click_on_nothing_is_said(ask: Ask, save: Save) -> None:
    answer = ask("edit", save(), background=[list(EMPTY)], label=PUTAMEN)
    assert any("no structure" in warning for warning in answer.params["warnings"])


def _slicer_scribbles(
    save: Save, shape: tuple[int, ...], affine: np.ndarray, marks: dict[str, list[tuple[int, int, int]]], masks: Any
) -> dict[str, Any]:
    """Slicer's request: a label map of all segments, numbered in their order."""
    names = ["background_scribbles", "foreground_scribbles", *masks]
    voxels = np.zeros(shape, np.uint8)
    for value, name in enumerate(names, start=1):
        if name in masks:
            voxels[masks[name]] = value
    for value, name in enumerate(names[:2], start=1):
        for voxel in marks.get(name, ()):
            voxels[voxel] = value
    info = [{"name": name, "id": value} for value, name in enumerate(names, start=1)]
    return {"label": save("scribbles.nii.gz", voxels, affine), "label_info": info, "roi": [], **SLICER}


def test_scribbles_correct_the_selected_structure(ask: Ask, save: Save, head: dict[str, Any]) -> None:
    image, inside = save(), (31, 15, 23)
    present = {PUTAMEN: ask("text", image, prompt="left putamen", **SLICER).mask(PUTAMEN)}
    marks = {"foreground_scribbles": [EMPTY, (20, 12, 17)], "background_scribbles": [inside]}
    request = _slicer_scribbles(save, head["shape"], head["affine"], marks, present)
    answer = ask("scribbles", image, selected_label_name=PUTAMEN, **request)
    assert answer.names == {PUTAMEN: 1}
    assert answer.mask(PUTAMEN)[EMPTY]
    assert answer.mask(PUTAMEN)[20, 12, 17]
    assert not answer.mask(PUTAMEN)[inside]


def test_scribbles_start_from_what_the_user_has_drawn(ask: Ask, save: Save, head: dict[str, Any]) -> None:
    drawn = np.zeros(head["shape"], bool)
    drawn[24:27, 2:6, 2:6] = True
    request = _slicer_scribbles(save, head["shape"], head["affine"], {"foreground_scribbles": [EMPTY]}, {STEM: drawn})
    answer = ask("scribbles", save(), selected_label_name="brain stem", **request)
    assert answer.mask(STEM)[drawn].all()
    assert answer.mask(STEM)[EMPTY]


def test_an_uploaded_label_is_a_prompt_for_the_structures_it_names(ask: Ask, save: Save, head: dict[str, Any]) -> None:
    """Hybrid prompts: text and a mask at the image's own resolution; the toy network keeps the mask and grows it."""
    voxels = np.zeros(head["shape"], np.uint8)
    voxels[24:27, 2:6, 2:6] = 5
    upload = {"label": save("mask.nii.gz", voxels), "label_info": [{"name": "left putamen", "idx": 5}]}
    answer = ask("text", save(), prompt="left putamen and brainstem", **upload)
    assert answer.mask(PUTAMEN)[voxels > 0].all()
    assert np.array_equal(answer.mask(STEM), head["truth"](STEM))
    alone = ask("text", save(), **upload)
    assert list(alone.names) == [PUTAMEN]


@pytest.mark.parametrize(
    ("kind", "request_", "message"),
    [
        ("text", {"prompt": "kidney stones"}, "did you mean"),
        ("text", {"prompt": "left putamen and the flux capacitor"}, "did you mean"),
        ("text", {"prompt": "liver on this CT"}, "not trained for Liver"),
        ("points", {"label_prompt": [9], "points": [[400, 1, 1]]}, "outside the image"),
        ("edit", {"background": [[400, 1, 1]], "label": PUTAMEN}, "outside the image"),
    ],
)
def test_bad_requests_are_one_clear_line(
    ask: Ask, save: Save, kind: str, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ask(kind, save(), **request_)
    assert "\n" not in str(caught.value)


def test_an_upload_of_another_grid_is_refused(ask: Ask, save: Save, head: dict[str, Any]) -> None:
    mask = np.ones((8, 8, 8), np.uint8)
    info = [{"name": PUTAMEN, "idx": 1}]
    with pytest.raises(ValueError, match="shape"):
        ask("text", save(), label=save("other.nii.gz", mask), label_info=info)
    elsewhere = save("moved.nii.gz", np.ones(head["shape"], np.uint8), np.eye(4))
    with pytest.raises(ValueError, match="elsewhere"):
        ask("text", save(), label=elsewhere, label_info=info)


def test_what_the_viewers_are_told(tasks: dict[str, MedalSInfer]) -> None:
    infos = {kind: task.info() for kind, task in tasks.items()}
    assert {info["type"] for info in infos.values()} == {"segmentation", "vista3d", "deepedit", "scribbles"}
    assert infos["text"]["config"] == {"prompt": ""}
    assert infos["edit"]["labels"]["background"] == 0
    for info in infos.values():
        values = [value for value in info["labels"].values() if value]
        assert len(values) == 32
        assert sorted(values) == list(range(1, 33))
        assert info["version"]
        assert json.dumps(info)


def test_every_label_means_itself(service: Service, models: dict[str, ModelConfig]) -> None:
    """Class prompts are asked by name: each name must be read as that structure and no other."""
    for name in models["text"].labels:
        assert [target.name for target in service.understand(models["text"], (name,)).targets] == [name]


def test_models_of_weights_that_know_more(bundle_dir: Path) -> None:
    """Of all structures of the terminology: CT's ids run past what viewers hold, so its labels are numbered anew."""
    terminology = Terminology.load(bundle_dir / "configs" / "terminology.json")
    everything = [concept.name for concept in terminology.concepts]
    planned = plan_models(terminology, everything)
    assert {model.modality for model in planned} == set(terminology.modalities)
    for model in planned:
        assert len(set(model.labels.values())) == len(model.labels)
        assert 1 <= min(model.labels.values()) <= max(model.labels.values()) <= 255
    chosen = plan_models(terminology, everything, ["ct"], ["text", "edit"])
    assert [model.name for model in chosen] == ["medal_s_ct", "medal_s_edit_ct"]
    with pytest.raises(ValueError, match="kind"):
        plan_models(terminology, everything, kinds=["magic"])
    with pytest.raises(ValueError, match="cover"):
        plan_models(terminology, ["Left putamen"], ["CT"])
