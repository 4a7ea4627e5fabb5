"""Refinement in its two modes, and bfloat16, with the shipped weights on a real head."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from scripts.benchmarks.measuring import HIGHER, Row, Section, Settings, side_by_side
from scripts.benchmarks.shipped import MODALITY, head, known_structures, pipeline
from scripts.errors import InputError
from scripts.metrics import dice

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"refinements": 0},
    "plain, bfloat16": {"refinements": 0, "amp": True},
    "exact": {"refinements": 1, "refinement_mode": "exact"},
    "cached": {"refinements": 1, "refinement_mode": "cached"},
}


def run(settings: Settings) -> Section:
    """Time each variant on the head of the demo and compare their label maps."""
    title = "Refinement and precision, shipped weights, MNI152 head at 1 mm, all structures they know"
    try:
        volume = head(settings)
    except InputError as e:
        return Section(title, [], notes=[f"Not measured: {e}."])
    structures = known_structures(settings)[: 2 if settings.quick else None]
    systems = {name: pipeline(settings, **options) for name, options in VARIANTS.items()}
    cases = {name: system.prepare(structures, MODALITY, volume) for name, system in systems.items()}
    labels: dict[str, np.ndarray] = {}

    def ask(name: str) -> None:
        labels[name] = systems[name].ask(cases[name])["label_map"][0]

    with torch.inference_mode():
        calls = {name: (lambda name=name: ask(name)) for name in systems}
        seconds = side_by_side(calls, settings.few_rounds(), settings.device)
    bfloat16 = _compare(labels["plain"], labels["plain, bfloat16"])
    modes = _compare(labels["exact"], labels["cached"])
    return Section(
        title,
        [
            Row("one refinement / a plain pass, exact", seconds["exact"] / seconds["plain"]),
            Row("one refinement / a plain pass, cached", seconds["cached"] / seconds["plain"]),
            Row("one refinement, cached / exact", seconds["cached"] / seconds["exact"]),
            Row("DSC of exact and cached, mean over structures", modes["mean"]),
            Row("DSC of exact and cached, worst structure", modes["worst"]),
            Row("DSC of bfloat16 and float32, voxels of all structures together", bfloat16["all"], "", 0.999, HIGHER),
            Row("DSC of bfloat16 and float32, mean over structures", bfloat16["mean"]),
            Row("bfloat16 / float32, plain pass of the whole system", seconds["plain, bfloat16"] / seconds["plain"]),
            Row("plain pass", seconds["plain"], "s"),
        ],
        {"seconds": seconds, "bfloat16": bfloat16, "cached": modes},
    )


def _compare(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """DSC of two label maps: mean and worst over the structures in either, and of all their voxels together."""
    values = [int(value) for value in np.union1d(one, other) if value]
    scores = [dice(one == value, other == value) for value in values] or [1.0]
    return {
        "mean": float(np.mean(scores)),
        "worst": float(np.min(scores)),
        "all": _pooled(one, other),
    }


def _pooled(one: np.ndarray, other: np.ndarray) -> float:
    """2 x voxels labelled alike / labelled voxels of both."""
    labelled = np.count_nonzero(one) + np.count_nonzero(other)
    return 2 * int(((one == other) & (one != 0)).sum()) / labelled if labelled else 1.0
