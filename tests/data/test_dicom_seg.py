"""DICOM SEG: read back with highdicom and pydicom, voxel for voxel, whatever the order and direction of the slices."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from scripts.data.dicom_seg import Segment, write_dicom_seg
from scripts.errors import InputError
from scripts.request import Request, RequestedTarget, encode_request
from scripts.results import SaveResultsd
from scripts.text.concepts import Code, Codes
from scripts.transforms.reading import LoadVolume

PROGRAM = {"name": "Medal S", "version": "1.2.3"}
OBLIQUE = Rotation.from_euler("xyz", [20, -15, 40], degrees=True).as_matrix()
KIDNEY = Codes(
    category=Code("123037004", "SCT", "Anatomical Structure"),
    type=Code("64033007", "SCT", "Kidney"),
    modifier=Code("7771000", "SCT", "Left"),
)
CYST = Codes(
    category=Code("49755003", "SCT", "Morphologically Abnormal Structure"),
    type=Code("367643001", "SCT", "Cyst"),
    region=Code("64033007", "SCT", "Kidney"),
    region_modifier=Code("24028007", "SCT", "Right"),
)
SEGMENTS = (
    Segment(7, "Left kidney", "anatomy", (255, 0, 0), KIDNEY),
    Segment(300, "Right kidney cyst", "lesion", (0, 0, 255), CYST),
    Segment(5, "Something new", "anatomy", (10, 20, 30)),
    Segment(6, "Absent", "lesion", (1, 2, 3)),
    Segment(9, "Some lesion", "lesion", (255, 255, 255)),
)


def random_labels(shape: Sequence[int], values: Sequence[int] = (0, 0, 7, 300, 5, 9)) -> np.ndarray:
    return np.random.default_rng(1).choice(values, size=tuple(shape)).astype(np.uint16)


def check_frames(path: Path, labels: np.ndarray, files: Sequence[Path], label_of: dict[int, int]) -> None:
    """Every frame, read with pydicom alone, is the label on the source slice at its position."""
    seg = pydicom.dcmread(path)
    places = {tuple(float(v) for v in pydicom.dcmread(f).ImagePositionPatient): k for k, f in enumerate(files)}
    rebuilt = np.zeros((*labels.shape[::-1],), labels.dtype)
    frames = np.atleast_3d(seg.pixel_array).reshape(-1, seg.Rows, seg.Columns)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        k = places[tuple(float(v) for v in groups.PlanePositionSequence[0].ImagePositionPatient)]
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == pydicom.dcmread(files[k]).SOPInstanceUID
        assert frame.any()
        rebuilt[k][frame > 0] = label_of[number]
    assert np.array_equal(rebuilt.transpose(2, 1, 0), labels)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_oblique_series_comes_back(
    tmp_path: Path, write_series: Callable, stack: np.ndarray, order: list[int], tilt: float
) -> None:
    step = 2 * (OBLIQUE[:, 2] + tilt * OBLIQUE[:, 0])
    paths = write_series(tmp_path / "s", stack, OBLIQUE[:, :2].T.ravel(), step=step, order=order)
    files = [paths[order.index(k)] for k in range(5)]
    labels = random_labels((8, 6, 5))
    labels[:, :, 3] = 0
    out = tmp_path / "seg.dcm"
    assert write_dicom_seg(out, labels, SEGMENTS, files, PROGRAM) == (
        *("Left kidney", "Right kidney cyst", "Something new", "Some lesion"),
    )
    check_frames(out, labels, files, {1: 7, 2: 300, 3: 5, 4: 9})
    seg = hd.seg.segread(out)
    uids = [pydicom.dcmread(f).SOPInstanceUID for f in files if f != files[3]]
    read = seg.get_pixels_by_source_instance(uids, combine_segments=True, skip_overlap_checks=True)
    table = np.array([0, 7, 300, 5, 9])
    assert np.array_equal(table[read].transpose(2, 1, 0), labels[:, :, [0, 1, 2, 4]])
    shared = pydicom.dcmread(out).SharedFunctionalGroupsSequence[0]
    assert np.allclose(shared.PlaneOrientationSequence[0].ImageOrientationPatient, OBLIQUE[:, :2].T.ravel())
    assert float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices) == pytest.approx(2.0, abs=1e-4)
    assert [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing] == [0.5, 0.75]


def test_what_the_segments_say(tmp_path: Path, write_series: Callable, stack: np.ndarray) -> None:
    files = write_series(tmp_path / "s", stack, PatientName=None, PatientBirthDate=None, SliceThickness=None)
    write_dicom_seg(tmp_path / "seg.dcm", random_labels((8, 6, 5)), SEGMENTS, files, PROGRAM)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    source = pydicom.dcmread(files[0])
    assert (seg.Modality, seg.SegmentationType, seg.PatientID) == ("SEG", "BINARY", source.PatientID)
    for shared in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[shared].value == source[shared].value
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    kidney, cyst, new, lesion = seg.SegmentSequence
    assert [item.SegmentLabel for item in seg.SegmentSequence] == [s.name for s in SEGMENTS if s.name != "Absent"]
    assert kidney.SegmentAlgorithmType == "AUTOMATIC"
    assert kidney.SegmentAlgorithmName == "Medal S"
    assert kidney.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "1.2.3"
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodeMeaning) == ("64033007", "Kidney")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    region = cyst.AnatomicRegionSequence[0]
    assert (region.CodeMeaning, region.AnatomicRegionModifierSequence[0].CodeMeaning) == ("Kidney", "Right")
    assert new.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert lesion.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lesion"
    # CIE L*a*b* (D65) of pure red, blue and white, from tables of sRGB.
    for item, expected in ((kidney, (53.24, 80.09, 67.2)), (cyst, (32.3, 79.19, -107.86)), (lesion, (100, 0, 0))):
        lightness, a, b = item.RecommendedDisplayCIELabValue
        found = (lightness * 100 / 65535, a * 255 / 65535 - 128, b * 255 / 65535 - 128)
        assert np.allclose(found, expected, atol=0.1)


def test_nothing_found_writes_nothing(
    tmp_path: Path, write_series: Callable, stack: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_series(tmp_path / "s", stack)
    assert write_dicom_seg(tmp_path / "seg.dcm", np.zeros((8, 6, 5), np.uint8), SEGMENTS, files, PROGRAM) == ()
    assert not (tmp_path / "seg.dcm").exists()
    assert "no structure was found" in caplog.text


def test_a_series_without_frame_of_reference_is_refused(
    tmp_path: Path, write_series: Callable, stack: np.ndarray
) -> None:
    files = write_series(tmp_path / "s", stack, FrameOfReferenceUID=None)
    with pytest.raises(InputError, match="no frame of reference"):
        write_dicom_seg(tmp_path / "seg.dcm", random_labels((8, 6, 5)), SEGMENTS, files, PROGRAM)


def save_case(source: Path, labels: np.ndarray, image: MetaTensor, out: Path, **options: Any) -> dict[str, str]:
    """Save one case through the transform, with two targets."""
    targets = tuple(
        RequestedTarget(s.name, s.label, "CT", s.kind, f"CT_{s.name}", s.name, "name", 1.0, s.color)
        for s in SEGMENTS[:2]
    )
    report = {"image": {"name": source.name}, "request": {"modality": "CT"}, "structures": [], "bundle": PROGRAM}
    case = {
        "image": image,
        "label_map": MetaTensor(labels[None].astype(np.int32)),
        "request": encode_request(Request(("text",), "CT", targets)),
        "report": report,
    }
    return SaveResultsd(out, save_preview=False, output_format="dicom_seg", **options)(case)["files"]


class Terms:
    """A terminology of one concept."""

    def by_id(self, concept_id: int) -> Segment:
        return next(segment for segment in SEGMENTS if segment.label == concept_id)


def test_zip_in_seg_out(tmp_path: Path, write_series: Callable, stack: np.ndarray) -> None:
    """Through the transforms, from an archive with its files in disorder, with the terminology's codes."""
    order = [3, 1, 4, 0, 2]
    paths = write_series(tmp_path / "s", stack, order=order)
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in paths[::-1]:
            archive.write(path, f"deep/{path.name}")
    image = LoadVolume()(tmp_path / "study.zip")
    labels = random_labels((8, 6, 5), (0, 7, 300))
    files = save_case(tmp_path / "study.zip", labels, image, tmp_path / "out", terminology=Terms())
    assert {Path(path).name for path in files.values()} == {"study_seg.dcm", "study_seg.json"}
    check_frames(Path(files["label_map"]), labels, [paths[order.index(k)] for k in range(5)], {1: 7, 2: 300})
    kidney = pydicom.dcmread(files["label_map"]).SegmentSequence[0]
    assert kidney.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Kidney"


def test_real_series(shared: Path, tmp_path: Path) -> None:
    """The sample CT, its bone and its lung as a label map, voxel for voxel."""
    folder = shared / "data" / "ct_dicom"
    image = LoadVolume()(folder)
    values = image[0].numpy()
    labels = np.where(values > 200, 7, np.where(values < -600, 300, 0)).astype(np.uint16)
    files = save_case(folder, labels, image, tmp_path / "out")
    check_frames(Path(files["label_map"]), labels, sorted(folder.glob("*.dcm"))[::-1], {1: 7, 2: 300})
    seg = hd.seg.segread(files["label_map"])
    assert seg.number_of_segments == 2
    uids = [pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in sorted(folder.glob("*.dcm"))[::-1]]
    read = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    assert np.array_equal(np.array([0, 7, 300])[read].transpose(2, 1, 0), labels)
