"""Dynamic resampling: the published program's plans, and the way to the planned grid and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, Invertd, Orientationd
from scipy.spatial.transform import Rotation

from scripts.inferers import PromptWindowInferer
from scripts.text import Terminology
from scripts.transforms.resampling import (
    DynamicSpacing,
    DynamicSpacingd,
    plan_fixed,
    plan_resampling,
    resample_like,
    working_spacing,
)
from scripts.transforms.training_spacing import plan_training_spacing, smallest_target_extent

PATCH, SPACING = {1: (224, 224, 128), 2: (192, 192, 192)}, {1: (1.5, 1.5, 3.0), 2: (1.0, 1.0, 1.0)}
KEYS = ["CT_Liver", "CT_Airway Tree", "PET_Lesion", "US_Thyroid", "Microscopy_Endolysosomes", "MRI_Vertebrae", "X_y"]


def affine_of(spacing: tuple[float, ...], turn: tuple[float, float, float] = (0, 0, 0)) -> torch.Tensor:
    """Voxel to world, turned by a rotation vector (radians), with an offset."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(turn).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = (11.5, -40.25, 7)
    return torch.as_tensor(affine)


def cases(shared: Path) -> list[dict]:
    return json.loads((shared / "golden" / "spacing.json").read_text())


# --- the plan -------------------------------------------------------------------------------------------------------


def test_all_published_plans(shared: Path) -> None:
    found = cases(shared)
    assert len(found) == 42
    for case in found:
        d, h, w = case["image_shape_dhw"]
        working = working_spacing(case["file_spacing_hwd"], (h, w, d))
        assert working == pytest.approx(case["working_spacing_hwd"], rel=1e-6)
        plan = plan_resampling(
            (h, w, d),
            working,
            case["crop_size_hwd"],
            case["initial_target_spacing_hwd"],
            case["class_names"],
            case["stage"],
        )
        assert plan.spacing == pytest.approx(case["final_spacing_hwd"], rel=1e-5)
        assert plan.target_spacing == pytest.approx(case["final_target_spacing_hwd"], rel=1e-5)
        assert list(plan.shape) == case["resampled_shape_hwd"]
        assert plan.separate_axis == case["separate_axis_index"]
        assert list(plan.padded_shape) == case["padded_shape_hwd"]
        assert plan.needs_downsampling == case["needs_downsampling"]
        assert plan.iterations == case["num_iterations"]


def test_published_windows_on_the_planned_grids(shared: Path) -> None:
    for case in cases(shared):
        windows = PromptWindowInferer(case["crop_size_hwd"]).windows(case["padded_shape_hwd"])
        flat = [[edge for side in window for edge in (side.start, side.stop)] for window in windows]
        assert len(flat) == case["num_windows"]
        assert [flat[0], flat[-1]] == [case["first_window"], case["last_window"]]
        assert case["windows"] is None or flat == case["windows"]


sizes = st.tuples(*[st.integers(1, 1300)] * 3)
spacings = st.tuples(*[st.floats(0.02, 12)] * 3)
some_keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=5)


@given(sizes, spacings, some_keys, st.sampled_from([1, 2]), st.randoms(use_true_random=False))
def test_a_plan_is_a_grid_whatever_comes(shape, spacing, keys, stage, random) -> None:  # type: ignore[no-untyped-def]
    working = working_spacing(spacing, shape)
    plan = plan_resampling(shape, working, PATCH[stage], SPACING[stage], keys, stage)
    shuffled = random.sample(keys, len(keys)) + keys[:1]
    assert plan == plan_resampling(shape, working, PATCH[stage], SPACING[stage], shuffled, stage)
    assert min(plan.shape) >= 1
    assert plan.padded_shape == tuple(np.maximum(plan.shape, PATCH[stage]))
    assert min(plan.spacing) > 0
    assert (np.asarray(plan.target_spacing) <= SPACING[stage]).all()
    extent = np.multiply(plan.voxel_size(spacing), plan.shape)
    assert np.allclose(extent, np.multiply(spacing, shape))
    if len(set(keys)) > 1 and plan.needs_downsampling:  # the guard never makes more voxels than there were
        assert (np.asarray(plan.shape) <= np.maximum(shape, 1.9 * np.asarray(PATCH[stage]) + 1)).all()


