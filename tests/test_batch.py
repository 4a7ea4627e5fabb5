"""Batches: sharing, resuming, failures and tables, with an evaluator whose work is seen at once."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from scripts.batch import BatchRunner, ChallengePrompts, Outcome, WorkQueue, local_device
from scripts.errors import InputError
from scripts.text import PromptParser


class Recorder:
    """Stands for an evaluator: writes a file for the case in its dataset, and fails where the case says so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset = SimpleNamespace(data=[])
        self.state = SimpleNamespace(output=None, batch=None)
        self.done: list[str] = []

    def fire_event(self, event: object) -> None:
        self.started = event

    def run(self) -> None:
        (case,) = self.dataset.data
        if case["text"] == "bad words":
            raise RuntimeError("wrapped") from InputError("no such\nstructure")
        if case["text"] == "bug":
            raise KeyError("a bug")
        if case["text"] == "stop":
            raise KeyboardInterrupt
        self.done.append(case["name"])
        path = self.folder / f"{case['name']}_seg.nii.gz"
        path.write_text(case["text"])
        entry = {"name": "Liver", "label": 5, "modality": "CT", "kind": "anatomy", "voxels": None, "volume_ml": None}
        report = {"image": {"name": f"{case['name']}.nii.gz"}, "structures": [entry, {**entry, "voxels": 7}]}
        self.state.output = [{"report": report, "files": {"label_map": str(path)}}]


def runner(folder: Path, words: list[str], **options: Any) -> tuple[BatchRunner, Recorder]:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    cases = []
    for number, text in enumerate(words):
        image = folder / f"c{number}.nii.gz"
        if not image.exists():
            image.write_bytes(b"image")
        cases.append({"image": str(image), "name": f"c{number}", "text": text})
    evaluator = Recorder(out)
    return BatchRunner(evaluator, evaluator.dataset, cases, out, **options), evaluator  # type: ignore[arg-type]


def states(outcomes: list[Outcome]) -> list[str]:
    return [outcome.state for outcome in outcomes]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_bad_case_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    batch, evaluator = runner(tmp_path, ["x", "bad words", "bug", "y"])
    with pytest.raises(InputError, match="2 of 4 cases failed"):
        batch.run()
    assert evaluator.done == ["c0", "c3"]
    reasons = {row["case"]: row["reason"] for row in rows_of(tmp_path / "out" / "failures.csv")}
    assert reasons == {"c1": "no such structure", "c2": "KeyError: 'a bug'"}
    assert "failed: c1: no such structure" in caplog.text
    assert "Traceback" in caplog.text  # of the bug alone
    assert caplog.text.count("Traceback (most recent") == 1
    rows = rows_of(tmp_path / "out" / "summary.csv")
    assert [(row["case"], row["structure"], row["voxels"]) for row in rows] == [
        ("c0", "Liver", ""),
        ("c0", "Liver", "7"),
        ("c3", "Liver", ""),
        ("c3", "Liver", "7"),
    ]


