"""A server that is killed comes back with everything; many clients get right answers and memory does not grow."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
from monailabel.client import MONAILabelClient

pytestmark = pytest.mark.e2e
MODEL = "medal_s_mri"
CLIENTS, REQUESTS = 8, 200
GROWTH_MB = 150
QUESTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    (MODEL, {"prompt": "both hippocampi"}),
    (MODEL, {"prompt": "the brain-stem and the 4th ventricle"}),
    (MODEL, {"label_prompt": [7, 25]}),
    (MODEL, {"prompt": "", "result_extension": ".nrrd", "restore_label_idx": False, "label_prompt": [13]}),
    ("medal_s_points_mri", {"label_prompt": [8], "points": [[24, 30, 26]], "point_labels": [1]}),
    (MODEL, {"prompt": "hippocampus of the unicorn and the flux capacitor"}),
    ("no_such_model", {"prompt": "brain-stem"}),
)


def ask(server: Any, image: str, model: str, params: dict[str, Any]) -> tuple[int, bytes]:
    """Status and label map of a request, or the message."""
    answer = requests.post(
        f"{server.url}/infer/{model}?image={image}&output=image",
        files={"params": (None, json.dumps(params))},
        timeout=300,
    )
    return answer.status_code, answer.content


@pytest.mark.parametrize("doing", ["inference", "saving"])
def test_killed_server_starts_again_with_whole_data(
    start_server: Callable[..., Any], folder_with_heads: Path, tmp_path: Path, doing: str
) -> None:
    studies = shutil.copytree(folder_with_heads, tmp_path / "studies", ignore=shutil.ignore_patterns("labels", "data*"))
    server = start_server(studies)
    client = MONAILabelClient(server.url, tmpdir=str(tmp_path))
    image = nib.load(studies / "head_a.nii.gz")
    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image((image.get_fdata() > 0.5).astype(np.uint8), image.affine), label)
    info = {"label_info": [{"name": "Brain-stem", "idx": 1}]}
    client.save_label("head_b" if doing == "inference" else "head_a", _label_of(studies, doing, tmp_path), params=info)

    def work() -> None:
        while True:
            with contextlib.suppress(Exception):
                if doing == "inference":
                    client.infer(MODEL, "head_a", {"prompt": "both hippocampi"})
                else:
                    client.save_label("head_a", str(label), params=info)
            if server.process.poll() is not None:
                return

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(2.0)
    server.kill()
    thread.join(60)
    again = start_server(studies)
    client = MONAILabelClient(again.url, tmpdir=str(tmp_path))
    store = client.datastore()["objects"]
    assert set(store) == {"head_a", "head_b"}
    kept = "head_b" if doing == "inference" else "head_a"
    assert nib.load(client.download_label(kept, "final")).shape == nib.load(studies / f"{kept}.nii.gz").shape
    assert not (studies / "datastore_v2.damaged").exists()
    assert client.infer(MODEL, "head_a", {"prompt": "both hippocampi"})[1]["label_names"]


def _label_of(studies: Path, doing: str, folder: Path) -> str:
    """A label that is saved before the fault."""
    image = nib.load(studies / ("head_b.nii.gz" if doing == "inference" else "head_a.nii.gz"))
    path = folder / "first.nii.gz"
    nib.save(nib.Nifti1Image((image.get_fdata() > 0.8).astype(np.uint8), image.affine), path)
    return str(path)


def test_client_that_goes_away_leaves_the_server_serving(folder_server: Any) -> None:
    url = f"{folder_server.url}/infer/{MODEL}?image=head_a"
    for _ in range(3):
        with contextlib.suppress(requests.RequestException):
            requests.post(url, files={"params": (None, json.dumps({"prompt": "all ventricles"}))}, timeout=0.05)
    status, _ = ask(folder_server, "head_a", *QUESTIONS[0])
    assert status == 200


def test_many_clients_get_right_answers_and_memory_does_not_grow(folder_server: Any) -> None:
    cases = [(image, *question) for image in ("head_a", "head_b") for question in QUESTIONS]
    expected = {number: ask(folder_server, *case) for number, case in enumerate(cases)}
    assert {status for status, _ in expected.values()} == {200, 400, 404}
    process = psutil.Process(folder_server.process.pid)

    def memory() -> float:
        return sum(item.memory_info().rss for item in [process, *process.children(recursive=True)]) / 2**20

    def one(number: int) -> str | None:
        status, content = ask(folder_server, *cases[number])
        while status == 503:  # a full queue says so and when to come again
            time.sleep(0.5)
            status, content = ask(folder_server, *cases[number])
        return None if (status, content) == expected[number] else f"{cases[number]}: {status}"

    chosen = random.Random(0).choices(range(len(cases)), k=REQUESTS)
    with ThreadPoolExecutor(CLIENTS) as clients:
        wrong = [w for w in clients.map(one, chosen[: REQUESTS // 4]) if w]
        warm = memory()
        began = time.perf_counter()
        wrong += [w for w in clients.map(one, chosen[REQUESTS // 4 :]) if w]
    seconds, after = time.perf_counter() - began, memory()
    print(f"{REQUESTS} requests of {CLIENTS} clients: {seconds:.0f} s, {warm:.0f} -> {after:.0f} MB")  # noqa: T201
    assert wrong == []
    assert after - warm < GROWTH_MB
