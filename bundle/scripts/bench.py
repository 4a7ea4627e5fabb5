"""Measure what the documentation claims, as ratios side by side in one run: ``python -m scripts.bench``.

Run in the bundle's root. The network is the one of ``configs/inference.json`` on one window of random voxels; speed
does not depend on what is in it.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai
import torch
from monai.bundle import ConfigParser
from torch.utils.benchmark import Timer

from scripts.inferers import RefinementInferer

logger = logging.getLogger(__name__)


def side_by_side(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, measured in turn (A, B, A, B, ...) so that drift hits all alike."""
    timers = {name: Timer("call()", globals={"call": call}) for name, call in calls.items()}
    for timer in timers.values():
        timer.timeit(1)
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer.timeit(1).median)
    return {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}


def measure(config_file: str, queries: int, rounds: int) -> dict[str, Any]:
    """All comparisons; see the keys of the result.

    Args:
        config_file: bundle config with ``network_def``, ``roi_size`` and ``text_dim``.
        queries: structures asked for.
        rounds: times each call is measured.
    """
    parser = ConfigParser()
    parser.read_config(config_file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = parser.get_parsed_content("network_def").to(device).eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, *parser["roi_size"], generator=generator).to(device)
    texts = torch.randn(1, queries, parser["text_dim"], generator=generator).to(device)
    refine = RefinementInferer(iterations=1)
    single = RefinementInferer(iterations=0)

    def run(inferer: RefinementInferer, *parts: torch.Tensor, enabled: bool = False) -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            for part in parts:
                inferer(image, network, part)
        if device.type == "cuda":
            torch.cuda.synchronize()

    together = side_by_side(
        {
            "together": lambda: run(single, texts),
            "one_after_another": lambda: run(single, *texts.split(1, dim=1)),
        },
        rounds,
    )
    passes = side_by_side(
        {
            "single_pass": lambda: run(single, texts),
            "one_refinement": lambda: run(refine, texts),
            "one_refinement_bfloat16": lambda: run(refine, texts, enabled=True),
        },
        rounds,
    )
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "monai": monai.__version__,
        },
        "settings": {"window": list(parser["roi_size"]), "structures": queries, "rounds": rounds},
        "seconds": {**together, **passes},
        "ratios": {
            "together_over_one_after_another": together["together"] / together["one_after_another"],
            "one_refinement_over_single_pass": passes["one_refinement"] / passes["single_pass"],
            "bfloat16_over_float32": passes["one_refinement_bfloat16"] / passes["one_refinement"],
        },
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Measure speed ratios side by side and write them as JSON.")
    parser.add_argument("--config_file", default="configs/inference.json")
    parser.add_argument("--queries", type=int, default=24, help="structures asked for in one window")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each call; the median counts")
    parser.add_argument("--output", default="bench.json")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    result = measure(options.config_file, options.queries, options.rounds)
    Path(options.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, ratio in result["ratios"].items():
        logger.info("%-34s %.2f", name, ratio)
    logger.info("written to %s", options.output)


if __name__ == "__main__":
    main()
