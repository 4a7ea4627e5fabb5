"""Rough prompts look like a coarse stage's answer: the right place, wrong borders, all from the seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scripts.transforms.rough_prompt import RandRoughPrompt
from scripts.transforms.spatial_prompt import RandSpatialPromptd


def seeded(seed: int = 0, **kwargs) -> RandRoughPrompt:
    transform = RandRoughPrompt(**{"p_zero": 0.0, "p_channel_drop": 0.0, **kwargs})
    transform.set_random_state(seed=seed)
    return transform


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(2 * (a.bool() & b.bool()).sum() / (a.sum() + b.sum()))


def balls() -> torch.Tensor:
    """Two balls ``[2, 40, 40, 40]``."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(40.0)] * 3, indexing="ij"))
    centres = [torch.tensor(place).reshape(3, 1, 1, 1) for place in ([12.0, 20, 20], [28.0, 20, 20])]
    return torch.stack([((grid - centre) ** 2).sum(dim=0) < 8**2 for centre in centres]).to(torch.uint8)


@given(st.integers(0, 2**31 - 1), st.tuples(*[st.integers(3, 30)] * 3), st.integers(0, 4))
def test_outputs_are_binary_and_shaped_for_any_size(seed, shape, channels):
    masks = torch.rand(channels, *shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    prompts, foreground = seeded(seed)(masks)
    assert prompts.shape == masks.shape
    assert torch.equal(foreground[0], prompts.amax(dim=0) if channels else torch.zeros(shape, dtype=torch.uint8))
    assert prompts.dtype == foreground.dtype == torch.uint8
    assert set(prompts.unique().tolist()) <= {0, 1}


def test_prompts_are_in_place_but_their_borders_are_not():
    masks = balls()
    found = [seeded(seed)(masks)[0] for seed in range(20)]
    scores = [dice(prompt[channel], masks[channel]) for prompt in found for channel in range(2)]
    assert 0.6 < sum(scores) / len(scores) < 0.97
    assert max(scores) < 1
    sizes = torch.tensor([float(prompt.sum() / masks.sum()) for prompt in found])
    assert (sizes > 1.05).any(), "none is larger than the structure"
    assert (sizes < 0.95).any(), "none is smaller than the structure"
    crossed = [dice(prompt[0], masks[1]) for prompt in found]
    assert max(crossed) < 0.3


def test_more_noise_gives_worse_prompts():
    masks = balls()
    mean = {
        noise: sum(dice(seeded(seed, noise=(noise, noise), threshold=(0.5, 0.5))(masks)[0], masks) for seed in range(8))
        for noise in (0.0, 0.25, 0.5)
    }
    assert mean[0.0] > mean[0.25] > mean[0.5]


def test_the_seed_decides():
    masks = balls()
    first, again, other = (seeded(seed)(masks)[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_channels_are_left_out_and_prompts_withheld_at_their_rates():
    masks = torch.ones(4, 8, 8, 8)
    transform = seeded(p_channel_drop=0.25, noise=(0.0, 0.0))
    dropped = [int((channel == 0).all()) for _ in range(100) for channel in transform(masks)[0]]
    assert sum(dropped) / len(dropped) == pytest.approx(0.25, abs=0.07)
    transform = seeded(p_zero=0.4)
    assert sum(int(transform(masks)[1].sum() == 0) for _ in range(300)) / 300 == pytest.approx(0.4, abs=0.09)


def test_it_takes_its_place_in_the_dictionary_form():
    transform = RandSpatialPromptd("label", RandRoughPrompt(p_zero=0.0)).set_random_state(seed=1)
    data = transform({"label": balls()})
    assert data["label_prompt"].shape == (2, 40, 40, 40)
    assert data["label_foreground"].shape == (1, 40, 40, 40)
