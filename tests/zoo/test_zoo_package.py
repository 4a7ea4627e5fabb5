"""The package for the zoo: what is in it, the same bytes each time, and refusals that say what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from monai.bundle import load_bundle_config

ZOO_LIMIT = 25_000_000  # bytes of a file


def package(tool: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, tool, *map(str, words)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def tool(bundle_dir: Path) -> Path:
    found = bundle_dir.parent / "tools" / "package_bundle.py"
    if shutil.which("git") is None or not (bundle_dir.parent / ".git").exists():
        pytest.skip("not a git checkout")
    return found


@pytest.fixture(scope="module")
def archive(tool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("package")
    done = package(tool, "--output", output)
    assert done.returncode == 0, done.stderr
    (path,) = output.iterdir()
    return path


@pytest.fixture
def checkout(bundle_dir: Path, tmp_path: Path) -> Path:
    """A small repository with the least that a package needs."""
    root = tmp_path / "checkout"
    for name in ("configs/inference.json", "models/model.pt", "docs/README.md", "scripts/a.py", "LICENSE"):
        (root / "bundle" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "bundle" / name).write_text("text")
    (root / "bundle" / "configs" / "metadata.json").write_text('{"version": "1.2.3", "changelog": {"1.2.3": "new"}}')
    (root / ".ci").mkdir()
    shutil.copy(bundle_dir.parent / ".ci" / "check_sizes", root / ".ci" / "check_sizes")
    (root / ".gitignore").write_text("*.nii.gz\n")
    subprocess.run(["git", "init", "--quiet", root], check=True)
    return root


def test_holds_the_bundle_under_its_name_and_nothing_else(archive: Path, bundle_dir: Path) -> None:
    version = json.loads((bundle_dir / "configs" / "metadata.json").read_text())["version"]
    assert archive.name == f"medal_s_v{version}.zip"
    with zipfile.ZipFile(archive) as content:
        entries = content.infolist()
        for entry in entries:
            name = entry.filename.removeprefix("medal_s/")
            assert content.read(entry) == (bundle_dir / name).read_bytes()
    names = {entry.filename for entry in entries}
    some = ("LICENSE", "large_files.yml", "configs/logging.conf", "docs/data_license.txt", "models/model_fine.pt")
    assert {f"medal_s/{name}" for name in (*some, "scripts/cli.py")} <= names
    assert not [name for name in names if "__pycache__" in name or not name.startswith("medal_s/")]
    assert max(entry.file_size for entry in entries) <= ZOO_LIMIT
    assert {(entry.date_time, entry.external_attr >> 16) for entry in entries} == {((1980, 1, 1, 0, 0, 0), 0o100644)}


def test_monai_reads_the_package(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path)
    parser = load_bundle_config(str(tmp_path / "medal_s"), "inference.json")
    assert parser["_meta_"]["name"] == "Medal S"
    assert parser["network_def"]


def test_same_content_gives_the_same_bytes(tool: Path, checkout: Path, tmp_path: Path) -> None:
    """Whatever the files' dates, permissions and order of creation; untouched by what git ignores."""
    assert package(tool, "--repository", checkout, "--output", tmp_path / "first").returncode == 0
    (checkout / "bundle" / "scan.nii.gz").write_text("a patient")
    (checkout / "bundle" / "LICENSE").unlink()
    (checkout / "bundle" / "LICENSE").write_text("text")
    (checkout / "bundle" / "LICENSE").chmod(0o700)
    assert package(tool, "--repository", checkout, "--output", tmp_path / "second").returncode == 0
    first, second = (tmp_path / name / "medal_s_v1.2.3.zip" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: (b / "LICENSE").unlink(), "wants LICENSE"),
        (lambda b: (b / "scripts" / "link.py").symlink_to("a.py"), "plain files only"),
        (lambda b: (b / "configs" / "metadata.json").write_text('{"version": "2", "changelog": {}}'), "no line in"),
        (lambda b: (b / "models" / "model.pt").write_bytes(bytes(ZOO_LIMIT + 1)), "large_files.yml"),
    ],
    ids=["no licence", "a link", "no changelog", "too large"],
)
def test_refuses_in_one_line_and_writes_nothing(
    tool: Path, checkout: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(checkout / "bundle")
    done = package(tool, "--repository", checkout, "--output", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))