@given(sizes, spacings)
def test_clean_up_keeps_the_values_and_leaves_the_coarsest_on_the_thinnest_axis(shape, spacing) -> None:  # type: ignore[no-untyped-def]
    out = working_spacing(spacing, shape)
    kept = [np.float32(s) if s >= 0.1 else 1.0 for s in spacing]
    assert sorted(out) == sorted(kept)
    assert working_spacing(spacing, shape, swap=False) == tuple(kept)
    if max(kept) > 0.5 and len(set(shape)) == 3:
        assert out[int(np.argmin(shape))] == max(kept)


def test_policy_numbers_come_from_the_terminology(bundle_dir: Path) -> None:
    content = json.loads((bundle_dir / "configs" / "terminology.json").read_text())
    content["policy_defaults"]["spacing_divisor"] = [2.0, 2.0]
    changed = Terminology.from_dict(content)
    arguments = ((150, 150, 100), (2.4, 2.4, 2.4), PATCH[2], SPACING[2], ["CT_Liver"], 2)
    assert plan_resampling(*arguments).spacing == pytest.approx((2.0, 2.0, 2.0))
    assert plan_resampling(*arguments, terminology=changed).spacing == pytest.approx((1.2, 1.2, 1.2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": (10, 10)}, "shape"),
        ({"shape": (10, 10, 0)}, "shape"),
        ({"shape": (10, 10, 1.5)}, "whole numbers"),
        ({"spacing": (1, 1, float("nan"))}, "spacing"),
        ({"spacing": (1, 1, -1)}, "spacing"),
        ({"patch_size": (64, 64, -1)}, "patch size"),
        ({"target_spacing": (0, 1, 1)}, "target spacing"),
        ({"targets": []}, "no targets"),
        ({"stage": 3}, "stage 3"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict, words: str) -> None:
    good = {"shape": (9, 9, 9), "spacing": (1, 1, 1), "patch_size": (8, 8, 8), "target_spacing": (1, 1, 1)}
    with pytest.raises(ValueError, match=f"^resampling: .*{words}"):
        plan_resampling(**{**good, "targets": ["CT_Liver"], "stage": 1, **change})


# --- the transform --------------------------------------------------------------------------------------------------

turns = st.tuples(*[st.floats(-3, 3)] * 3)
small = st.tuples(*[st.integers(1, 14)] * 3)
coarse_or_fine = st.tuples(*[st.floats(0.3, 6)] * 3)


@given(small, coarse_or_fine, turns, st.sampled_from(["dynamic", "fixed"]), st.booleans())
def test_there_and_back_is_the_same_grid(shape, spacing, turn, mode, antialias) -> None:  # type: ignore[no-untyped-def]
    affine = affine_of(spacing, turn)
    affine[:3, 2] += 0.3 * affine[:3, 0]  # a tilted gantry: axes that are not at right angles
    image = MetaTensor(torch.rand(1, *shape), affine=affine)
    before = image.clone()
    transform = DynamicSpacing((16, 16, 12), (1.5, 1.5, 3.0), stage=1, mode=mode, antialias=antialias)
    plan = transform.plan(image, ["CT_Liver"])
    assume(np.prod(plan.shape) < 200_000)
    out = transform(image, ["CT_Liver"])
    assert tuple(out.shape) == (1, *plan.shape)
    assert out.dtype == torch.float32
    assert out.pixdim.tolist() == pytest.approx(plan.voxel_size(image.pixdim.tolist()), rel=1e-9)
    edges = (
        np.array([[-0.5, -0.5, -0.5], np.asarray(shape) - 0.5]),
        np.array([[-0.5] * 3, np.asarray(plan.shape) - 0.5]),
    )
    assert np.allclose(nib.affines.apply_affine(affine, edges[0]), nib.affines.apply_affine(out.affine, edges[1]))

    prediction = MetaTensor(torch.rand(3, *plan.shape), meta=out.meta, applied_operations=out.applied_operations)
    back = transform.inverse(prediction)
    assert tuple(back.shape) == (3, *shape)
    assert torch.equal(back.affine, affine)
    assert back.applied_operations == []
    assert torch.equal(image, before)
    assert torch.equal(image.affine, before.affine)
    assert image.applied_operations == []


@pytest.mark.parametrize(("antialias", "tolerance"), [(False, 1e-4), (True, 0.06)])
def test_resampled_values_lie_where_they_lay(antialias: bool, tolerance: float) -> None:
    """A linear ramp in world space stays the same ramp at the voxels' new places, there and back."""
    shape, affine = (20, 24, 12), affine_of((0.8, 1.1, 2.0), (0.3, -0.4, 1.2))
    ramp = lambda a, size: torch.as_tensor(  # noqa: E731
        nib.affines.apply_affine(a.numpy(), np.stack(np.indices(size), -1)) @ [0.3, -0.5, 0.8], dtype=torch.float32
    )[None]
    image = MetaTensor(ramp(affine, shape), affine=affine)
    transform = DynamicSpacing((16, 16, 16), (1.3, 1.3, 1.3), mode="fixed", antialias=antialias)
    out = transform(image)
    inside = (slice(None), *(slice(2, -2),) * 3)
    assert torch.allclose(out[inside], ramp(out.affine, tuple(out.shape[1:]))[inside], atol=tolerance)
    assert torch.allclose(transform.inverse(out)[inside], image[inside], atol=tolerance)


def test_thick_slices_are_copied_not_blended() -> None:
    slices = torch.tensor([0.0, 1, 0, 1, 1, 0])
    image = MetaTensor(slices.expand(1, 30, 30, 6).clone(), affine=affine_of((1, 1, 8)))
    transform = DynamicSpacing((16, 16, 16), (1, 1, 1))
    plan = transform.plan(image, ["CT_Liver", "CT_Spleen"])
    assert plan.separate_axis == 2
    assert plan.shape[2] > 6
    out = transform(image, ["CT_Liver", "CT_Spleen"])
    assert set(out.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(transform.inverse(out), image)


def test_one_slice_and_one_voxel() -> None:
    for shape, spacing in [((40, 40, 1), (0.9, 0.9, 5)), ((1, 1, 1), (1, 1, 1))]:
        image = MetaTensor(torch.rand(1, *shape), affine=affine_of(spacing))
        transform = DynamicSpacing((16, 16, 16), (1, 1, 1))
        out = transform(image, ["CT_Liver"])
        assert out.shape[1:] == transform.plan(image, ["CT_Liver"]).shape
        assert transform.inverse(out).shape == image.shape


def test_a_crop_is_worked_at_the_spacing_of_its_volume() -> None:
    crop = MetaTensor(torch.rand(1, 8, 30, 30), affine=affine_of((0.9, 0.9, 3.0)))
    transform = DynamicSpacing((16, 16, 16), (1, 1, 1))
    own, whole = transform.plan(crop, ["CT_Liver"]), transform.plan(crop, ["CT_Liver"], spacing=(0.9, 0.9, 3.0))
    assert own != whole  # by itself the crop's thinnest axis would be taken for the slices
    trusting = DynamicSpacing((16, 16, 16), (1, 1, 1), swap_spacing=False)
    assert trusting.plan(crop, ["CT_Liver"]) == whole
    assert transform(crop, ["CT_Liver"], spacing=(0.9, 0.9, 3.0)).shape[1:] == whole.shape


def test_antialias_removes_what_the_coarse_grid_cannot_hold() -> None:
    fine = MetaTensor(
        (torch.arange(48) % 2).float()[None, :, None, None].expand(1, 48, 9, 9), affine=affine_of((1, 1, 1))
    )
    plain = DynamicSpacing((16, 16, 16), (3, 3, 3), mode="fixed")(fine)
    smooth = DynamicSpacing((16, 16, 16), (3, 3, 3), mode="fixed", antialias=True)(fine)
    assert plain.std() > 0.3
    assert smooth[:, 2:-2].std() < 0.1


def test_fixed_mode_ignores_targets_and_keeps_the_target_spacing() -> None:
    plan = plan_fixed((90, 91, 40), (1.0, 1.0, 6.0), (64, 64, 64), (3, 3, 3))
    assert (plan.shape, plan.padded_shape, plan.separate_axis) == ((30, 30, 80), (64, 64, 80), None)
    assert plan_fixed((5, 5, 5), (1, 1, 1), (4, 4, 4), (1, 1, 1), ["PET_Lesion"]).iterations == 0


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(1, 4, 4, 4), "MetaTensor"),
        (MetaTensor(torch.zeros(4, 4, 4)), r"\[C, H, W, D\]"),
        (MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.diag(torch.tensor([1.0, 0, 1, 1]))), "voxel sizes"),
    ],
)
def test_images_without_a_grid_are_refused(image: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=f"^resampling: .*{words}"):
        DynamicSpacing((16, 16, 16), (1, 1, 1))(image, ["CT_Liver"])