def test_second_run_does_what_is_left(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        runner(tmp_path, ["x", "bad words", "y"])[0].run()
    batch, evaluator = runner(tmp_path, ["x", "now good", "y"])
    assert states(batch.run()) == ["skipped", "done", "skipped"]
    assert evaluator.done == ["c1"]
    assert not (tmp_path / "out" / "failures.csv").exists()
    assert len(rows_of(tmp_path / "out" / "summary.csv")) == 6


CHANGES = {
    "other words": lambda p: {"words": ["other"]},
    "other settings": lambda p: {"settings": {"threshold": 0.4, "weights": str(p / "w.pt")}},
    "other weights": lambda p: (p / "w.pt").write_text("new weights") and {},
    "other image": lambda p: (p / "c0.nii.gz").write_bytes(b"another image") and {},
    "file gone": lambda p: (p / "out" / "c0_seg.nii.gz").unlink() or {},
    "damaged record": lambda p: (p / "out" / ".batch" / "c0.json").write_text("[]") and {},
    "overwrite": lambda p: {"overwrite": True},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_done_again(tmp_path: Path, change: str) -> None:
    (tmp_path / "w.pt").write_text("weights")
    common: dict[str, Any] = {"words": ["x"], "settings": {"threshold": 0.5, "weights": str(tmp_path / "w.pt")}}
    for expected in ("done", "skipped"):
        assert states(runner(tmp_path, **common)[0].run()) == [expected]
    assert states(runner(tmp_path, **{**common, **CHANGES[change](tmp_path)})[0].run()) == ["done"]


def test_interruption_passes_through_and_loses_one_case(tmp_path: Path) -> None:
    batch, evaluator = runner(tmp_path, ["x", "stop", "y"])
    with pytest.raises(KeyboardInterrupt):
        batch.run()
    assert evaluator.done == ["c0"]
    again, evaluator = runner(tmp_path, ["x", "z", "y"])
    assert states(again.run()) == ["skipped", "done", "done"]


def test_rests_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    batch, _ = runner(tmp_path, ["x"])
    rest = tmp_path / "out" / ".unfinished_abc"
    rest.mkdir()
    (rest / "half.nii.gz").write_text("half")
    batch.run()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".batch", "c0_seg.nii.gz", "summary.csv"]


def test_prepare_may_refuse_a_case(tmp_path: Path) -> None:
    def prepare(case: dict[str, Any]) -> dict[str, Any]:
        if case["name"] == "c0":
            raise InputError("c0 brings no prompts")
        return {**case, "text": "from the file"}

    batch, _ = runner(tmp_path, ["x", "y"], prepare=prepare)
    with pytest.raises(InputError, match="1 of 2 cases failed"):
        batch.run()
    assert (tmp_path / "out" / "c1_seg.nii.gz").read_text() == "from the file"


def test_queue_gives_each_number_once() -> None:
    """Many threads with a shared store draw all numbers, and the first collects every answer in order."""
    store = dist.HashStore()
    drawn: list[int] = []

    def draw(rank: int) -> None:
        queue = WorkQueue(store, rank, 4)
        queue.once("start", lambda: drawn.append(-1))
        while (number := queue.claim(50)) is not None:
            drawn.append(number)
            queue.publish(number, {"by": rank, "square": number**2})

    threads = [Thread(target=draw, args=(rank,)) for rank in (1, 2, 3, 0)]
    for thread in threads:
        thread.start()
    answers = WorkQueue(store, 0, 4).collect(50)
    for thread in threads:
        thread.join()
    assert drawn[0] == -1
    assert sorted(drawn[1:]) == list(range(50))
    assert [answer["square"] for answer in answers] == [number**2 for number in range(50)]


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    queue = WorkQueue.from_environment()
    assert (queue.is_first, queue.world_size) == (True, 1)
    assert local_device() in ("cpu", "cuda:0")


@pytest.fixture(scope="module")
def challenge() -> ChallengePrompts:
    """With the bundle's own terminology."""
    return ChallengePrompts(PromptParser())


def challenge_file(path: Path, prompts: dict | None) -> dict[str, Any]:
    arrays: dict[str, Any] = {"imgs": np.zeros((2, 3, 4), np.uint8), "spacing": np.ones(3)}
    if prompts is not None:
        arrays["text_prompts"] = np.array(prompts, dtype=object)
    np.savez(path, **arrays)
    return {"image": str(path), "name": path.stem}


def test_words_of_a_challenge_file(tmp_path: Path, challenge: ChallengePrompts) -> None:
    prompts = {"3": "Spleen seen on CT", "1": "Both kidneys in abdominal CT", "7": "left kidney", "instance_label": 0}
    case = challenge(challenge_file(tmp_path / "CT_a.npz", prompts))
    assert case["modality"] == "CT"
    assert case["text"] == ["Both kidneys in abdominal CT", "Spleen seen on CT", "left kidney"]
    by_name = {target.name: target.id for target in challenge.parser.parse("both kidneys and spleen", "CT")}
    expected = {by_name["Left kidney"]: 1, by_name["Right kidney"]: 1, by_name["Spleen"]: 3}
    assert {int(key): value for key, value in json.loads(case["npz_labels"]).items()} == expected


def test_modality_of_a_challenge_file(tmp_path: Path, challenge: ChallengePrompts) -> None:
    prompts = {"1": "Liver on MRI", "2": "Spleen on MRI", "3": "left kidney"}
    assert challenge(challenge_file(tmp_path / "case.npz", prompts))["modality"] == "MRI"
    assert challenge(challenge_file(tmp_path / "MR_case.npz", {"1": "liver"}))["modality"] == "MRI"


def test_a_sentence_not_understood_leaves_its_label_empty(tmp_path: Path, challenge: ChallengePrompts) -> None:
    case = challenge(challenge_file(tmp_path / "CT_a.npz", {"1": "flux capacitor", "2": "liver"}))
    assert case["text"] == ["liver"]
    assert list(json.loads(case["npz_labels"]).values()) == [2]
    with pytest.raises(InputError, match="none of its 1 sentences is understood"):
        challenge(challenge_file(tmp_path / "CT_b.npz", {"1": "flux capacitor"}))


def test_a_challenge_file_without_prompts(tmp_path: Path, challenge: ChallengePrompts) -> None:
    case = challenge_file(tmp_path / "a.npz", None)
    with pytest.raises(InputError, match="no text_prompts"):
        challenge(case)
    assert challenge({**case, "text": "liver"}) == {**case, "text": "liver"}
