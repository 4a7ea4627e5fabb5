"""The learning rate follows the published schedule, step by step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scripts.schedules import RestartingCosine, restarting_cosine


def recipes(shared: Path) -> list[dict]:
    content = json.loads((shared / "golden" / "lr_schedule.json").read_text())
    found: list[dict] = []

    def walk(node):
        if isinstance(node, dict):
            if {"sample_steps", "expected_lr"} <= node.keys():
                found.append({**content, **node})
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(content)
    return found


def test_golden_rates(shared: Path):
    cases = recipes(shared)
    assert cases
    for case in cases:
        for step, expected in zip(case["sample_steps"], case["expected_lr"], strict=True):
            rate = restarting_cosine(step, case["steps"], case["warmup"], case["lr"])
            assert rate == pytest.approx(expected, rel=1e-9), step


def test_scheduler_sets_the_rate_of_the_coming_step_and_resumes():
    def build(parameter):
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        return optimizer, RestartingCosine(optimizer, [5, 4], [2, 1], [1.0, 0.5])

    optimizer, scheduler = build(torch.nn.Parameter(torch.zeros(1)))
    rates = []
    for step in range(9):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        if step == 3:
            saved = scheduler.state_dict()
    assert rates == pytest.approx([restarting_cosine(s, [5, 4], [2, 1], [1.0, 0.5]) for s in range(1, 10)])

    optimizer, scheduler = build(torch.nn.Parameter(torch.zeros(1)))
    scheduler.load_state_dict(saved)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rates[5])


def test_lists_of_unequal_length_are_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="equally long, got 2, 1, 1"):
        RestartingCosine(optimizer, [5, 4], [2], [1.0])
