"""Open a released checkpoint without trusting it: its hash, its container, and tensors that stay on disk until used."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from scripts.convert_checkpoint import without_module
from scripts.errors import InputError
from scripts.text.published_encoder import WRAPPING_KEYS
from scripts.weights import is_dense, is_state_dict, read_plain, sha256_of

logger = logging.getLogger(__name__)
ZIP_START = b"PK\x03\x04"
# torch.load's words for a name that it did not look up.
FORBIDDEN_GLOBAL = re.compile(r"GLOBAL (\S+)")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's tensors.

    Attributes:
        name: of the file.
        sha256: of the file, hexadecimal.
        size: of the file in bytes.
        state: the network's tensors by their published names, without ``module.``.
        left_out: other entries of the file, such as the optimizer's state.
        step: of training, where the file says it.
    """

    name: str
    sha256: str
    size: int
    state: dict[str, torch.Tensor]
    left_out: tuple[str, ...]
    step: int | None


def open_checkpoint(path: str | Path, sha256: str | None = None) -> Checkpoint:
    """Read a checkpoint's state dict; nothing in the file is run, and its tensors are mapped, not copied, to memory.

    Args:
        path: written by ``torch.save``, or a safetensors file; a state dict, bare or under ``model_state_dict``,
            ``state_dict`` or ``model``.
        sha256: what the file has to hash to, hexadecimal.

    Raises:
        InputError: no such file, another hash, damaged or cut short, anything but plain tensors, or numbers that are
            not finite.
    """
    file = Path(path)
    hashed = _check_file(file, sha256)
    content = _read(file)
    key = next((key for key in WRAPPING_KEYS if isinstance(content.get(key), Mapping)), None)
    state = content if key is None else content[key]
    if not state or not is_state_dict(state):
        raise InputError(
            f"{file.name} holds no state dict (names to tensors), bare or under one of {', '.join(WRAPPING_KEYS)}; "
            f"it holds {', '.join(map(str, list(content)[:3])) or 'nothing'}"
        )
    state = _checked(state, file.name)
    step = None if key is None else content.get("step")
    return Checkpoint(
        name=file.name,
        sha256=hashed,
        size=file.stat().st_size,
        state=state,
        left_out=() if key is None else tuple(str(name) for name in content if name != key),
        step=step if isinstance(step, int) else None,
    )


def _check_file(file: Path, sha256: str | None) -> str:
    """The SHA-256 of a file whose hash and container are as they should be; its content is not read."""
    if not file.is_file():
        raise InputError(f"no checkpoint {file}; give the path of a downloaded file")
    hashed = sha256_of(file)
    if sha256 is not None and hashed != sha256.strip().lower():
        raise InputError(
            f"{file.name} has SHA-256 {hashed}, wanted {sha256}: it was changed or cut short on its way; download it "
            "again, or give the hash of the file that you mean"
        )
    with file.open("rb") as stream:
        start = stream.read(len(ZIP_START))
    if start == ZIP_START:
        _check_archive(file)
    return hashed


def _check_archive(file: Path) -> None:
    """Refuse an archive that torch.save would not write: nothing of it is ever unpacked to disk, but why go on."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as e:
        raise InputError(f"{file.name} is damaged or cut short ({e}); download it again") from e
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"{file.name} is refused: it holds an entry {member.filename!r} outside of itself")
        if member.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"{file.name} is refused: {member.filename!r} is compressed, which torch.save never does")
    if not any(PurePosixPath(member.filename).name == "data.pkl" for member in members):
        first = ", ".join(member.filename for member in members[:3]) or "nothing"
        raise InputError(f"{file.name} is an archive, but no checkpoint of PyTorch: it holds {first}")


def _read(file: Path) -> Mapping[str, Any]:
    with file.open("rb") as stream:
        start = stream.read(9)
    if start[8:] == b"{":  # a safetensors file: the header's length in 8 bytes, then the header, a JSON object
        try:
            return load_file(file)
        except (SafetensorError, OSError, ValueError) as e:
            raise InputError(f"{file.name} is no readable safetensors file ({e}); download it again") from e
    try:
        content = read_plain(file, mmap=start.startswith(ZIP_START))
    except InputError as e:
        found = FORBIDDEN_GLOBAL.search(str(e.__cause__))
        if found is None:
            why = type(e.__cause__).__name__
            raise InputError(
                f"{file.name} is damaged, cut short or no checkpoint ({why}); download it again, or give the "
                "published file"
            ) from e
        raise InputError(
            f"{file.name} is refused: opening it would call {found[1]}, and weights have nothing to call; nothing of "
            "it was run. Give the published file, or a state dict saved by torch.save"
        ) from e
    if not isinstance(content, Mapping):
        raise InputError(f"{file.name}: wanted a state dict (names to tensors), got {type(content).__name__}")
    return content


def _checked(state: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    try:
        plain = without_module({str(key): tensor for key, tensor in state.items()})
    except ValueError as e:
        raise InputError(f"{name}: {e}") from e
    for key, tensor in plain.items():
        if not is_dense(tensor):
            raise InputError(f"{name}: {key} is no dense tensor ({tensor.layout}, {tensor.dtype})")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name}: {key} holds numbers that are not finite; these weights are broken")
    return plain
