"""The Python session on networks whose answer is known: which windows are asked, what stays, what comes back."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor

from scripts.interactive import Session
from scripts.pipeline import Pipeline
from scripts.transforms.prompt_shapes import PromptShapes

# Axes permuted and flipped; 1 mm, as the toy stages' grid: what the network says of a voxel is known exactly.
AFFINE = np.array([[0, 0, -1.0, 30], [-1, 0, 0, 20], [0, 1, 0, -25], [0, 0, 0, 1]])
SHAPE = (40, 24, 32)
WINDOW = 16
NAMES = ("Left thalamus", "Left putamen", "Brain-stem")
BOXES = {
    "Left thalamus": (slice(3, 9), slice(4, 10), slice(3, 9)),
    "Left putamen": (slice(28, 36), slice(12, 20), slice(20, 28)),
    "Brain-stem": (slice(16, 22), slice(2, 8), slice(24, 30)),
}


class Finder(torch.nn.Module):
    """Finds each structure's grey value (queries in the order first asked: 50, 100, 150), and what prompts grow to.

    With a prompt the answer also holds the prompt and the voxels next to it.
    """

    def __init__(self, deaf: bool = False) -> None:
        super().__init__()
        self.deaf = deaf
        self.known: list[bytes] = []
        self.seen: list[dict[str, Any]] = []

    def forward(self, image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        rows = queries.reshape(-1, queries.shape[-1])[: prompts.shape[1]]
        for row in rows:
            if row.numpy().tobytes() not in self.known:
                self.known.append(row.numpy().tobytes())
        numbers = [self.known.index(row.numpy().tobytes()) for row in rows]
        self.seen += [{"numbers": numbers, "prompts": prompt.clone()} for prompt in prompts]
        levels = torch.tensor([50.0 * (number + 1) for number in numbers]).reshape(1, -1, 1, 1, 1)
        found = (image - levels).abs() < 10
        if not self.deaf:
            found = found | (F.max_pool3d(prompts, 3, 1, 1) > 0)
        return torch.where(found, 6.0, -6.0)


def picture() -> np.ndarray:
    image = np.zeros(SHAPE, np.uint8)
    for level, name in enumerate(NAMES, start=1):
        image[BOXES[name]] = 50 * level
    image[39, 23, 31] = 255
    return image


@pytest.fixture(scope="module")
def empty_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "empty.pt"
    torch.save({}, path)
    return path


def pad(side: int) -> dict[str, Any]:
    """What the toy networks need done to an image: grey values as they are, padded to a window."""
    return {
        "_target_": "Compose",
        "transforms": [{"_target_": "SpatialPad", "spatial_size": [side] * 3, "method": "end"}],
    }


@pytest.fixture(scope="module")
def toy_config(empty_weights: Path) -> dict[str, Any]:
    """Toy networks at 1 mm with windows of 16 voxels, in the bundle's config."""
    return {
        "weights": str(empty_weights),
        "device": "cpu",
        "stages": [1],
        "spacing": [1.0, 1.0, 1.0],
        "roi_size": [WINDOW] * 3,
        "min_voxels": 1,
        "prepare": pad(WINDOW),
    }


@pytest.fixture(scope="module")
def pipeline(bundle_dir: Path, toy_config: dict[str, Any]) -> Pipeline:
    return Pipeline.from_bundle(bundle_dir, coarse_network=Finder(), **toy_config)


@pytest.fixture
def make(pipeline: Pipeline) -> Callable[..., Session]:
    """A session with a new toy network that looks at the picture."""

    def build(deaf: bool = False, **options: Any) -> Session:
        own = copy.copy(pipeline)
        own.network = torch.nn.ModuleDict({"coarse": Finder(deaf)})
        session = Session(own, **options)
        session.set_image(picture(), AFFINE)
        return session

    return build


@pytest.fixture
def session(make: Callable[..., Session]) -> Session:
    toy = make()
    toy.segment(list(NAMES))
    return toy


def network(session: Session, stage: str = "coarse") -> Finder:
    return session.pipeline.network[stage]  # type: ignore[index, return-value]


def state(session: Session) -> tuple[bytes, ...]:
    answer = session._asked().answer
    masks = [answer.mask(number).tobytes() for number in range(len(answer.ids))]
    return answer.labels.tobytes(), answer.probability.tobytes(), *masks


