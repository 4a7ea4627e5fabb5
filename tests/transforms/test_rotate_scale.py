"""Rotation and scaling: rates, ranges, the same move for image and labels, and shapes kept in mm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.transforms.rotate_scale import RandRotateScale, RandRotateScaled


def seeded(seed: int = 0, **kwargs) -> RandRotateScale:
    return RandRotateScale(**kwargs).set_random_state(seed)


def ball(radius: float, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> MetaTensor:
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    inside = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")) <= radius**2
    return MetaTensor(torch.as_tensor(inside, dtype=torch.float32)[None], affine=np.diag([*spacing, 1.0]))


def rod(spacing: tuple[float, float, float]) -> MetaTensor:
    """A rod along the first axis, 40 mm long and 8 mm thick."""
    shape = [int(64 / s) for s in spacing]
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    inside = (abs(x) <= 20) & (abs(y) <= 4) & (abs(z) <= 4)
    return MetaTensor(torch.as_tensor(inside, dtype=torch.float32)[None], affine=np.diag([*spacing, 1.0]))


def spread_in_mm(volume: MetaTensor) -> np.ndarray:
    """Standard deviations of the voxels' positions along the principal axes, largest first."""
    spacing = volume.affine.numpy()[[0, 1, 2], [0, 1, 2]]
    points = torch.nonzero(torch.as_tensor(volume)[0] > 0.5).numpy() * spacing
    return np.sqrt(np.linalg.eigvalsh(np.cov(points.T))[::-1])


def test_nothing_moves_where_nothing_is_drawn():
    volume = ball(5, (16, 16, 16), (1, 1, 1))
    assert torch.equal(seeded(prob_rotate=0, prob_scale=0)(volume), volume)


def test_rotation_and_scaling_come_at_their_own_rates():
    volume = rod((4, 4, 4))
    moves = []
    transform = seeded(prob_rotate=0.2, prob_scale=0.3)
    for _ in range(1500):
        transform.randomize()
        moves.append(transform._matrix)
    scaled = [m is not None and not np.isclose(np.linalg.det(m), 1) for m in moves]
    turned = [m is not None and not np.allclose(m, np.diag(np.diag(m))) for m in moves]
    assert np.mean(scaled) == pytest.approx(0.3, abs=0.04)
    assert np.mean(turned) == pytest.approx(0.2, abs=0.04)
    assert np.mean(np.logical_and(scaled, turned)) == pytest.approx(0.06, abs=0.03)
    assert transform(volume).shape == volume.shape


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_things_grow_by_the_factor(factor):
    result = seeded(prob_rotate=0, prob_scale=1, scale=(factor, factor))(ball(10, (48, 48, 48), (1, 1, 1)))
    volume = float((result > 0.5).sum())
    assert volume == pytest.approx(4 / 3 * np.pi * (10 * factor) ** 3, rel=0.04)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1, 2), (2, 0.5, 1)])
def test_a_rotation_keeps_the_shape_in_mm(spacing):
    """Turned in voxels, a rod on a grid of unequal spacing would change its length."""
    volume = rod(spacing)
    for seed in range(4):
        turned = seeded(seed, prob_rotate=1, prob_scale=0)(volume)
        assert spread_in_mm(turned)[0] == pytest.approx(spread_in_mm(volume)[0], rel=0.06)
        assert not torch.allclose(turned, volume)


def test_angles_stay_in_their_range():
    transform = seeded(prob_rotate=1, prob_scale=0, degrees=30)
    volume = rod((1, 1, 1))
    for _ in range(10):
        points = torch.nonzero(transform(volume)[0] > 0.5).double()
        axis = torch.linalg.svd(points - points.mean(0), full_matrices=False).Vh[0]
        # Turned about all three axes by 30 degrees at most, the rod stays within cos(30)^2 of its axis.
        assert abs(axis[0]) >= np.cos(np.deg2rad(30)) ** 2 - 0.02


def test_a_larger_cut_fills_the_corners():
    volume = torch.ones(1, 40, 40, 40)
    filled = seeded(prob_rotate=1, prob_scale=0, size=(20, 20, 20))(volume)
    empty = seeded(prob_rotate=1, prob_scale=0)(volume)
    assert filled.shape == (1, 20, 20, 20)
    assert filled.min() == pytest.approx(1)
    assert empty.min() == 0


def test_the_middle_is_cut_out_whether_or_not_it_moves():
    volume = torch.arange(12.0).reshape(1, 12, 1, 1).expand(1, 12, 12, 12).contiguous()
    still = seeded(prob_rotate=0, prob_scale=0, size=(6, 6, 6))(volume)
    moved = seeded(prob_rotate=0, prob_scale=1, scale=(1.0, 1.0), size=(6, 6, 6))(volume)
    torch.testing.assert_close(still, moved)
    assert still[0, :, 0, 0].tolist() == [3, 4, 5, 6, 7, 8]


def test_image_and_labels_move_alike_and_keep_their_types():
    volume = ball(7, (32, 24, 28), (1, 1, 1))
    volume[0, :4] = 0
    data = {"image": volume, "label": MetaTensor((volume > 0).to(torch.int16) * 300, affine=volume.affine)}
    transform = RandRotateScaled(["image", "label"], RandRotateScale(1, 1), ["bilinear", "nearest"])
    result = transform.set_random_state(1)(data)
    assert result["label"].dtype == torch.int16
    assert set(result["label"].unique().tolist()) == {0, 300}
    assert ((result["image"] > 0.5) == (result["label"] > 0)).float().mean() > 0.99
    assert result["label"].affine.tolist() == data["label"].affine.tolist()
    assert not torch.equal(result["label"], data["label"])
    again = RandRotateScaled(["image", "label"], RandRotateScale(1, 1), ["bilinear", "nearest"]).set_random_state(1)
    assert torch.equal(again(data)["image"], result["image"])


def test_a_factor_of_nought_is_refused():
    with pytest.raises(ValueError, match="augment: scale has to be a range of factors above 0, got"):
        RandRotateScale(scale=(0.0, 1.0))
