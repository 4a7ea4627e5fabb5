"""Steps by dataset: what is left out, what is replaced, and that the other steps keep their chance."""

from __future__ import annotations

import pytest
import torch
from monai.transforms import Compose, RandGaussianNoised, RandScaleIntensityd

from scripts.transforms.by_dataset import AugmentByDataset


def steps() -> dict:
    return {
        "noise": RandGaussianNoised("image", prob=1.0, std=0.1),
        "brightness": RandScaleIntensityd("image", factors=0.25, prob=1.0),
    }


def run(transform, dataset: str | None = None, seed: int = 0) -> torch.Tensor:
    data = {"image": torch.ones(1, 4, 4, 4)} | ({} if dataset is None else {"dataset": dataset})
    return transform.set_random_state(seed)(data)["image"]


def test_without_overrides_it_is_the_chain_of_its_steps():
    transform = AugmentByDataset(steps())
    assert run(transform).std() > 0
    assert torch.equal(run(transform), run(transform, "CT_Abdomen1K"))
    assert not torch.equal(run(transform, seed=1), run(transform))


def test_a_dataset_leaves_a_step_out_and_the_others_keep_their_chance():
    transform = AugmentByDataset(steps(), {"US_": {"noise": None}})
    brightness = run(AugmentByDataset({**steps(), "noise": dict}))
    assert torch.equal(run(transform, "US_Low_limb_Leg"), brightness)
    assert not torch.equal(run(transform, "CT_Lungs"), brightness)


def test_the_longest_beginning_counts():
    overrides = {"MR_": {"noise": None}, "MR_BraTS": {"brightness": None}}
    transform = AugmentByDataset(steps(), overrides)
    assert run(transform, "MR_AMOS").std() == 0
    assert run(transform, "MR_BraTS-T1n").std() > 0
    assert run(transform, "MR_BraTS-T1n").mean() == pytest.approx(1, abs=0.05)


def test_a_replacement_is_seeded_too():
    transform = AugmentByDataset(steps(), {"CT_": {"noise": RandGaussianNoised("image", prob=1.0, std=2.0)}})
    assert torch.equal(run(transform, "CT_Lungs", 5), run(transform, "CT_Lungs", 5))
    assert not torch.equal(run(transform, "CT_Lungs", 5), run(transform, "CT_Lungs", 6))


def test_compose_seeds_it():
    transform = Compose([AugmentByDataset(steps())])
    assert torch.equal(run(transform, seed=2), run(transform, seed=2))
    assert not torch.equal(run(transform, seed=2), run(transform, seed=3))


def test_an_override_of_no_step_is_refused():
    with pytest.raises(ValueError, match=r"overrides of 'US_' name \['mirrror'\], which are no steps"):
        AugmentByDataset(steps(), {"US_": {"mirrror": None}})
