"""Write label maps and maps of values as NIfTI or NRRD, exactly on the grid of the image they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np

from scripts.errors import InputError

# What places a NIfTI image in space; nothing else of a header (names, dates, remarks) is passed on.
GEOMETRY_FIELDS = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y"),
    *("qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)
SCANNER_CODE = 1
SHEAR_TOLERANCE = 1e-4  # cosine between two axes
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def nifti_image(values: np.ndarray, source: str | Path, affine: np.ndarray) -> Any:
    """A NIfTI image on exactly the grid of the image that was segmented.

    A NIfTI source lends its geometry fields bit by bit, with its qform and sform codes; others give their affine. A
    sheared grid (gantry tilt) has an sform only: a qform cannot hold it.

    Args:
        values: ``[H, W, D]``.
        source: the file that was segmented.
        affine: its 4x4 matrix, RAS mm.
    """
    reference: Any = None
    if str(source).lower().endswith((".nii", ".nii.gz")):
        reference = nib.load(source)
    second = isinstance(reference, nib.Nifti2Image)
    header = nib.Nifti2Header() if second else nib.Nifti1Header()
    header.set_data_dtype(values.dtype)
    header.set_data_shape(values.shape)
    if reference is not None:
        for field in GEOMETRY_FIELDS:
            header[field] = reference.header[field]
        header["pixdim"][4:] = 1
    else:
        header.set_zooms(nib.affines.voxel_sizes(affine))
        header.set_sform(affine, SCANNER_CODE)
        if not is_sheared(affine):
            header.set_qform(affine, SCANNER_CODE)
        header.set_xyzt_units("mm")
    return (nib.Nifti2Image if second else nib.Nifti1Image)(values, None, header)


def write_nifti(path: Path, values: np.ndarray, source: str | Path, affine: np.ndarray) -> None:
    """Write ``.nii.gz``; arguments as for ``nifti_image``."""
    nib.save(nifti_image(values, source, affine), path)


def write_nrrd(path: Path, values: np.ndarray, source: str | Path, affine: np.ndarray, compress: bool = True) -> None:
    """Write ``.nrrd``; arguments as for ``nifti_image``.

    Args:
        path: the file.
        values: see ``nifti_image``.
        source: see ``nifti_image``.
        affine: see ``nifti_image``.
        compress: gzip the voxels; False for viewers in browsers, which read plain ones only.

    Raises:
        InputError: the grid is sheared, which ITK's images cannot be.
        OSError: the file cannot be written.
    """
    if is_sheared(affine):
        raise InputError(f"{Path(source).name}: a sheared grid (gantry tilt) cannot be written as NRRD: choose nifti")
    lps = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = itk.image_from_array(np.ascontiguousarray(values.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3] / spacing)))
    try:
        itk.imwrite(image, str(path), compression=compress)
    except RuntimeError as e:
        raise OSError(None, "ITK could not write the file") from e


def relabel(labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """``table[labels]``, plane by plane: indexing at once widens the whole volume to 64 bits.

    Args:
        labels: ``[H, W, D]`` integers, not negative.
        table: new value of each label.
    """
    changed = np.empty(labels.shape, table.dtype)
    for plane, target in zip(labels, changed, strict=True):
        target[...] = table[plane]
    return changed


def is_sheared(affine: np.ndarray) -> bool:
    """Whether the axes of a grid are not perpendicular to each other."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR_TOLERANCE)
