"""Requests to the server: the event loop stays free, the queue is bounded, errors are one line."""

from __future__ import annotations

import io
import json
import socket
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

Served = Any  # of conftest.py


# --- the event loop -------------------------------------------------------------------------------------------------


def test_info_and_proxy_answer_at_once_during_an_inference(served: Served, answering: Callable[..., str]) -> None:
    from monailabel.config import settings
    from monailabel.interfaces.utils import app as instances

    archive = answering(lambda path: (200, json.dumps({"path": path}).encode()))
    requests.get(f"{served.url}/info/", timeout=10)
    served.gate.clear()
    before = len(served.runs)
    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        answer = pool.submit(served.infer)
        served.wait_for(before + 1)
        patch.setattr(settings, "MONAI_LABEL_STUDIES", archive)
        patch.setitem(instances.apps, f"{served.home}{archive}", served.app)
        seconds = []
        for path in ("/info/", "/proxy/dicom/studies", "/info/", "/proxy/dicom/studies"):
            started = time.perf_counter()
            assert requests.get(served.url + path, timeout=10).status_code == 200
            seconds.append(time.perf_counter() - started)
        assert not answer.done()
        served.gate.set()
        assert answer.result().status_code == 200
    assert sorted(seconds)[len(seconds) // 2] < 0.1, seconds  # the median: this machine may be busy


def test_the_queue_is_bounded_and_the_next_one_is_told_when_to_come_back(served: Served) -> None:
    served.gate.clear()
    before = len(served.runs)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(served.infer)
        served.wait_for(before + 1)
        second = pool.submit(served.infer)
        time.sleep(0.5)
        refused = served.infer()
        served.gate.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert "busy" in refused.json()["detail"]


def test_a_client_that_leaves_while_it_waits_costs_no_inference(served: Served) -> None:
    served.gate.clear()
    before = len(served.runs)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.infer)
        served.wait_for(before + 1)
        with socket.create_connection(("127.0.0.1", served.port)) as gone:
            head = "Host: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\n\r\n"
            gone.sendall(f"POST /infer/held?image=scan HTTP/1.1\r\n{head}".encode())
            time.sleep(0.5)
        time.sleep(0.7)
        served.gate.set()
        assert first.result().status_code == 200
    assert served.infer().status_code == 200
    assert len(served.runs) == before + 2
    end = time.monotonic() + 5  # results are removed after they were answered
    while list(served.home.glob("result*")) and time.monotonic() < end:
        time.sleep(0.05)
    assert not list(served.home.glob("result*"))


# --- errors ---------------------------------------------------------------------------------------------------------


def test_errors_are_one_line_with_the_right_status(served: Served) -> None:
    unknown_word = served.infer(params={"prompt": "nonsense"})
    assert unknown_word.status_code == 400
    assert "brain-stem" in unknown_word.json()["detail"]

    crash = served.infer(params={"prompt": "crash"})
    assert crash.status_code == 500
    assert "deep inside" not in crash.text
    assert "Traceback" not in crash.text

    assert served.infer("absent").status_code == 404
    no_model = requests.post(f"{served.url}/infer/none?image=scan", timeout=10)
    assert no_model.status_code == 404
    assert "held" in no_model.json()["detail"]
    assert requests.post(f"{served.url}/infer/held", timeout=10).status_code == 400
    assert requests.post(f"{served.url}/train/none", json={}, timeout=10).status_code == 404
    assert requests.delete(f"{served.url}/datastore/image?id=absent", timeout=10).status_code == 404
    assert served.infer(params=[1]).status_code == 400  # type: ignore[arg-type]
    assert served.infer().status_code == 200


def test_files_of_a_failed_request_are_removed(served: Served) -> None:
    uploads = {"label": ("a.nii.gz", b"voxels")}
    answer = requests.post(
        f"{served.url}/infer/held?image=scan", data={"params": '{"prompt": "nonsense"}'}, files=uploads, timeout=10
    )
    assert answer.status_code == 400
    assert served.runs[-1]["label"]
    assert not Path(served.runs[-1]["label"]).exists()


def test_the_zip_of_the_dataset_is_removed_after_it_was_sent(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    label = {"label": ("a.nii.gz", b"voxels")}
    assert requests.put(f"{served.url}/datastore/label?image=other", files=label, timeout=10).status_code == 200
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answer = requests.get(f"{served.url}/datastore/dataset", timeout=10)
    assert zipfile.ZipFile(io.BytesIO(answer.content)).testzip() is None
    end = time.monotonic() + 5
    while list(tmp_path.iterdir()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not list(tmp_path.iterdir())


def test_a_dead_archive_is_said_to_be_dead(served: Served) -> None:
    from monailabel.config import settings
    from monailabel.interfaces.utils import app as instances

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "MONAI_LABEL_STUDIES", "http://127.0.0.1:18199/dicom-web")
        patch.setitem(instances.apps, f"{served.home}http://127.0.0.1:18199/dicom-web", served.app)
        answer = requests.get(f"{served.url}/proxy/dicom/studies", timeout=10)
    assert answer.status_code == 502
    assert "archive does not answer" in answer.json()["detail"]
