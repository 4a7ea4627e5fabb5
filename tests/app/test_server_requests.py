"""The server around the app: what it refuses, how it queues, how it answers errors. A real server on loopback."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlencode

import nibabel as nib
import numpy as np
import pytest
import requests

pytest.importorskip("monailabel", reason="MONAI Label is not installed: make setup-label")
uvicorn = pytest.importorskip("uvicorn")

PORT = 18150
URL = f"http://127.0.0.1:{PORT}"
CONF = {"infer_waiting": "1", "upload_limit_mb": "1"}


class Head(BaseHTTPRequestHandler):
    """A DICOM archive that answers everything with its path, and an identity provider that gives a key."""

    key = ""

    def do_GET(self) -> None:
        body = json.dumps({"path": self.path, "public_key": self.key}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def archive() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Head)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
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
    uvicorn_server = uvicorn.Server(uvicorn.Config(web, host="127.0.0.1", port=PORT, lifespan="off", log_config=None))
    thread = threading.Thread(target=uvicorn_server.run, daemon=True)
    thread.start()
    while not uvicorn_server.started:
        time.sleep(0.02)
    yield SimpleNamespace(home=home, studies=studies, gate=gate, runs=runs, web=web, app=app, patch=patch)
    uvicorn_server.should_exit = True
    thread.join(10)
    patch.undo()


def infer(image: str = "scan", params: dict | None = None, **more: object) -> requests.Response:
    fields = {"params": json.dumps(params or {})}
    return requests.post(f"{URL}/infer/held?image={quote(image)}", data=fields, timeout=30, **more)  # type: ignore[arg-type]


def raw(method: str, target: str, body: bytes = b"", headers: dict | None = None) -> http.client.HTTPResponse:
    """A request whose address is sent as it is: clients resolve ``..`` themselves."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    connection.request(method, target, body=body or None, headers=headers or {})
    return connection.getresponse()


def wait_for(runs: list, count: int) -> None:
    end = time.monotonic() + 10
    while len(runs) < count and time.monotonic() < end:
        time.sleep(0.01)
    assert len(runs) == count


def routes(web: object) -> list:
    """All routes that answer requests, whatever they are nested in."""
    found = []
    for route in web.routes:  # type: ignore[attr-defined]
        inner = getattr(route, "original_router", None)
        found += list(inner.routes) if inner is not None else [route]
    return [route for route in found if hasattr(route, "dependant")]


# --- the event loop -------------------------------------------------------------------------------------------------


