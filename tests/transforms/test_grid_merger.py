"""Merging class probabilities on another grid, block by block."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from scipy.spatial.transform import Rotation

from scripts.transforms.grid_merger import GridMerger, filled_masks, pack_masks, unpack_mask

SHAPE = (28, 26, 30)


def affine_of(axes: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...], tilt: float = 0) -> np.ndarray:
    """Axes permuted and flipped, anisotropic, optionally oblique about a skew axis."""
    affine = np.diag([0.0, 0, 0, 1])
    for column, (row, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[row, column] = sign * spacing[column]
    affine[:3, :3] = Rotation.from_rotvec(np.deg2rad(tilt) * np.array([0.5, 0.7, 0.5])).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = (13.7, -41.2, 8.9)
    return affine


def blobs(affine: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Two Gaussian blobs [2, H, W, D], one left of the volume's centre in the patient, one behind it and above."""
    centre = nib.affines.apply_affine(affine, (np.array(shape) - 1) / 2)
    world = nib.affines.apply_affine(affine, np.stack(np.indices(shape), axis=-1))
    places = centre + np.array([(-5, 2, -3), (5, -4, 3)])
    values = np.stack([np.exp(-((world - place) ** 2).sum(-1) / (2 * 3.5**2)) for place in places])
    return values.astype(np.float32), places


def merged(values: torch.Tensor, ids: list[int], affine, dst_affine, shape, **options) -> GridMerger:
    merger = GridMerger(shape, torch.as_tensor(dst_affine), ids, **options)
    merger.add(values, range(len(ids)), torch.as_tensor(affine))
    return merger