def truth(name: str) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[BOXES[name]] = True
    return mask


def test_the_first_answer_lies_on_the_images_own_grid(session: Session) -> None:
    result = session.result()
    for name in NAMES:
        assert np.array_equal(result.mask(name), truth(name)), name
    assert np.array_equal(result.affine, AFFINE)
    assert [entry["name"] for entry in result.report["structures"]] == list(NAMES)
    assert [entry["voxels"] for entry in result.report["structures"]] == [216, 512, 216]
    assert [target.name for target in result.request.targets] == list(NAMES)


def test_only_touched_windows_are_predicted_and_only_for_the_target(session: Session) -> None:
    """A click in a corner: it lies in one window of 24."""
    toy = network(session)
    asked = len(toy.seen)
    assert 0 < asked <= 4 * 2 * 3  # the grid's axes of 40, 24 and 32 voxels hold 4, 2 and 3 windows, some of them dark
    edit = session.add_prompt("left thalamus", point=(1, 1, 1), radius=1.0)
    assert edit.windows == 1
    assert len(toy.seen) - asked == 1
    assert toy.seen[-1]["numbers"] == [0]
    middle = session.add_prompt("left thalamus", point=(20, 12, 20), radius=1.0)
    assert len(toy.seen) - asked - 1 == middle.windows == 8


def test_what_the_network_sees_is_the_present_mask_with_the_correction(session: Session) -> None:
    session.add_prompt("Left thalamus", point=(12, 6, 6), radius=1.0)
    prompts = [seen["prompts"] for seen in network(session).seen[-2:]]
    assert max(float(prompt.sum()) for prompt in prompts) == 6**3 + 7
    session.add_prompt("Left thalamus", point=(5, 6, 6), radius=1.0, positive=False)
    before = network(session).seen[-1]["prompts"]
    assert float(before.sum()) < 12**3


def test_everything_outside_the_edits_box_stays_bit_for_bit(session: Session) -> None:
    answer = session._asked().answer
    labels, probability = answer.labels.copy(), answer.probability.copy()
    edit = session.add_prompt("Left thalamus", point=(12, 6, 6))
    assert edit.change.added > 0
    outside = np.ones(SHAPE, bool)
    outside[edit.change.box] = False
    assert outside.any()
    assert np.array_equal(answer.labels[outside], labels[outside])
    assert np.array_equal(answer.probability[outside], probability[outside])
    for name in NAMES[1:]:
        assert np.array_equal(session.result().mask(name), truth(name))


def test_a_click_is_in_the_answer_and_a_negative_one_out_of_it_even_where_the_network_is_deaf(
    make: Callable[..., Session],
) -> None:
    session = make(deaf=True)
    session.segment(list(NAMES))
    ball = PromptShapes(SHAPE, AFFINE).point((12, 6, 6), 2.0)
    session.add_prompt("Left thalamus", point=(12, 6, 6), radius=2.0)
    session.add_prompt("Left thalamus", point=(4, 5, 4), radius=1.0, positive=False)
    mask = session.result().mask("Left thalamus")
    assert mask[ball.box][ball.mask].all()
    assert not mask[4, 5, 4]
    assert mask.sum() == 216 + ball.mask.sum() - 7
    session.add_prompt("Left thalamus", point=(7, 14, 7), radius=1.0)  # the same window again
    again = session.result().mask("Left thalamus")
    assert again[ball.box][ball.mask].all()
    assert not again[4, 5, 4]
    session.add_prompt("Left thalamus", point=(12, 6, 6), radius=1.0, positive=False)  # the last word counts
    assert not session.result().mask("Left thalamus")[12, 6, 6]


def test_without_enforce_the_network_decides(make: Callable[..., Session]) -> None:
    session = make(deaf=True)
    session.segment(list(NAMES))
    before = state(session)
    edit = session.add_prompt("Left thalamus", point=(12, 6, 6), enforce=False)
    assert (edit.change.added, edit.change.removed) == (0, 0)
    assert state(session) == before