def test_info_and_proxy_answer_at_once_during_an_inference(served: SimpleNamespace, archive: str) -> None:
    from monailabel.config import settings
    from monailabel.interfaces.utils import app as instances

    requests.get(f"{URL}/info/", timeout=10)
    served.gate.clear()
    before = len(served.runs)
    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        answer = pool.submit(infer)
        wait_for(served.runs, before + 1)
        patch.setattr(settings, "MONAI_LABEL_STUDIES", archive)
        patch.setitem(instances.apps, f"{served.home}{archive}", served.app)
        seconds = []
        for path in ("/info/", "/proxy/dicom/studies", "/info/", "/proxy/dicom/studies"):
            started = time.perf_counter()
            assert requests.get(URL + path, timeout=10).status_code == 200
            seconds.append(time.perf_counter() - started)
        assert not answer.done()
        served.gate.set()
        assert answer.result().status_code == 200
    assert sorted(seconds)[len(seconds) // 2] < 0.1, seconds  # the median: this machine may be busy


def test_the_queue_is_bounded_and_the_next_one_is_told_when_to_come_back(served: SimpleNamespace) -> None:
    served.gate.clear()
    before = len(served.runs)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(infer)
        wait_for(served.runs, before + 1)
        second = pool.submit(infer)
        time.sleep(0.5)
        refused = infer()
        served.gate.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert "busy" in refused.json()["detail"]


def test_a_client_that_leaves_while_it_waits_costs_no_inference(served: SimpleNamespace) -> None:
    served.gate.clear()
    before = len(served.runs)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(infer)
        wait_for(served.runs, before + 1)
        with socket.create_connection(("127.0.0.1", PORT)) as gone:
            head = "Host: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\n\r\n"
            gone.sendall(f"POST /infer/held?image=scan HTTP/1.1\r\n{head}".encode())
            time.sleep(0.5)
        time.sleep(0.7)
        served.gate.set()
        assert first.result().status_code == 200
    assert infer().status_code == 200
    assert len(served.runs) == before + 2
    end = time.monotonic() + 5  # results are removed after they were answered
    while list(served.home.glob("result*")) and time.monotonic() < end:
        time.sleep(0.05)
    assert not list(served.home.glob("result*"))


# --- errors ---------------------------------------------------------------------------------------------------------


def test_errors_are_one_line_with_the_right_status(served: SimpleNamespace) -> None:
    unknown_word = infer(params={"prompt": "nonsense"})
    assert unknown_word.status_code == 400
    assert "brain-stem" in unknown_word.json()["detail"]

    crash = infer(params={"prompt": "crash"})
    assert crash.status_code == 500
    assert "deep inside" not in crash.text
    assert "Traceback" not in crash.text

    assert infer("absent").status_code == 404
    no_model = requests.post(f"{URL}/infer/none?image=scan", timeout=10)
    assert no_model.status_code == 404
    assert "held" in no_model.json()["detail"]
    assert requests.post(f"{URL}/infer/held", timeout=10).status_code == 400
    assert requests.post(f"{URL}/train/none", json={}, timeout=10).status_code == 404
    assert requests.delete(f"{URL}/datastore/image?id=absent", timeout=10).status_code == 404
    assert infer(params=[1]).status_code == 400  # type: ignore[arg-type]
    assert infer().status_code == 200


def test_files_of_a_failed_request_are_removed(served: SimpleNamespace) -> None:
    uploads = {"label": ("a.nii.gz", b"voxels")}
    answer = requests.post(
        f"{URL}/infer/held?image=scan", data={"params": '{"prompt": "nonsense"}'}, files=uploads, timeout=10
    )
    assert answer.status_code == 400
    assert served.runs[-1]["label"]
    assert not Path(served.runs[-1]["label"]).exists()


def test_the_zip_of_the_dataset_is_removed_after_it_was_sent(
    served: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    label = {"label": ("a.nii.gz", b"voxels")}
    assert requests.put(f"{URL}/datastore/label?image=other", files=label, timeout=10).status_code == 200
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answer = requests.get(f"{URL}/datastore/dataset", timeout=10)
    assert zipfile.ZipFile(io.BytesIO(answer.content)).testzip() is None
    end = time.monotonic() + 5
    while list(tmp_path.iterdir()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not list(tmp_path.iterdir())


def test_a_dead_archive_is_said_to_be_dead(served: SimpleNamespace) -> None:
    from monailabel.config import settings
    from monailabel.interfaces.utils import app as instances

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "MONAI_LABEL_STUDIES", "http://127.0.0.1:18199/dicom-web")
        patch.setitem(instances.apps, f"{served.home}http://127.0.0.1:18199/dicom-web", served.app)
        answer = requests.get(f"{URL}/proxy/dicom/studies", timeout=10)
    assert answer.status_code == 502
    assert "archive does not answer" in answer.json()["detail"]


# --- safety ---------------------------------------------------------------------------------------------------------


def outside(home: Path) -> dict[str, bytes]:
    """Everything but the datastore, the sessions and the logs."""
    kept = ("studies", "sessions", "logs", "result")
    files = (path for path in home.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if not path.relative_to(home).parts[0].startswith(kept)}


def test_no_argument_of_any_route_leads_out_of_the_datastore(served: SimpleNamespace) -> None:
    home = served.home
    attacks = [
        "../secret",
        "..\\secret",
        str(home / "secret.nii.gz"),
        "/etc/passwd",
        "a/../../secret",
        "scan\x00",
        ".lock",
    ]
    before, index = outside(home), (served.studies / "datastore_v2.json").read_bytes()
    tried = 0
    for route in routes(served.web):
        for parameter, attack in ((p, a) for p in arguments(route) for a in attacks):
            if attack == ".lock" and parameter in ("params", "info", "path"):
                continue  # no path: a text like any other
            response = attempt(route, parameter, attack)
            body = response.read()
            where = f"{sorted(route.methods)} {route.path}: {parameter}={attack!r} -> {response.status} {body[:200]!r}"
            assert 400 <= response.status < 500, where
            assert b"secret" not in body.replace(b"client_secret", b"").split(b"detail")[0], where
            tried += 1
    assert tried > 300
    assert outside(home) == before
    assert (served.studies / "datastore_v2.json").read_bytes() == index


TEXTS = ("image", "id", "label", "tag", "session_id", "params", "info", "model", "method", "strategy", "path")


def arguments(route: object) -> list[str]:
    """Names of a route's arguments that are texts, files aside."""
    d = route.dependant  # type: ignore[attr-defined]
    named = [field.alias for field in (*d.path_params, *d.query_params, *d.body_params)]
    unknown = set(named) - {*TEXTS, *NOT_TEXTS}
    assert not unknown, f"{route.path} has arguments that this test does not know: {unknown}"  # type: ignore[attr-defined]
    return [name for name in named if name in TEXTS and not is_upload(route, name)]


NOT_TEXTS = (
    *("output", "limit_cases", "check_sum", "lines", "html", "text", "refresh", "all", "check_if_running", "images"),
    *("run_sync", "enqueue", "update_ts", "uncompress", "expiry", "file", "files", "form_data", "token"),
)


def is_upload(route: object, name: str) -> bool:
    fields = route.dependant.body_params  # type: ignore[attr-defined]
    return any(field.alias == name and "UploadFile" in str(field.field_info.annotation) for field in fields)


def attempt(route: object, parameter: str, attack: str) -> http.client.HTTPResponse:
    """Call a route with valid arguments but one."""
    d = route.dependant  # type: ignore[attr-defined]
    good = {
        **{"image": "scan", "id": "scan", "label": "scan", "tag": "final", "model": "held", "path": "x"},
        "session_id": "00000000-0000-0000-0000-000000000000",
    }
    path = route.path  # type: ignore[attr-defined]
    for field in d.path_params:
        value = attack if field.alias == parameter else good.get(field.alias, "x")
        for form in (f"{{{field.alias}:path}}", f"{{{field.alias}}}"):
            path = path.replace(form, quote(value, safe=""))
    query = {f.alias: attack if f.alias == parameter else good[f.alias] for f in d.query_params if f.alias in good}
    target = f"{path}?{urlencode(query)}"
    method = sorted(route.methods)[0]  # type: ignore[attr-defined]
    forms = {f.alias for f in d.body_params}
    if not forms:
        return raw(method, target)
    hostile = json.dumps({"x": [{"y": attack}]}) if parameter in ("params", "info") else "{}"
    if any("Form" in type(f.field_info).__name__ or is_upload(route, f.alias) for f in d.body_params):
        uploads = [(name, ("a.nii.gz", b"voxels")) for name in forms if is_upload(route, name)]
        parts: list = [(name, (None, hostile)) for name in ("params", "info") if name in forms] + uploads
        prepared = requests.Request("POST", URL, files=parts).prepare()
        body = prepared.body
        assert isinstance(body, bytes)
        return raw(method, target, body, {"Content-Type": prepared.headers["Content-Type"]})
    return raw(method, target, hostile.encode(), {"Content-Type": "application/json"})


@pytest.mark.parametrize(
    "params",
    [
        {"image": "other"},
        {"image_path": "x"},
        {"session": {"image": "x"}},
        {"model": "another"},
        {"label": "/etc/passwd"},
        {"label_tag": "a/b"},
        {"result_extension": ".nii.gz/../x"},
        {"result_extension": "x"},
        {"pretrained_path": "model.pt"},
        {"tracking_uri": "http://example.org"},
        {"model_filename": "model.pt"},
        {"images": ["a/b"]},
    ],
)
def test_params_cannot_overrule_the_server(served: SimpleNamespace, params: dict) -> None:
    before = len(served.runs)
    assert infer(params=params).status_code == 400
    assert len(served.runs) == before


def test_what_viewers_send_passes(served: SimpleNamespace) -> None:
    params = {
        **{"prompt": "left/right hippocampus, please", "points": [[1, 2, 3]], "point_labels": [1], "label_prompt": [1]},
        **{"label": "left hippocampus", "label_info": [{"name": "a", "idx": 1}], "client_id": "me", "model": "held"},
        **{"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False},
    }
    assert infer(params=params).status_code == 200
    assert served.runs[-1]["prompt"] == params["prompt"]


def test_a_file_beside_the_datastore_is_no_image(served: SimpleNamespace) -> None:
    assert Path("secret.nii.gz").exists(), "the server's working folder holds it"
    before = len(served.runs)
    assert infer("secret.nii.gz").status_code == 404
    assert len(served.runs) == before


def test_uploads_keep_to_known_kinds_and_names(served: SimpleNamespace) -> None:
    index = (served.studies / "datastore_v2.json").read_bytes()

    def put(path: str, field: str, name: str, content: bytes = b"voxels", **more: object) -> requests.Response:
        return requests.put(URL + path, files={field: (name, content)}, timeout=10, **more)  # type: ignore[arg-type]

    assert put("/datastore/image?image=datastore_v2", "file", "x.json").status_code == 400
    assert put("/datastore/label?image=scan", "label", "x.pkl").status_code == 400
    assert put("/session/", "files", "x.npz").status_code == 400
    assert (served.studies / "datastore_v2.json").read_bytes() == index

    added = put("/datastore/image", "file", "../../Doe.John.nii.gz")
    assert added.json() == {"image": "Doe_John"}
    assert (served.studies / "Doe_John.nii.gz").read_bytes() == b"voxels"
    saved = put("/datastore/label?image=Doe_John", "label", "../x.nii.gz")
    assert saved.status_code == 200
    assert (served.studies / "labels" / "final" / "Doe_John.nii.gz").exists()
    assert requests.delete(f"{URL}/datastore/image?id=Doe_John", timeout=10).status_code == 200


def test_archives_are_unpacked_only_where_they_stay_in_their_folder(served: SimpleNamespace) -> None:
    def zipped(*names: str, size: int = 1) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, b"0" * size)
        return buffer.getvalue()

    def session(name: str, content: bytes) -> requests.Response:
        return requests.put(f"{URL}/session/?uncompress=true", files={"files": (name, content)}, timeout=10)

    assert session("a.zip", zipped("../x.dcm")).status_code == 400
    assert session("a.zip", zipped("/tmp/x.dcm")).status_code == 400
    assert session("a.zip", b"no zip").status_code == 400
    assert session("a.nii.gz", b"a tar could be in it").status_code == 400
    assert session("a.zip", zipped("x.dcm", size=5 * 2**20)).status_code == 413
    made = session("a.zip", zipped("x.dcm", "y.dcm"))
    assert made.status_code == 200
    name = made.json()["session_id"]
    assert requests.get(f"{URL}/session/{name}", timeout=10).status_code == 200
    assert requests.delete(f"{URL}/session/{name}", timeout=10).status_code == 200
    assert requests.post(f"{URL}/infer/held?session_id={name}", timeout=10).status_code == 404


def test_too_large_a_body_is_refused_whether_it_says_its_size_or_not(served: SimpleNamespace) -> None:
    large = b"0" * (2 * 2**20)
    said = requests.put(f"{URL}/session/", files={"files": ("a.nii.gz", large)}, timeout=10)
    assert said.status_code == 413
    assert "1 MiB" in said.json()["detail"]

    form = requests.Request("PUT", URL, files={"files": ("a.nii.gz", large)}).prepare()
    body = form.body
    assert isinstance(body, bytes)
    pieces = (body[start : start + 2**16] for start in range(0, len(body), 2**16))
    kind = {"Content-Type": form.headers["Content-Type"]}
    unsaid = requests.put(f"{URL}/session/", data=pieces, headers=kind, timeout=10)
    assert unsaid.status_code == 413


def test_other_sites_pages_cannot_use_the_server(served: SimpleNamespace) -> None:
    evil = {"Origin": "http://evil.example"}
    read = requests.get(f"{URL}/info/", headers=evil, timeout=10)
    assert "access-control-allow-origin" not in read.headers
    assert infer(headers=evil).status_code == 403
    assert infer(headers={"Origin": URL}).status_code == 200
    assert requests.get(f"{URL}/info/", headers={"Host": "evil.example"}, timeout=10).status_code == 400


def test_what_is_not_needed_is_not_served(served: SimpleNamespace) -> None:
    assert requests.post(f"{URL}/reload", timeout=10).status_code in (404, 405)
    assert requests.put(f"{URL}/model/held", files={"file": ("m.pt", b"code")}, timeout=10).status_code == 405
    assert requests.delete(f"{URL}/model/held", timeout=10).status_code == 405
    assert requests.post(f"{URL}/infer/wsi/held?image=scan", timeout=10).status_code == 404


# --- roles ----------------------------------------------------------------------------------------------------------


def test_the_role_check_of_every_route_is_kept(served: SimpleNamespace, archive: str) -> None:
    import jwt
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from monailabel.config import settings
    from monailabel.endpoints.user import auth

    from lib.server.roles import mend_token_check

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, spki).decode()

    def token(*roles: str) -> str:
        claims = {"preferred_username": "x", "email": "x", "name": "x", "realm_access": {"roles": list(roles)}}
        return jwt.encode({**claims, "exp": time.time() + 60}, key, algorithm="RS256")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Head, "key", "".join(pem.splitlines()[1:-1]))
        patch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
        patch.setattr(settings, "MONAI_LABEL_AUTH_REALM_URI", archive)
        patch.setattr(auth, "jwt", auth.jwt)
        mend_token_check()
        for route in routes(served.web):
            if route.path in ("/", "/favicon.ico"):
                continue
            # Roles were off when MONAI Label was imported: it takes the token from the address then.
            target = route.path.replace("{path:path}", "x").replace("{", "").replace("}", "")
            for method in route.methods:
                assert raw(method, target).status in (401, 422), (method, target)
        user, nobody = settings.MONAI_LABEL_AUTH_ROLE_USER, token("visitor")
        assert requests.post(f"{URL}/infer/held?image=scan&token={nobody}", timeout=10).status_code == 403
        assert requests.post(f"{URL}/infer/held?image=scan&token={token(user)}", timeout=10).status_code == 200
        assert requests.get(f"{URL}/logs/?token={token(user)}", timeout=10).status_code == 403
        forged = jwt.encode({"preferred_username": "x"}, "guessed" * 8, algorithm="HS256")
        assert requests.get(f"{URL}/info/?token={forged}", timeout=10).status_code == 401
