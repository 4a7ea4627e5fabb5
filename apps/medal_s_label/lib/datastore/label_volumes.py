"""Read an uploaded label map onto the grid of its image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from monai.utils import MetaKeys
from nibabel.orientations import apply_orientation

from scripts.errors import InputError
from scripts.transforms.reading import LoadVolume

RAW_SUFFIX = ".bin"
CORNER_TOLERANCE = 0.1  # of a voxel
AXIS_TOLERANCE = 1e-2
MAX_VALUE = np.iinfo(np.uint16).max


def read_labels(path: Path, image: Path) -> tuple[np.ndarray, np.ndarray]:
    """The values of a label file, with axes in the order and direction of its image.

    Args:
        path: ``.nii.gz``, ``.nii``, ``.nrrd`` or another volume; ``.bin`` is raw uint8 in the image's order, x fastest.
        image: the image's file, or the folder of its DICOM series.

    Returns:
        ``[H, W, D]`` uint8 (uint16 above 255) and the image's affine, 4x4 voxel to RAS mm.

    Raises:
        InputError: another grid, or values that are no labels.
    """
    reference = LoadVolume()(image)
    shape = tuple(reference.shape[1:])
    affine = np.asarray(reference.meta[MetaKeys.ORIGINAL_AFFINE], dtype=float)
    if path.name.lower().endswith(RAW_SUFFIX):
        return _read_raw(path, shape), affine
    volume = LoadVolume()(path)
    own = np.asarray(volume.meta[MetaKeys.ORIGINAL_AFFINE], dtype=float)
    return _whole_numbers(turn_to(volume[0].numpy(), own, shape, affine)), affine


def turn_to(values: np.ndarray, own: np.ndarray, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Reorder the axes of a volume so that it lies on a grid; its voxels stay as they are.

    Args:
        values: ``[H, W, D]``.
        own: its affine.
        shape: of the grid.
        affine: of the grid.

    Raises:
        InputError: it is another grid, not only other axes.
    """
    across = np.linalg.solve(affine, own)
    axes = np.abs(across[:3, :3]).argmax(axis=0)
    signs = np.sign(across[axes, range(3)])
    wanted = np.zeros((3, 3))
    wanted[axes, range(3)] = signs
    if not np.allclose(across[:3, :3], wanted, atol=AXIS_TOLERANCE):
        raise InputError(
            "the label map has other voxels than the image (turned, or of another size): export it on the image's grid"
        )
    turned = np.asarray(apply_orientation(values, np.stack([axes, signs], axis=1)))
    if turned.shape != tuple(shape):
        raise InputError(f"the label map has the shape {values.shape}, the image {tuple(shape)}: export all of it")
    corner = np.array([0 if sign > 0 else side - 1 for sign, side in zip(signs, values.shape, strict=True)])
    apart = np.abs((across @ [*corner, 1])[:3]).max()
    if apart > CORNER_TOLERANCE:
        raise InputError(
            f"the label map lies elsewhere in space than the image ({apart:.1f} voxels off): export it on the image's "
            "grid"
        )
    return turned


def _read_raw(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    values = np.fromfile(path, np.uint8)
    if values.size != np.prod(shape):
        raise InputError(f"the raw label map holds {values.size} bytes, the image {int(np.prod(shape))} voxels")
    return values.reshape(shape, order="F")


def _whole_numbers(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all() or (values != np.round(values)).any() or values.min() < 0:
        raise InputError("the label map holds values that are no whole numbers from 0 on: it is not a label map")
    if values.max() > MAX_VALUE:
        raise InputError(f"the label map holds the value {values.max():.0f}, the largest allowed is {MAX_VALUE}")
    return values.astype(np.uint8 if values.max() <= np.iinfo(np.uint8).max else np.uint16)
