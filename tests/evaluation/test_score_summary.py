"""Means over cases and structures, and their bootstrap intervals, against plain resampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.evaluation.case_scores import COLUMNS
from scripts.evaluation.summary import as_tables, summarise


def row(case: int, structure: str, dsc: float | None, modality: str = "CT") -> dict:
    given_ = {"case": f"c{case}", "dataset": "d", "modality": modality, "structure": structure, "dsc": dsc}
    return {**dict.fromkeys(COLUMNS), **given_}


def test_means_over_cases_and_over_structures() -> None:
    """Case 1: 0.2 and 0.4, case 2: 1.0 alone; another modality stands apart and in all."""
    rows = [row(1, "a", 0.2), row(1, "b", 0.4), row(2, "a", 1.0), row(2, "b", None), row(3, "a", 0.5, "MRI")]
    tables = as_tables(summarise(rows))
    assert tables["CT"]["mean of cases"]["dsc"]["mean"] == pytest.approx((0.3 + 1) / 2)
    assert tables["CT"]["mean of structures"]["dsc"]["mean"] == pytest.approx((0.6 + 0.4) / 2)
    assert tables["CT"]["structures"]["a"]["dsc"]["cases"] == 2
    assert tables["all"]["mean of cases"]["dsc"]["mean"] == pytest.approx((0.3 + 1 + 0.5) / 3)
    assert tables["all"]["mean of structures"]["dsc"]["count"] == 3  # one name in two modalities is two structures
    assert tables["CT"]["structures"]["b"]["dsc"]["low"] is None  # a single case
    assert "nsd" not in tables["CT"]["structures"]["a"]


def test_intervals_are_those_of_plain_resampling() -> None:
    generator = np.random.default_rng(3)
    values = generator.random(40)
    rows = [row(case, "a", float(value)) for case, value in enumerate(values)]
    found = as_tables(summarise(rows, resamples=4000))["CT"]["structures"]["a"]["dsc"]
    means = generator.choice(values, (4000, 40)).mean(1)
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.01)
    again = as_tables(summarise([*rows, *(row(n, "b", 0.5) for n in range(3))], resamples=4000))
    assert again["CT"]["structures"]["a"]["dsc"] == found  # neither chance nor other structures change it
    other = as_tables(summarise(rows, resamples=4000, seed=1))["CT"]["structures"]["a"]["dsc"]
    assert other["low"] != found["low"]


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abc"), st.floats(0, 1)), min_size=1, max_size=12))
def test_an_interval_holds_numbers_between_the_extremes(scores: list[tuple[int, str, float]]) -> None:
    rows = [row(*score) for score in {(case, name): (case, name, value) for case, name, value in scores}.values()]
    values = [item["dsc"] for item in rows]
    for item in summarise(rows, resamples=20):
        assert min(values) - 1e-6 <= item.mean <= max(values) + 1e-6
        if item.low is not None and item.high is not None:
            assert min(values) - 1e-6 <= item.low <= item.high <= max(values) + 1e-6