@pytest.mark.parametrize("option", [{"mode": "auto"}, {"interpolation": "cubic"}])
def test_unknown_options_are_refused(option: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="give one of"):
        DynamicSpacing((16, 16, 16), (1, 1, 1), **option)  # type: ignore[arg-type]


def test_dictionary_inverts_a_prediction_through_a_batch(make_request_text: Callable[..., str]) -> None:
    """As MONAI's pipelines do it: collated, predicted, decollated, inverted with Invertd; the caller's dict is kept."""
    affine = affine_of((-1.2, 0.7, 4.0), (0.2, 0.1, -0.3))
    case = {
        "image": MetaTensor(torch.rand(1, 13, 17, 6), affine=affine),
        "label": MetaTensor(torch.randint(0, 4, (1, 13, 17, 6)), affine=affine),
        "request": make_request_text([("Liver", 1, "CT", None), ("Spleen", 2, "CT", None)]),
    }
    keys = ["image", "label"]
    pre = Compose(
        [
            Orientationd(keys, axcodes="RAS", labels=None),
            DynamicSpacingd(keys, (16, 16, 12), (1, 1, 1), interpolation=["linear", "nearest"]),
        ]
    )
    batch = next(iter(DataLoader(Dataset([case], pre), batch_size=1, collate_fn=list_data_collate)))
    assert batch["image"].shape == batch["label"].shape
    assert set(batch["label"].unique().tolist()) <= {0, 1, 2, 3}
    batch["pred"] = batch["label"].clone()
    (item,) = decollate_batch(batch)
    item = Invertd("pred", transform=pre, orig_keys="image", nearest_interp=True)(item)
    assert torch.allclose(item["pred"].affine, affine)
    assert torch.equal(item["pred"].long(), case["label"].long())
    assert case["image"].shape == (1, 13, 17, 6)