ORIENTATIONS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_there_and_back_in_every_orientation(axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """Working grid as in the config, then back: the same voxels, in all 48 orientations, oblique or not."""
    for spacing, tilt in [((1.3, 1.3, 1.3), 0), ((0.8, 1.1, 2.4), 0), ((1.0, 1.4, 1.2), 17)]:
        affine = affine_of(axes, signs, spacing, tilt)
        values, places = blobs(affine)
        native = MetaTensor(values, affine=affine)
        working = Spacing((1.5, 1.5, 1.5))(Orientation("RAS", labels=None)(native))
        result = merged(working, [3, 7], working.affine, native.affine, SHAPE)
        truth = np.where(values[1] >= 0.5, 7, np.where(values[0] >= 0.5, 3, 0))
        found = result.labels[0].numpy()
        assert found.shape == SHAPE
        for number, id_ in enumerate((3, 7)):
            dice = 2 * ((found == id_) & (truth == id_)).sum() / ((found == id_).sum() + (truth == id_).sum())
            assert dice > 0.9, (spacing, tilt, dice)
            centre = nib.affines.apply_affine(affine, np.argwhere(found == id_)).mean(axis=0)
            assert np.linalg.norm(centre - places[number]) < 0.4
        off = np.abs(result.probability[0].numpy().astype(float) - values.max(axis=0))
        assert off[(truth > 0) & (found > 0)].max() < 0.15


def dense(values: MetaTensor, ids: list[int], dst_affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The label map by the definition: every class resampled everywhere, then the best where it is at least 0.5."""
    from monai.transforms import SpatialResample

    moved = SpatialResample(mode="bilinear", padding_mode="border", dtype="float32")(
        values, dst_affine=torch.as_tensor(dst_affine), spatial_size=shape
    )
    top, winner = moved.as_tensor().half().max(dim=0)
    return torch.where(top >= 0.5, torch.tensor(ids)[winner], 0).numpy()


@pytest.mark.parametrize("tilt", [0, 23])
def test_boxes_leave_nothing_out(tilt: float) -> None:
    """Classes anywhere, the rim included, give what resampling everything everywhere gives."""
    affine = affine_of((2, 0, 1), (1, -1, 1), (1.1, 0.9, 1.6), tilt)
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(5, 9, 8, 7, generator=generator)
    noise[0, :, :, -1] = 0.9  # a class at the rim
    noise[1] *= 0.6
    noise[1, 2:5, 2:5, 2:5] = 0.98
    coarse = affine_of((0, 1, 2), (1, 1, 1), (3.5, 3.2, 5.0))
    centre = nib.affines.apply_affine(affine, (np.array(SHAPE) - 1) / 2)
    coarse[:3, 3] = centre - coarse[:3, :3] @ [4, 3.5, 3]
    working = MetaTensor(noise, affine=coarse)
    ids = [4, 9, 2, 7, 5]
    truth = dense(working, ids, affine, SHAPE)
    assert len(np.unique(truth)) >= 5
    for blocks in ([[0, 1, 2, 3, 4]], [[0], [1, 2], [3, 4]]):
        for slab_mb in (0.001, 256):
            merger = GridMerger(SHAPE, torch.as_tensor(affine), ids, slab_mb=slab_mb)
            for block in blocks:
                merger.add(working[block], block, working.affine)
            # outside the coarse grid nothing is known; the definition above only repeats its border there
            index = nib.affines.apply_affine(np.linalg.inv(coarse) @ affine, np.stack(np.indices(SHAPE), axis=-1))
            known = ((index > -1) & (index < np.array([9, 8, 7]))).all(axis=-1)
            assert known.sum() > 5000
            assert (merger.labels[0].numpy() != truth)[known].sum() <= 2  # a voxel on the threshold may fall either way


def test_same_grid_is_exact_and_the_best_class_wins() -> None:
    values = torch.tensor([[0.6, 0.2, 0.49, 0.5], [0.7, 0.1, 0.3, 0.2]]).reshape(2, 4, 1, 1)
    result = merged(values, [5, 9], torch.eye(4), torch.eye(4), (4, 1, 1), keep_masks=True)
    assert result.labels.flatten().tolist() == [9, 0, 0, 5]
    assert torch.allclose(result.probability.flatten().float(), torch.tensor([0.7, 0, 0, 0.5]), atol=1e-3)
    assert result.labels.dtype == torch.uint8
    assert unpack_mask(result.mask_bits, 0).flatten().tolist() == [True, False, False, True]  # overlaps class 1


def test_a_window_keeps_the_rest_untouched() -> None:
    window = (slice(1, 3), slice(0, 4), slice(2, 4))
    merger = GridMerger((4, 4, 4), torch.eye(4), [6])
    merger.add(torch.ones(1, 4, 4, 4), [0], torch.eye(4), window=window)
    assert merger.labels[0][window].eq(6).all()
    assert merger.labels.ne(0).sum() == 2 * 4 * 2


def test_disagreement_is_that_of_the_winning_class() -> None:
    merger = GridMerger((3, 1, 1), torch.eye(4), [1, 2], keep_disagreement=True)
    first, second = torch.tensor([0.9, 0.6, 0.1]), torch.tensor([0.5, 0.8, 0.2])
    for n, values in enumerate((first, second)):
        spread = torch.full((1, 3, 1, 1), 0.25 * (n + 1))
        merger.add(values.reshape(1, 3, 1, 1), [n], torch.eye(4), disagreement=spread)
    assert merger.disagreement.flatten().tolist() == [0.25, 0.5, 0]


def test_many_masks_in_bits() -> None:
    masks = [torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(n)) > 0.5 for n in range(19)]
    bits = pack_masks(masks)
    assert bits.shape == (3, 3, 4, 5)
    assert all(torch.equal(unpack_mask(bits, n), mask) for n, mask in enumerate(masks))
    assert torch.equal(pack_masks(mask for mask in masks), bits)


def test_which_masks_are_filled_without_unpacking_them() -> None:
    masks = torch.zeros(19, 3, 4, 5)
    for n in (0, 7, 8, 18):
        masks[n, n % 3, 1, 2] = 1
    assert [n for n, filled in enumerate(filled_masks(pack_masks(masks), 19)) if filled] == [0, 7, 8, 18]


def test_large_label_values_fit() -> None:
    assert merged(torch.ones(1, 2, 2, 2), [300], torch.eye(4), torch.eye(4), (2, 2, 2)).labels.max() == 300


def test_ids_must_fit_the_classes() -> None:
    with pytest.raises(ValueError, match="positive"):
        GridMerger((2, 2, 2), torch.eye(4), [0, 1])
    with pytest.raises(ValueError, match="2 channels"):
        GridMerger((2, 2, 2), torch.eye(4), [1, 2]).add(torch.ones(2, 2, 2, 2), [0], torch.eye(4))


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_grids_with_the_same_axes_take_the_short_way_to_the_same_numbers(
    signs: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Axis by axis or sampled in space: one result, to rounding; an oblique grid is always sampled."""
    values = torch.rand(3, 9, 8, 1, generator=torch.Generator().manual_seed(1))
    coarse, fine = affine_of((0, 1, 2), (1, 1, 1), (3.1, 2.9, 20.0)), affine_of((0, 1, 2), signs, (0.7, 1.3, 1.0))
    fine[:3, 3] = nib.affines.apply_affine(coarse, [4 + 3 * (1 - signs[0]) / 2, 1, 0]) - np.array([3, 2, 1])
    short = merged(values, [1, 2, 3], coarse, fine, SHAPE)
    monkeypatch.setattr("scripts.transforms.grid_merger.SHARED_AXES", -1)
    sampled = merged(values, [1, 2, 3], coarse, fine, SHAPE)
    assert (short.labels != 0).sum() > 500
    assert (short.labels != sampled.labels).float().mean() < 1e-3  # voxels on the threshold
    apart = (short.probability.float() - sampled.probability.float()).abs()[short.labels == sampled.labels]
    assert apart.max() < 2e-3
    monkeypatch.undo()
    calls: list[int] = []
    tilted = GridMerger(SHAPE, torch.as_tensor(affine_of((0, 1, 2), (1, 1, 1), (1, 1, 1), tilt=10)), [1, 2, 3])
    sample = tilted.resample.__class__.__call__
    monkeypatch.setattr(tilted.resample.__class__, "__call__", lambda *a, **k: (calls.append(1), sample(*a, **k))[1])
    tilted.add(values, range(3), torch.as_tensor(affine_of((0, 1, 2), (1, 1, 1), (1, 1, 1))))
    assert calls
