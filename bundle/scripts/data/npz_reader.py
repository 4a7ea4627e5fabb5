"""Read and write the NPZ files of the CVPR 2025 text-guided segmentation challenge.

A file holds ``imgs`` (D, H, W) uint8 in 0..255, ``spacing`` in mm, optionally ``gts`` (label values), and
``text_prompts``: a dictionary label value -> sentence with the flag ``instance_label``, pickled inside an object array.
That pickle comes from strangers and is read by ``plain_pickle``, never by NumPy.

The array's axes are z, y, x. Without more the volume is taken to lie as most scanners store it, x to the left, y to
the back, z to the head, and ``spacing`` is in the challenge's order (H, W, D). A file that also has ``direction`` (3x3)
and ``origin`` keeps ITK's conventions: LPS world, ``spacing`` in the order x, y, z.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils import MetaKeys, SpaceKeys
from numpy.lib import format as npy

from scripts.data.plain_pickle import MAX_BYTES, load_plain
from scripts.data.volume_checks import check_geometry
from scripts.errors import InputError

NPZ_SUFFIX = ".npz"
INSTANCE_KEY = "instance_label"
TRUSTED_KEY = "trusted_spacing"
SMALL = 16  # most numbers in spacing, direction and origin
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, KeyError, ValueError, OSError)


class NpzReader(ImageReader):
    """MONAI reader of ``imgs`` as a ``[x, y, z]`` volume.

    The metadata hold ``stored_dtype`` "uint8" and ``trusted_spacing``: False where the file has no ``direction``, as in
    the challenge, whose spacings are not always in the right order.
    """

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """True for ``.npz`` files."""
        names = filename if isinstance(filename, (list, tuple)) else (filename,)
        return all(str(name).lower().endswith(NPZ_SUFFIX) and Path(name).is_file() for name in names)

    def read(self, data: Any, **kwargs: Any) -> tuple[np.ndarray, dict]:
        """Read one file.

        Raises:
            InputError: damaged, ``imgs`` or ``spacing`` missing, or of another type or rank than wanted.
        """
        path = Path(data[0] if isinstance(data, (list, tuple)) else data)
        with _open(path) as archive:
            images = _volume(archive, path.name)
            affine = _affine(archive, path.name)
            trusted = "direction" in archive
        volume = images.transpose(2, 1, 0)
        meta: dict[str, Any] = {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(volume.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
            "stored_dtype": "uint8",
            TRUSTED_KEY: trusted,
        }
        return volume, meta

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """What ``read`` returned."""
        volume, meta = img
        return volume, meta


def npz_labels(path: str | Path) -> np.ndarray:
    """``gts`` as ``[x, y, z]`` label values, on the grid of the volume as ``NpzReader`` gives it.

    Raises:
        InputError: damaged, no ``gts``, not whole numbers, or of another shape than ``imgs``.
    """
    file = Path(path)
    with _open(file) as archive:
        if "gts" not in archive:
            raise InputError(f"{file.name}: no gts in it, found {sorted(archive.names)[:8]}: wanted a labelled file")
        shape, dtype = archive.header("gts")
        wanted, _ = archive.header("imgs")
        if dtype.kind not in "iub" or shape != wanted:
            raise InputError(f"{file.name}: gts is {dtype} of shape {shape}, wanted whole numbers of shape {wanted}")
        return archive.array("gts").transpose(2, 1, 0)


def npz_prompts(path: str | Path) -> tuple[dict[int, str], bool]:
    """What a challenge file asks for.

    Returns:
        Label value -> sentence, in the order of the values, and whether instances are to be numbered.

    Raises:
        InputError: no ``text_prompts``, or not in that form.
    """
    file = Path(path)
    with _open(file) as archive:
        if "text_prompts" not in archive:
            raise InputError(f"{file.name}: no text_prompts in it: give prompts yourself")
        content = _object(archive, file.name)
    if not isinstance(content, dict):
        raise InputError(f"{file.name}: text_prompts is no dictionary of label value and sentence")
    flag = content.get(INSTANCE_KEY, 0)
    if flag not in (0, 1):
        raise InputError(f"{file.name}: instance_label must be 0 or 1")
    prompts = {_label(key, file.name): text for key, text in content.items() if key != INSTANCE_KEY}
    if not prompts or not all(isinstance(text, str) and text.strip() for text in prompts.values()):
        raise InputError(f"{file.name}: text_prompts must give a sentence for each label value")
    return dict(sorted(prompts.items())), bool(flag)


def write_segs(path: Path, labels: np.ndarray) -> None:
    """Write ``segs`` as the challenge wants it.

    Args:
        path: where to.
        labels: ``[x, y, z]`` label values on the grid of the volume as ``NpzReader`` gave it.
    """
    segs = np.ascontiguousarray(labels.transpose(2, 1, 0))
    np.savez_compressed(path, segs=segs.astype(np.min_scalar_type(int(segs.max(initial=0)))))


class _Archive:
    """The arrays of an open NPZ file by name; of each the header is read before its content."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.names = set(archive.namelist())

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self.names

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of an array."""
        with self.archive.open(f"{name}.npy") as file:
            return _read_header(file)

    def array(self, name: str) -> np.ndarray:
        """An array of plain numbers."""
        with self.archive.open(f"{name}.npy") as file:
            return npy.read_array(file, allow_pickle=False)

    def pickled(self, name: str) -> bytes:
        """The pickle of an object array, cut after the largest size allowed."""
        with self.archive.open(f"{name}.npy") as file:
            _read_header(file)
            return file.read(MAX_BYTES + 1)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[_Archive]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield _Archive(archive)
    except InputError:
        raise
    except DAMAGED as e:
        raise InputError(f"{path.name}: not an NPZ file, or a damaged one: copy it again") from e


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _volume(archive: _Archive, name: str) -> np.ndarray:
    if "imgs" not in archive:
        raise InputError(f"{name}: no imgs in it, found {sorted(archive.names)[:8]}: wanted a file of the challenge")
    shape, dtype = archive.header("imgs")
    if dtype != np.uint8:
        raise InputError(f"{name}: imgs is {dtype}, wanted uint8 grey values scaled to 0..255")
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"{name}: imgs has shape {shape}, wanted three axes (D, H, W)")
    return archive.array("imgs")


def _affine(archive: _Archive, name: str) -> np.ndarray:
    """4x4, voxel (x, y, z) to RAS mm."""
    spacing = _numbers(archive, name, "spacing", 3)
    affine = np.eye(4)
    if "direction" in archive:
        affine[:3, :3] = _numbers(archive, name, "direction", 9).reshape(3, 3) * spacing
        if "origin" in archive:
            affine[:3, 3] = _numbers(archive, name, "origin", 3)
    else:
        affine[:3, :3] = np.diag(spacing[[1, 0, 2]])  # the file's order is H, W, D
    check_geometry(name, spacing.tolist(), affine)
    return LPS_TO_RAS @ affine


def _numbers(archive: _Archive, name: str, key: str, count: int) -> np.ndarray:
    if key not in archive:
        raise InputError(f"{name}: no {key} in it: wanted {count} numbers")
    shape, dtype = archive.header(key)
    if dtype.kind not in "iuf" or int(np.prod(shape)) != count or count > SMALL:
        raise InputError(f"{name}: {key} has shape {shape} and type {dtype}, wanted {count} numbers")
    return archive.array(key).astype(float).ravel()


def _object(archive: _Archive, name: str) -> Any:
    """The single item of the object array ``text_prompts``."""
    shape, dtype = archive.header("text_prompts")
    if not dtype.hasobject or int(np.prod(shape)) != 1:
        raise InputError(f"{name}: text_prompts has shape {shape} and type {dtype}, wanted one dictionary")
    try:
        content = load_plain(archive.pickled("text_prompts"))
    except ValueError as e:
        raise InputError(f"{name}: text_prompts is {e}: it was not opened") from e
    return content[0] if isinstance(content, list) and len(content) == 1 else content


def _label(key: Any, name: str) -> int:
    try:
        value = int(key)
    except (TypeError, ValueError):
        value = 0
    if not 0 < value < 2**16:
        raise InputError(f"{name}: the keys of text_prompts must be label values 1, 2, ..., and {INSTANCE_KEY}")
    return value
