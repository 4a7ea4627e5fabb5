"""Download from the hub, played by a server of this machine: one commit, resumed, checked; and no network at all."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from scripts.cli import app
from scripts.published.hub import download

Fetch = Callable[..., Result]
REPOSITORY, COMMIT = "someone/Medal-S-V1.0", "a" * 40


@dataclass
class Hub:
    """What the server holds and saw.

    Attributes:
        files: path in the repository to content.
        announced: hash that it announces in place of a file's own.
        stop_after: bytes after which the next answer with a file breaks off.
        ranges: ``Range`` headers of requests for content.
        revisions: that were asked for.
    """

    files: dict[str, bytes]
    announced: dict[str, str] = field(default_factory=dict)
    stop_after: int | None = None
    ranges: list[str | None] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)

    def sha256(self, name: str) -> str:
        return self.announced.get(name) or hashlib.sha256(self.files[name]).hexdigest()


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def do_GET(self, body: bool = True) -> None:
            path = self.path.split("?")[0]
            if found := re.fullmatch(rf"/api/models/{REPOSITORY}(?:/revision/(.+))?", path):
                hub.revisions.append(found[1] or "main")
                siblings = [
                    {"rfilename": name, "size": size, "lfs": {"sha256": hash_, "size": size, "pointerSize": 134}}
                    for name, size, hash_ in ((name, len(hub.files[name]), hub.sha256(name)) for name in hub.files)
                ]
                self.answer(json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode(), body=body)
            elif (found := re.fullmatch(rf"/{REPOSITORY}/resolve/(\w+)/(.+)", path)) and found[2] in hub.files:
                assert found[1] == COMMIT
                self.send_file(found[2], body)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def send_file(self, name: str, body: bool) -> None:
            content, wanted = hub.files[name], self.headers.get("Range")
            first = int(re.findall(r"\d+", wanted)[0]) if wanted else 0
            headers = {
                "ETag": f'"{hub.sha256(name)}"',
                "X-Repo-Commit": COMMIT,
                "X-Linked-Size": str(len(content)),
                "Accept-Ranges": "bytes",
            }
            if wanted:
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            if body:
                hub.ranges.append(wanted)
            self.answer(content[first:], 206 if wanted else 200, headers, body)

        def answer(
            self, content: bytes, status: int = 200, headers: dict[str, str] | None = None, body: bool = True
        ) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body and headers and hub.stop_after is not None:
                content, hub.stop_after = content[: hub.stop_after], None
                self.wfile.write(content)
                self.connection.shutdown(socket.SHUT_RDWR)
            elif body:
                self.wfile.write(content)

    return Handler


def reach(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the hub client to a server, as its environment variable HF_ENDPOINT does before it is imported."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(release: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The release in a subfolder of a repository."""
    files = {f"checkpoints/{file.name}": file.read_bytes() for file in release.glob("*.pth")}
    hub = Hub({**files, "README.md": b"card"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    reach(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(release: Path, makers: Any, tmp_path: Path) -> Fetch:
    """Runs the command on the repository."""
    overlay = makers.overlay(tmp_path)

    def run(*options: object) -> Result:
        arguments = [REPOSITORY, "--overlay", overlay, "--language-model", release / "BioLORD-2023-C"]
        arguments += ["-o", tmp_path / "out", "--download-dir", tmp_path / "downloads", *options]
        return CliRunner().invoke(app, ["import-weights", *map(str, arguments)])

    return run


def test_a_release_is_fetched_from_one_commit_and_a_broken_download_goes_on(
    hub: Hub, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.stop_after = 5000
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # what it keeps of a broken answer
    result = fetch("--revision", "v1")
    assert result.exit_code == 0, result.output
    assert hub.revisions == ["v1"]
    assert "bytes=5000-" in hub.ranges
    report = json.loads((tmp_path / "out" / "published_import.json").read_text())
    assert (report["repository"], report["revision"]) == (REPOSITORY, COMMIT)
    assert {network["source_sha256"] for network in report["networks"]} < set(map(hub.sha256, hub.files))
    loaded = len(hub.ranges)
    again = download(REPOSITORY, {"text_encoder": "text_encoder.pth"}, "v1", tmp_path / "downloads")["text_encoder"]
    assert again.path.read_bytes() == hub.files[again.name]
    assert len(hub.ranges) == loaded  # what is there is not loaded again


def test_a_file_with_another_hash_is_refused(hub: Hub, fetch: Fetch, tmp_path: Path) -> None:
    hub.announced["checkpoints/text_encoder.pth"] = "b" * 64
    result = fetch()
    assert result.exit_code == 1
    assert f"wanted {'b' * 64}: it was changed or cut short" in result.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_hash_of_ones_own_does_not_overrule_the_repositorys(hub: Hub, fetch: Fetch) -> None:
    result = fetch("--sha256", f"text_encoder.pth={'c' * 64}")
    assert result.exit_code == 1
    assert "text_encoder.pth: the repository states SHA-256" in result.stderr


def test_a_repository_without_the_files_or_with_more_than_one(hub: Hub, fetch: Fetch) -> None:
    hub.files["older/text_encoder.pth"] = b"x"
    assert "has 2 files text_encoder.pth (checkpoints/text_encoder.pth, older/text_encoder.pth)" in fetch().stderr
    hub.files = {"README.md": b"card"}
    assert "has no files nano_UNet_CVPR2025_crop_size_224_224_128_*.pth (README.md)" in fetch().stderr


def test_without_network_one_line_says_what_to_do(
    release: Path, makers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        reach(f"http://127.0.0.1:{unused.getsockname()[1]}", monkeypatch)
        arguments = ["spc819/Medal-S-V1.0", "--overlay", str(makers.overlay(tmp_path)), "-o", str(tmp_path / "out")]
        result = CliRunner().invoke(app, ["import-weights", *arguments])
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: cannot download spc819/Medal-S-V1.0")
    assert "hf download spc819/Medal-S-V1.0 --local-dir FOLDER" in line
