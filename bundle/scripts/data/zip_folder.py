"""Open a folder, or a zip archive as a folder, without trusting what the archive says about itself."""

from __future__ import annotations

import contextlib
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from scripts.errors import InputError

GIB = 2**30
MAX_FILES = 100_000
PREAMBLE_BYTES = 128
MAGIC = b"DICM"
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


@contextlib.contextmanager
def open_folder(path: Path, max_zip_gb: float = 8.0) -> Iterator[Path]:
    """The folder itself, or a temporary folder with the DICOM files of a zip archive, removed afterwards.

    The files get running numbers as names, in the archive's order, so that nothing an archive calls itself can reach
    another place, and the same archive gives the same names each time.

    Args:
        path: a folder or a zip archive.
        max_zip_gb: most GiB that the archive may unpack to.

    Raises:
        InputError: an archive that is damaged, encrypted, larger than allowed, or has members that point outside.
    """
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="medal_s_zip_") as scratch:
        try:
            with zipfile.ZipFile(path) as archive:
                _unpack(archive, path.name, Path(scratch), max_zip_gb)
        except DAMAGED as e:
            raise InputError(f"{path.name}: not a zip archive, or a damaged one: make it again") from e
        except OSError as e:
            raise InputError(f"{path.name}: cannot be unpacked ({e.strerror or type(e).__name__})") from e
        yield Path(scratch)


def is_dicom(start: bytes) -> bool:
    """Whether a file that begins with these 132 bytes is a DICOM file."""
    return start[PREAMBLE_BYTES : PREAMBLE_BYTES + len(MAGIC)] == MAGIC


def _unpack(archive: zipfile.ZipFile, name: str, folder: Path, max_gb: float) -> None:
    members = [member for member in archive.infolist() if not member.is_dir()]
    for member in members:
        _check_member(member, name)
    total = sum(member.file_size for member in members)
    if total > max_gb * GIB or len(members) > MAX_FILES:
        raise InputError(
            f"{name}: unpacks to {total / GIB:.1f} GiB in {len(members)} files, at most {max_gb:g} GiB in {MAX_FILES} "
            "files are allowed: unpack it by hand and give the folder"
        )
    free = shutil.disk_usage(folder).free
    if total > free:
        raise InputError(
            f"{name}: unpacks to {total / GIB:.1f} GiB, the temporary folder has {free / GIB:.1f} GiB left: "
            "set TMPDIR to a folder with room"
        )
    for number, member in enumerate(members):
        with archive.open(member) as source:
            start = source.read(PREAMBLE_BYTES + len(MAGIC))
            if is_dicom(start):
                with (folder / f"{number:06d}").open("wb") as target:
                    target.write(start)
                    shutil.copyfileobj(source, target, 2**20)


def _check_member(member: zipfile.ZipInfo, name: str) -> None:
    parts = PurePosixPath(member.filename.replace("\\", "/")).parts
    if ".." in parts or (parts and (parts[0] == "/" or parts[0].endswith(":"))):
        raise InputError(f"{name}: the archive has members that point outside of it: it may be malicious, not opened")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise InputError(f"{name}: the archive has symbolic links, not opened: make it again from the plain files")
    if member.flag_bits & 1:
        raise InputError(f"{name}: the archive is encrypted: unpack it by hand and give the folder")
