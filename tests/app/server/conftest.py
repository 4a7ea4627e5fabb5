"""A real server on loopback around a small app, and small servers that stand for an archive or a login."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pytest
import requests

pytest.importorskip("monailabel", reason="MONAI Label is not installed: make setup-label")
uvicorn = pytest.importorskip("uvicorn")

CONF = {"infer_waiting": "1", "upload_limit_mb": "1"}


@pytest.fixture(scope="module")
def answering() -> Iterator[Callable[[Callable[[str], tuple[int, bytes]]], str]]:
    """Start a server that answers a path with a status and a body; gives its address."""
    servers = []

    def start(answer: Callable[[str], tuple[int, bytes]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answer(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Keep the test's output clean."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()


@dataclass(frozen=True)
class Served:
    """The server and what its inference is told.

    Attributes:
        port: of the server.
        home: folder of the app; ``studies`` lies in it.
        gate: an inference waits while it is closed.
        runs: requests that reached the inference.
        web: the FastAPI application.
        app: the MONAI Label application.
    """

    port: int
    home: Path
    gate: threading.Event
    runs: list[dict[str, Any]]
    web: Any
    app: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def studies(self) -> Path:
        return self.home / "studies"

    def infer(self, image: str = "scan", params: Any = None, **more: Any) -> requests.Response:
        fields = {"params": json.dumps(params or {})}
        return requests.post(f"{self.url}/infer/held?image={quote(image)}", data=fields, timeout=30, **more)

    def raw(self, method: str, target: str, body: bytes = b"", headers: Any = None) -> http.client.HTTPResponse:
        """A request whose address is sent as it is: clients resolve ``..`` themselves."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, target, body=body or None, headers=headers or {})
        return connection.getresponse()

    def wait_for(self, count: int) -> None:
        """Until so many requests have reached the inference."""
        end = time.monotonic() + 10
        while len(self.runs) < count and time.monotonic() < end:
            time.sleep(0.01)
        assert len(self.runs) == count

    def routes(self) -> list[Any]:
        """All routes that answer requests, whatever they are nested in."""
        found: list[Any] = []
        for route in self.web.routes:
            inner = getattr(route, "original_router", None)
            found += list(inner.routes) if inner is not None else [route]
        return [route for route in found if hasattr(route, "dependant")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An app with one inference that waits until it is let go, served by uvicorn in a thread."""
    from monailabel.app import app as web
    from monailabel.config import settings
    from monailabel.interfaces.app import MONAILabelApp
    from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
    from monailabel.interfaces.utils import app as instances

    from lib import server

    home = tmp_path_factory.mktemp("server")
    studies = home / "studies"
    studies.mkdir()
    for path in (studies / "scan.nii.gz", studies / "other.nii.gz", home / "secret.nii.gz"):
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), path)
    (home / "secret.json").write_text("secret")

    gate, runs = threading.Event(), []
    gate.set()

    class Held(InferTask):
        def __init__(self) -> None:
            super().__init__(InferType.SEGMENTATION, {"a": 1}, 3, "waits")

        def info(self) -> dict:
            return {"type": "segmentation", "labels": {"a": 1}}

        def is_valid(self) -> bool:
            return True

        def __call__(self, request: dict) -> tuple[str, dict]:
            from scripts.errors import InputError

            runs.append(request)
            gate.wait(20)
            if request.get("prompt") == "nonsense":
                raise InputError("'nonsense' is no structure; did you mean 'brain-stem'?")
            if request.get("prompt") == "crash":
                raise RuntimeError("deep inside, about scan.nii.gz")
            result = home / f"result{len(runs)}.nii.gz"
            shutil.copy(request["image"], result)
            return str(result), {"label_names": {"a": 1}}

    class App(MONAILabelApp):
        def init_infers(self) -> dict:
            return {"held": Held()}

    patch = pytest.MonkeyPatch()
    patch.setattr(settings, "MONAI_LABEL_APP_DIR", str(home))
    patch.setattr(settings, "MONAI_LABEL_STUDIES", str(studies))
    patch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(home / "sessions"))
    patch.chdir(home)
    app = App(str(home), str(studies), CONF, "test")
    patch.setitem(instances.apps, f"{home}{studies}", app)
    server.install(app)
    uvicorn_server = uvicorn.Server(uvicorn.Config(web, host="127.0.0.1", port=0, lifespan="off", log_config=None))
    thread = threading.Thread(target=uvicorn_server.run, daemon=True)
    thread.start()
    while not uvicorn_server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    port = uvicorn_server.servers[0].sockets[0].getsockname()[1]
    yield Served(port, home, gate, runs, web, app)
    uvicorn_server.should_exit = True
    thread.join(10)
    patch.undo()
