"""Refuse headers that do not describe one sound 3-D scalar volume, whatever file format they came from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import psutil

from scripts.errors import InputError

SPATIAL_RANK = 3
# What segmenting takes at its peak beside the networks, per voxel of the image as stored: the image three times in
# float32 while it is read, scaled and turned; display, label map and probability.
BYTES_PER_VOXEL = 24
GIB = 2**30


def check_geometry(name: str, spacing: Sequence[float], affine: np.ndarray | None = None) -> None:
    """Refuse voxel sizes that are not positive numbers and affines that flatten space.

    Args:
        name: file name for the message.
        spacing: voxel size along each array axis, mm, as stored.
        affine: 4x4 voxel to world matrix, where already known.

    Raises:
        InputError: naming the value found.
    """
    sizes = [float(value) for value in spacing]
    if not all(np.isfinite(sizes)) or min(sizes) <= 0:
        raise InputError(f"{name}: voxel size {sizes} mm in the header, wanted positive numbers: correct the header")
    if affine is None:
        return
    if not np.isfinite(affine).all():
        raise InputError(f"{name}: the header's orientation matrix holds NaN or infinite numbers: correct the header")
    # Relative to the voxel volume, so that micrometre images are not mistaken for flat ones.
    columns = np.linalg.norm(affine[:3, :3], axis=0)
    if min(columns) <= 0 or abs(np.linalg.det(affine[:3, :3] / columns)) < 1e-4:
        raise InputError(f"{name}: the header's orientation matrix is singular (two axes coincide): correct the header")


def check_shape(name: str, shape: Sequence[int], components: int = 1) -> None:
    """Refuse anything but one scalar volume; trailing axes of length 1 are accepted.

    Raises:
        InputError: for 2-D, several volumes, several components or an empty axis.
    """
    if components > 1:
        raise InputError(f"{name}: {components} values per voxel (a colour or vector image), wanted one grey value")
    if len(shape) < SPATIAL_RANK:
        raise InputError(f"{name}: a {len(shape)}-D image of shape {tuple(shape)}, wanted a 3-D volume")
    volumes = int(np.prod(shape[SPATIAL_RANK:]))
    if volumes > 1:
        raise InputError(
            f"{name}: a {len(shape)}-D image with {volumes} volumes, shape {tuple(shape)}: extract the one to segment"
        )
    if min(shape) < 1:
        raise InputError(f"{name}: shape {tuple(shape)} has an empty axis")
    check_memory(name, shape)


def check_memory(name: str, shape: Sequence[int]) -> None:
    """Refuse, before a voxel is read, a volume that this machine's free memory does not hold.

    Args:
        name: file name for the message.
        shape: voxels per axis.

    Raises:
        InputError: with the estimate and what is free.
    """
    needed, free = int(np.prod(shape, dtype=np.int64)) * BYTES_PER_VOXEL, psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"{name}: a volume of {' x '.join(map(str, shape))} voxels needs about {needed / GIB:.1f} GiB of memory, "
            f"{free / GIB:.1f} GiB are free: crop or downsample it, or use a larger machine"
        )
