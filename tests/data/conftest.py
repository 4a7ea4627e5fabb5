"""DICOM series written by the tests: any orientation, spacing, type and fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

ROWS, COLUMNS = 6, 8


def write_dicom_series(
    folder: Path,
    voxels: np.ndarray,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    spacing: Sequence[float] = (0.5, 0.75),
    step: Sequence[float] = (0, 0, 2.0),
    origin: Sequence[float] = (10, -20, 30),
    order: Sequence[int] | None = None,
    changes: Mapping[int, Mapping[str, Any]] | None = None,
    prefix: str = "IM",
    **attributes: Any,
) -> list[Path]:
    """Write ``[slices, rows, columns]`` int16 voxels.

    Args:
        folder: made if absent.
        voxels: stored values.
        orientation: ImageOrientationPatient.
        spacing: PixelSpacing, between rows first.
        step: LPS vector from slice to slice.
        origin: LPS position of the first slice.
        order: file number -> slice.
        changes: slice -> attributes; a value None removes one.
        prefix: of the file names.
        **attributes: for all slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uids = {key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    paths = []
    for number, k in enumerate(range(len(voxels)) if order is None else order):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{prefix}{number:03d}"
        item = FileDataset(str(path), Dataset(), file_meta=meta, preamble=bytes(128))
        item.is_little_endian, item.is_implicit_VR = True, False
        fields: dict[str, Any] = {
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            **uids,
            "Modality": "CT",
            "PatientName": "Secret^Patient",
            "PatientID": "SECRET42",
            "SeriesNumber": 3,
            "InstanceNumber": number + 1,
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "ImagePositionPatient": [round(float(o + k * s), 6) for o, s in zip(origin, step, strict=True)],
            "ImageOrientationPatient": [round(float(value), 9) for value in orientation],
            "PixelSpacing": list(spacing),
            "SliceThickness": 3.0,
            "Rows": voxels.shape[1],
            "Columns": voxels.shape[2],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
            "RescaleSlope": 1,
            "RescaleIntercept": -1000,
            "PixelData": voxels[k].astype("<i2").tobytes(),
            **attributes,
            **(changes or {}).get(k, {}),
        }
        for name, value in fields.items():
            if value is not None:
                setattr(item, name, value)
        item.save_as(path, write_like_original=False)
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def write_series() -> Callable[..., list[Path]]:
    """Write a series: ``write_series(folder, voxels, step=..., Modality=...)``."""
    return write_dicom_series


@pytest.fixture(scope="session")
def stack() -> np.ndarray:
    """Stored values of five slices, all different."""
    return np.arange(5 * ROWS * COLUMNS, dtype=np.int16).reshape(5, ROWS, COLUMNS)