def test_the_last_click_on_a_voxel_decides_between_structures(session: Session) -> None:
    session.add_prompt("Left putamen", point=(5, 6, 5), radius=1.0)
    assert session.result().mask("Left putamen")[5, 6, 5]
    session.add_prompt("Brain-stem", point=(5, 6, 5), radius=1.0)
    session.add_prompt("Left putamen", point=(6, 14, 5), radius=1.0)  # predicts the same voxels once more
    assert session.result().mask("Brain-stem")[5, 6, 5]
    session.add_prompt("Brain-stem", point=(5, 6, 5), radius=1.0, positive=False)
    assert session.result().mask("Left thalamus")[5, 6, 5]  # what lay beneath


EDITS = st.fixed_dictionaries(
    {
        "target": st.sampled_from(NAMES),
        "point": st.tuples(*(st.integers(0, side - 1) for side in SHAPE)),
        "positive": st.booleans(),
        "radius": st.floats(0.5, 5.0),
    }
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(EDITS, min_size=1, max_size=4))
def test_undo_and_redo_restore_bit_for_bit(session: Session, edits: list[dict]) -> None:
    states = [state(session)]
    for edit in edits:
        session.add_prompt(**edit)
        states.append(state(session))
    calls = len(network(session).seen)
    for before in states[-2::-1]:
        session.undo()
        assert state(session) == before
    for after in states[1:]:
        session.redo()
        assert state(session) == after
    for _ in edits:
        session.undo()
    assert len(network(session).seen) == calls
    with pytest.raises(ValueError, match="no correction to undo"):
        session.undo()


def test_a_new_correction_ends_redo(session: Session) -> None:
    session.add_prompt("Brain-stem", point=(5, 6, 5))
    session.undo()
    session.add_prompt("Brain-stem", point=(30, 6, 5))
    with pytest.raises(ValueError, match="no correction to redo"):
        session.redo()


def test_history_is_bounded_and_reset_works_all_the_same(make: Callable[..., Session]) -> None:
    session = make(history_mb=0.001)
    session.segment(list(NAMES))
    first = state(session)
    for x in (5, 15, 25, 35):
        session.add_prompt("Brain-stem", point=(x, 12, 5), radius=4)
    answer = session._asked().answer
    assert answer.history_size <= 0.001 * 2**20
    assert answer.forgotten > 0
    while answer.steps:
        session.undo()
    with pytest.raises(ValueError, match="exceeded history_mb"):
        session.undo()
    session.reset()
    assert state(session) == first


def test_reset_of_one_target_leaves_the_others_corrections(make: Callable[..., Session]) -> None:
    session, other = make(), make()
    for one in (session, other):
        one.segment(list(NAMES))
    first = state(session)
    session.add_prompt("Left thalamus", point=(12, 6, 6))
    session.add_prompt("Brain-stem", point=(20, 12, 20))
    other.add_prompt("Brain-stem", point=(20, 12, 20))
    session.reset("left thalamus")
    assert state(session) == state(other)
    session.reset()
    assert state(session) == first
    session.reset()


def test_a_mask_replaces_a_box_adds_and_negative_ones_remove(make: Callable[..., Session]) -> None:
    session = make()
    session.segment(list(NAMES))
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[10:14, 10:14, 10:14] = 1
    session.add_prompt("Left putamen", mask=drawn)
    shown = sum(seen["prompts"].sum() > 0 for seen in network(session).seen[-8:])
    assert shown > 0
    mask = session.result().mask("Left putamen")
    assert mask[10:14, 10:14, 10:14].all()
    session.add_prompt("Left putamen", mask=drawn, positive=False)
    assert not session.result().mask("Left putamen")[10:14, 10:14, 10:14].any()
    session.add_prompt("Left putamen", box=((2, 18, 20), (5, 21, 24)))
    assert session.result().mask("Left putamen")[2:6, 18:22, 20:25].all()
    session.add_prompt("Left putamen", box=((5, 21, 24), (2, 18, 20)), positive=False)
    assert not session.result().mask("Left putamen")[2:6, 18:22, 20:25].any()


def test_a_box_is_a_rough_outline(make: Callable[..., Session]) -> None:
    session = make(deaf=True)
    session.segment(list(NAMES))
    assert session.add_prompt("Left putamen", box=((2, 18, 20), (5, 21, 24))).change.added == 0
    assert session.add_prompt("Left putamen", box=((2, 18, 20), (5, 21, 24)), enforce=True).change.added == 4 * 4 * 5


