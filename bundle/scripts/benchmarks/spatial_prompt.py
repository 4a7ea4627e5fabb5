"""Simulated spatial prompts for training: Algorithm 1 on a full patch."""

from __future__ import annotations

import torch

from scripts.benchmarks.measuring import Row, Section, Settings, side_by_side
from scripts.transforms.spatial_prompt import RandSpatialPrompt

CHANNELS = 32


def run(settings: Settings) -> Section:
    """Time one sample for each block size; prompts that would be empty are not drawn."""
    side = 32 if settings.quick else 192
    masks = torch.zeros(CHANNELS, side, side, side, dtype=torch.uint8)
    for number in range(CHANNELS):
        start = number * side // (2 * CHANNELS)
        masks[number, start : start + side // 2, side // 8 : -side // 8, side // 4 :] = 1
    calls = {}
    for block in (4, 8, 16, 32):
        transform = RandSpatialPrompt(p_zero=0, block_sizes=(block,)).set_random_state(seed=0)
        calls[str(block)] = lambda transform=transform: transform(masks)
    seconds = side_by_side(calls, settings.rounds)
    slowest = max(seconds, key=seconds.__getitem__)
    return Section(
        f"Simulated prompts (Algorithm 1), N = {CHANNELS}, {side}^3",
        [Row(f"slowest block size ({slowest})", seconds[slowest], "s", 0.5)]
        + [Row(f"blocks of {block}", taken, "s") for block, taken in seconds.items() if block != slowest],
        {"seconds": seconds, "side": side},
    )
