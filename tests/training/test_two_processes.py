"""Two processes of torchrun make the run that one process makes with the same samples in a step."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Samples have different numbers of queries (64 slots take all synonyms of what is asked, and the third structure, which
# no head has, is asked for in half of the samples), and half of the steps withhold the prompts: the curves would differ
# if processes did not agree on both.
RUN: dict[str, Any] = {
    "label_values": {"Left hippocampus": [17], "Brain-stem": [53], "3rd ventricle": [14]},
    "train#queries#transform#absent": 1.0,
    "segment_steps": [8],
    "val_interval": 8,
    "max_queries": 64,
    "inferer#enabled": False,
    "train#prompts#p_withhold": 0.5,
    "val_samples": 3,
}


@pytest.fixture(scope="module")
def together(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Output of a run of two processes, and its log."""
    output = tmp_path_factory.mktemp("two")
    process = start(output, processes=2, overlays=("multi_gpu_train",), batch_size=1, backend="gloo", **RUN)
    code = process.wait(timeout=300)
    log = (output / "log.txt").read_text()
    assert code == 0, log[-3000:]
    return output, log


@pytest.mark.slow
@pytest.mark.parametrize("split", [{"batch_size": 2}, {"batch_size": 1, "accumulation": 2}], ids=["batch", "parts"])
def test_the_loss_curve_is_that_of_one_process(
    together: tuple[Path, str],
    train: Callable[..., Any],
    losses: Callable[[Path], dict[int, float]],
    tmp_path: Path,
    split: dict[str, int],
):
    train(tmp_path, **RUN, **split)
    alone, two = losses(tmp_path), losses(together[0])
    assert list(two) == list(alone) == list(range(1, 9))
    assert len(set(alone.values())) == 8
    for step, loss in alone.items():
        assert two[step] == pytest.approx(loss, rel=2e-5), step


@pytest.mark.slow
def test_only_the_first_process_writes(together: tuple[Path, str]):
    output, log = together
    assert len(list(output.glob("events.out.tfevents.*"))) <= 2  # one of the trainer, one of the evaluator
    assert log.count("wrote checkpoint_iteration=8.pt") == 1
    assert log.count("wrote model.pt") == 1


@pytest.mark.slow
def test_validation_is_shared_and_scores_as_one_process(
    together: tuple[Path, str], train: Callable[..., Any], tmp_path: Path
):
    """Three cases on two processes, each scored once."""
    workflow = train(tmp_path, batch_size=2, **RUN)
    alone = workflow.parser.get_parsed_content("validate#evaluator").state.metrics["val_mean_dice"]
    best = next((together[0] / "best").glob("*.pt"))
    assert float(best.name.split("=")[1].split("_")[0]) == pytest.approx(alone, abs=2e-3)


def test_without_torchrun_the_overlay_says_how_to_start(configure: Callable[..., Any], tmp_path: Path):
    workflow = configure(tmp_path, ("multi_gpu_train",), **{"device": "$scripts.distributed.join('gloo')"})
    with pytest.raises(RuntimeError) as caught:
        workflow.initialize()
    messages, error = [], caught.value
    while error is not None:
        messages.append(str(error))
        error = error.__cause__
    assert any("torchrun did not start this one" in message for message in messages)
