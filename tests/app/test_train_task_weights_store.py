"""Published weights: what is in use, what is kept, and what a crash or a bad disk may not do."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from lib.trainers import WeightsStore, WeightsWatch
from scripts.errors import InputError


def file_with(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def publish_for_ever(folder: Path, weights: Path) -> None:
    while True:
        WeightsStore(folder).publish("weights", weights, {})


def used_bytes(store: WeightsStore, key: str = "weights") -> bytes:
    return Path(store.current()[key]).read_bytes()


def test_nothing_published_leaves_the_bundles_own_weights(tmp_path: Path):
    store = WeightsStore(tmp_path / "models")
    assert store.current() == {}
    assert store.stamp() is None
    assert store.versions() == []


def test_new_weights_are_in_use_and_earlier_ones_are_kept(tmp_path: Path):
    store = WeightsStore(tmp_path / "models")
    first = store.publish("weights", file_with(tmp_path / "a.pt", b"first"), {"score": 0.5})
    second = store.publish("weights", file_with(tmp_path / "b.pt", b"second"), {"score": 0.6})
    fine = store.publish("fine_weights", file_with(tmp_path / "c.pt", b"fine"), {})
    assert (first, second, fine) == (1, 2, 3)
    assert used_bytes(store) == b"second"
    assert used_bytes(store, "fine_weights") == b"fine"
    records = [(record["version"], record["before"], record.get("score")) for record in store.versions()]
    assert records == [(1, None, 0.5), (2, 1, 0.6), (3, None, None)]
    store.restore("weights", first)
    assert used_bytes(store) == b"first"
    store.restore("weights", None)
    assert store.in_use() == {"fine_weights": 3}
    with pytest.raises(InputError, match="no version 9 of weights; there are: 1, 2"):
        store.restore("weights", 9)


def test_the_app_learns_of_new_weights_from_the_disk(tmp_path: Path):
    store, told = WeightsStore(tmp_path / "models"), []
    watch = WeightsWatch(store, told.append)
    assert not watch.check()
    # As the training process does: with a store of its own.
    WeightsStore(tmp_path / "models").publish("weights", file_with(tmp_path / "a.pt", b"first"), {})
    assert watch.check()
    assert not watch.check()
    assert told == [store.current()]


def test_a_failing_reload_is_tried_again(tmp_path: Path):
    store, calls = WeightsStore(tmp_path / "models"), []

    def reload(files: object) -> None:
        calls.append(files)
        if len(calls) == 1:
            raise InputError("no memory for a second network")

    watch = WeightsWatch(store, reload)
    store.publish("weights", file_with(tmp_path / "a.pt", b"first"), {})
    with pytest.raises(InputError):
        watch.check()
    assert watch.check()


def test_a_process_killed_while_it_publishes_leaves_whole_weights(tmp_path: Path):
    """A writer that publishes without pause is killed; whatever is then in use is a whole file with its record."""
    folder = tmp_path / "models"
    file_with(tmp_path / "weights.pt", os.urandom(2_000_000))
    process = multiprocessing.get_context("fork").Process(
        target=publish_for_ever, args=(folder, tmp_path / "weights.pt"), daemon=True
    )
    process.start()
    store = WeightsStore(folder)
    deadline = time.monotonic() + 120
    while not store.current() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    process.kill()
    process.join()
    assert used_bytes(store) == (tmp_path / "weights.pt").read_bytes()
    before = store.in_use()["weights"]
    assert store.publish("weights", file_with(tmp_path / "b.pt", b"after"), {}) > before
    assert used_bytes(store) == b"after"
    assert not list((folder / "versions").glob(".unfinished_*"))


def test_a_disk_that_refuses_leaves_the_present_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = WeightsStore(tmp_path / "models")
    store.publish("weights", file_with(tmp_path / "a.pt", b"first"), {})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left on device"):
            store.publish("weights", file_with(tmp_path / "b.pt", b"second"), {})
    assert used_bytes(store) == b"first"
    assert len(store.versions()) == 1


def test_a_damaged_record_is_said_not_guessed(tmp_path: Path):
    store = WeightsStore(tmp_path / "models")
    store.publish("weights", file_with(tmp_path / "a.pt", b"first"), {})
    (tmp_path / "models" / "current.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        store.current()
    (tmp_path / "models" / "current.json").write_text(json.dumps({"weights": "versions/0007_weights/model.pt"}))
    with pytest.raises(InputError, match="which is gone"):
        store.current()
