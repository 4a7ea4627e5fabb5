"""Read label maps of any tool as whole numbers, and refuse to compare two that lie on different grids."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.data.npz_reader import NPZ_SUFFIX
from scripts.errors import InputError
from scripts.transforms.reading import LoadVolume

SAME_GRID = 0.1
"""Voxels by which the corners of two label maps may lie apart."""
LARGEST_VALUE = 2**24
"""Volumes are read as float32, which holds whole numbers up to here exactly."""
NPZ_KEYS = ("segs", "gts")
UNREADABLE = (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError)


@dataclass(frozen=True)
class LabelMap:
    """One label map."""

    name: str
    """Of its file, for messages."""
    values: np.ndarray
    """``[H, W, D]``, unsigned integers."""
    spacing: tuple[float, float, float] | None
    """mm along the axes; None where the file does not say."""
    affine: np.ndarray | None
    """4x4, voxel to RAS mm; None where the file has no place in space."""


def read_label_map(path: Path) -> LabelMap:
    """Read a label map: whatever ``LoadVolume`` reads, or an NPZ file of the challenge with ``segs`` or ``gts``.

    An NPZ file's spacing belongs to the axes of its array (D, H, W) in the order listed, as in the challenge's own
    evaluation program; with ``direction`` in the file, it is in the order x, y, z.

    Raises:
        InputError: cannot be read, or holds other than whole numbers from 0.
    """
    if path.suffix.lower() == NPZ_SUFFIX:
        return _read_npz(path)
    volume: Any = LoadVolume()(path)
    values = _whole(np.asarray(volume[0]), path.name)
    spacing = tuple(float(value) for value in volume.pixdim[:3])
    return LabelMap(path.name, values, spacing, volume.affine.double().numpy())  # type: ignore[arg-type]


def check_same_grid(prediction: LabelMap, truth: LabelMap) -> None:
    """Pass where both have one shape and, as far as the files say, the same place in space.

    Raises:
        InputError: they differ (how).
    """
    a, b = prediction.values.shape, truth.values.shape
    if a != b:
        raise InputError(f"{prediction.name}: {a} voxels, the truth has {b}: resample it to the grid of the truth")
    if prediction.affine is None or truth.affine is None:
        return
    to_truth = np.linalg.solve(truth.affine, prediction.affine) - np.eye(4)
    corners = np.array([[*(np.asarray(b) * corner), 1] for corner in np.ndindex(2, 2, 2)])
    apart = float(np.abs(corners @ to_truth[:3].T).max())
    if apart > SAME_GRID:
        raise InputError(
            f"{prediction.name}: lies {apart:.1f} voxels apart from the truth (other orientation, origin or voxel "
            "size): resample it to the grid of the truth"
        )


def _read_npz(path: Path) -> LabelMap:
    try:
        with np.load(path, allow_pickle=False) as archive:
            key = next((key for key in NPZ_KEYS if key in archive), None)
            if key is None:
                raise InputError(f"{path.name}: wanted {' or '.join(NPZ_KEYS)} in it, found {sorted(archive)[:8]}")
            values = archive[key]
            spacing = archive["spacing"].astype(float).ravel() if "spacing" in archive else None
            by_axis = "direction" in archive
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path.name}: not an NPZ file, or a damaged one: copy it again") from error
    if values.ndim != 3 or (spacing is not None and (len(spacing) != 3 or not (spacing > 0).all())):
        raise InputError(
            f"{path.name}: wanted an array (D, H, W) and 3 spacings above 0, got {values.shape}, {spacing}"
        )
    if spacing is not None and not by_axis:
        spacing = spacing[::-1]
    known = None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    return LabelMap(path.name, _whole(values.transpose(2, 1, 0), path.name), known, None)


def _whole(values: np.ndarray, name: str) -> np.ndarray:
    """As uint16, or uint32 where they need it."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not low >= 0 or not high < LARGEST_VALUE or not np.array_equal(values, np.rint(values)):
        raise InputError(f"{name}: values from {low:g} to {high:g}, wanted a label map of whole numbers from 0")
    return values.astype(np.uint16 if high < 2**16 else np.uint32)
