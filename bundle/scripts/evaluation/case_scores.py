"""Score one prediction against its truth: a row for each structure, or for the objects of an instance map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scripts.data.label_files import relabel
from scripts.errors import InputError
from scripts.evaluation.label_maps import LabelMap, check_same_grid, read_label_map
from scripts.evaluation.references import Reference, ScorePair, Values
from scripts.measurement import count_labels
from scripts.metrics import class_scores, match_instances

Row = dict[str, Any]
SCORES = ("dsc", "nsd", "f1", "dsc_tp")
COLUMNS = (
    *("case", "dataset", "modality", "structure", *SCORES),
    *("true_positives", "false_positives", "false_negatives", "truth_voxels", "predicted_voxels"),
)


def score_pair(pair: ScorePair, tolerance_mm: float = 2.0, iou_threshold: float = 0.5) -> list[Row]:
    """Read both label maps and score them.

    Args:
        pair: see there.
        tolerance_mm: of the NSD.
        iou_threshold: least overlap of a matched pair of objects.

    Returns:
        Rows with ``COLUMNS``; what does not apply is None. A structure that only the prediction has is given without
        scores, as the challenge counts it; one that neither has is left out.

    Raises:
        InputError: the pair has an error, a file cannot be read, the grids differ, or nothing can be scored.
    """
    if pair.error is not None or pair.prediction is None:
        raise InputError(pair.error or f"no prediction for {pair.reference.name}")
    truth, prediction = read_label_map(pair.reference.truth), read_label_map(pair.prediction)
    check_same_grid(prediction, truth)
    if pair.reference.instances:
        return [_instance_row(pair.reference, prediction, truth, iou_threshold)]
    names, values = _structures(pair, truth)
    here, there = _compact(prediction.values, values[0]), _compact(truth.values, values[1])
    spacing = truth.spacing or prediction.spacing
    if spacing is None:
        raise InputError(f"{truth.name}: no spacing in it, the NSD needs one")
    scores = class_scores(here, there, range(1, len(names) + 1), spacing, tolerance_mm)
    found, wanted = (count_labels(volume, len(names) + 1) for volume in (here, there))
    return [
        _row(pair.reference, name, scores.get(number, {}), wanted[number], found[number])
        for number, name in enumerate(names, start=1)
        if wanted[number] or found[number]
    ]


def _structures(pair: ScorePair, truth: LabelMap) -> tuple[list[str], tuple[list[Values], list[Values]]]:
    """Names, and for each its values in the prediction and in the truth."""
    known = pair.reference.structures
    if not known:  # without names, a value means the same in both
        values: list[Values] = [(int(value),) for value in np.unique(truth.values) if value]
        return [f"label {value}" for (value,) in values], (values, values)
    names = [name for name in known if name in pair.structures]
    if not names:
        raise InputError(f"{pair.reference.name}: the predictions' names have none of its structures")
    return names, ([pair.structures[name] for name in names], [known[name] for name in names])


def _compact(labels: np.ndarray, values: list[Values]) -> np.ndarray:
    """The label map with 1, 2, ... for the structures and 0 elsewhere."""
    table = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.uint16)
    for number, group in enumerate(values, start=1):
        table[[value for value in group if value < len(table)]] = number
    return relabel(labels, table)


def _instance_row(reference: Reference, prediction: LabelMap, truth: LabelMap, iou_threshold: float) -> Row:
    match = match_instances(prediction.values, truth.values, iou_threshold)
    scores = {
        "f1": match.f1,
        "dsc_tp": match.dsc_tp,
        "true_positives": match.true_positives,
        "false_positives": match.false_positives,
        "false_negatives": match.false_negatives,
    }
    name = next(iter(reference.structures), "object")
    return _row(reference, name, scores, np.count_nonzero(truth.values), np.count_nonzero(prediction.values))


def _row(reference: Reference, name: str, scores: Mapping[str, float], truth: int, prediction: int) -> Row:
    row: Row = dict.fromkeys(COLUMNS)
    case = {"case": reference.name, "dataset": reference.dataset, "modality": reference.modality, "structure": name}
    return {**row, **case, **scores, "truth_voxels": int(truth), "predicted_voxels": int(prediction)}
