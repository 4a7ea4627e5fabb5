"""tools/release.py: one version everywhere, a dated changelog, and refusals where something is missing."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import release

DATE = datetime.date(2030, 1, 31)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A git repository with the files of this one that a release changes."""
    for name in (*release.PLACES, release.CHANGELOG):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(release.REPOSITORY / name, tmp_path / name)
    changelog = tmp_path / release.CHANGELOG
    head = changelog.read_text(encoding="utf-8").partition(release.UNRELEASED)[0]
    changelog.write_text(f"{head}{release.UNRELEASED}\n\n### Added\n\n- A thing.\n", encoding="utf-8")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all")


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, release.__file__, *words, "--repository", str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


def test_versions_of_this_repository_agree() -> None:
    assert release.problems(release.REPOSITORY) == []


def test_a_release_sets_every_version_and_dates_the_changelog(copy: Path) -> None:
    done = run(copy, "7.0.0", "--summary", 'weights with "more" in them')
    assert done.returncode == 0, done.stderr
    assert "git tag -a v7.0.0" in done.stdout
    assert set(release.versions(copy).values()) == {"7.0.0"}
    assert release.problems(copy) == []
    metadata = json.loads((copy / release.METADATA).read_text())
    assert next(iter(metadata["changelog"].items())) == ("7.0.0", 'weights with "more" in them')
    assert "date-released: 20" in (copy / "CITATION.cff").read_text()
    lines = (copy / release.CHANGELOG).read_text().splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("## [7.0.0] - 20"))
    assert lines[place - 2] == release.UNRELEASED
    assert "- A thing." in lines[place:]
    commit(copy)
    again = run(copy, "7.1.0", "--summary", "nothing")
    assert again.returncode == 1
    assert "nothing stands under" in again.stderr


def test_a_second_release_replaces_the_date(copy: Path) -> None:
    for version, day in (("7.0.0", DATE), ("7.0.1", DATE + datetime.timedelta(1))):
        changelog = copy / release.CHANGELOG
        changelog.write_text(changelog.read_text().replace(release.UNRELEASED, f"{release.UNRELEASED}\n\n- New.", 1))
        for name, text in release.prepare(copy, version, "x", day).items():
            (copy / name).write_text(text)
    assert (copy / "CITATION.cff").read_text().count("date-released: ") == 1
    assert "date-released: 2030-02-01\n" in (copy / "CITATION.cff").read_text()


@pytest.mark.parametrize("version", ["0.0.1", "seven", "7.0", "v7.0.0"])
def test_a_version_that_does_not_follow_is_refused(copy: Path, version: str) -> None:
    with pytest.raises(ValueError, match=r"of the form 1\.2\.3 and above"):
        release.prepare(copy, version, "x", DATE)


def test_what_is_not_ready_is_refused_and_nothing_is_written(copy: Path) -> None:
    before = release.versions(copy)
    with pytest.raises(ValueError, match="--summary"):
        release.prepare(copy, "7.0.0", " ", DATE)
    (copy / "new.txt").touch()
    refused = run(copy, "7.0.0", "--summary", "x")
    assert refused.returncode == 1
    assert "not committed: ?? new.txt" in refused.stderr
    assert release.versions(copy) == before


def test_versions_that_differ_are_named(copy: Path) -> None:
    file = copy / "CITATION.cff"
    file.write_text(re.sub(r"(?m)^version: \d+", "version: 9", file.read_text()))
    refused = run(copy)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: CITATION.cff has version 9")
