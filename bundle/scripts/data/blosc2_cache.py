"""One prepared training case on disk: chunked, compressed image and label map, places of each class, facts, checksums.

A case is a folder of four files. ``image.b2nd`` and ``label.b2nd`` are Blosc2 arrays ``[H, W, D]``, of which a patch
decompresses only the blocks that it touches; ``locations.npz`` holds for each class some voxels that lie in it;
``case.json`` holds what is known of the case and the checksums of the other three. The folder appears under its name
when all is written, so that a process that is killed leaves no half case.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from scipy import ndimage

from scripts.errors import InputError

logger = logging.getLogger(__name__)
IMAGE_FILE, LABEL_FILE, LOCATIONS_FILE, FACTS_FILE = "image.b2nd", "label.b2nd", "locations.npz", "case.json"
ARRAY_FILES = (IMAGE_FILE, LABEL_FILE, LOCATIONS_FILE)
FORMAT_VERSION = 1
# Measured on 192^3 patches of a 400 x 400 x 300 case: chunks of half a patch read twice as fast as whole patches, since
# fewer voxels are decompressed that no one asked for; LZ4 reads 1.4 times as fast as Zstandard for 7 % more bytes.
CHUNKS_PER_PATCH = 2
BLOCK_SIDE = 32  # also of the smallest chunk: each costs some bytes and some microseconds
CODEC = blosc2.Codec.LZ4
LEVEL = 5


def write_case(
    folder: Path,
    image: np.ndarray,
    label: np.ndarray,
    locations: Mapping[int, np.ndarray],
    facts: Mapping[str, Any],
    patch_size: Sequence[int],
) -> None:
    """Write a case, in place of an older one of that name.

    Args:
        folder: of the case; its parents are made.
        image: ``[H, W, D]``, stored in its own dtype.
        label: ``[H, W, D]`` uint8 or uint16.
        locations: class -> voxels ``[K, 3]``.
        facts: what ``case.json`` shall hold; ``files`` (checksums) is added.
        patch_size: of training, voxels: decides the chunks.
    """
    part, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    for rest in (part, old):  # of a process that was killed here
        shutil.rmtree(rest, ignore_errors=True)
    part.mkdir(parents=True)
    for name, array in ((IMAGE_FILE, image), (LABEL_FILE, label)):
        _write_array(part / name, array, patch_size)
    np.savez_compressed(
        part / LOCATIONS_FILE, **{str(value): voxels.astype(np.uint16) for value, voxels in locations.items()}
    )
    write_facts(part, {**facts, "files": {name: _checksum(part / name) for name in ARRAY_FILES}})
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``case.json``, with its own digest; complete or not at all."""
    content = {key: value for key, value in facts.items() if key != "digest"}
    write_text(folder / FACTS_FILE, json.dumps({**content, "digest": _digest(content)}, indent=1) + "\n")


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``case.json`` says.

    Raises:
        InputError: missing, damaged, or of another version of this format.
    """
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        whole = facts["digest"] == _digest({key: value for key, value in facts.items() if key != "digest"})
    except OSError as e:
        raise InputError(f"case {_name(folder)}: {FACTS_FILE} cannot be read ({e.strerror}): prepare it again") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"case {_name(folder)}: {FACTS_FILE} is damaged: prepare it again") from e
    if not whole or facts.get("version") != FORMAT_VERSION:
        raise InputError(f"case {_name(folder)}: {FACTS_FILE} was changed or is of another version: prepare it again")
    return facts


def verify_case(folder: Path, contents: bool = True) -> dict[str, Any]:
    """Check a case and return its facts.

    Args:
        folder: of the case.
        contents: compare every byte by its checksum; False: the files' sizes only.

    Raises:
        InputError: a file is missing or not as it was written.
    """
    facts = read_facts(folder)
    for name, wanted in facts["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != wanted["bytes"] or (contents and _checksum(file) != wanted):
            raise InputError(f"case {_name(folder)}: {name} is missing or not as it was written: prepare it again")
    return facts


def read_patch(folder: Path, name: str, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """A patch of an array; zero where it lies outside.

    Args:
        folder: of the case.
        name: ``IMAGE_FILE`` or ``LABEL_FILE``.
        start: first voxel, may be negative.
        size: voxels.

    Returns:
        ``[*size]`` in the stored dtype.

    Raises:
        InputError: missing or damaged file.
    """
    try:
        # One thread each: the workers of a data loader share the cores.
        array = blosc2.open(str(folder / name), mode="r", mmap_mode="r", dparams=blosc2.DParams(nthreads=1))
        ends = [(s, s + n, m) for s, n, m in zip(start, size, array.shape, strict=True)]
        inside = tuple(slice(min(max(first, 0), m), min(max(last, 0), m)) for first, last, m in ends)
        found = array[inside]
    except (OSError, RuntimeError, ValueError) as e:
        raise InputError(f"case {_name(folder)}: {name} cannot be read: prepare it again (--verify finds all)") from e
    if found.shape == tuple(size):
        return found
    patch = np.zeros(tuple(size), array.dtype)
    patch[tuple(slice(part.start - s, part.stop - s) for part, s in zip(inside, start, strict=True))] = found
    return patch


def class_locations(
    labels: np.ndarray, values: Iterable[int], rng: np.random.Generator, limit: int = 10_000
) -> dict[int, np.ndarray]:
    """For each class some voxels that lie in it, each as likely.

    Args:
        labels: ``[H, W, D]`` unsigned.
        values: classes to look for.
        rng: draws where a class has more than ``limit`` voxels.
        limit: most voxels per class.

    Returns:
        Class -> uint16 ``[K, 3]``, in the order of the values; absent classes are left out.
    """
    boxes = ndimage.find_objects(labels)
    found = {}
    for value in sorted(values):
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is None:
            continue
        index = np.flatnonzero(labels[box] == value)
        if len(index) > limit:
            index = np.sort(rng.choice(index, limit, replace=False, shuffle=False))
        shape = tuple(part.stop - part.start for part in box)
        corner = np.array([part.start for part in box])
        found[value] = (np.stack(np.unravel_index(index, shape), axis=1) + corner).astype(np.uint16)
    return found


def draw_location(folder: Path, value: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """One of the stored voxels of a class; reads that class's alone.

    Raises:
        InputError: missing or damaged file, or no such class in it.
    """
    try:
        with np.load(folder / LOCATIONS_FILE, allow_pickle=False) as archive:
            voxels = archive[str(value)]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        raise InputError(f"case {_name(folder)}: no places of class {value} can be read: prepare it again") from e
    h, w, d = (int(position) for position in voxels[rng.integers(len(voxels))])
    return h, w, d


def write_text(path: Path, text: str) -> None:
    """Write a text file, complete or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _write_array(path: Path, array: np.ndarray, patch_size: Sequence[int]) -> None:
    chunks = [min(max(-(-p // CHUNKS_PER_PATCH), BLOCK_SIDE), n) for p, n in zip(patch_size, array.shape, strict=True)]
    blosc2.asarray(
        np.ascontiguousarray(array),
        urlpath=str(path),
        mode="w",
        chunks=tuple(chunks),
        blocks=tuple(min(BLOCK_SIDE, n) for n in chunks),
        cparams=blosc2.CParams(codec=CODEC, clevel=LEVEL, nthreads=1),
    )


def _checksum(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return {"sha256": digest.hexdigest(), "bytes": path.stat().st_size}


def _digest(content: Mapping[str, Any]) -> str:
    # By way of JSON, so that what is hashed here is what will be read: keys are text there, tuples lists.
    return hashlib.sha256(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode()).hexdigest()


def _name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"
