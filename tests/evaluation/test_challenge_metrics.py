"""The challenge's scores as MONAI metrics: exact to its own program, in an ignite engine, and with bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler

from scripts.evaluation import ClassScore, InstanceScore


def golden(shared: Path, instance: int) -> list[tuple[dict, torch.Tensor, torch.Tensor]]:
    cases = json.loads((shared / "golden" / "metrics.json").read_text())
    with np.load(shared / "golden" / "metrics.npz") as arrays:
        return [
            (case, *(torch.from_numpy(arrays[f"case{case['case']}_{kind}"])[None, None] for kind in ("seg", "gt")))
            for case in cases
            if case["instance_label"] == instance
        ]


def test_classes_are_exact_to_golden(shared: Path) -> None:
    for case, pred, truth in golden(shared, 0):
        for score, key in (("dsc", "DSC"), ("nsd", "NSD")):
            metric = ClassScore(score, labels=case["class_ids"], spacing=case["spacing"])
            metric(pred, truth)
            assert metric.aggregate().item() == pytest.approx(case["expected"][key], abs=1e-6)
            masks = ClassScore(score, spacing=case["spacing"])
            masks(*(torch.cat([volume == label for label in case["class_ids"]], 1) for volume in (pred, truth)))
            assert masks.aggregate().item() == pytest.approx(case["expected"][key], abs=1e-6)


def test_instances_are_exact_to_golden(shared: Path) -> None:
    for case, pred, truth in golden(shared, 1):
        for score, key in (("f1", "F1"), ("dsc_tp", "DSC_TP")):
            metric = InstanceScore(score)
            metric(pred, truth)
            assert metric.aggregate().item() == pytest.approx(case["expected"][key], abs=1e-6)


def test_an_engine_gathers_them_over_its_batches() -> None:
    """Spacing comes from the truth's own metadata; an absent class counts nothing."""
    truth = torch.zeros(1, 8, 8, 8)
    truth[:, 2:6, 2:6, 2:6] = 1
    near, far = (
        MetaTensor(truth, affine=torch.eye(4)),
        MetaTensor(truth, affine=torch.diag(torch.tensor([9.0, 1, 1, 1]))),
    )
    moved = truth.roll(1, dims=1)
    engine = Engine(lambda _, batch: batch)
    handler = IgniteMetricHandler(metric_fn=ClassScore("nsd", labels=[1, 2]), save_details=True)
    handler.attach(engine, "nsd")
    engine.run([([moved], [near]), ([moved], [far])])
    first, second = engine.state.metric_details["nsd"][:, 0].tolist()
    assert first == 1
    assert second < 1
    assert torch.isnan(engine.state.metric_details["nsd"][:, 1]).all()
    assert engine.state.metrics["nsd"] == pytest.approx((first + second) / 2)


def test_what_cannot_be_scored_is_said() -> None:
    volume = torch.zeros(1, 1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"^metrics: score is dsc or nsd, got 'iou'"):
        ClassScore("iou")
    with pytest.raises(ValueError, match=r"^metrics: give spacing in mm"):
        ClassScore("nsd", labels=[1])(volume, volume)
    with pytest.raises(ValueError, match=r"^metrics: wanted label maps of one channel, got 2"):
        ClassScore("dsc", labels=[1], spacing=[1, 1, 1])(volume.repeat(1, 2, 1, 1, 1), volume.repeat(1, 2, 1, 1, 1))
    with pytest.raises(ValueError, match=r"^metrics: nothing has been scored yet"):
        ClassScore("dsc", labels=[1], spacing=[1, 1, 1]).aggregate()
