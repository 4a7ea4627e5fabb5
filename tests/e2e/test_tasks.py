"""Training, batches and the choice of the next study over HTTP, on a server as a process, also when they are killed."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from monailabel.client import MONAILabelClient

pytestmark = pytest.mark.e2e
MODEL, TRAINER = "medal_s_mri", "medal_s"
WAIT_SECONDS = 400


@pytest.fixture
def studies(folder_with_heads: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder_with_heads, tmp_path / "studies", ignore=shutil.ignore_patterns("labels", "data*"))


@pytest.fixture
def server(start_server: Callable[..., Any], studies: Path, tmp_path: Path) -> Any:
    """A server with two final labels, which the network itself gave."""
    started = start_server(studies, conf={"stages": "1", "weights_dir": str(tmp_path / "weights")})
    client = MONAILabelClient(started.url, tmpdir=str(tmp_path))
    for image in ("head_a", "head_b"):
        file, answer = client.infer(MODEL, image, {"prompt": "brain-stem, both thalami"})
        info = [{"name": name, "idx": value} for name, value in answer["label_names"].items()]
        client.save_label(image, file, params={"label_info": info})
    return started


def until(done: Callable[[], Any], what: str) -> Any:
    """The first answer that counts as true."""
    limit = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < limit:
        if found := done():
            return found
        time.sleep(0.3)
    raise AssertionError(f"{what}: not in {WAIT_SECONDS} s")


def ended(server: Any, task: str) -> str:
    """How the task that runs in the background ended."""

    def status() -> str:
        return str(requests.get(f"{server.url}/{task}", timeout=30).json()["status"])

    return until(lambda: (found := status()) not in ("SUBMITTED", "RUNNING") and found, task)


def start_training(server: Any, steps: int) -> None:
    options = {"steps": steps, "val_split": 0.5, "stage": "coarse", "tolerance": 1.0}
    requests.post(f"{server.url}/train/{TRAINER}", json=options, timeout=60).raise_for_status()


def training_processes(server: Any) -> Iterator[psutil.Process]:
    """Those in which the network learns."""
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # others come and go
            if any("fine_tuning_run" in part for part in process.cmdline()):
                yield process


def learning(server: Any, folder: Path) -> psutil.Process:
    """The run, once it has scored the present weights, which it does just before its first step."""
    until(lambda: list((folder / "weights").glob("runs/*/work/scores.json")), "the first validation")
    return next(training_processes(server))


def in_use(server: Any) -> dict[str, int]:
    return dict(requests.get(f"{server.url}/info/", timeout=60).json()["train_stats"][TRAINER]["in_use"])


def test_training_publishes_and_a_killed_run_changes_nothing(server: Any, tmp_path: Path) -> None:
    client = MONAILabelClient(server.url, tmpdir=str(tmp_path))
    start_training(server, steps=2)
    until(lambda: requests.get(f"{server.url}/train/", timeout=30).json()["status"] == "RUNNING", "the run")
    assert requests.post(f"{server.url}/train/{TRAINER}", json={}, timeout=60).status_code == 429  # one at a time
    assert ended(server, "train") == "DONE"
    assert in_use(server) == {"weights": 1}
    assert client.infer(MODEL, "head_a", {"prompt": "brain-stem"})[1]["label_names"]

    start_training(server, steps=5000)
    run = learning(server, tmp_path)
    run.kill()
    assert ended(server, "train") == "ERROR"
    assert in_use(server) == {"weights": 1}
    assert client.infer(MODEL, "head_a", {"prompt": "brain-stem"})[1]["label_names"]
    assert not list((tmp_path / "weights").glob("runs/*/work"))  # it held the labels


def test_a_server_killed_while_training_starts_with_the_same_weights(
    server: Any, start_server: Callable[..., Any], studies: Path, tmp_path: Path
) -> None:
    start_training(server, steps=5000)
    learning(server, tmp_path)
    server.kill()
    again = start_server(studies, conf={"stages": "1", "weights_dir": str(tmp_path / "weights")})
    assert in_use(again) == {}
    assert len(requests.get(f"{again.url}/datastore/?output=train", timeout=60).json()) == 2
    start_training(again, steps=2)
    assert ended(again, "train") == "DONE"
    assert in_use(again) == {"weights": 1}


def test_nothing_is_scored_unasked(server: Any) -> None:
    """MONAI Label by default builds a second app at each start and after each saved label, as the fixture did two."""
    assert requests.get(f"{server.url}/scoring/", timeout=30).status_code == 404


def test_batch_and_next_study(server: Any) -> None:
    question = {"prompt": "both hippocampi"}
    states = []
    for _ in range(2):
        requests.post(f"{server.url}/batch/infer/{MODEL}?images=all", json=question, timeout=60).raise_for_status()
        assert ended(server, "batch/infer") == "DONE"
        states.append(requests.get(f"{server.url}/batch/infer", timeout=30).json()["details"])
    assert any("2 to do" in line for line in states[0])
    assert any("2 are done, 0 to do" in line for line in states[1])  # nothing is computed twice
    objects = requests.get(f"{server.url}/datastore/?output=all", timeout=60).json()["objects"]
    assert {name: sorted(one["labels"]) for name, one in objects.items()} == {
        "head_a": ["final", "original"],
        "head_b": ["final", "original"],
    }
    strategies = requests.get(f"{server.url}/info/", timeout=60).json()["strategies"]
    for name in strategies:
        answer = requests.post(f"{server.url}/activelearning/{name}", json={}, timeout=120)
        assert answer.status_code == 200, name
