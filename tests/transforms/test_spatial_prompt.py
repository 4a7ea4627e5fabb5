"""Simulated prompts keep the definition of Algorithm 1: blocks, exclusiveness, rates, seeds."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scripts.transforms.spatial_prompt import RandSpatialPrompt, RandSpatialPromptd

ALWAYS = {"p_zero": 0.0, "p_channel_drop": 0.0}


def seeded(seed: int = 0, **kwargs) -> RandSpatialPrompt:
    transform = RandSpatialPrompt(**kwargs)
    transform.set_random_state(seed=seed)
    return transform


def blocks_of(volume: torch.Tensor, side: int) -> torch.Tensor:
    """Mean of every block; 0 or 1 where the block is uniform."""
    return torch.nn.functional.avg_pool3d(volume.float()[None], side)[0]


@given(st.integers(0, 2**31 - 1), st.tuples(*[st.integers(5, 40)] * 3), st.integers(1, 6))
def test_outputs_are_binary_and_shaped_for_any_size(seed, shape, channels):
    masks = torch.rand(channels, *shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    prompts, foreground = seeded(seed)(masks)
    assert prompts.shape == masks.shape
    assert foreground.shape == (1, *shape)
    assert set(prompts.unique().tolist()) | set(foreground.unique().tolist()) <= {0, 1}


def test_empty_prompts_come_at_their_rate():
    transform = seeded(p_zero=0.35, p_channel_drop=0.0, drop_range=(0.0, 0.0))
    masks = torch.ones(2, 32, 32, 32, dtype=torch.uint8)
    empty = sum(int(transform(masks)[1].sum() == 0) for _ in range(400)) / 400
    assert empty == pytest.approx(0.35, abs=0.07)


def test_dropped_share_of_the_foreground_lies_in_its_range():
    transform = seeded(**ALWAYS, add_range=(0.0, 0.0), block_sizes=(4,))
    masks = torch.ones(1, 48, 48, 48, dtype=torch.uint8)
    dropped = np.array([1 - transform(masks)[1].float().mean().item() for _ in range(60)])
    assert dropped.min() > 0.27
    assert dropped.max() < 0.93
    assert dropped.mean() == pytest.approx(0.6, abs=0.08)


@pytest.mark.parametrize("side", [4, 8, 16])
def test_decisions_are_taken_block_by_block(side):
    prompts, foreground = seeded(**ALWAYS, block_sizes=(side,))(torch.ones(3, 32, 32, 32))
    for volume in (prompts, foreground):
        assert set(blocks_of(volume, side).unique().tolist()) <= {0.0, 1.0}


def test_added_blocks_lie_outside_the_mask_too_and_never_where_one_was_dropped():
    """With an empty mask only added blocks show; with a full one, dropped blocks stay empty."""
    same_draws = {**ALWAYS, "block_sizes": (4,), "drop_range": (0.5, 0.5), "add_range": (0.3, 0.3)}
    _, added = seeded(5, **same_draws)(torch.zeros(1, 64, 64, 64))
    _, both = seeded(5, **same_draws)(torch.ones(1, 64, 64, 64))
    assert added.float().mean() == pytest.approx(0.15, abs=0.02)
    assert both.float().mean() == pytest.approx(0.5, abs=0.04)
    assert torch.all(both[added == 1] == 1)


def test_kept_blocks_go_to_a_nonempty_random_subset_of_channels():
    transform = seeded(**ALWAYS, drop_range=(0.0, 0.0), add_range=(0.0, 0.0), block_sizes=(4,))
    prompts, foreground = transform(torch.ones(4, 64, 64, 64))
    counts = blocks_of(prompts, 4).sum(dim=0).flatten()
    assert foreground.float().mean() == 1
    assert counts.min() == 1
    assert counts.max() == 4
    for size in (1, 2, 3, 4):
        assert (counts == size).float().mean() == pytest.approx(0.25, abs=0.04)
    assert blocks_of(prompts, 4).mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.625] * 4, abs=0.04)


def test_prompt_shows_only_the_mask_where_nothing_is_added():
    masks = torch.rand(3, 32, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.4
    prompts, foreground = seeded(**ALWAYS, add_range=(0.0, 0.0))(masks)
    assert torch.all(prompts.bool() <= masks)
    assert torch.all(foreground.bool() <= masks.any(dim=0, keepdim=True))


def test_whole_channels_are_dropped_at_their_rate():
    transform = seeded(p_zero=0.0, p_channel_drop=0.1, drop_range=(0.0, 0.0), add_range=(0.0, 0.0), block_sizes=(4,))
    gone = [(transform(torch.ones(8, 16, 16, 16))[0].flatten(1).sum(dim=1) == 0).float().mean() for _ in range(80)]
    assert np.mean(gone) == pytest.approx(0.1, abs=0.035)


def test_a_dropped_channel_is_in_neither_prompt():
    transform = seeded(p_zero=0.0, p_channel_drop=0.5, drop_range=(0.0, 0.0), add_range=(0.0, 0.0))
    masks = torch.zeros(6, 12, 12, 12, dtype=torch.uint8)
    for channel in range(6):
        masks[channel, 2 * channel : 2 * channel + 2] = 1
    shown = 0
    for _ in range(60):
        prompts, foreground = transform(masks)
        in_foreground = (masks * foreground).flatten(1).any(dim=1)
        assert torch.all(prompts.flatten(1).any(dim=1) <= in_foreground)
        assert torch.equal(in_foreground, (masks * foreground == masks).flatten(1).all(dim=1))
        shown += int(in_foreground.sum())
    assert shown / 360 == pytest.approx(0.5, abs=0.08)


def test_each_block_size_is_drawn_as_often():
    transform = seeded(**ALWAYS, add_range=(0.0, 0.0), drop_range=(0.5, 0.5))
    counts = dict.fromkeys((4, 8, 16, 32), 0)
    for _ in range(160):
        kept = transform(torch.ones(1, 64, 64, 64))[1]
        counts[max(side for side in counts if set(blocks_of(kept, side).unique().tolist()) <= {0.0, 1.0})] += 1
    assert all(count / 160 == pytest.approx(0.25, abs=0.1) for count in counts.values()), counts


def test_drop_and_add_probabilities_are_drawn_evenly_from_their_ranges():
    """Small blocks, of which there are many, show the probability that one call drew."""
    transform = seeded(**ALWAYS, block_sizes=(1,), drop_range=(0.3, 0.9), add_range=(0.0, 0.02))
    dropped, added = [], []
    for _ in range(150):
        dropped.append(1 - transform(torch.ones(1, 24, 24, 24))[1].float().mean().item())
        none = transform(torch.zeros(1, 24, 24, 24))[1].float().mean().item()
        added.append(none / (1 - transform._p_drop))  # only among the blocks that are not dropped
    for values, low, high in ((dropped, 0.3, 0.9), (added, 0.0, 0.02)):
        share = (np.array(values) - low) / (high - low)
        assert share.min() > -0.25
        assert share.max() < 1.25
        assert np.quantile(share, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.12)


def test_added_blocks_go_to_a_nonempty_random_subset_of_channels():
    transform = seeded(**ALWAYS, drop_range=(0.0, 0.0), add_range=(0.5, 0.5), block_sizes=(4,))
    prompts, foreground = transform(torch.zeros(4, 64, 64, 64))
    counts = blocks_of(prompts, 4).sum(dim=0)
    chosen = blocks_of(foreground, 4)[0] == 1
    assert chosen.float().mean() == pytest.approx(0.5, abs=0.03)
    assert counts[~chosen].max() == 0
    for size in (1, 2, 3, 4):
        assert (counts[chosen] == size).float().mean() == pytest.approx(0.25, abs=0.04)


@given(st.integers(0, 2**31 - 1), st.integers(1, 5))
def test_the_class_prompts_lie_within_the_foreground_prompt(seed, channels):
    """A block dropped from S_f is empty in S_p too, so drop and add coincide in neither."""
    masks = torch.rand(channels, 20, 18, 12, generator=torch.Generator().manual_seed(seed)) < 0.4
    prompts, foreground = seeded(seed, p_zero=0.0, add_range=(0.0, 0.3))(masks)
    assert torch.all(prompts.amax(dim=0) <= foreground[0])


def test_the_defaults_are_those_of_algorithm_1():
    transform = RandSpatialPrompt()
    assert (transform.p_zero, transform.p_channel_drop, transform.block_sizes) == (0.35, 0.1, (4, 8, 16, 32))
    assert (transform.drop_range, transform.add_range) == ((0.3, 0.9), (0.0, 0.02))
    assert RandSpatialPromptd("label", transform).p_withhold == 0.1


def test_same_seed_same_prompts():
    masks = torch.rand(3, 24, 24, 24) < 0.4
    first, again, other = (seeded(seed, p_zero=0.0)(masks) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_dictionary_form_withholds_at_its_rate_and_leaves_the_input_alone():
    transform = RandSpatialPromptd("label", RandSpatialPrompt(), p_withhold=0.1)
    transform.set_random_state(seed=0)
    data = {"label": torch.ones(1, 8, 8, 8)}
    results = [transform(data) for _ in range(400)]
    assert np.mean([r["label_withheld"] for r in results]) == pytest.approx(0.1, abs=0.05)
    assert set(data) == {"label"}
    assert results[0]["label_prompt"].shape == (1, 8, 8, 8)


def test_full_size_is_vectorised():
    """N = 32 at 192^3 is the published patch; at a quarter of it, simulating must cost little more than copying."""
    masks = torch.rand(32, 96, 96, 192) < 0.1
    transform = seeded(**ALWAYS, block_sizes=(4,))

    def seconds(call) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    copying = min(seconds(lambda: [masks & masks for _ in range(4)]) for _ in range(3))
    assert min(seconds(lambda: transform(masks)) for _ in range(3)) < 20 * copying
