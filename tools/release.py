"""Set a release's version everywhere it stands, after checking that the repository is ready; nothing is pushed.

The version of record is that of ``bundle/configs/metadata.json``, which the bundle carries; ``pyproject.toml`` and
``CITATION.cff`` repeat it. ``python tools/release.py`` only checks that they agree; ``python tools/release.py 0.2.0
--summary "one line"`` (``make release``) edits the files, dates the changelog and says which git commands come next.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

REPOSITORY = Path(__file__).resolve().parents[1]
METADATA, CHANGELOG = "bundle/configs/metadata.json", "CHANGELOG.md"
PLACES: Mapping[str, str] = {
    METADATA: r'(?P<before>^    "version": ")(?P<version>[^"]*)(?=")',
    "pyproject.toml": r'(?P<before>^version = ")(?P<version>[^"]*)(?=")',
    "CITATION.cff": r"(?P<before>^version: )(?P<version>\S+)",
}
NUMBER = re.compile(r"(\d+)\.(\d+)\.(\d+)")
UNRELEASED = "## [Unreleased]"


def versions(repository: Path) -> dict[str, str]:
    """The version in each of the files that have one.

    Raises:
        ValueError: a file has none.
    """
    found = {}
    for name, pattern in PLACES.items():
        match = re.search(pattern, _read(repository, name), re.MULTILINE)
        if match is None:
            raise ValueError(f"{name} has no version where one is expected ({pattern})")
        found[name] = match["version"]
    return found


def problems(repository: Path) -> list[str]:
    """What is wrong with the versions as they are; empty where all is well."""
    found = versions(repository)
    version = found[METADATA]
    wrong = [f"{name} has version {other}, {METADATA} {version}" for name, other in found.items() if other != version]
    if not NUMBER.fullmatch(version):
        wrong.append(f"{METADATA}: version {version!r} is not of the form 1.2.3")
    if version not in json.loads(_read(repository, METADATA))["changelog"]:
        wrong.append(f"{METADATA}: its changelog has no entry for {version}")
    if UNRELEASED not in _read(repository, CHANGELOG).splitlines():
        wrong.append(f"{CHANGELOG} has no section {UNRELEASED!r}")
    return wrong


def prepare(repository: Path, version: str, summary: str, date: datetime.date) -> dict[str, str]:
    """New texts of the files that a release changes; nothing is written.

    Args:
        repository: its folder.
        version: of the release, above the present one.
        summary: the version's line in the metadata's changelog.
        date: of the release.

    Raises:
        ValueError: the version does not follow, the changelog has nothing to release, or ``problems`` has some.
    """
    if wrong := problems(repository):
        raise ValueError("; ".join(wrong))
    present = versions(repository)[METADATA]
    if not NUMBER.fullmatch(version) or _order(version) <= _order(present):
        raise ValueError(f"the version is of the form 1.2.3 and above {present}, got {version!r}")
    if not summary.strip():
        raise ValueError("give the version's line in the bundle's own changelog: --summary 'what is new'")
    texts = {
        name: re.sub(pattern, rf"\g<before>{version}", _read(repository, name), count=1, flags=re.MULTILINE)
        for name, pattern in PLACES.items()
    }
    entry = f'"changelog": {{\n        {json.dumps(version)}: {json.dumps(summary.strip(), ensure_ascii=False)},'
    texts[METADATA] = texts[METADATA].replace('"changelog": {', entry, 1)
    json.loads(texts[METADATA])
    texts["CITATION.cff"] = _with_release_date(texts["CITATION.cff"], date)
    texts[CHANGELOG] = _released(_read(repository, CHANGELOG), version, date)
    return texts


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def _with_release_date(citation: str, date: datetime.date) -> str:
    without = re.sub(r"^date-released: .*\n", "", citation, flags=re.MULTILINE)
    return re.sub(r"^(version: .*\n)", rf"\g<1>date-released: {date.isoformat()}\n", without, flags=re.MULTILINE)


def _released(changelog: str, version: str, date: datetime.date) -> str:
    """The changelog with what was unreleased under the version and its date."""
    before, _, after = changelog.partition(f"{UNRELEASED}\n")
    content = re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0]
    if not re.search(r"^[-*] ", content, re.MULTILINE):
        raise ValueError(f"{CHANGELOG}: nothing stands under {UNRELEASED!r}; write what is new before releasing it")
    return f"{before}{UNRELEASED}\n\n## [{version}] - {date.isoformat()}\n{after}"


def uncommitted(repository: Path) -> list[str]:
    """What git says is changed or not tracked."""
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=repository, check=True, capture_output=True, text=True
    )
    return status.stdout.splitlines()


def _read(repository: Path, name: str) -> str:
    return (repository / name).read_text(encoding="utf-8")


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f"{file.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def _fail(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(1)


def main(
    version: Annotated[str | None, typer.Argument(help="Of the release, such as 0.2.0; only check without.")] = None,
    summary: Annotated[str, typer.Option(help="The version's line in the bundle's changelog.")] = "",
    repository: Annotated[Path, typer.Option(help="Folder of the repository.")] = REPOSITORY,
) -> None:
    """Check the versions, or prepare a release."""
    if version is None:
        if wrong := problems(repository):
            raise _fail("; ".join(wrong))
        typer.echo(f"version {versions(repository)[METADATA]} everywhere")
        return
    if changed := uncommitted(repository):
        raise _fail(f"commit or put aside first what is not committed: {', '.join(changed[:5])}")
    try:
        texts = prepare(repository, version, summary, datetime.datetime.now(datetime.timezone.utc).date())
    except ValueError as e:
        raise _fail(str(e)) from e
    for name, text in texts.items():
        _write(repository / name, text)
    typer.echo(f"edited {', '.join(texts)}. Look at the difference, then run:\n")
    typer.echo(f"  make lint test test-e2e\n  git commit -am 'Release {version}'")
    typer.echo(f"  git tag -a v{version} -m 'Medal S for MONAI {version}'\n  git push --follow-tags")


if __name__ == "__main__":
    typer.run(main)
