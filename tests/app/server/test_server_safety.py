"""What the server refuses: paths, arguments, uploads, other sites, and users without the role."""

from __future__ import annotations

import http.client
import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import requests

Served = Any  # of conftest.py


# --- safety ---------------------------------------------------------------------------------------------------------


def outside(home: Path) -> dict[str, bytes]:
    """Everything but the datastore, the sessions and the logs."""
    kept = ("studies", "sessions", "logs", "result")
    files = (path for path in home.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if not path.relative_to(home).parts[0].startswith(kept)}


def test_no_argument_of_any_route_leads_out_of_the_datastore(served: Served) -> None:
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
    for route in served.routes():
        for parameter, attack in ((p, a) for p in arguments(route) for a in attacks):
            if attack == ".lock" and parameter in ("params", "info", "path"):
                continue  # no path: a text like any other
            response = attempt(served, route, parameter, attack)
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


def attempt(served: Served, route: object, parameter: str, attack: str) -> http.client.HTTPResponse:
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
        return served.raw(method, target)
    hostile = json.dumps({"x": [{"y": attack}]}) if parameter in ("params", "info") else "{}"
    if any("Form" in type(f.field_info).__name__ or is_upload(route, f.alias) for f in d.body_params):
        uploads = [(name, ("a.nii.gz", b"voxels")) for name in forms if is_upload(route, name)]
        parts: list = [(name, (None, hostile)) for name in ("params", "info") if name in forms] + uploads
        prepared = requests.Request("POST", served.url, files=parts).prepare()
        body = prepared.body
        assert isinstance(body, bytes)
        return served.raw(method, target, body, {"Content-Type": prepared.headers["Content-Type"]})
    return served.raw(method, target, hostile.encode(), {"Content-Type": "application/json"})


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
def test_params_cannot_overrule_the_server(served: Served, params: dict) -> None:
    before = len(served.runs)
    assert served.infer(params=params).status_code == 400
    assert len(served.runs) == before


def test_what_viewers_send_passes(served: Served) -> None:
    params = {
        **{"prompt": "left/right hippocampus, please", "points": [[1, 2, 3]], "point_labels": [1], "label_prompt": [1]},
        **{"label": "left hippocampus", "label_info": [{"name": "a", "idx": 1}], "client_id": "me", "model": "held"},
        **{"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False},
    }
    assert served.infer(params=params).status_code == 200
    assert served.runs[-1]["prompt"] == params["prompt"]


def test_a_file_beside_the_datastore_is_no_image(served: Served) -> None:
    assert Path("secret.nii.gz").exists(), "the server's working folder holds it"
    before = len(served.runs)
    assert served.infer("secret.nii.gz").status_code == 404
    assert len(served.runs) == before


def test_uploads_keep_to_known_kinds_and_names(served: Served) -> None:
    index = (served.studies / "datastore_v2.json").read_bytes()

    def put(path: str, field: str, name: str, content: bytes = b"voxels", **more: object) -> requests.Response:
        return requests.put(served.url + path, files={field: (name, content)}, timeout=10, **more)  # type: ignore[arg-type]

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
    assert requests.delete(f"{served.url}/datastore/image?id=Doe_John", timeout=10).status_code == 200


def test_archives_are_unpacked_only_where_they_stay_in_their_folder(served: Served) -> None:
    def zipped(*names: str, size: int = 1) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, b"0" * size)
        return buffer.getvalue()

    def session(name: str, content: bytes) -> requests.Response:
        return requests.put(f"{served.url}/session/?uncompress=true", files={"files": (name, content)}, timeout=10)

    assert session("a.zip", zipped("../x.dcm")).status_code == 400
    assert session("a.zip", zipped("/tmp/x.dcm")).status_code == 400
    assert session("a.zip", b"no zip").status_code == 400
    assert session("a.nii.gz", b"a tar could be in it").status_code == 400
    assert session("a.zip", zipped("x.dcm", size=5 * 2**20)).status_code == 413
    made = session("a.zip", zipped("x.dcm", "y.dcm"))
    assert made.status_code == 200
    name = made.json()["session_id"]
    assert requests.get(f"{served.url}/session/{name}", timeout=10).status_code == 200
    assert requests.delete(f"{served.url}/session/{name}", timeout=10).status_code == 200
    assert requests.post(f"{served.url}/infer/held?session_id={name}", timeout=10).status_code == 404


def test_too_large_a_body_is_refused_whether_it_says_its_size_or_not(served: Served) -> None:
    large = b"0" * (2 * 2**20)
    said = requests.put(f"{served.url}/session/", files={"files": ("a.nii.gz", large)}, timeout=10)
    assert said.status_code == 413
    assert "1 MiB" in said.json()["detail"]

    form = requests.Request("PUT", served.url, files={"files": ("a.nii.gz", large)}).prepare()
    body = form.body
    assert isinstance(body, bytes)
    pieces = (body[start : start + 2**16] for start in range(0, len(body), 2**16))
    kind = {"Content-Type": form.headers["Content-Type"]}
    unsaid = requests.put(f"{served.url}/session/", data=pieces, headers=kind, timeout=10)
    assert unsaid.status_code == 413


def test_other_sites_pages_cannot_use_the_server(served: Served) -> None:
    evil = {"Origin": "http://evil.example"}
    read = requests.get(f"{served.url}/info/", headers=evil, timeout=10)
    assert "access-control-allow-origin" not in read.headers
    assert served.infer(headers=evil).status_code == 403
    assert served.infer(headers={"Origin": served.url}).status_code == 200
    assert requests.get(f"{served.url}/info/", headers={"Host": "evil.example"}, timeout=10).status_code == 400


def test_what_is_not_needed_is_not_served(served: Served) -> None:
    assert requests.post(f"{served.url}/reload", timeout=10).status_code in (404, 405)
    assert requests.put(f"{served.url}/model/held", files={"file": ("m.pt", b"code")}, timeout=10).status_code == 405
    assert requests.delete(f"{served.url}/model/held", timeout=10).status_code == 405
    assert requests.post(f"{served.url}/infer/wsi/held?image=scan", timeout=10).status_code == 404


# --- roles ----------------------------------------------------------------------------------------------------------


def test_the_role_check_of_every_route_is_kept(served: Served, answering: Callable[..., str]) -> None:
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

    realm = answering(lambda _: (200, json.dumps({"public_key": "".join(pem.splitlines()[1:-1])}).encode()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
        patch.setattr(settings, "MONAI_LABEL_AUTH_REALM_URI", realm)
        patch.setattr(auth, "jwt", auth.jwt)
        mend_token_check()
        for route in served.routes():
            if route.path in ("/", "/favicon.ico"):
                continue
            # Roles were off when MONAI Label was imported: it takes the token from the address then.
            target = route.path.replace("{path:path}", "x").replace("{", "").replace("}", "")
            for method in route.methods:
                assert served.raw(method, target).status in (401, 422), (method, target)
        user, nobody = settings.MONAI_LABEL_AUTH_ROLE_USER, token("visitor")
        assert requests.post(f"{served.url}/infer/held?image=scan&token={nobody}", timeout=10).status_code == 403
        assert requests.post(f"{served.url}/infer/held?image=scan&token={token(user)}", timeout=10).status_code == 200
        assert requests.get(f"{served.url}/logs/?token={token(user)}", timeout=10).status_code == 403
        forged = jwt.encode({"preferred_username": "x"}, "guessed" * 8, algorithm="HS256")
        assert requests.get(f"{served.url}/info/?token={forged}", timeout=10).status_code == 401
