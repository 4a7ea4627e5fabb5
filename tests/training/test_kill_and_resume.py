"""A run that is killed goes on from its last sound checkpoint exactly as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

STEPS = 24
# Dropout and the moving average have states of their own, which a resumed run must get right as well.
RUN: dict[str, Any] = {
    "segment_steps": [STEPS],
    "ckpt_interval": 2,
    "val_interval": 8,
    "log_interval": 1,
    "ema_decay": 0.9,
    "accumulation": 2,
    "network_def#query_decoder#dropout": 0.2,
}


def wait_for(path: Path, process: subprocess.Popen[bytes], seconds: float = 180) -> None:
    """Return when ``path`` exists; fail where the process ends or takes longer."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, (path.parent.parent / "log.txt").read_text()[-2000:]
        assert time.monotonic() < end, f"no {path.name} after {seconds} s"
        time.sleep(0.005)


def same(one: Any, other: Any) -> None:
    """Two checkpoints are equal, tensor by tensor and number by number."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    else:
        assert one == other


@pytest.mark.slow
def test_kill_dash_nine_loses_at_most_the_steps_since_the_last_checkpoint(
    start: Callable[..., subprocess.Popen[bytes]],
    train: Callable[..., Any],
    losses: Callable[[Path], dict[int, float]],
    checkpoint: Callable[[Path, int], dict[str, Any]],
    tmp_path: Path,
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(killed, **RUN)
    wait_for(killed / "checkpoints" / "checkpoint_iteration=6.pt", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = max(int(file.stem.split("=")[1]) for file in (killed / "checkpoints").glob("checkpoint_*.pt"))
    assert 6 <= reached < STEPS
    for file in killed.glob("events.out.tfevents.*"):
        file.unlink()  # what it has of the killed run depends on when it was flushed

    torch.set_num_threads(1)  # as in the process above, whose sums run in this order
    train(killed, **RUN)
    train(whole, **RUN)
    resumed, uninterrupted = losses(killed), losses(whole)
    assert min(resumed) == reached + 1
    assert max(resumed) == STEPS
    assert resumed == {step: uninterrupted[step] for step in resumed}
    same(checkpoint(killed, STEPS), checkpoint(whole, STEPS))


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    train: Callable[..., Any],
    checkpoint: Callable[[Path, int], dict[str, Any]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
):
    """The newest file is half of one: the run goes on from the one before, and writes the newest anew."""
    changes = {"ckpt_interval": 2, "keep_last": 3, "val_interval": 6}
    train(tmp_path, **changes)
    wanted = checkpoint(tmp_path, 6)
    newest = tmp_path / "checkpoints" / "checkpoint_iteration=6.pt"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    workflow = train(tmp_path, **changes)
    assert "checkpoint_iteration=6.pt cannot be read" in capfd.readouterr().err
    assert workflow.parser.get_parsed_content("train#trainer").state.iteration == 6
    same(checkpoint(tmp_path, 6), wanted)


def test_a_folder_of_damaged_checkpoints_is_an_error_and_no_new_start(train: Callable[..., Any], tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint_iteration=4.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path)
    assert "none of the 1 checkpoints" in str(caught.value.__cause__)