def test_scribbles_of_points_and_of_voxels(session: Session) -> None:
    session.add_prompt("Brain-stem", scribble=[(20, 12, 10), (24, 12, 10), (24, 16, 10)], radius=0.6)
    mask = session.result().mask("Brain-stem")
    assert mask[20:25, 12, 10].all()
    assert mask[24, 12:17, 10].all()
    voxels = np.zeros(SHAPE, bool)
    voxels[30, 4:9, 5] = True
    session.add_prompt("Brain-stem", scribble=voxels)
    assert session.result().mask("Brain-stem")[30, 4:9, 5].all()
    assert session.result().mask("Brain-stem")[20:25, 12, 10].all()


def test_world_coordinates(make: Callable[..., Session]) -> None:
    one, other = make(), make()
    for session in (one, other):
        session.segment("brain-stem")
    one.add_prompt("brain-stem", point=(12, 6, 7))
    other.add_prompt("brain-stem", point=AFFINE[:3, :3] @ (12, 6, 7) + AFFINE[:3, 3], world=True)
    assert state(one) == state(other)


def test_a_click_between_the_voxels_of_a_coarse_grid_reaches_the_network(
    bundle_dir: Path, toy_config: dict[str, Any]
) -> None:
    session = Session.from_bundle(bundle_dir, coarse_network=Finder(), **{**toy_config, "spacing": [4.0, 4.0, 4.0]})
    session.set_image(picture(), AFFINE)
    session.segment("brain-stem")
    for point in ((0, 0, 0), (1, 2, 1), (18, 13, 11)):
        session.add_prompt("brain-stem", point=point, radius=0.5)
        assert float(network(session).seen[-1]["prompts"].sum()) > 0
        session.undo()


def test_corrections_go_to_the_fine_stage_where_there_is_one(
    bundle_dir: Path, toy_config: dict[str, Any], empty_weights: Path
) -> None:
    networks = {"coarse_network": Finder(), "fine_network": Finder(deaf=True)}
    fine = {"fine_weights": str(empty_weights), "fine_prepare": pad(16)}
    grids = {"spacing": [2.0, 2.0, 2.0], "fine_spacing": [1.0, 1.0, 1.0], "fine_roi_size": [16, 16, 16]}
    session = Session.from_bundle(bundle_dir, **{**toy_config, **networks, **fine, **grids, "stages": [1, 2]})
    session.set_image(picture(), AFFINE)
    session.segment(list(NAMES))
    assert np.array_equal(session.result().mask("Left putamen"), truth("Left putamen"))
    coarse, fine = len(network(session).seen), len(network(session, "fine").seen)
    before = state(session)
    edit = session.add_prompt("Left putamen", point=(30, 2, 2), radius=2.0)
    assert len(network(session).seen) == coarse
    assert len(network(session, "fine").seen) - fine == 2 * edit.windows  # either half of the blocks
    assert session.result().mask("Left putamen")[30, 2, 2]
    session.undo()
    assert state(session) == before


def test_names_in_any_wording(session: Session) -> None:
    for name in ("Left putamen", "left putamen", "the left putamen", session.request.targets[1].id):
        assert session.add_prompt(name, point=(2, 2, 2)).target == "Left putamen"


