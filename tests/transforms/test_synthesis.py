"""Synthetic patches: labels stay labels, sides stay sides, contrast obeys the table, seeds repeat."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.transforms.synthesis import PoolLabels, RandDeformLabels, RandSynthesizeImaged, RandTissueContrast

STILL = {"rotate": 0.0, "scale": (1.0, 1.0), "aspect": 0.0, "shear": 0.0, "shift": 0.0, "deform_std": (0.0, 0.0)}
TISSUES = [
    {"values": [0], "mean": 0},
    {"values": [1, 2], "mean": 200},
    {"values": [500], "mean": 100, "outside": True},
]


@pytest.fixture
def halves() -> torch.Tensor:
    """Label 1 at low x (the patient's left in RAS), label 2 at high x, and tissue 500 outside them."""
    labels = torch.zeros(1, 64, 64, 64, dtype=torch.int16)
    labels[:, 8:32, 16:48, 16:48] = 1
    labels[:, 32:56, 16:48, 16:48] = 2
    labels[:, 8:56, 8:16, 8:56] = 500
    return labels


def steady(labels, **changes):
    transform = RandDeformLabels([32, 32, 32], spacing=2.0, **{**STILL, **changes})
    transform.set_random_state(seed=3)
    return transform(labels)


def test_an_undeformed_patch_is_the_map_itself(halves):
    assert torch.equal(steady(halves), halves)


@pytest.mark.parametrize("seed", range(5))
def test_deformation_keeps_values_and_sides(halves, seed):
    transform = RandDeformLabels([32, 32, 32], spacing=2.0, rotate=15, deform_std=(0, 3)).set_random_state(seed=seed)
    patch = transform(halves)
    assert set(patch.unique().tolist()) <= {0, 1, 2, 500}
    x = torch.arange(64, dtype=torch.float32).reshape(1, -1, 1, 1)
    centre = [(x * (patch == value)).sum() / (patch == value).sum() for value in (1, 2)]
    assert centre[0] < centre[1]


def test_outside_the_map_is_background():
    patch = RandDeformLabels([8, 8, 8], spacing=2.0, **STILL)(torch.ones(1, 4, 4, 4, dtype=torch.int16))
    assert patch.sum() == 4**3


def test_t1_like_contrast_follows_the_table(halves):
    contrast = RandTissueContrast(TISSUES, jitter=0, deviation=(1, 2), widest=0, strip=0, background=1, oversample=1)
    contrast.set_random_state(seed=0)
    image = contrast(halves)
    assert image[halves == 0].abs().max() == 0
    for value, mean in ((1, 200), (2, 200), (500, 100)):
        assert image[halves == value].mean() == pytest.approx(mean, abs=0.2)


def test_random_contrast_varies_and_sides_look_alike(halves):
    contrast = RandTissueContrast(TISSUES, deviation=(0, 0), full_random=1, strip=0, oversample=1)
    contrast.set_random_state(seed=0)
    means = []
    for _ in range(20):
        image = contrast(halves)
        assert image[halves == 1].mean() == pytest.approx(image[halves == 2].mean().item(), abs=1e-3)
        means.append(image[halves == 1].mean().item())
    assert np.std(means) > 30


def test_contrast_widens_with_progress(halves):
    def spread(progress):
        contrast = RandTissueContrast(TISSUES, jitter=0, deviation=(0, 0), strip=0, oversample=1, ramp=(0.0, 0.5))
        contrast.set_random_state(seed=0)
        return np.std([contrast(halves, progress)[halves == 1].mean().item() for _ in range(20)])

    assert spread(0.0) == pytest.approx(0, abs=1e-4)
    assert 0 < spread(0.1) < spread(1.0)


def test_stripping_removes_what_is_outside_the_brain(halves):
    contrast = RandTissueContrast(TISSUES, strip=1, background=1, widest=0, oversample=1).set_random_state(seed=0)
    image = contrast(halves)
    assert image[halves == 500].max() == 0
    assert image[halves == 1].mean() > 100


def test_partial_volume_at_the_patch_resolution(halves):
    image = RandTissueContrast(TISSUES, deviation=(0, 0), jitter=0, widest=0, strip=0, background=1)(halves)
    assert image.shape == (1, 32, 32, 32)
    assert image.max() <= 200


def test_value_without_tissue_is_named(halves):
    with pytest.raises(ValueError, match=r"label values \[2, 500\] belong to no tissue"):
        RandTissueContrast([{"values": [0, 1], "mean": 0}])(halves)


def test_pooling_takes_the_commonest_value_and_renames():
    labels = torch.tensor([7, 7, 9, 9, 9, 9, 530, 530]).reshape(1, 2, 2, 2).to(torch.int16)
    assert PoolLabels({7: 1, 9: 2})(labels).tolist() == [[[[2]]]]
    assert PoolLabels({7: 1})(labels).tolist() == [[[[0]]]]


def test_same_seed_same_sample_other_seed_other_sample(halves):
    def sample(seed):
        transform = RandSynthesizeImaged(
            "label",
            RandDeformLabels([16, 16, 16], spacing=4.0),
            RandTissueContrast(TISSUES),
            PoolLabels({1: 11, 2: 12}),
            spacing=4.0,
        )
        transform.set_random_state(seed=seed)
        data = {"label": halves, "progress": 1.0}
        result = transform(data)
        assert torch.equal(data["label"], halves)
        return result

    first, again, other = sample(1), sample(1), sample(2)
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["label"], again["label"])
    assert not torch.equal(first["image"], other["image"])
    assert first["image"].shape == first["label"].shape == (1, 16, 16, 16)
    assert set(first["label"].unique().tolist()) <= {0, 11, 12}
    assert first["image"].affine.diag().tolist() == [4, 4, 4, 1]
