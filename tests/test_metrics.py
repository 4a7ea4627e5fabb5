"""Scores, against the challenge's own program and against plain definitions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scripts.metrics import class_scores, instance_scores, match_instances, semantic_scores

SHAPE = (6, 5, 4)


def golden_cases(shared: Path, instance: int) -> list[tuple[dict, np.ndarray, np.ndarray]]:
    """(expected, prediction, truth) of the golden cases of one kind."""
    cases = json.loads((shared / "golden" / "metrics.json").read_text())
    with np.load(shared / "golden" / "metrics.npz") as arrays_:
        return [
            (case, arrays_[f"case{case['case']}_seg"], arrays_[f"case{case['case']}_gt"])
            for case in cases
            if case["instance_label"] == instance
        ]


def test_golden_semantic(shared: Path) -> None:
    cases = golden_cases(shared, 0)
    assert len(cases) == 8
    for case, pred, truth in cases:
        expected = case["expected"]
        arguments = (pred, truth, case["class_ids"], case["spacing"])
        assert semantic_scores(*arguments) == pytest.approx(
            {"dsc": expected["DSC"], "nsd": expected["NSD"]}, abs=1e-6
        ), case["description"]
        found = {str(label): [score["dsc"], score["nsd"]] for label, score in class_scores(*arguments).items()}
        assert found.keys() == expected["per_class_dsc_nsd"].keys()
        for label, values in expected["per_class_dsc_nsd"].items():
            assert found[label] == pytest.approx(values, abs=1e-6), case["description"]


def test_golden_instances(shared: Path) -> None:
    cases = golden_cases(shared, 1)
    assert len(cases) == 7
    for case, pred, truth in cases:
        expected = case["expected"]
        assert instance_scores(pred, truth) == pytest.approx(
            {"f1": expected["F1"], "dsc_tp": expected["DSC_TP"]}, abs=1e-12
        ), case["description"]
        match = match_instances(pred, truth)
        counts = (match.true_positives, match.false_positives, match.false_negatives)
        assert counts == (expected["tp"], expected["fp"], expected["fn"]), case["description"]


def test_a_shift_within_the_tolerance_is_no_error_of_the_surface() -> None:
    truth = np.zeros((20, 20, 20), np.uint8)
    truth[5:12, 5:12, 5:12] = 3
    for spacing, expected in ((1.9, True), (2.1, False)):
        score = semantic_scores(np.roll(truth, 1, axis=0), truth, [3], (spacing, 1, 1))
        assert score["dsc"] == pytest.approx(6 / 7)
        assert (score["nsd"] == 1) is expected
    assert semantic_scores(np.roll(truth, 1, axis=0), truth, [3], (2.1, 1, 1), tolerance_mm=3)["nsd"] == 1


def test_classes_that_do_not_count() -> None:
    truth, pred = np.zeros((2, *SHAPE), np.uint8)
    truth[1:3, 1:3, 1:3] = pred[1:3, 1:3, 1:3] = 1
    pred[4] = 2
    assert semantic_scores(pred, truth, [1, 2, 9], (1, 1, 1)) == {"dsc": 1, "nsd": 1}
    assert list(class_scores(pred, truth, [9, 2, 1, 1], (1, 1, 1))) == [1]
    assert class_scores(truth, pred, [2, 1], (1, 1, 1))[2] == {"dsc": 0, "nsd": 0}
    assert all(math.isnan(value) for value in semantic_scores(pred, truth, [2], (1, 1, 1)).values())


@given(arrays(np.uint8, SHAPE, elements=st.integers(0, 3)), arrays(np.uint8, SHAPE, elements=st.integers(0, 3)))
def test_scores_of_classes_do_not_depend_on_each_other(pred: np.ndarray, truth: np.ndarray) -> None:
    """The crop to a class's box changes nothing: alone in padded volumes, it scores the same."""
    together = class_scores(pred, truth, [1, 2, 3], (1.0, 0.7, 2.5))
    for label, score in together.items():
        alone = (np.pad((volume == label).astype(np.uint8), 4) for volume in (pred, truth))
        assert semantic_scores(*alone, [1], (1.0, 0.7, 2.5)) == pytest.approx(score, abs=1e-6)


def brute_force_pairs(pred: np.ndarray, truth: np.ndarray, threshold: float) -> int:
    """Most pairs that can be matched, by trying every choice."""
    iou = [
        [((pred == p) & (truth == t)).sum() / ((pred == p) | (truth == t)).sum() for p in np.unique(pred[pred > 0])]
        for t in np.unique(truth[truth > 0])
    ]

    def most(row: int, used: frozenset[int]) -> int:
        if row == len(iou):
            return 0
        options = [most(row + 1, used)]
        options += [1 + most(row + 1, used | {c}) for c, v in enumerate(iou[row]) if v >= threshold and c not in used]
        return max(options)

    return most(0, frozenset())


@given(
    arrays(np.uint8, (3, 2, 2), elements=st.integers(0, 4)),
    arrays(np.uint8, (3, 2, 2), elements=st.integers(0, 4)),
    st.sampled_from([0.2, 0.34, 0.5, 0.75]),
)
def test_as_many_pairs_as_possible(pred: np.ndarray, truth: np.ndarray, threshold: float) -> None:
    pred.flat[:2], truth.flat[0] = (5, 6), 5  # three values or more: no splitting into components
    pred.flat[2] = 0
    match = match_instances(pred, truth, threshold)
    assert match.true_positives == brute_force_pairs(pred, truth, threshold) == len(match.dice)
    assert match.true_positives + match.false_positives == len(np.unique(pred[pred > 0]))
    assert match.true_positives + match.false_negatives == len(np.unique(truth[truth > 0]))
    least = 2 * threshold / (1 + threshold)
    assert all(value >= least - 1e-12 for value in match.dice)


def test_numbers_of_the_objects_do_not_matter() -> None:
    truth = np.zeros((9, 9, 9), np.uint16)
    for number, place in enumerate((0, 3, 6), start=1):
        truth[place : place + 2, :4, :4] = number
    pred = np.where(truth == 1, 40_000, np.where(truth == 3, 7, 0))
    assert instance_scores(pred, truth) == {"f1": 0.8, "dsc_tp": 1}
    assert instance_scores(pred > 0, truth) == {"f1": 0.8, "dsc_tp": 1}  # two values: split into components


@pytest.mark.parametrize(
    ("pred", "truth", "words"),
    [
        (np.zeros((2, 3, 4), int), np.zeros((2, 3, 5), int), r"got \(2, 3, 4\) and \(2, 3, 5\)"),
        (np.zeros((3, 4), int), np.zeros((3, 4), int), r"\[H, W, D\]"),
        (np.zeros(SHAPE), np.zeros(SHAPE, int), "prediction must hold integers from 0, got float64"),
        (np.zeros(SHAPE, int), np.full(SHAPE, -1), "truth must hold integers"),
    ],
)
def test_maps_that_cannot_be_compared(pred: np.ndarray, truth: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        semantic_scores(pred, truth, [1], (1, 1, 1))
    with pytest.raises(ValueError, match=words):
        instance_scores(pred, truth)


def test_threshold_out_of_range() -> None:
    with pytest.raises(ValueError, match="got 0"):
        match_instances(np.ones(SHAPE, int), np.ones(SHAPE, int), 0)
