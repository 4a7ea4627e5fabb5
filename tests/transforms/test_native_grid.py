"""Bringing probabilities to the file's own grid."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from scipy.spatial.transform import Rotation

from scripts.transforms.native_grid import MergeOnGrid, MergeOnGridd

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
        labels, best = MergeOnGrid()(working, [3, 7], working.affine, native.affine, SHAPE)
        truth = np.where(values[1] >= 0.5, 7, np.where(values[0] >= 0.5, 3, 0))
        found = labels[0].numpy()
        assert found.shape == SHAPE
        for number, id_ in enumerate((3, 7)):
            dice = 2 * ((found == id_) & (truth == id_)).sum() / ((found == id_).sum() + (truth == id_).sum())
            assert dice > 0.9, (spacing, tilt, dice)
            centre = nib.affines.apply_affine(affine, np.argwhere(found == id_)).mean(axis=0)
            assert np.linalg.norm(centre - places[number]) < 0.4
        assert np.abs(best[0].numpy().astype(float) - values.max(axis=0))[truth > 0].max() < 0.15


def test_same_grid_is_exact_and_the_best_class_wins() -> None:
    values = torch.tensor([[0.6, 0.2, 0.49, 0.5], [0.7, 0.1, 0.3, 0.2]]).reshape(2, 4, 1, 1)
    labels, best = MergeOnGrid()(values, [5, 9], torch.eye(4), torch.eye(4), (4, 1, 1))
    assert labels.flatten().tolist() == [9, 0, 0, 5]
    assert torch.allclose(best.flatten().float(), torch.tensor([0.7, 0.2, 0.49, 0.5]), atol=1e-3)
    assert labels.dtype == torch.uint8


@pytest.mark.parametrize("slab_mb", [0.001, 0.02, 100])
def test_slabs_do_not_show(slab_mb: float) -> None:
    affine = affine_of((2, 0, 1), (1, -1, 1), (1.1, 0.9, 1.6), 10)
    values, _ = blobs(affine)
    working = Spacing((2, 2, 2))(MetaTensor(values, affine=affine))
    whole = MergeOnGrid()(working, [1, 2], working.affine, affine, SHAPE)
    slabs = MergeOnGrid(slab_mb=slab_mb)(working, [1, 2], working.affine, affine, SHAPE)
    assert (whole[0] != slabs[0]).sum() <= 1  # a voxel on the threshold may fall either way
    assert torch.allclose(whole[1].float(), slabs[1].float(), atol=2e-3)


def test_large_label_values_fit() -> None:
    labels, _ = MergeOnGrid()(torch.ones(1, 2, 2, 2), [300], torch.eye(4), torch.eye(4), (2, 2, 2))
    assert labels.max() == 300


@pytest.mark.parametrize("ids", [[1], [0, 1], [1, 2, 3]])
def test_ids_must_fit_the_classes(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="2 classes"):
        MergeOnGrid()(torch.ones(2, 2, 2, 2), ids, torch.eye(4), torch.eye(4), (2, 2, 2))


def test_dictionary_reads_ids_and_grid_from_the_case(make_request_text) -> None:
    meta = {"original_affine": np.diag([1, 1, 2, 1.0]), "spatial_shape": np.array([4, 4, 2])}
    image = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.eye(4), meta=meta)
    pred = torch.zeros(1, 4, 4, 4)
    pred[:, :, :, :1] = 1
    out = MergeOnGridd()({"image": image, "pred": pred, "request": make_request_text([("A", 42, "MRI", None)])})
    assert out["label_map"].shape == (1, 4, 4, 2)
    assert out["label_map"][..., 0].unique().tolist() == [42]
    assert out["label_map"][..., 1].unique().tolist() == [0]
    assert torch.equal(out["label_map"].affine, torch.as_tensor(meta["original_affine"]))
