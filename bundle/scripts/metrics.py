"""Score a segmentation against the truth as the challenge does: DSC and NSD of classes, F1 and DSC of instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cc3d
import numpy as np
import torch
from monai.metrics import compute_surface_dice
from scipy.ndimage import find_objects
from scipy.optimize import linear_sum_assignment

FACE_NEIGHBOURS: Final = 6


@dataclass(frozen=True)
class InstanceMatch:
    """How the objects of a prediction were matched with those of the truth."""

    true_positives: int
    false_positives: int
    false_negatives: int
    dice: tuple[float, ...]
    """Dice of each matched pair."""

    @property
    def f1(self) -> float:
        """2 tp / (2 tp + fp + fn), 0 without any object."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / total if total else 0.0

    @property
    def dsc_tp(self) -> float:
        """Mean Dice of the matched pairs, 0 without any."""
        return float(np.mean(self.dice)) if self.dice else 0.0


def semantic_scores(
    pred: np.ndarray, truth: np.ndarray, labels: Sequence[int], spacing: Sequence[float], tolerance_mm: float = 2.0
) -> dict[str, float]:
    """Mean scores over the classes that are asked for and present in the truth.

    Args:
        pred: label map ``[H, W, D]``, integers from 0.
        truth: label map on the same grid.
        labels: classes asked for. One that is only in the prediction costs nothing, one that is missing there gets 0.
        spacing: mm along the axes of the arrays.
        tolerance_mm: distance within which two surfaces agree.

    Returns:
        ``{"dsc": ..., "nsd": ...}``; NaN where the truth has none of the classes.

    Raises:
        ValueError: shapes that differ, or label maps that are no integers from 0.
    """
    scores = class_scores(pred, truth, labels, spacing, tolerance_mm)
    return {
        name: float(np.mean([score[name] for score in scores.values()])) if scores else float("nan")
        for name in ("dsc", "nsd")
    }


def class_scores(
    pred: np.ndarray, truth: np.ndarray, labels: Sequence[int], spacing: Sequence[float], tolerance_mm: float = 2.0
) -> dict[int, dict[str, float]]:
    """Scores of each class that is asked for and present in the truth; arguments as ``semantic_scores``.

    The NSD is the area-weighted surface Dice of DeepMind's ``surface-distance``, computed by MONAI on the box that
    holds the class in both maps.

    Returns:
        label -> ``{"dsc": ..., "nsd": ...}``, in the order of ``labels``.

    Raises:
        ValueError: shapes that differ, or label maps that are no integers from 0.
    """
    pred, truth = _label_maps(pred, truth)
    boxes, others = _boxes(truth), _boxes(pred)
    scores = {}
    for label in dict.fromkeys(int(label) for label in labels):
        if label not in boxes:
            continue
        if label not in others:
            scores[label] = {"dsc": 0.0, "nsd": 0.0}
            continue
        box = tuple(
            slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(boxes[label], others[label], strict=True)
        )
        a, b = pred[box] == label, truth[box] == label
        scores[label] = {"dsc": dice(a, b), "nsd": surface_dice(a, b, spacing, tolerance_mm)}
    return scores


def dice(pred: np.ndarray, truth: np.ndarray) -> float:
    """Dice coefficient of two boolean masks; NaN where both are empty."""
    total = int(np.count_nonzero(pred)) + int(np.count_nonzero(truth))
    return 2 * int(np.count_nonzero(pred & truth)) / total if total else float("nan")


def surface_dice(pred: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance_mm: float = 2.0) -> float:
    """Area-weighted share of two masks' surfaces that lies within a distance of the other surface (NSD).

    Args:
        pred: ``[H, W, D]`` bool.
        truth: ``[H, W, D]`` bool.
        spacing: mm along the axes.
        tolerance_mm: the distance.

    Returns:
        0..1; NaN where both are empty.
    """
    score = compute_surface_dice(
        torch.from_numpy(np.ascontiguousarray(pred))[None, None],
        torch.from_numpy(np.ascontiguousarray(truth))[None, None],
        [float(tolerance_mm)],
        include_background=True,
        spacing=[float(value) for value in spacing],
        use_subvoxels=True,
    )
    return float(score)


