"""Write a label map as a DICOM Segmentation of the series it was made from: one binary segment for each structure.

The object belongs to the patient and study of its series, as DICOM demands, so it holds the same identifiers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import highdicom as hd
import numpy as np
import pydicom
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as DicomCode
from pydicom.uid import ExplicitVRLittleEndian

from scripts.data.label_files import relabel
from scripts.errors import InputError

if TYPE_CHECKING:
    from scripts.text.concepts import Code, Codes

logger = logging.getLogger(__name__)
# Attributes that must be there but may be empty; anonymised series often lack them altogether.
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)
# Used where the terminology has no code: generic, and therefore never wrong.
ANATOMICAL_STRUCTURE = DicomCode("123037004", "SCT", "Anatomical Structure")  # PS3.16, CID 7150
ABNORMAL_STRUCTURE = DicomCode("49755003", "SCT", "Morphologically Abnormal Structure")  # CID 7150
LESION = DicomCode("52988006", "SCT", "Lesion")  # CID 7159
GENERIC = {"anatomy": (ANATOMICAL_STRUCTURE, ANATOMICAL_STRUCTURE), "lesion": (ABNORMAL_STRUCTURE, LESION)}
ARTIFICIAL_INTELLIGENCE = DicomCode("123110", "DCM", "Artificial Intelligence")  # CID 7162
SERIES_NUMBER = 901
SRGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
MAX_LABEL = 64  # characters: Segment Label has value representation LO


@dataclass(frozen=True)
class Segment:
    """One structure that a label map may hold."""

    label: int
    name: str
    kind: str
    """"anatomy" or "lesion"."""
    color: tuple[int, ...]
    """sRGB, 0..255."""
    codes: Codes | None = None
    """From the terminology; None: generic codes."""


def write_dicom_seg(
    path: Path,
    labels: np.ndarray,
    segments: Sequence[Segment],
    files: Sequence[Path],
    program: Mapping[str, str],
    reviewed: bool = False,
) -> tuple[str, ...]:
    """Write the segments that the label map holds.

    Only slices with a label are passed on, as one label map: the masks of all structures are never held, only the
    slices on which each lies (until they are packed to bits, one byte per pixel).

    Args:
        path: where to.
        labels: ``[columns, rows, slices]`` integers.
        segments: what the values mean, in the order of the segment numbers; 0 is the background.
        files: the DICOM file of each slice, in the order of the label map.
        program: "name" and "version" of what made it.
        reviewed: a person has seen and perhaps corrected it, so that it is called semiautomatic.

    Returns:
        Names of the segments written; none, and no file, where no label was found (an object without segments is no
        valid DICOM).

    Raises:
        InputError: the series lacks what a segmentation must refer to.
    """
    values = set(np.unique(labels).tolist())
    present = [segment for segment in segments if segment.label in values]
    if not present:
        logger.warning("%s is not written: no structure was found", path.name)
        return ()
    numbers = np.zeros(max(values) + 1, np.uint8 if len(present) < 256 else np.uint16)
    numbers[[segment.label for segment in present]] = np.arange(1, len(present) + 1)
    numbered = relabel(labels, numbers)
    planes = np.flatnonzero(numbered.any(axis=(0, 1)))
    frames = np.ascontiguousarray(numbered[:, :, planes].transpose(2, 1, 0))
    distance = _slice_distance(files)
    try:
        segmentation = hd.seg.Segmentation(
            source_images=[_read_source(files[plane], distance) for plane in planes],
            pixel_array=frames,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[_describe(item, i, program, reviewed) for i, item in enumerate(present, start=1)],
            series_instance_uid=hd.UID(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="MONAI",
            manufacturer_model_name=program["name"],
            software_versions=program["version"],
            device_serial_number="none",
            content_label="SEGMENTATION",
            content_description=f"{'Reviewed' if reviewed else 'Automatic'} segmentation, not for diagnosis",
            series_description=f"Segmentation, {program['name']}",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            omit_empty_frames=True,
        )
    except (AttributeError, KeyError) as e:
        raise InputError(f"the series lacks an attribute that a DICOM SEG refers to ({e}): choose nifti") from e
    segmentation.save_as(path)
    return tuple(segment.name for segment in present)


def _read_source(file: Path, distance: float) -> Dataset:
    """Header of a slice, with what highdicom asks for."""
    header = pydicom.dcmread(file, stop_before_pixels=True)
    for attribute in MAY_BE_EMPTY:
        if attribute not in header:
            setattr(header, attribute, None if attribute.endswith(("Date", "Time", "Sex")) else "")
    if "FrameOfReferenceUID" not in header:
        raise InputError("the series has no frame of reference, which a DICOM SEG needs: choose nifti")
    # Viewers that rebuild a volume need the true distance; the slice thickness is often another.
    header.SpacingBetweenSlices = distance
    if not header.get("SliceThickness"):
        header.SliceThickness = distance
    return header


def _slice_distance(files: Sequence[Path]) -> float:
    """Distance along the normal between neighbouring slices, mm."""
    first, last = (
        pydicom.dcmread(
            file, specific_tags=["ImagePositionPatient", "ImageOrientationPatient"], stop_before_pixels=True
        )
        for file in (files[0], files[-1])
    )
    normal = np.cross(*np.array(first.ImageOrientationPatient, dtype=float).reshape(2, 3))
    apart = np.array(last.ImagePositionPatient, dtype=float) - np.array(first.ImagePositionPatient, dtype=float)
    return round(float(abs(apart @ normal)) / max(len(files) - 1, 1), 6)


def _describe(segment: Segment, number: int, program: Mapping[str, str], reviewed: bool) -> SegmentDescription:
    category, kind = GENERIC["lesion" if segment.kind == "lesion" else "anatomy"]
    codes = segment.codes
    if codes is not None:
        category, kind = _code(codes.category), _code(codes.type)
    description = SegmentDescription(
        segment_number=number,
        segment_label=segment.name[:MAX_LABEL],
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=SegmentAlgorithmTypeValues.SEMIAUTOMATIC if reviewed else SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=program["name"], version=program["version"], family=ARTIFICIAL_INTELLIGENCE
        ),
        anatomic_regions=None if codes is None or codes.region is None else [_code(codes.region)],
    )
    if codes is not None and codes.modifier is not None:
        item = description.SegmentedPropertyTypeCodeSequence[0]
        item.SegmentedPropertyTypeModifierCodeSequence = [_concept(codes.modifier)]
    if codes is not None and codes.region is not None and codes.region_modifier is not None:
        description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [_concept(codes.region_modifier)]
    description.RecommendedDisplayCIELabValue = list(_cielab(segment.color).value)
    return description


def _code(code: Code) -> DicomCode:
    return DicomCode(code.value, code.scheme, code.meaning)


def _concept(code: Code) -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept.from_code(_code(code))


def _cielab(color: Sequence[int]) -> CIELabColor:
    """An sRGB colour (IEC 61966-2-1) as CIE L*a*b*.

    Relative to the white of sRGB (D65), as DCMTK, highdicom and the common viewers take it.
    """
    value = np.array(color[:3], dtype=float) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = SRGB_TO_XYZ @ linear / SRGB_TO_XYZ.sum(axis=1)
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29).tolist()
    return CIELabColor(min(116 * y - 16, 100.0), 500 * (x - y), 200 * (y - z))
