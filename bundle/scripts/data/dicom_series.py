"""Find one DICOM series in a folder and establish its slice order and geometry, refusing what is not sound.

Only the attributes listed here are ever read from a header, so that no name, number or date of a patient can reach a
message, a log or a result.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import MediaStorageDirectoryStorage

from scripts.data.zip_folder import PREAMBLE_BYTES, is_dicom
from scripts.errors import InputError

logger = logging.getLogger(__name__)
TAGS = (
    *("SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "ImageType", "Rows", "Columns"),
    *("SamplesPerPixel", "NumberOfFrames", "BitsAllocated", "PixelRepresentation", "PixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"),
    # For standardised uptake values:
    *("Units", "SUVType", "CorrectedImage", "DecayCorrection", "PatientWeight", "SeriesDate", "SeriesTime"),
    *("AcquisitionDate", "AcquisitionTime", "RadiopharmaceuticalInformationSequence"),
)
# Objects about images, which an export puts beside them.
NOT_IMAGES = ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO", "REG", "DOC", "FID", "RWV", "PLAN")
DEFER_BYTES = 1024  # larger values stay in the file: of the pixels only their presence is noted
LISTED = 12
ANGLE_TOLERANCE = 1e-3  # of direction cosines
SIZE_TOLERANCE = 1e-4  # of pixel spacings, mm
POSITION_TOLERANCE = 0.1  # of the distance between slices
TILT_NOTED = 0.2  # degrees
TILT_LIMIT = 45.0
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Slice:
    """One DICOM file and the attributes of its header that are named in ``TAGS``."""

    path: Path
    header: Dataset


@dataclass(frozen=True)
class Series:
    """A sound volume: slices in the order of their positions, along the direction rows x columns."""

    slices: tuple[Slice, ...]
    modality: str
    """Modality code of the header, such as CT, MR or PT."""
    shape: tuple[int, int, int]
    """(columns, rows, slices): the axes x, y, z of the volume."""
    affine: np.ndarray
    """4x4, voxel to RAS mm; sheared where the gantry was tilted."""


def find_series(folder: Path, name: str, series: int | None = None) -> Series:
    """Choose a series in a folder and its subfolders, and check it.

    Args:
        folder: where the files are; other files beside them do not disturb.
        name: what to call it in messages.
        series: which one where there are several, counted from 1 in the order of series number; None: the only one,
            localizers aside.

    Raises:
        InputError: no images, several series, or slices that do not make one regular volume.
    """
    groups = _read_headers(folder, name)
    slices = _choose(groups, name, series)
    return _volume(slices, name)


def _read_headers(folder: Path, name: str) -> list[list[Slice]]:
    """The images of a folder, one list for each series."""
    groups: dict[str, list[Slice]] = {}
    others: list[Slice] = []
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        item = _read_header(path, name)
        if item is None or item.header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
            continue
        complete = all(attribute in item.header for attribute in ("Rows", "Columns", "PixelData"))
        if complete and _text(item.header, "Modality") not in NOT_IMAGES:
            groups.setdefault(_text(item.header, "SeriesInstanceUID"), []).append(item)
        else:
            others.append(item)
    kinds = {_text(item.header, "SOPClassUID") for group in groups.values() for item in group}
    for item in others:  # a slice that lost its pixels must not pass for some other kind of object
        if _text(item.header, "SOPClassUID") in kinds:
            raise InputError(f"{name}: {item.path.name} is a damaged DICOM file: export the series again")
    if not groups:
        found = f"{len(others)} DICOM objects but no image among them" if others else "no DICOM images"
        raise InputError(f"{name} is a folder or archive with {found}: give that of one CT, MR or PET series")
    return [groups[uid] for uid in sorted(groups, key=lambda uid: (_number(groups[uid][0].header), uid))]


def _read_header(path: Path, name: str) -> Slice | None:
    """The attributes of a file that are named in ``TAGS``; None where it is no DICOM file."""
    with path.open("rb") as file:
        if not is_dicom(file.read(PREAMBLE_BYTES + 4)):
            return None
    try:
        return Slice(path, pydicom.dcmread(path, defer_size=DEFER_BYTES, specific_tags=[*TAGS, "PixelData"]))
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, AttributeError, NotImplementedError) as e:
        raise InputError(f"{name}: {path.name} is a damaged DICOM file: export the series again") from e


def _choose(groups: Sequence[list[Slice]], name: str, series: int | None) -> list[Slice]:
    listing = "; ".join(f"[{i}] {_describe(group)}" for i, group in enumerate(groups[:LISTED], start=1))
    if len(groups) > LISTED:
        listing += f"; and {len(groups) - LISTED} more"
    if series is not None:
        if isinstance(series, bool) or not isinstance(series, int) or not 1 <= series <= len(groups):
            raise InputError(f"{name}: series must be a number from 1 to {len(groups)}, got {series!r}: {listing}")
        return groups[series - 1]
    if len(groups) == 1:
        return groups[0]
    volumes = [group for group in groups if not _is_localizer(group)]
    if len(volumes) != 1:
        raise InputError(f"{name} holds {len(groups)} series: {listing}. Set series to the number in brackets")
    logger.info("%s: %d localizer series left out", name, len(groups) - 1)
    return volumes[0]


def _describe(group: Sequence[Slice]) -> str:
    header = group[0].header
    number = _integer(header, "SeriesNumber")
    what = "localizer" if _is_localizer(group) else _text(header, "Modality") or "unknown modality"
    return f"{what}, {len(group)} slices" + ("" if number is None else f", series number {number}")


def _is_localizer(group: Sequence[Slice]) -> bool:
    return "LOCALIZER" in _text(group[0].header, "ImageType").upper()


def _volume(slices: Sequence[Slice], name: str) -> Series:
    """Check the slices against each other, sort them and compute the affine."""
    if len(slices) == 1:
        frames = _integer(slices[0].header, "NumberOfFrames") or 1
        if frames == 1:
            raise InputError(
                f"{name}: a single slice (a localizer, or one file of a series), wanted a volume: give the folder "
                "with all slices"
            )
    headers = [item.header for item in slices]
    if any((_integer(header, "NumberOfFrames") or 1) > 1 for header in headers):
        raise InputError(f"{name}: multi-frame DICOM is not read: convert it to NIfTI, for example with dcm2niix")
    if any((_integer(header, "SamplesPerPixel") or 1) > 1 for header in headers):
        raise InputError(f"{name}: colour images, wanted one grey value per pixel")
    sizes = {(_integer(header, "Columns"), _integer(header, "Rows")) for header in headers}
    if len(sizes) > 1:
        raise InputError(f"{name}: slices of {len(sizes)} different sizes in one series: separate them")
    spacing = _same(slices, name, "PixelSpacing", 2, SIZE_TOLERANCE)
    if min(spacing) <= 0:
        raise InputError(f"{name}: pixel spacing {spacing.tolist()} mm in the header, wanted positive numbers")
    orientation = _same(slices, name, "ImageOrientationPatient", 6, ANGLE_TOLERANCE)
    along_row, along_column = orientation[:3], orientation[3:]
    gram = np.array([along_row @ along_row, along_column @ along_column, along_row @ along_column])
    if np.abs(gram - (1, 1, 0)).max() > 10 * ANGLE_TOLERANCE:
        raise InputError(f"{name}: the image orientation in the header is no pair of perpendicular unit vectors")
    positions = np.array([_numbers(item, name, "ImagePositionPatient", 3) for item in slices])
    order = np.argsort(positions @ np.cross(along_row, along_column), kind="stable")
    step = _slice_step(positions[order], np.cross(along_row, along_column), name)
    affine = np.eye(4)
    # PixelSpacing gives the distance between rows first (PS3.3, C.7.6.2.1.1).
    affine[:3, :3] = np.stack([along_row * spacing[1], along_column * spacing[0], step], axis=1)
    affine[:3, 3] = positions[order[0]]
    columns, rows = sizes.pop()
    return Series(
        slices=tuple(slices[i] for i in order),
        modality=_text(headers[0], "Modality"),
        shape=(int(columns or 0), int(rows or 0), len(slices)),
        affine=LPS_TO_RAS @ affine,
    )


def _slice_step(positions: np.ndarray, normal: np.ndarray, name: str) -> np.ndarray:
    """The vector from slice to slice.

    Args:
        positions: ``[n, 3]``, LPS mm, sorted along the normal.
        normal: unit vector, rows x columns.
        name: for messages.
    """
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    same_place = int((gaps < 1e-3).sum())
    if same_place:
        raise InputError(
            f"{name}: {same_place} slices lie at the same place as another (copies, or several phases, echoes or time "
            "points in one series): keep one slice for each place"
        )
    wide = gaps > (1 + 5 * POSITION_TOLERANCE) * usual
    if wide.any():
        raise InputError(
            f"{name}: {int(wide.sum())} gaps between slices, up to {gaps.max():.2f} mm where {usual:.2f} mm are usual: "
            "slices are missing, export the series again"
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    line = positions[0] + np.arange(len(positions))[:, None] * step
    off = float(np.linalg.norm(positions - line, axis=1).max())
    if off > POSITION_TOLERANCE * usual + 0.01:
        raise InputError(
            f"{name}: slices are unevenly spaced or shifted (up to {off:.2f} mm, {usual:.2f} mm apart): resample the "
            "series to a regular grid"
        )
    tilt = math.degrees(math.acos(min(1.0, float(step @ normal) / float(np.linalg.norm(step)))))
    if tilt > TILT_LIMIT:
        raise InputError(f"{name}: slices are stacked at {tilt:.0f} degrees to their normal, wanted less than 45")
    if tilt > TILT_NOTED:
        logger.info("%s: slices are stacked %.1f degrees off their normal (gantry tilt), kept as it is", name, tilt)
    return step


def _same(slices: Sequence[Slice], name: str, attribute: str, count: int, tolerance: float) -> np.ndarray:
    """The numbers of an attribute that all slices must share."""
    values = np.array([_numbers(item, name, attribute, count) for item in slices])
    if np.abs(values - values[0]).max() > tolerance:
        raise InputError(
            f"{name}: {attribute} differs between the slices of the series (a localizer among them, or several "
            "series under one number): separate them"
        )
    return values[0]


def _numbers(item: Slice, name: str, attribute: str, count: int) -> list[float]:
    """The numbers of an attribute of one slice."""
    try:
        values = [float(value) for value in item.header.get(attribute) or ()]
    except (TypeError, ValueError, OverflowError):
        values = []
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise InputError(
            f"{name}: {item.path.name} has no valid {attribute} in its header: it cannot be placed in space, export "
            "the series again or convert it to NIfTI"
        )
    return values


def _text(header: Dataset, attribute: str) -> str:
    value = header.get(attribute)
    if value is None:
        return ""
    return value if isinstance(value, str) else "\\".join(str(part) for part in np.atleast_1d(value))


def _integer(header: Dataset, attribute: str) -> int | None:
    try:
        return int(header.get(attribute))
    except (TypeError, ValueError):
        return None


def _number(header: Dataset) -> int:
    return _integer(header, "SeriesNumber") or 0