def test_dictionary_needs_a_request_unless_the_spacing_is_fixed() -> None:
    data = {"image": MetaTensor(torch.rand(1, 6, 6, 6))}
    with pytest.raises(ValueError, match="no 'request' among"):
        DynamicSpacingd("image", (16, 16, 16), (1, 1, 1))(data)
    assert DynamicSpacingd("image", (16, 16, 16), (2, 2, 2), mode="fixed")(data)["image"].shape == (1, 3, 3, 3)


# --- prompts --------------------------------------------------------------------------------------------------------


def test_prompts_follow_the_image_and_keep_their_type() -> None:
    image = MetaTensor(torch.rand(1, 18, 22, 7), affine=affine_of((0.7, 0.9, 4.0), (0.5, 0.2, 0.1)))
    mask = MetaTensor(torch.randint(0, 2, (5, 18, 22, 7), dtype=torch.uint8), affine=image.affine)
    working = DynamicSpacing((16, 16, 16), (1, 1, 1))(image, ["CT_Liver", "CT_Spleen"])
    out = resample_like(mask, working)
    assert (out.dtype, tuple(out.shape)) == (torch.uint8, (5, *working.shape[1:]))
    assert torch.equal(out.affine, working.affine)
    nearest = DynamicSpacing((16, 16, 16), (1, 1, 1), interpolation="nearest")(mask, ["CT_Liver", "CT_Spleen"])
    assert torch.equal(out.float(), nearest.as_tensor())
    assert torch.equal(resample_like(out, image), mask)


@pytest.mark.parametrize("turn", [(0, 0, 0), (0, 0, np.pi / 2), (0.4, -0.2, 0.3)])
def test_prompts_on_another_grid_are_found_in_space(turn: tuple[float, float, float]) -> None:
    """A ball, drawn on its own grid, appears at the same place on the image's; outside of that grid is nothing."""
    mask_affine = affine_of((0.9, 0.9, 0.9), turn)
    centre = nib.affines.apply_affine(mask_affine, [11, 11, 11])
    places = nib.affines.apply_affine(mask_affine, np.stack(np.indices((24, 24, 24)), -1))
    ball = torch.as_tensor(np.linalg.norm(places - centre, axis=-1) < 6)
    mask = MetaTensor(torch.stack([ball, torch.ones_like(ball)]), affine=mask_affine)
    affine = affine_of((1.3, 1.3, 1.3))
    affine[:3, 3] = torch.as_tensor(centre) - 26
    out = resample_like(mask, MetaTensor(torch.zeros(1, 40, 40, 40), affine=affine))
    assert out.dtype == torch.bool
    found = nib.affines.apply_affine(affine, np.argwhere(out[0].numpy())).mean(axis=0)
    assert np.linalg.norm(found - centre) < 0.3
    assert out[0].sum() * 1.3**3 == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.08)
    assert out[1].sum() * 1.3**3 == pytest.approx((24 * 0.9) ** 3, rel=0.15)


