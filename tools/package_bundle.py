"""Write dist/medal_s_v<version>.zip: the bundle as the model zoo takes it, the same bytes each time.

What goes in are the files of ``bundle/`` that git tracks, or would (those that .gitignore does not name). Entries are
sorted, dated 1980 and stored uncompressed: weights hardly shrink, and so the bytes do not depend on zlib's version.
Run ``python tools/package_bundle.py``, or ``make bundle``.
"""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

REPOSITORY = Path(__file__).resolve().parents[1]
NAME = "medal_s"  # of the folder in the archive
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold
MODE = stat.S_IFREG | 0o644
UNIX = 3
# What the zoo's own check asks for ("necessary" and "preferred"), and what its contribution guide asks for.
WANTED = ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt", "docs/README.md")


class PackageError(ValueError):
    """The bundle cannot be packaged as it is; the message says why and what to do."""


def bundle_files(repository: Path) -> list[str]:
    """Paths of the bundle's files, relative to ``bundle/``, sorted.

    Raises:
        PackageError: no git checkout, files that are missing, or entries that are no plain files.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "bundle"]
    listed = subprocess.run(command, cwd=repository, capture_output=True)
    if listed.returncode:
        reason = listed.stderr.decode(errors="replace").strip().splitlines()[:1]
        raise PackageError(f"git does not list the bundle's files ({' '.join(reason)}): run this in a git checkout")
    root = repository / "bundle"
    names = {name.removeprefix("bundle/") for name in listed.stdout.decode().split("\0") if name}
    names = {name for name in names if (root / name).exists() or (root / name).is_symlink()}  # some may be deleted
    missing = [name for name in WANTED if name not in names]
    if missing:
        raise PackageError(f"the zoo wants {', '.join(missing)} in bundle/: add what is missing")
    odd = [name for name in names if (root / name).is_symlink() or not (root / name).is_file()]
    if odd:
        raise PackageError(
            f"{', '.join(sorted(odd))}: a package holds plain files only, replace links by their targets"
        )
    return sorted(names)


def check_sizes(repository: Path, names: Iterable[str]) -> None:
    """Apply the repository's limits on the size of files, of which the zoo's is one.

    Raises:
        PackageError: a file is larger than allowed.
    """
    command = [str(repository / ".ci" / "check_sizes"), *(f"bundle/{name}" for name in names)]
    checked = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    if checked.returncode:
        raise PackageError(f"{checked.stderr.strip()}; larger files belong into large_files.yml")


def read_version(bundle: Path) -> str:
    """The version in the metadata.

    Raises:
        PackageError: it is missing there, or in the changelog beside it.
    """
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    version = metadata.get("version")
    if not version or version not in metadata.get("changelog", {}):
        raise PackageError(f"configs/metadata.json: version {version} has no line in changelog, add one")
    return str(version)


def write_zip(bundle: Path, names: Iterable[str], path: Path) -> None:
    """Write the files ``names`` of ``bundle`` under the folder ``medal_s/``; the zip appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with zipfile.ZipFile(unfinished, "w") as archive:
            for name in names:
                entry = zipfile.ZipInfo(f"{NAME}/{name}", DATE)
                entry.external_attr, entry.create_system = MODE << 16, UNIX
                archive.writestr(entry, (bundle / name).read_bytes())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the archive.")] = REPOSITORY / "dist",
    repository: Annotated[Path, typer.Option(help="Checkout whose bundle/ is packaged.")] = REPOSITORY,
) -> None:
    """Write the bundle's archive for the model zoo."""
    bundle = repository / "bundle"
    try:
        names = bundle_files(repository)
        check_sizes(repository, names)
        path = output / f"{NAME}_v{read_version(bundle)}.zip"
        write_zip(bundle, names, path)
    except (PackageError, OSError) as e:
        typer.echo(f"error: {' '.join(str(e).split())}", err=True)
        raise typer.Exit(1) from e
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    typer.echo(f"{path}: {len(names)} files, {path.stat().st_size / 1e6:.1f} MB, sha256 {digest}")


if __name__ == "__main__":
    typer.run(main)
