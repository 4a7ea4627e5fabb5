"""The challenge's scores as MONAI metrics: DSC and NSD of classes, F1 and DSC-TP of instances.

They gather over the processes of a run by themselves, as MONAI's do, and an engine takes them through MONAI's handler::

    "key_val_metric": {"val_nsd": {"_target_": "monai.handlers.IgniteMetricHandler",
        "metric_fn": {"_target_": "scripts.evaluation.ClassScore", "score": "nsd", "spacing": [1.5, 1.5, 1.5]},
        "output_transform": "$scripts.handlers.masks_of", "save_details": true}}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from scripts.metrics import class_scores, instance_scores

CLASS_SCORES = ("dsc", "nsd")
INSTANCE_SCORES = ("f1", "dsc_tp")


class ClassScore(CumulativeIterationMetric):
    """DSC or NSD of every class, exact to the challenge's program.

    Args:
        score: ``dsc`` or ``nsd``.
        labels: values to score in label maps ``[B, 1, H, W, D]``; None takes masks ``[B, N, H, W, D]``, one per class.
        spacing: mm along the axes; None reads it from the truth, a ``MetaTensor``.
        tolerance_mm: of the NSD.

    Raises:
        ValueError: another score.
    """

    def __init__(
        self,
        score: str = "dsc",
        labels: Sequence[int] | None = None,
        spacing: Sequence[float] | None = None,
        tolerance_mm: float = 2.0,
    ) -> None:
        super().__init__()
        _check_score(score, CLASS_SCORES)
        self.score, self.tolerance_mm = score, tolerance_mm
        self.labels = None if labels is None else [int(label) for label in labels]
        self.spacing = None if spacing is None else [float(value) for value in spacing]

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """``[B, C]`` scores; NaN where the truth lacks the class, 0 where only the prediction does.

        Args:
            y_pred: label maps or masks, see the class; masks are set from 0.5 on.
            y: the truth, of the same shape.
            kwargs: none is known.

        Raises:
            ValueError: no spacing at hand, shapes that differ, or label maps with more than one channel.
        """
        y = _given(y)
        spacing = self.spacing or _spacing(y)
        rows = []
        for pred, truth in zip(y_pred, y, strict=True):
            if self.labels is not None:
                found = class_scores(_map(pred), _map(truth), self.labels, spacing, self.tolerance_mm)
                rows.append([found.get(label, {}).get(self.score, np.nan) for label in self.labels])
            else:
                rows.append([self._mask_score(a, b, spacing) for a, b in zip(pred, truth, strict=True)])
        return torch.tensor(rows, dtype=torch.float32, device=y_pred.device)

    def _mask_score(self, pred: Tensor, truth: Tensor, spacing: Sequence[float]) -> float:
        found = class_scores(_mask(pred), _mask(truth), [1], spacing, self.tolerance_mm)
        return found.get(1, {}).get(self.score, float("nan"))

    def aggregate(self, reduction: str | None = "mean") -> Tensor:
        """Mean over the cases of each case's mean over its classes; ``mean_batch``: the mean of each class ``[C]``.

        Raises:
            ValueError: another reduction, or nothing scored yet.
        """
        return _aggregate(self.get_buffer(), reduction)


class InstanceScore(CumulativeIterationMetric):
    """F1 of the objects found or mean Dice of the matched ones, of instance maps ``[B, 1, H, W, D]``.

    Args:
        score: ``f1`` or ``dsc_tp``.
        iou_threshold: least intersection over union of a matched pair.

    Raises:
        ValueError: another score.
    """

    def __init__(self, score: str = "f1", iou_threshold: float = 0.5) -> None:
        super().__init__()
        _check_score(score, INSTANCE_SCORES)
        self.score, self.iou_threshold = score, iou_threshold

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """``[B, 1]`` scores; arguments as ``ClassScore``'s, label maps only."""
        rows = [
            [instance_scores(_map(pred), _map(truth), self.iou_threshold)[self.score]]
            for pred, truth in zip(y_pred, _given(y), strict=True)
        ]
        return torch.tensor(rows, dtype=torch.float32, device=y_pred.device)

    def aggregate(self, reduction: str | None = "mean") -> Tensor:
        """See ``ClassScore.aggregate``."""
        return _aggregate(self.get_buffer(), reduction)


def _aggregate(scores: Any, reduction: str | None) -> Tensor:
    if not isinstance(scores, Tensor) or not scores.numel():
        raise ValueError("metrics: nothing has been scored yet; call the metric first")
    if reduction == "mean_batch":
        return scores.nanmean(dim=0)
    if reduction != "mean":
        raise ValueError(f"metrics: reduction is mean or mean_batch, got {reduction!r}")
    return scores.nanmean(dim=1).nanmean()


def _check_score(score: str, known: Sequence[str]) -> None:
    if score not in known:
        raise ValueError(f"metrics: score is {' or '.join(known)}, got {score!r}")


def _given(truth: Tensor | None) -> Tensor:
    if truth is None:
        raise ValueError("metrics: nothing to compare with; give the truth as y")
    return truth


def _spacing(truth: Tensor) -> list[float]:
    if not isinstance(truth, MetaTensor):
        raise ValueError("metrics: give spacing in mm: the truth is a plain tensor, which has none")
    return [float(value) for value in truth.pixdim[:3]]


def _map(labels: Tensor) -> np.ndarray:
    """A label map ``[1, H, W, D]`` as ``[H, W, D]`` integers."""
    if len(labels) != 1:
        raise ValueError(f"metrics: wanted label maps of one channel, got {len(labels)}; for masks leave labels out")
    return torch.as_tensor(labels[0]).round().to(torch.int64).cpu().numpy()


def _mask(mask: Tensor) -> np.ndarray:
    return (torch.as_tensor(mask) >= 0.5).to(torch.uint8).cpu().numpy()