def test_a_crop_of_the_mask_is_a_crop_and_empty_outside() -> None:
    mask = MetaTensor(torch.arange(1, 1001, dtype=torch.int32).reshape(1, 10, 10, 10), affine=affine_of((1, 1, 1)))
    shifted = affine_of((1, 1, 1))
    shifted[:3, 3] += torch.tensor([4.0, -2, 0])
    out = resample_like(mask, MetaTensor(torch.zeros(1, 8, 8, 10), affine=shifted))
    assert torch.equal(out[:, :6, 2:], mask[:, 4:, :6].as_tensor())
    assert out[:, 6:].sum() == 0
    assert out[:, :, :2].sum() == 0


# --- the training rule ----------------------------------------------------------------------------------------------


def test_smallest_target_is_a_class_or_a_component() -> None:
    labels = np.zeros((40, 30, 20), np.uint8)
    labels[2:30, 2:20, 2:18] = 7
    labels[35:39, 25:28, 3:8] = 2
    labels[33:36, 3:5, 3:6] = 7
    labels[39, 0, 0] = 9  # a stray voxel
    assert smallest_target_extent(labels) == (4, 3, 5)
    assert smallest_target_extent(labels, instances=True) == (3, 2, 3)
    assert smallest_target_extent(labels, min_voxels=1) == (1, 1, 1)
    assert smallest_target_extent(np.where(labels == 9, 9, 0)) == (1, 1, 1)
    assert smallest_target_extent(np.zeros((4, 4, 4), int)) is None
    assert smallest_target_extent(np.full((4, 5, 6), 3)) == (4, 5, 6)
    with pytest.raises(ValueError, match="training spacing: labels of shape"):
        smallest_target_extent(labels[0])


def test_training_spacing_by_hand() -> None:
    """Patch 100 at 1 mm: fine and coarse images, a large, a middling and a small target."""
    expected = {(0.5, 200): 100, (0.5, 80): 125, (0.5, 5): 190, (3.0, 200): 200, (3.0, 5): 200}
    for (spacing, extent), voxels in expected.items():
        plan = plan_training_spacing((200,) * 3, (spacing,) * 3, (100,) * 3, (1, 1, 1), (extent,) * 3)
        assert plan.shape == (voxels,) * 3, (spacing, extent)
    thick = plan_training_spacing((100, 100, 30), (1, 1, 5), (100,) * 3, (1, 1, 1), (20, 20, 3))
    assert (thick.shape, thick.separate_axis) == ((100, 100, 150), 2)
    assert plan_training_spacing((100, 100, 30), (1, 1, 5), (100,) * 3, (1, 1, 1), (90, 90, 28)).shape[2] == 100


@given(st.tuples(*[st.integers(1, 600)] * 3), coarse_or_fine, st.tuples(*[st.floats(0, 1)] * 3))
def test_training_grids_stay_in_bounds(shape, spacing, fraction) -> None:  # type: ignore[no-untyped-def]
    extent = [max(1, int(n * f)) for n, f in zip(shape, fraction, strict=True)]
    patch = (96, 96, 64)
    plan = plan_training_spacing(shape, spacing, patch, (1.5, 1.5, 3), extent)
    n, t = np.asarray(shape), np.array([1.5, 1.5, 3])
    finest = np.maximum(n, n * np.asarray(spacing) / t)
    assert (np.asarray(plan.shape) <= finest + 1).all()
    assert (np.asarray(plan.shape) >= np.minimum(n, patch) - 1).all()
    larger = plan_training_spacing(shape, spacing, patch, (1.5, 1.5, 3), shape)
    assert (np.asarray(larger.shape) <= np.asarray(plan.shape)).all()
    assert plan_training_spacing(shape, spacing, patch, (1.5, 1.5, 3), None).shape >= plan.shape


def test_training_spacing_refuses_a_target_larger_than_the_image() -> None:
    with pytest.raises(ValueError, match="target of"):
        plan_training_spacing((9, 9, 9), (1, 1, 1), (8, 8, 8), (1, 1, 1), (10, 9, 9))
    with pytest.raises(ValueError, match="fill"):
        plan_training_spacing((9, 9, 9), (1, 1, 1), (8, 8, 8), (1, 1, 1), (3, 3, 3), fill=0)
