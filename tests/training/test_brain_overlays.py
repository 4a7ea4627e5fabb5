"""The recipes of the shipped weights run one after the other: words, masks, robustness, fine stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

STAGES = {
    "brain_refine": ("brain_refine",),
    "brain_robust": ("brain_robust",),
    "brain_fine": ("brain_robust", "brain_fine"),
}


@pytest.fixture(scope="module")
def first(train: Callable[..., ConfigWorkflow], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("first")
    train(output, projection_steps=5)
    return output / "model.pt"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_starts_from_weights_and_changes_them(
    stage: str, train: Callable[..., ConfigWorkflow], first: Path, tmp_path: Path
):
    workflow = train(tmp_path, STAGES[stage], initial_weights=str(first), segment_steps=[2], val_interval=2)
    before = torch.load(first, weights_only=True)
    after = torch.load(tmp_path / "model.pt", weights_only=True)
    assert before.keys() == after.keys()
    apart = [float((before[name].float() - after[name].float()).abs().max()) for name in before]
    assert 0 < max(apart) < 0.1, "two steps of training are a small change of the weights they started from"
    batch = next(iter(workflow.parser.get_parsed_content("train#dataloader")))
    assert batch["label_prompt"].shape == batch["label"].shape
