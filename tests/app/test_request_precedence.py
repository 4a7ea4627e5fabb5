"""What a viewer sends and what is understood by it: the requests of OHIF and Slicer as they were captured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib.configs import ModelConfig
from lib.requests import Click, Form, read_question

OHIF = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}
SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz"}
STALE = {"points": [[255, 329, 9], [227, 256, 9]], "point_labels": [1, 0], "label_prompt": [14]}
HIPPOCAMPUS, PUTAMEN = "Left hippocampus", "Left putamen"  # values 14 and 9


@pytest.fixture
def read(models: dict[str, ModelConfig]) -> Any:
    def understood(kind: str, **request: Any) -> Any:
        return read_question(models[kind], {"model": models[kind].name, "image": "head.nii.gz", **request})

    return understood


@pytest.fixture
def everything(models: dict[str, ModelConfig]) -> tuple[str, ...]:
    return tuple(models["text"].labels)


@pytest.mark.parametrize(
    ("kind", "request_", "words"),
    [
        ("text", {"prompt": "the bone, please"}, ("the bone, please",)),
        ("text", {"prompt": ["both hippocampi", "brainstem"]}, ("both hippocampi", "brainstem")),
        # OHIF sends text of its options and ticked classes, of which either may be stale: both count, points do not.
        ("text", {"prompt": "brainstem", **STALE}, ("brainstem", HIPPOCAMPUS)),
        # A cleared text is sent as "": the ticked classes count again.
        ("text", {"prompt": "", "label_prompt": [14, 9]}, (HIPPOCAMPUS, PUTAMEN)),
        ("text", {"prompt": "  ", **STALE}, (HIPPOCAMPUS,)),
        ("text", {"label_prompt": "14"}, (HIPPOCAMPUS,)),
        ("text", {"label_prompt": ["left hippocampus", None, 9]}, ("left hippocampus", PUTAMEN)),
        ("points", {"label_prompt": [14]}, (HIPPOCAMPUS,)),
        ("points", {"label_prompt": [14], "prompt": "brainstem"}, (HIPPOCAMPUS,)),
        ("points", {"prompt": "left hippocampus"}, ("left hippocampus",)),
        ("scribbles", {"selected_label_name": "left putamen"}, (PUTAMEN,)),
    ],
)
def test_what_is_asked_for(
    read: Any, tmp_path: Path, kind: str, request_: dict[str, Any], words: tuple[str, ...]
) -> None:
    if kind == "scribbles":
        (tmp_path / "label.nii.gz").touch()
        info = [{"name": "foreground_scribbles", "id": 2}]
        request_ = {**request_, "label": str(tmp_path / "label.nii.gz"), "label_info": info}
    assert read(kind, **request_).words == words


@pytest.mark.parametrize("kind", ["text", "points", "edit"])
@pytest.mark.parametrize("request_", [{}, {"label_prompt": []}, {"prompt": "", "label_prompt": []}, {"prompt": None}])
def test_nothing_given_asks_for_everything(
    read: Any, everything: tuple[str, ...], kind: str, request_: dict[str, Any]
) -> None:
    assert read(kind, **request_, **OHIF).words == everything


def test_points_never_count_in_a_text_model(read: Any) -> None:
    question = read("text", prompt="brainstem", **STALE, **OHIF)
    assert question.clicks == ()
    assert any("points" in warning for warning in question.warnings)


def test_ohifs_point_panel_names_one_structure(read: Any) -> None:
    question = read("points", **STALE, **OHIF)
    assert question.words == (HIPPOCAMPUS,)
    assert question.clicks == (
        Click((255, 329, 9), HIPPOCAMPUS, True),
        Click((227, 256, 9), HIPPOCAMPUS, False),
    )
    assert not question.complete


def test_ohifs_auto_panel_repeats_points_that_do_not_count(read: Any, everything: tuple[str, ...]) -> None:
    """It sends all labels but six bodies of other models; the points of an earlier request come along."""
    question = read("points", **{**STALE, "label_prompt": list(range(1, 33))}, **OHIF)
    assert set(question.words) == set(everything)
    assert question.clicks == ()
    assert question.warnings


def test_points_without_a_structure_are_refused(read: Any) -> None:
    with pytest.raises(ValueError, match="label_prompt"):
        read("points", points=[[1, 2, 3]])
    # The row "background" of OHIF's point panel is no structure of the model.
    with pytest.raises(ValueError, match="structure's name"):
        read("points", points=[[1, 2, 3], [1, 2, 3]], point_labels=[1, 0], label_prompt=[None])


def test_ohifs_deepedit_request(read: Any) -> None:
    request = {"background": [[143, 256, 9]], PUTAMEN: [[255, 329, 9]], "Left hippocampus": [[227, 256, 9]]}
    question = read("edit", **request, **OHIF)
    assert question.words == (PUTAMEN, HIPPOCAMPUS)
    assert question.clicks == (
        Click((255, 329, 9), PUTAMEN, True),
        Click((227, 256, 9), HIPPOCAMPUS, True),
        Click((143, 256, 9), None, False),
    )
    assert question.complete


def test_slicers_smart_edit_sends_all_labels_and_the_current_one(read: Any, everything: tuple[str, ...]) -> None:
    request = {name: [] for name in ("background", *everything)} | {HIPPOCAMPUS: [[1, 2, 3]], "label": PUTAMEN}
    question = read("edit", **request, **SLICER)
    assert question.words == (HIPPOCAMPUS, PUTAMEN)
    assert question.clicks == (Click((1, 2, 3), HIPPOCAMPUS, True),)
    assert question.client == "user-xyz"


def test_deepgrow_keys_belong_to_the_current_label(read: Any) -> None:
    question = read("edit", label=PUTAMEN, foreground=[[1, 2, 3]], background=[[4, 5, 6]], **SLICER)
    assert question.words == (PUTAMEN,)
    assert question.clicks == (Click((1, 2, 3), PUTAMEN, True), Click((4, 5, 6), PUTAMEN, False))


def test_scribbles_need_a_label_map_and_one_structure(read: Any, tmp_path: Path) -> None:
    path = tmp_path / "label.nii.gz"
    path.touch()
    info = [{"name": "background_scribbles", "id": 1}, {"name": PUTAMEN, "id": 3}]
    question = read("scribbles", label=str(path), label_info=info, selected_label_name=PUTAMEN, roi=[], **SLICER)
    assert question.upload.names == {1: "background_scribbles", 3: PUTAMEN}
    assert question.scribbled
    with pytest.raises(ValueError, match="selected_label_name"):
        read("scribbles", label=str(path), label_info=info)
    with pytest.raises(ValueError, match="label map"):
        read("scribbles", selected_label_name=PUTAMEN)
    with pytest.raises(ValueError, match="label_info"):
        read("scribbles", label=str(path), selected_label_name=PUTAMEN)


def test_the_form_of_the_answer(read: Any) -> None:
    assert read("text", **OHIF).form == Form(".nrrd", "uint8", compress=False, declared=True)
    assert read("text", **SLICER).form == Form(".nrrd", "uint8", compress=True, declared=False)
    assert read("text").form.extension == ".nii.gz"


@pytest.mark.parametrize(
    ("kind", "request_", "message"),
    [
        ("text", {"label_prompt": [99]}, "99"),
        ("text", {"label_prompt": [True]}, "label_prompt"),
        ("text", {"label_prompt": {"a": 1}}, "label_prompt"),
        ("text", {"prompt": {"a": 1}}, "prompts"),
        ("text", {"result_extension": "/../../evil"}, "result_extension"),
        ("text", {"result_dtype": "object"}, "result_dtype"),
        ("points", {"label_prompt": [14], "points": [[1, 2]]}, "i, j, k"),
        ("points", {"label_prompt": [14], "points": [[1, 2, "3"]]}, "i, j, k"),
        ("points", {"label_prompt": [14], "points": [[1, 2, float("nan")]]}, "i, j, k"),
        ("points", {"label_prompt": [14], "points": [[1, 2, 3]], "point_labels": [1, 0]}, "point_labels"),
        ("points", {"label_prompt": [14], "points": [[1, 2, 3]], "point_labels": [2]}, "point_labels"),
        ("points", {"label_prompt": [14], "points": [[1, 2, 3]] * 1001}, "1000"),
        ("edit", {"foreground": [[1, 2, 3]]}, "label"),
        ("edit", {PUTAMEN: "here"}, "i, j, k"),
        ("text", {"image": 7}, "image"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    read: Any, kind: str, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(kind, **request_)
    assert "\n" not in str(caught.value)
