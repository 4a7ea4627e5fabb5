"""Write what an evaluator measured: one score per structure, and their mean."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine

logger = logging.getLogger(__name__)


def write_scores(evaluator: Engine, names: Sequence[str], path: str | Path, metric: str = "val_mean_dice") -> float:
    """Write a JSON file with the mean score of every structure and the mean over the structures.

    Args:
        evaluator: has run; ``state.metric_details`` holds ``[cases, structures]`` with NaN where a case lacks one.
        names: of the structures, in the order of the metric's channels.
        path: JSON file to write; its folder is made.
        metric: name of the metric.

    Returns:
        The mean over the structures.

    Raises:
        ValueError: if the names do not fit the scores.
    """
    state: Any = evaluator.state
    details = state.metric_details[metric]
    if details.shape[1] != len(names):
        raise ValueError(f"{details.shape[1]} scores per case for {len(names)} structures")
    scores = details.nanmean(dim=0)
    mean = float(scores.nanmean())
    table = {
        name: None if score != score else round(score, 4) for name, score in zip(names, scores.tolist(), strict=True)
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"metric": metric, "cases": len(details), "mean": round(mean, 4), "structures": table}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    width = max(map(len, names))
    rows = "\n".join(f"  {name:{width}s}  {'-' if score is None else f'{score:.3f}'}" for name, score in table.items())
    logger.info("%s over %d cases\n%s\n  %-*s  %.3f", metric, len(details), rows, width, "mean", mean)
    return mean
