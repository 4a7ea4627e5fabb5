"""The published network's size: one window against the published layer sequence, in float32 and bfloat16."""

from __future__ import annotations

from typing import Any

import torch

from scripts.benchmarks.measuring import HIGHER, Row, Section, Settings, has_avx512_bf16, side_by_side
from scripts.convert_checkpoint import convert_reference_state_dict
from scripts.inferers import RefinementInferer
from scripts.networks import MedalS
from scripts.published.reference_network import PUBLISHED, PublishedNetwork

THRESHOLD = 0.5
# A difference of logits that is due to rounding alone: the order of sums differs.
ROUNDING = 1e-3


def run(settings: Settings) -> Section:
    """Time one window with all queries: plain PyTorch, ours, ours in bfloat16; all with the same weights."""
    side = 64 if settings.quick else 96
    published, ours = _networks(settings.device)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, side, side, side, generator=generator).to(settings.device)
    queries = torch.randn(1, settings.queries, PUBLISHED.width, generator=generator).to(settings.device)
    inferer = RefinementInferer(iterations=0)
    empty = torch.zeros(1, settings.queries, side, side, side, device=settings.device)
    found: dict[str, Any] = {}

    def plain() -> None:
        found["published"] = torch.sigmoid(published(image, queries, empty))

    def own(name: str, enabled: bool = False, asked: torch.Tensor = queries) -> None:
        with torch.autocast(settings.device.type, torch.bfloat16, enabled=enabled):
            found[name] = inferer(image, ours, asked)

    calls = {
        "published": plain,
        "float32": lambda: own("float32"),
        "bfloat16": lambda: own("bfloat16", True),
    }
    with torch.inference_mode():
        seconds = side_by_side(calls, settings.few_rounds(), settings.device)
        alone = {"one_query": lambda: own("one_query", asked=queries[:, :1])}
        seconds |= side_by_side(alone, 1, settings.device, warm_up=False)
    apart = float((found["published"] - found["float32"]).abs().max())
    if apart > ROUNDING:
        raise ValueError(f"bench: the two full-size networks differ by {apart:g} in probability: one of them is wrong")
    dice = _dice(found["float32"], found["bfloat16"])
    ratio = seconds["float32"] / seconds["published"]
    together = seconds["float32"] / (settings.queries * seconds["one_query"])
    return Section(
        f"Full-size network, one window of {side}^3, {settings.queries} targets, words only",
        [
            Row("float32, time against the published layers in plain PyTorch", ratio, goal=1.0),
            Row(
                "bfloat16, times as fast as float32",
                seconds["float32"] / seconds["bfloat16"],
                "x",
                2.0 if settings.device.type == "cpu" and has_avx512_bf16() else None,
                HIGHER,
            ),
            Row(f"{settings.queries} targets together / one after another", together),
            Row("DSC of bfloat16 and float32 masks, random weights, all targets", dice),
            Row("float32", seconds["float32"], "s"),
            Row("bfloat16", seconds["bfloat16"], "s"),
            Row("published layers, float32", seconds["published"], "s"),
        ],
        {"seconds": seconds, "largest_difference_of_probability": apart, "side": side, "dice": dice},
        [
            "Weights are random, and the same in both networks; their probabilities agree to "
            f"{apart:.1g}. Random weights leave most voxels near the threshold, where any rounding decides: the "
            "masks of trained weights are compared under 'Refinement and precision'."
        ],
    )


def _networks(device: torch.device) -> tuple[PublishedNetwork, MedalS]:
    """Both networks with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        published = PublishedNetwork()
    ours = MedalS()
    ours.load_state_dict(convert_reference_state_dict(published.state_dict()), strict=True)
    return published.to(device).eval(), ours.to(device).eval()


def _dice(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of all masks together."""
    a, b = one >= THRESHOLD, other >= THRESHOLD
    both: Any = (a & b).sum().double()
    return float(2 * both / (a.sum() + b.sum()).clamp_min(1))
