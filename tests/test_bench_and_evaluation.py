"""Scores are written per structure."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scripts.evaluation import write_scores


def test_scores_average_over_cases_then_structures_and_skip_absent_ones(tmp_path: Path):
    nan = float("nan")
    details = torch.tensor([[0.5, nan, nan], [0.7, 0.9, nan]])
    evaluator = SimpleNamespace(state=SimpleNamespace(metric_details={"val_mean_dice": details}))
    mean = write_scores(evaluator, ["a", "b", "c"], tmp_path / "out" / "scores.json")
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert content["structures"] == {"a": 0.6, "b": 0.9, "c": None}
    assert content["mean"] == pytest.approx(0.75)
    assert mean == pytest.approx(0.75)
    assert content["cases"] == 2
    with pytest.raises(ValueError, match="3 scores per case for 2 structures"):
        write_scores(evaluator, ["a", "b"], tmp_path / "scores.json")
