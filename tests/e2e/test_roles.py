"""Users and roles on a server as a process, whose identity provider signs real tokens."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from clinic.label_server import LabelServer
from clinic.processes import free_port

pytestmark = pytest.mark.e2e
QUESTION = {"params": (None, json.dumps({"prompt": "brain-stem"}))}


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def realm(key: rsa.RSAPrivateKey) -> Iterator[str]:
    """Address of an identity provider that gives its public key as Keycloak does."""
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, spki).decode()
    body = json.dumps({"realm": "test", "public_key": "".join(pem.splitlines()[1:-1])}).encode()

    class Provider(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as provider:
        threading.Thread(target=provider.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{provider.server_port}/realms/test"
        provider.shutdown()


@pytest.fixture(scope="module")
def server(realm: str, folder_with_heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelServer]:
    environment = {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": realm}
    folder = tmp_path_factory.mktemp("roles")
    started = LabelServer(str(folder_with_heads), free_port(), folder, {"stages": "1"}, environment)
    started.address = f"{started.url}/"  # the one page that needs no token
    with started.start():
        yield started


@pytest.fixture(scope="module")
def login(key: rsa.RSAPrivateKey) -> Callable[..., dict[str, str]]:
    """Headers of a user with some roles."""

    def headers(*roles: str, signed_with: rsa.RSAPrivateKey = key, seconds: float = 600) -> dict[str, str]:
        claims = {"preferred_username": "x", "email": "x@example.org", "name": "x"}
        claims |= {"realm_access": {"roles": list(roles)}, "exp": time.time() + seconds}
        return {"Authorization": f"Bearer {jwt.encode(claims, signed_with, algorithm='RS256')}"}

    return headers


def test_each_role_may_do_what_is_its_own(server: LabelServer, login: Callable[..., dict[str, str]]) -> None:
    def ask(headers: dict[str, str] | None) -> int:
        return requests.post(
            f"{server.url}/infer/medal_s_mri?image=head_a", files=QUESTION, headers=headers, timeout=300
        ).status_code

    def logs(headers: dict[str, str] | None) -> int:
        return requests.get(f"{server.url}/logs/?text=true", headers=headers, timeout=30).status_code

    user, admin = login("monailabel-user"), login("monailabel-admin", "monailabel-user")
    assert [ask(who) for who in (None, login("visitor"), user)] == [401, 403, 200]
    assert [logs(who) for who in (None, user, admin)] == [401, 403, 200]
    assert requests.post(f"{server.url}/train/medal_s", json={}, headers=user, timeout=30).status_code == 403
    assert requests.delete(f"{server.url}/datastore/?id=head_a", headers=user, timeout=30).status_code == 403


def test_tokens_that_prove_nothing(server: LabelServer, login: Callable[..., dict[str, str]]) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    unsigned = jwt.encode({"preferred_username": "x"}, None, algorithm="none")
    for headers in (
        login("monailabel-admin", signed_with=other),
        login("monailabel-admin", seconds=-60),
        {"Authorization": f"Bearer {unsigned}"},
        {"Authorization": "Bearer nonsense"},
    ):
        assert requests.get(f"{server.url}/info/", headers=headers, timeout=30).status_code == 401
