"""The benchmark writes the ratios that the documentation quotes; scores are written per structure."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scripts import bench
from scripts.evaluation import write_scores


def test_bench_writes_ratios_of_what_it_timed(tmp_path: Path):
    config = {
        "roi_size": [8, 8, 8],
        "text_dim": 6,
        "network_def": {
            "_target_": "scripts.networks.MedalS",
            "backbone": {"_target_": "scripts.networks.PlainUNet", "features": [4, 8], "strides": [1, 2]},
            "query_decoder": {
                "_target_": "scripts.networks.QueryDecoder",
                "in_channels": 12,
                "dim": 24,
                "num_layers": 1,
                "num_heads": 2,
                "feedforward": 16,
            },
            "mask_head": {"_target_": "scripts.networks.MaskHead", "query_dim": 24, "hidden": 8, "channels": 4},
            "text_projection": {"_target_": "scripts.networks.TextProjection", "text_dim": 6, "dim": 24},
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    output = tmp_path / "bench.json"
    bench.main(
        ["--config_file", str(tmp_path / "config.json"), "--output", str(output), "--queries", "3", "--rounds", "1"]
    )
    result = json.loads(output.read_text())
    seconds, ratios = result["seconds"], result["ratios"]
    assert all(value > 0 for value in seconds.values())
    assert ratios["together_over_one_after_another"] == pytest.approx(
        seconds["together"] / seconds["one_after_another"]
    )
    assert result["settings"] == {"window": [8, 8, 8], "structures": 3, "rounds": 1}


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