BAD = [
    ({"target": "liver", "point": (1, 1, 1)}, "'liver' is none of the structures.*Left thalamus"),
    ({"target": "right putamen", "point": (1, 1, 1)}, "is none of the structures"),
    ({"point": (40, 1, 1)}, "outside the image.*to 39, 23, 31"),
    ({"point": (1, -1, 1)}, "outside the image"),
    ({"point": (1, 1, 300), "world": True}, "outside the image"),
    ({"point": (1, 1)}, "three finite numbers"),
    ({"point": (1, 1, float("nan"))}, "three finite numbers"),
    ({"point": "here"}, "three"),
    ({"point": (1, 1, 1), "radius": 0}, "radius must be a positive number"),
    ({"point": (1, 1, 1), "box": ((1, 1, 1), (2, 2, 2))}, "give one of"),
    ({}, "give one of.*got none"),
    ({"box": ((1, 1, 1),)}, "two opposite corners"),
    ({"box": ((1, 1, 1), (50, 2, 2))}, "box corner.*outside the image"),
    ({"scribble": []}, "three finite numbers"),
    ({"mask": np.ones((2, 3, 4))}, r"mask has shape \(2, 3, 4\), the image \(40, 24, 32\)"),
    ({"mask": np.zeros(SHAPE)}, "mask is empty"),
    ({"mask": np.full(SHAPE, np.nan)}, "no finite numbers"),
    ({"mask": MetaTensor(torch.ones(SHAPE), affine=torch.eye(4))}, "elsewhere in space"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_prompts_change_nothing(session: Session, arguments: dict, message: str) -> None:
    session.add_prompt("Brain-stem", point=(20, 12, 10))
    session.undo()
    before = state(session)
    with pytest.raises(ValueError, match=message):
        session.add_prompt(**{"target": "Left thalamus", **arguments})
    assert state(session) == before
    session.redo()


def test_a_network_that_fails_changes_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(session)

    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(network(session), "forward", fail)
        with pytest.raises(RuntimeError, match="broken"):
            session.add_prompt("Left thalamus", point=(12, 6, 6))
    assert state(session) == before
    with pytest.raises(ValueError, match="no correction to undo"):
        session.undo()


def test_order_of_calls_and_bad_images(make: Callable[..., Session], bundle_dir: Path, tmp_path: Path) -> None:
    session = make()
    with pytest.raises(ValueError, match="nothing was asked for yet"):
        session.add_prompt("Brain-stem", point=(1, 1, 1))
    session.segment("brain-stem")
    before = state(session)
    for image, affine, message in (
        (picture(), None, "needs its affine"),
        (picture(), np.eye(3), "4x4"),
        (picture(), np.zeros((4, 4)), "voxel size"),
        (np.ones((4, 4)), AFFINE, "2-D"),
        (tmp_path / "no.nii.gz", None, "no such file"),
        (tmp_path / "no.nii.gz", AFFINE, "its own affine"),
    ):
        with pytest.raises(ValueError, match=message):
            session.set_image(image, affine)
    with pytest.raises(ValueError, match="X-ray"):
        session.set_image(picture(), AFFINE, modality="X-ray")
    for words in ("", "kidney stones", "liver"):
        with pytest.raises(ValueError, match=r"."):
            session.segment(words)
    assert state(session) == before
    fresh = Session(session.pipeline)
    with pytest.raises(ValueError, match="call set_image first"):
        fresh.segment("brain-stem")
    with pytest.raises(ValueError, match="no configs/inference"):
        Session.from_bundle(tmp_path)


def test_save(session: Session, tmp_path: Path) -> None:
    session.add_prompt("Brain-stem", point=(20, 12, 10))
    for name in ("head_seg.nii.gz", "head.nii"):
        path = session.save(tmp_path / name)
        assert path.is_file()
    saved = nib.load(tmp_path / "head_seg.nii.gz")
    assert np.array_equal(np.asarray(saved.dataobj), session.result().label_map)
    assert np.allclose(saved.affine, AFFINE)
    assert json.loads((tmp_path / "head_seg.json").read_text()) == session.result().report
    for path, message in ((tmp_path / "head.png", "end its name"), (tmp_path / "no" / "head.nii.gz", "cannot write")):
        with pytest.raises(ValueError, match=message):
            session.save(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head.json", "head.nii", "head_seg.json", "head_seg.nii.gz"]


def test_the_answer_is_that_of_a_run_of_the_bundle(
    make: Callable[..., Session], bundle_dir: Path, toy_config: dict[str, Any], tmp_path: Path
) -> None:
    """Same config, same steps: label map and report of a session equal the files of a run."""
    nib.save(nib.Nifti1Image(picture(), AFFINE), tmp_path / "head.nii.gz")
    session = make()
    session.set_image(tmp_path / "head.nii.gz")
    result = session.segment(list(NAMES))
    workflow = ConfigWorkflow(
        config_file=str(bundle_dir / "configs" / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(bundle_dir),
        image=str(tmp_path / "head.nii.gz"),
        prompts=list(NAMES),
        output_dir=str(tmp_path / "out"),
        progress=False,
        coarse_network=Finder(),
        **toy_config,
    )
    workflow.initialize()
    workflow.run()
    labels = np.asarray(nib.load(tmp_path / "out" / "head_seg.nii.gz").dataobj)
    assert np.array_equal(labels, result.label_map)
    assert json.loads((tmp_path / "out" / "head_seg.json").read_text()) == result.report
