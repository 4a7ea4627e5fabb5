"""What stops the server from starting is said in one line; it listens on this machine only unless told otherwise."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from clinic.processes import free_port

pytest.importorskip("monailabel", reason="MONAI Label is not installed: make setup-label")
uvicorn = pytest.importorskip("uvicorn")

ROOT = Path(__file__).resolve().parents[3]
PORT = free_port()


@pytest.fixture(scope="module")
def archive(answering: Callable[..., str]) -> str:
    """An archive at /dicom-web, which asks for a password at /locked; nothing elsewhere."""
    status = {"dicom-web": 200, "locked": 401}
    return answering(lambda path: (status.get(path.split("/")[1], 404), b"[]"))


@pytest.mark.parametrize(
    ("host", "line", "listens"),
    [
        ("0.0.0.0", "start_server --app a --studies s", "127.0.0.1"),
        ("0.0.0.0", "start_server --app a --studies s --conf host 0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "start_server --app a --studies s --host 0.0.0.0", "0.0.0.0"),
        ("0.0.0.0", "start_server --app a --studies s --host=0.0.0.0", "0.0.0.0"),
        ("0.0.0.0", "start_server --app a --studies s -i 0.0.0.0", "0.0.0.0"),
        ("10.1.2.3", "start_server --app a --studies s --host 10.1.2.3", "10.1.2.3"),
        ("127.0.0.1", "start_server --app a --studies s --host 127.0.0.1", "127.0.0.1"),
    ],
)
def test_it_listens_on_this_machine_unless_an_address_is_named(host: str, line: str, listens: str) -> None:
    from lib.server.startup import listen_safely

    config = uvicorn.Config("no:app", host=host, port=PORT)
    listen_safely(config, line.split())
    assert config.host == listens


def test_workers_need_an_address(caplog: pytest.LogCaptureFixture) -> None:
    from lib.server import StartupError
    from lib.server.startup import listen_safely

    with pytest.raises(StartupError, match=r"--host 127\.0\.0\.1"):
        listen_safely(uvicorn.Config("no:app", host="0.0.0.0", workers=2), ["start_server"])
    listen_safely(uvicorn.Config("no:app", host="0.0.0.0"), ["start_server", "--host", "0.0.0.0"])
    assert "no TLS" in caplog.text
    assert "no users and roles" in caplog.text


def test_a_taken_port_is_noticed() -> None:
    from lib.server import StartupError
    from lib.server.startup import check_port

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(StartupError, match=r"--port"):
            check_port("127.0.0.1", other.getsockname()[1])
        port = other.getsockname()[1]
    check_port("127.0.0.1", port)


def test_an_archive_that_is_none_is_noticed(archive: str) -> None:
    from lib.server import StartupError
    from lib.server.startup import check_archive

    check_archive(f"{archive}/dicom-web")
    with pytest.raises(StartupError, match="wants its DICOMweb root"):
        check_archive(f"{archive}/elsewhere")
    with pytest.raises(StartupError, match="MONAI_LABEL_DICOMWEB_USERNAME"):
        check_archive(f"{archive}/locked")
    with pytest.raises(StartupError, match="does not answer"):
        check_archive("http://127.0.0.1:18199/dicom-web")


@pytest.mark.parametrize("conf", [{"infer_waiting": "-1"}, {"upload_limit_mb": "0"}, {"infer_parallel": "many"}])
def test_options_that_make_no_sense_are_refused(conf: dict[str, str]) -> None:
    from lib.server import StartupError, prepare

    with pytest.raises(StartupError, match=next(iter(conf))):
        prepare("/studies", conf)


def start(tmp_path: Path, bundle: Path, port: int, studies: str) -> tuple[int, str]:
    """Exit code and output of a server that is expected to stop by itself."""
    app = tmp_path / "app"
    shutil.copytree(ROOT / "apps" / "medal_s_label", app, ignore=shutil.ignore_patterns("__pycache__", "logs", "model"))
    environment = {**os.environ, "MEDAL_S_BUNDLE": str(bundle), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command(app, studies or str(tmp_path / "studies"), port),
        **{"capture_output": True, "text": True, "timeout": 300, "env": environment, "cwd": tmp_path},
    )
    return done.returncode, done.stdout + done.stderr


def command(app: Path, studies: str, port: int) -> list[str]:
    """The plain command of the documentation."""
    start_server = [sys.executable, "-m", "monailabel.main", "start_server"]
    return [*start_server, "--app", str(app), "--studies", studies, "--port", str(port)]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("no bundle", ["bundle", "--conf bundle"]),
        ("port in use", ["--port"]),
        ("archive does not answer", ["does not answer"]),
        ("no weights", ["weights"]),
    ],
)
def test_each_reason_not_to_start_is_one_line_of_a_real_server(tmp_path: Path, reason: str, words: list[str]) -> None:
    bundle, studies = ROOT / "bundle", ""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = PORT
        if reason == "no bundle":
            bundle = tmp_path
        elif reason == "port in use":
            other.listen()
            port = other.getsockname()[1]
        elif reason == "archive does not answer":
            studies = "http://127.0.0.1:18199/dicom-web"
        else:
            bundle = tmp_path / "bundle"
            shutil.copytree(ROOT / "bundle", bundle, ignore=shutil.ignore_patterns("__pycache__", "*.pt"))
        code, output = start(tmp_path, bundle, port, studies)
    assert code != 0
    assert "Traceback" not in output
    errors = [line for line in output.splitlines() if "error: " in line]
    assert len(errors) == 1, output
    for word in words:
        assert word in errors[0]


@pytest.mark.e2e
def test_the_plain_command_serves_this_machine_only_and_warns_of_an_empty_folder(tmp_path: Path) -> None:
    app = tmp_path / "app"
    shutil.copytree(ROOT / "apps" / "medal_s_label", app, ignore=shutil.ignore_patterns("__pycache__", "logs", "model"))
    environment = {**os.environ, "MEDAL_S_BUNDLE": str(ROOT / "bundle"), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "output").open("w") as output:
        server = subprocess.Popen(
            command(app, str(tmp_path / "ward7"), PORT), stdout=output, stderr=output, env=environment, cwd=tmp_path
        )
    try:
        end = time.monotonic() + 300
        while not connects("127.0.0.1") and server.poll() is None and time.monotonic() < end:
            time.sleep(0.5)
        said = (tmp_path / "output").read_text()
        assert server.poll() is None, said
        assert not connects("127.0.0.2"), "a server at 0.0.0.0 would answer here as well"
        assert requests.get(f"http://127.0.0.1:{PORT}/info/", timeout=30).json()["datastore"]["total"] == 0
        assert "no images yet" in said
        assert "listening on this machine only" in said
    finally:
        server.terminate()
        server.wait(30)


def connects(host: str) -> bool:
    try:
        socket.create_connection((host, PORT), timeout=5).close()
    except OSError:
        return False
    return True
