"""Write a volume as a DICOM MR series of a patient who does not exist."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

PATIENT = {"PatientName": "Demo^Head", "PatientID": "DEMO001", "PatientBirthDate": "19700101", "PatientSex": "O"}
DATE, TIME = "20240101", "120000"
GREYS = 4000  # largest stored value


def write_mr_series(image: Any, folder: Path, seed: str = "demo") -> list[Path]:
    """Write axial slices of a head, feet first.

    Args:
        image: of nibabel, ``[H, W, D]``, with axes along those of the body; its voxels are scaled to whole numbers.
        folder: where to, made if absent.
        seed: the UIDs follow from it, so that the same series is written again.

    Returns:
        The files, from the feet upwards.
    """
    turned = nib.as_closest_canonical(image)
    # Rows run from the patient's right to the left, columns from front to back: stored x and y of RAS turn round.
    values = np.asarray(turned.dataobj, dtype=np.float32)[::-1, ::-1]
    greys = np.round((values - values.min()) / np.ptp(values) * GREYS).astype(np.uint16)
    columns, rows, slices = greys.shape
    affine = turned.affine @ np.array([[-1, 0, 0, columns - 1], [0, -1, 0, rows - 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    folder.mkdir(parents=True, exist_ok=True)
    common = _common(seed, rows, columns, spacing, (lps[:3, :2] / spacing[:2]).T.ravel())
    files = []
    for k in range(slices):
        position = lps[:3, 3] + k * lps[:3, 2]
        files.append(_write_slice(folder, seed, k, common, greys[:, :, k].T, position))
    return files


def _common(seed: str, rows: int, columns: int, spacing: np.ndarray, orientation: np.ndarray) -> Dataset:
    """What all slices share: patient, study, series, frame of reference and acquisition."""
    item = Dataset()
    item.update(_elements(PATIENT))
    item.StudyInstanceUID, item.SeriesInstanceUID, item.FrameOfReferenceUID = (
        generate_uid(entropy_srcs=[seed, part]) for part in ("study", "series", "frame")
    )
    item.SOPClassUID = MRImageStorage
    item.StudyDate = item.SeriesDate = item.AcquisitionDate = item.ContentDate = DATE
    item.StudyTime = item.SeriesTime = item.AcquisitionTime = item.ContentTime = TIME
    item.update(
        _elements(
            {"StudyID": "1", "AccessionNumber": "", "ReferringPhysicianName": "", "PositionReferenceIndicator": ""}
        )
    )
    item.StudyDescription, item.SeriesDescription, item.SeriesNumber = "Head, demonstration", "T1 template", 1
    item.Modality, item.Manufacturer, item.BodyPartExamined, item.PatientPosition = "MR", "none", "HEAD", "HFS"
    item.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    item.ScanningSequence, item.SequenceVariant, item.ScanOptions, item.MRAcquisitionType = "RM", "NONE", "", "3D"
    item.RepetitionTime = item.EchoTime = item.EchoTrainLength = None
    item.SliceThickness = _decimal(spacing[2])
    item.SpacingBetweenSlices = _decimal(spacing[2])
    item.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    item.ImageOrientationPatient = [_decimal(value) for value in orientation]
    item.Rows, item.Columns, item.SamplesPerPixel, item.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
    item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 12, 11, 0
    item.WindowCenter, item.WindowWidth = GREYS // 2, GREYS
    return item


def _write_slice(
    folder: Path, seed: str, number: int, common: Dataset, pixels: np.ndarray, position: Sequence[float] | np.ndarray
) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[seed, "slice", str(number)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / f"{number:04d}.dcm"
    item = FileDataset(path, common, file_meta=meta, preamble=b"\0" * 128)
    item.is_little_endian, item.is_implicit_VR = True, False
    item.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    item.InstanceNumber, item.AcquisitionNumber = number + 1, 1
    item.ImagePositionPatient = [_decimal(value) for value in position]
    item.PixelData = np.ascontiguousarray(pixels, dtype="<u2").tobytes()
    item.save_as(path, write_like_original=False)
    return path


def _elements(values: dict[str, str]) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _decimal(value: float) -> str:
    """A decimal string (at most 16 characters)."""
    return f"{value:.6f}".rstrip("0").rstrip(".") or "0"
