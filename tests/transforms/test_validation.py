"""Voxel checks."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import InputError
from scripts.transforms.validation import CheckVoxels, CheckVoxelsd


def volume(*bad: float) -> MetaTensor:
    voxels = torch.arange(60.0).reshape(1, 3, 4, 5) - 10
    voxels.view(-1)[30 : 30 + len(bad)] = torch.tensor(bad)
    return MetaTensor(voxels, meta={"filename_or_obj": "/home/someone/scan.nii.gz"})


def test_a_sound_volume_passes_untouched() -> None:
    image = volume()
    assert CheckVoxels()(image) is image


def test_non_finite_voxels_are_counted() -> None:
    with pytest.raises(InputError, match=r"^scan.nii.gz: 3 of 60 voxels"):
        CheckVoxels()(volume(float("nan"), float("inf"), float("-inf")))


def test_non_finite_voxels_become_the_minimum_when_asked() -> None:
    image = volume(float("nan"), float("inf"))
    filled = CheckVoxelsd("image", fill_non_finite=True)({"image": image})["image"]
    assert filled.view(-1)[30:32].tolist() == [-10, -10]
    assert filled.view(-1)[32] == 22
    assert filled.meta["filled_voxels"] == 2
    assert torch.isnan(image.view(-1)[30])  # the caller's own volume is left alone


@pytest.mark.parametrize(
    ("value", "message"), [(0.0, "value 0"), (-1024.0, "value -1024"), (float("nan"), "every voxel")]
)
def test_volumes_without_content_are_refused(value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CheckVoxels(fill_non_finite=True)(torch.full((1, 3, 3, 3), value))
