"""Sum up the scores of many cases: each structure, each modality and all, with bootstrap confidence intervals.

Cases are what was drawn from the population, so cases are what is resampled; structures of one case go together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scripts.evaluation.case_scores import SCORES, Row

ALL = "all"
STRUCTURE, CASES, STRUCTURES = "structure", "mean of cases", "mean of structures"
SUMMARY_COLUMNS = ("modality", "over", "structure", "score", "mean", "low", "high", "median", "count", "cases")


@dataclass(frozen=True)
class Summary:
    """One mean with its confidence interval."""

    modality: str
    """``all`` for all modalities together."""
    over: str
    """``structure``: the cases of one structure; ``mean of cases``: cases, each with the mean over its structures, as
    the challenge ranks; ``mean of structures``: structures, each with the mean over its cases."""
    structure: str | None
    score: str
    """One of ``SCORES``."""
    mean: float
    low: float | None
    """Lower bound of the interval; None where a single case says nothing about others."""
    high: float | None
    median: float
    """Of the ``count`` values."""
    count: int
    """Values that the mean is over: cases or structures."""
    cases: int


def summarise(rows: Sequence[Row], resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> list[Summary]:
    """Means over cases and structures, with percentile bootstrap intervals.

    Args:
        rows: as ``score_pair`` gives them; None is no value.
        resamples: of the cases.
        confidence: share of the resampled means that the interval holds.
        seed: of the resampling; the interval of a structure does not depend on which others there are.

    Returns:
        By modality, with ``all`` last where there are several; within one first the means, then the structures in the
        order of their first case; by score.
    """
    modalities = list(dict.fromkeys(row["modality"] for row in rows))
    groups: dict[str, Sequence[Row]] = {name: [row for row in rows if row["modality"] == name] for name in modalities}
    if len(groups) > 1:
        groups[ALL] = rows
    share = (1 - confidence) / 2
    return [
        item
        for modality, group in groups.items()
        for score in SCORES
        for item in _of_group(modality, score, group, resamples, (100 * share, 100 * (1 - share)), seed)
    ]


def as_tables(summaries: Sequence[Summary]) -> dict[str, Any]:
    """The summaries as nested tables, ready for JSON: modality -> mean or structure -> score -> numbers."""
    tables: dict[str, Any] = {}
    for item in summaries:
        table = tables.setdefault(item.modality, {})
        place = table.setdefault("structures", {}).setdefault(item.structure, {}) if item.structure else table
        target = place if item.structure else place.setdefault(item.over, {})
        numbers = ("mean", "low", "high", "median", "count", "cases")
        target[item.score] = {key: value for key, value in asdict(item).items() if key in numbers}
    return tables


def _of_group(
    modality: str, score: str, rows: Sequence[Row], resamples: int, bounds: tuple[float, float], seed: int
) -> Iterator[Summary]:
    names, table = _table(rows, score)
    if not table.size:
        return
    per_case, per_structure = np.nanmean(table, axis=1), np.nanmean(table, axis=0)
    weights = _draws(len(table), resamples, seed)
    case_means = weights @ per_case / len(table)
    present = ~np.isnan(table)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a structure's cases were all left out of a draw
        structure_means = (weights @ np.where(present, table, 0)) / (weights @ present)
    means = np.nanmean(structure_means, axis=1)
    common = {"modality": modality, "score": score, "cases": len(table)}
    yield _summary(per_case, case_means, bounds, {**common, "over": CASES, "structure": None})
    yield _summary(per_structure, means, bounds, {**common, "over": STRUCTURES, "structure": None})
    if modality == ALL:  # its structures stand with their modalities: one name may be two targets
        return
    for name, column in zip(names, table.T, strict=True):
        values = column[~np.isnan(column)]
        drawn = _draws(len(values), resamples, seed) @ values / len(values)
        yield _summary(values, drawn, bounds, {**common, "over": STRUCTURE, "structure": name, "cases": len(values)})


def _table(rows: Sequence[Row], score: str) -> tuple[list[str], np.ndarray]:
    """Structures, and their scores ``[cases, structures]``, NaN where a case has none."""
    valid = [row for row in rows if row[score] is not None and row[score] == row[score]]
    columns = list(dict.fromkeys((row["modality"], row["structure"]) for row in valid))
    cases = list(dict.fromkeys((row["dataset"], row["case"]) for row in valid))
    table = np.full((len(cases), len(columns)), np.nan)
    place = {key: index for index, key in enumerate(cases)}
    column = {key: index for index, key in enumerate(columns)}
    for row in valid:
        table[place[row["dataset"], row["case"]], column[row["modality"], row["structure"]]] = row[score]
    return [name for _, name in columns], table


def _draws(cases: int, resamples: int, seed: int) -> np.ndarray:
    """How often each case occurs in each resample, ``[resamples, cases]``."""
    return np.random.default_rng(seed).multinomial(cases, np.full(cases, 1 / cases), size=resamples).astype(float)


def _summary(values: np.ndarray, drawn: np.ndarray, bounds: tuple[float, float], facts: Mapping[str, Any]) -> Summary:
    low, high = np.percentile(drawn, bounds) if facts["cases"] > 1 else (None, None)
    return Summary(
        mean=_number(np.mean(values)),
        low=None if low is None else _number(low),
        high=None if high is None else _number(high),
        median=_number(np.median(values)),
        count=len(values),
        **facts,
    )


def _number(value: Any) -> float:
    return round(float(value), 6)
