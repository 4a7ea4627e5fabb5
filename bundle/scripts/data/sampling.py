"""Which case a training sample comes from and where its patch lies; every draw from the generator that is passed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.data.blosc2_cache import draw_location


def case_weights(
    cases: Sequence[Mapping[str, Any]],
    patch_size: Sequence[int],
    max_queries: int,
    factors: Mapping[str, float] | None = None,
) -> np.ndarray:
    """How likely each case is drawn: 1 / sqrt(cases in its dataset) * the dataset's factor * the case's repeats.

    Args:
        cases: from ``prepared_cases``.
        patch_size: voxels.
        max_queries: query slots of a sample.
        factors: dataset -> factor, 1 for those not named; 0 leaves a dataset out.

    Returns:
        float64 ``[cases]`` that adds up to 1.

    Raises:
        ValueError: a factor of a dataset that no case has, a negative one, or no case with a positive weight.
    """
    counts = Counter(case["dataset"] for case in cases)
    given = dict(factors or {})
    unknown = sorted(given.keys() - counts.keys())
    if unknown or any(not math.isfinite(value) or value < 0 for value in given.values()):
        raise ValueError(f"sampling: factors {given} arrived; give numbers from 0 for datasets among {sorted(counts)}")
    weights = np.array(
        [
            given.get(case["dataset"], 1.0)
            / math.sqrt(counts[case["dataset"]])
            * repeats(case, patch_size, max_queries)
            for case in cases
        ]
    )
    if not weights.sum() > 0:
        raise ValueError(f"sampling: no case of {len(cases)} has a positive weight; look at the factors")
    return weights / weights.sum()


def repeats(case: Mapping[str, Any], patch_size: Sequence[int], max_queries: int) -> int:
    """How many times a case counts: a sample shows one patch of it, and asks for so many targets.

    The number of patches that its labelled region is long, over the axes multiplied, times the number of samples that
    it takes to ask for all targets; each at least 1, the product rounded. (The rule of the published training program.)

    Args:
        case: ``region``, ``[start, stop]`` voxels or None, and ``sentences``, one entry per target.
        patch_size: voxels.
        max_queries: query slots of a sample.
    """
    start, stop = case["region"] or ([0] * 3, [0] * 3)
    sizes = [max(1.0, (b - a) / p) for a, b, p in zip(start, stop, patch_size, strict=True)]
    return round(math.prod(sizes) * max(1.0, len(case["sentences"]) / max_queries))


def draw_start(
    case: Mapping[str, Any], patch_size: Sequence[int], foreground: float, rng: np.random.Generator
) -> tuple[int, int, int]:
    """First voxel of a patch: centred on a voxel of a random class present, or anywhere.

    A patch lies within the volume as far as it can; a volume that is smaller along an axis lies within the patch, so
    that the start is negative there.

    Args:
        case: ``folder``, ``shape`` and ``voxels`` (label value -> voxels).
        patch_size: voxels.
        foreground: probability of a centred patch, for cases that have a class.
        rng: every draw comes from it.
    """
    bounds = [sorted((0, n - p)) for n, p in zip(case["shape"], patch_size, strict=True)]
    present = sorted(case["voxels"])
    if present and rng.random() < foreground:
        centre = draw_location(Path(case["folder"]), present[rng.integers(len(present))], rng)
        start = [min(max(c - p // 2, low), high) for c, p, (low, high) in zip(centre, patch_size, bounds, strict=True)]
    else:
        start = [int(rng.integers(low, high + 1)) for low, high in bounds]
    h, w, d = start
    return h, w, d
