"""Thick slices: detail is lost along one axis alone, geometry and mean stay."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from scripts.transforms.thick_slices import RandThickSlices, RandThickSlicesd


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))


def roughness(image: torch.Tensor) -> list[float]:
    """Mean difference of neighbours along each axis."""
    return [float(image[0].diff(dim=axis).abs().mean()) for axis in range(3)]


@pytest.mark.parametrize("seed", range(6))
def test_one_axis_loses_its_detail(seed):
    transform = RandThickSlices(1.0, thickness=(5.0, 5.0), spacing=1.0).set_random_state(seed=seed)
    image = noise(30, 25, 20)
    thick = transform(image)
    assert thick.shape == image.shape
    before, after = roughness(image), roughness(thick)
    kept = [b / a for a, b in zip(before, after, strict=True)]
    axis = kept.index(min(kept))
    assert kept[axis] < 0.25
    assert all(kept[axis] < 0.4 * kept[other] for other in range(3) if other != axis)
    assert float(thick.mean()) == pytest.approx(float(image.mean()), rel=0.02)


def test_slices_thinner_than_voxels_change_nothing():
    transform = RandThickSlices(1.0, thickness=(1.0, 1.0), spacing=1.0).set_random_state(seed=0)
    torch.testing.assert_close(transform(noise(9, 8, 7)), noise(9, 8, 7))


def test_a_structure_stays_where_it_is():
    image = torch.zeros(1, 40, 40, 40)
    image[:, 15:25, 15:25, 15:25] = 1
    thick = RandThickSlices(1.0, thickness=(5.0, 5.0)).set_random_state(seed=2)(image)
    places = torch.stack(torch.meshgrid(*[torch.arange(40.0)] * 3, indexing="ij"))
    centre = (places * thick[0]).sum(dim=(1, 2, 3)) / thick.sum()
    torch.testing.assert_close(centre, torch.full((3,), 19.5), atol=0.2, rtol=0)


def test_dictionary_form_keeps_meta_rate_and_seed():
    image = MetaTensor(noise(12, 12, 12), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    transform = RandThickSlicesd("image", prob=0.5, spacing=2.0)
    results = [transform.set_random_state(seed=seed)({"image": image})["image"] for seed in range(60)]
    changed = [not torch.equal(result, image) for result in results]
    assert 15 < sum(changed) < 45
    assert all(torch.equal(result.affine, image.affine) for result in results)
    again = transform.set_random_state(seed=7)({"image": image})["image"]
    assert torch.equal(again, results[7])