def instance_scores(pred: np.ndarray, truth: np.ndarray, iou_threshold: float = 0.5) -> dict[str, float]:
    """F1 of the objects found and mean Dice of the matched pairs; arguments as ``match_instances``.

    Returns:
        ``{"f1": ..., "dsc_tp": ...}``.

    Raises:
        ValueError: shapes that differ, or maps that are no integers from 0.
    """
    match = match_instances(pred, truth, iou_threshold)
    return {"f1": match.f1, "dsc_tp": match.dsc_tp}


def match_instances(pred: np.ndarray, truth: np.ndarray, iou_threshold: float = 0.5) -> InstanceMatch:
    """Match objects one to one so that as many pairs as possible overlap enough.

    As in the challenge's program, an empty prediction counts nothing at all, not even the objects it missed.

    Args:
        pred: instance map ``[H, W, D]``, integers from 0, numbered with or without gaps; one that holds exactly two
            values is first split into its 6-connected components.
        truth: instance map on the same grid, taken as it is.
        iou_threshold: least intersection over union of a matched pair, above 0.

    Returns:
        Counts, and the Dice of each matched pair.

    Raises:
        ValueError: shapes that differ, maps that are no integers from 0, or a threshold that is not above 0.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"metrics: iou_threshold must lie above 0 and at most at 1, got {iou_threshold}")
    pred, truth = _label_maps(pred, truth)
    values = _objects(pred)
    if not len(values):
        return InstanceMatch(0, 0, 0, ())
    if len(values) + int((pred == 0).any()) == 2:
        pred, count = cc3d.connected_components(pred != 0, connectivity=FACE_NEIGHBOURS, return_N=True)
        values = np.arange(1, count + 1)
    true_values = _objects(truth)
    common = (pred > 0) & (truth > 0)
    rows, columns = np.searchsorted(true_values, truth[common]), np.searchsorted(values, pred[common])
    pairs, overlap = np.unique(rows * len(values) + columns, return_counts=True)
    rows, columns = np.divmod(pairs, len(values))
    sums = _sizes(truth, true_values)[rows] + _sizes(pred, values)[columns]
    iou = overlap / (sums - overlap)
    enough = iou >= iou_threshold
    chosen = _best_pairs(rows[enough], columns[enough], iou[enough])
    dices = (2 * overlap / sums)[enough][chosen]
    tp = len(dices)
    return InstanceMatch(tp, len(values) - tp, len(true_values) - tp, tuple(dices.tolist()))


def _best_pairs(rows: np.ndarray, columns: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Which candidate pairs to keep so that no row or column occurs twice: most pairs, then most overlap.

    Only pairs that compete need the assignment; above an IoU of one half none do.
    """
    free = (np.bincount(rows)[rows] == 1) & (np.bincount(columns)[columns] == 1)
    rest = np.flatnonzero(~free)
    _, a = np.unique(rows[rest], return_inverse=True)
    _, b = np.unique(columns[rest], return_inverse=True)
    gain = np.zeros((a.max(initial=-1) + 1, b.max(initial=-1) + 1))
    # The overlaps of all pairs together weigh less than one pair.
    gain[a, b] = 1 + iou[rest] / (2 * max(1, min(gain.shape)))
    assigned = np.zeros(gain.shape, dtype=bool)
    assigned[linear_sum_assignment(gain, maximize=True)] = True
    return np.sort(np.concatenate([np.flatnonzero(free), rest[assigned[a, b]]]))


def _objects(labels: np.ndarray) -> np.ndarray:
    """The values above 0 of a map, ascending."""
    return np.unique(labels[labels > 0])


def _sizes(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Voxels of each value."""
    return np.bincount(np.searchsorted(values, labels[labels > 0]), minlength=len(values))


def _label_maps(pred: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both maps as arrays, checked."""
    pred, truth = (
        volume.astype(np.uint8) if volume.dtype == bool else volume for volume in (np.asarray(pred), np.asarray(truth))
    )
    if pred.shape != truth.shape or pred.ndim != 3:
        raise ValueError(f"metrics: wanted two volumes [H, W, D] on one grid, got {pred.shape} and {truth.shape}")
    for name, volume in (("prediction", pred), ("truth", truth)):
        if volume.dtype.kind not in "ui" or volume.min(initial=0) < 0:
            raise ValueError(f"metrics: the {name} must hold integers from 0, got {volume.dtype}")
    return pred, truth


def _boxes(labels: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Bounding box of each label present."""
    found = find_objects(labels)
    return {number: box for number, box in enumerate(found, start=1) if box is not None}
