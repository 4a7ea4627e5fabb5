"""DICOM series: order, geometry and units of sound ones, one clear line for the others, nothing about the patient."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from pydicom.dataset import Dataset
from scipy.spatial.transform import Rotation

from scripts.data.dicom import DicomReader, read_modality
from scripts.errors import InputError
from scripts.transforms.reading import LoadVolume, LoadVolumed, image_name

OBLIQUE = Rotation.from_euler("xyz", [20, -15, 40], degrees=True).as_matrix()
SECRETS = ("Secret", "SECRET42", "Patient^")


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return target


def world_of_pixels(files: list[Path]) -> dict[tuple[float, ...], float]:
    """RAS position -> value of every pixel, by the equation of the standard (PS3.3, C.7.6.2.1.1)."""
    found = {}
    for file in files:
        item = pydicom.dcmread(file)
        values = np.frombuffer(item.PixelData, "<i2").reshape(item.Rows, item.Columns)
        across, down = np.array(item.ImageOrientationPatient, float).reshape(2, 3)
        for r in range(item.Rows):
            for c in range(item.Columns):
                place = np.array(item.ImagePositionPatient, float)
                place = place + across * item.PixelSpacing[1] * c + down * item.PixelSpacing[0] * r
                found[tuple(np.round(place * (-1, -1, 1), 3))] = float(values[r, c]) - 1000
    return found


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
@pytest.mark.parametrize("tilt", [0.0, 0.4])
def test_every_pixel_lies_where_the_standard_puts_it(
    tmp_path: Path, write_series: Callable, stack: np.ndarray, order: list[int], tilt: float
) -> None:
    """Oblique slices in any order of files, with and without gantry tilt."""
    step = 2 * (OBLIQUE[:, 2] + tilt * OBLIQUE[:, 1])
    files = write_series(tmp_path / "s", stack, OBLIQUE[:, :2].T.ravel(), step=step, order=order)
    image = LoadVolume()(tmp_path / "s")
    assert image.shape == (1, 8, 6, 5)
    assert image.dtype.is_floating_point
    truth = world_of_pixels(files)
    indices = np.stack(np.indices(image.shape[1:]), -1).reshape(-1, 3)
    places = np.round(nib.affines.apply_affine(image.affine.numpy(), indices), 3)
    for place, value in zip(places, image[0].numpy().ravel(), strict=True):
        nearest = min(truth, key=lambda known: np.abs(np.array(known) - place).max())
        assert np.abs(np.array(nearest) - place).max() < 0.01
        assert truth[nearest] == value


def test_zip_is_the_folder(tmp_path: Path, write_series: Callable, stack: np.ndarray) -> None:
    """Also with subfolders and other files, named by running numbers and removed afterwards."""
    write_series(tmp_path / "s" / "deep", stack)
    (tmp_path / "s" / "notes.txt").write_text("not DICOM")
    one, two = LoadVolume()(tmp_path / "s"), LoadVolume()(zipped(tmp_path / "s", tmp_path / "study.ZIP"))
    assert np.array_equal(one.numpy(), two.numpy())
    assert np.array_equal(one.affine, two.affine)
    assert image_name(tmp_path / "study.ZIP") == "study"
    assert read_modality(tmp_path / "study.ZIP") == "CT"


def test_metadata_say_nothing_about_the_patient(tmp_path: Path, write_series: Callable, stack: np.ndarray) -> None:
    write_series(tmp_path / "s.1", stack)
    meta = LoadVolume()(tmp_path / "s.1").meta
    assert (meta["modality"], meta["units"], meta["stored_dtype"]) == ("CT", "HU", "float32")
    assert json.loads(meta["dicom_slices"]) == [f"IM{i:03d}" for i in range(5)]
    assert not any(secret in str(dict(meta)) for secret in SECRETS)
    assert image_name(tmp_path / "s.1") == "s.1"


def test_each_slice_has_its_own_rescaling(tmp_path: Path, write_series: Callable, stack: np.ndarray) -> None:
    """PET changes the slope from slice to slice; GDCM leaves it out for MR altogether."""
    slopes = {k: {"RescaleSlope": 0.5 * (k + 1)} for k in range(5)}
    mr = "1.2.840.10008.5.1.4.1.1.4"
    write_series(tmp_path / "a", stack, changes=slopes, Modality="PT", RescaleIntercept=0)
    write_series(tmp_path / "b", stack, changes=slopes, Modality="MR", RescaleIntercept=0, SOPClassUID=mr)
    truth = (stack * (0.5 * np.arange(1, 6))[:, None, None]).transpose(2, 1, 0)
    for name in "ab":
        assert np.allclose(LoadVolume()(tmp_path / name)[0].numpy(), truth), name


def pet(**change: Any) -> dict[str, Any]:
    """Attributes of a PET series: 400 MBq, 70 kg, an hour before the scan, half-life 6586.2 s."""
    start = datetime(2020, 5, 17, 0, 20)  # just after midnight: the injection was the day before
    tracer = Dataset()
    tracer.RadionuclideTotalDose = 400e6
    tracer.RadionuclideHalfLife = 6586.2
    tracer.RadiopharmaceuticalStartTime = (start - timedelta(hours=1)).strftime("%H%M%S")
    fields: dict[str, Any] = {
        "Modality": "PT",
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128",
        "Units": "BQML",
        "CorrectedImage": ["ATTN", "DECY", "SCAT"],
        "DecayCorrection": "START",
        "PatientWeight": 70,
        "RescaleSlope": 10,
        "RescaleIntercept": 0,
        "RadiopharmaceuticalInformationSequence": [tracer],
    }
    for name in ("Series", "Acquisition"):
        fields[f"{name}Date"], fields[f"{name}Time"] = start.strftime("%Y%m%d"), start.strftime("%H%M%S.%f")
    return fields | change


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        ({}, 70e3 / (400e6 * 2 ** (-3600 / 6586.2))),
        ({"DecayCorrection": "ADMIN"}, 70e3 / 400e6),
        ({"Units": "GML"}, 1.0),
        ({"PatientWeight": None}, None),
        ({"Units": "CNTS"}, None),
        ({"CorrectedImage": ["ATTN"]}, None),
        ({"DecayCorrection": "NONE"}, None),
        ({"SeriesTime": "235900"}, None),
        ({"RadiopharmaceuticalInformationSequence": None}, None),
        ({"Units": "GML", "SUVType": "LBM"}, None),
    ],
)
def test_pet_becomes_suv_where_the_header_allows_it(
    tmp_path: Path,
    write_series: Callable,
    stack: np.ndarray,
    caplog: pytest.LogCaptureFixture,
    change: dict,
    factor: float | None,
) -> None:
    write_series(tmp_path / "s", stack, **pet(**change))
    with caplog.at_level(logging.WARNING):
        image = LoadVolume()(tmp_path / "s")
    assert image.meta["units"] == ("stored" if factor is None else "SUVbw")
    assert np.allclose(image[0].numpy(), stack.transpose(2, 1, 0) * 10.0 * (factor or 1), rtol=1e-5)
    assert ("left as stored" in caplog.text) == (factor is None)
    assert not any(secret in caplog.text for secret in (*SECRETS, "70", "400"))


def two_series(write_series: Callable, folder: Path, stack: np.ndarray) -> Path:
    write_series(folder, stack, prefix="A")
    write_series(folder, stack[:3] + 1, prefix="B", Modality="MR", SeriesNumber=2)
    return folder


def test_one_of_several_series(tmp_path: Path, write_series: Callable, stack: np.ndarray, bundle_dir: Path) -> None:
    folder = two_series(write_series, tmp_path / "s", stack)
    with pytest.raises(
        InputError, match=r"2 series: \[1\] MR, 3 slices, series number 2; \[2\] CT, 5 slices.*Set series"
    ):
        LoadVolume()(folder)
    assert LoadVolumed("image", series=1)({"image": folder})["image"].shape[-1] == 3
    config = ConfigParser.load_config_file(bundle_dir / "configs" / "inference.json")
    (reader,) = [step for step in config["preprocessing"]["transforms"] if "LoadVolumed" in str(step)]
    assert (reader["series"], config["series"]) == ("@series", None)
    assert read_modality(folder, series=2) == "CT"
    for wrong in (0, 3, "1", True):
        with pytest.raises(InputError, match="number from 1 to 2"):
            LoadVolume(readers=[DicomReader(wrong)])(folder)  # type: ignore[arg-type]


def test_localizers_and_reports_do_not_disturb(tmp_path: Path, write_series: Callable, stack: np.ndarray) -> None:
    write_series(tmp_path / "s", stack)
    write_series(tmp_path / "s", stack[:2], prefix="L", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    report = {"Modality": "SR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}
    write_series(tmp_path / "s", stack[:1], prefix="R", Rows=None, Columns=None, PixelData=None, **report)
    assert LoadVolume()(tmp_path / "s").shape[-1] == 5


def cut(path: Path, keep: float = 0.8) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing slice": ({"order": [0, 1, 3, 4]}, r"1 gaps .* up to 4.00 mm where 2.00 mm are usual"),
    "duplicate": ({"order": [0, 1, 2, 2, 3, 4]}, "1 slices lie at the same place"),
    "phases": ({"order": [0, 1, 2, 3, 4] * 2}, "5 slices lie at the same place"),
    "uneven": ({"changes": {2: {"ImagePositionPatient": [10, -20, 34.7]}}}, "unevenly spaced"),
    "shifted": ({"changes": {2: {"ImagePositionPatient": [13, -20, 34]}}}, "unevenly spaced or shifted"),
    "no pixel spacing": ({"PixelSpacing": None}, "no valid PixelSpacing"),
    "zero pixel spacing": ({"spacing": (0, 1)}, "wanted positive"),
    "text for a number": ({"changes": {1: {"PixelSpacing": "\\"}}}, "no valid PixelSpacing"),
    "no position": ({"changes": {1: {"ImagePositionPatient": None}}}, "no valid ImagePositionPatient"),
    "no orientation": ({"ImageOrientationPatient": None}, "no valid ImageOrientationPatient"),
    "skewed axes": ({"orientation": (1, 0, 0, 0.5, 0.8, 0)}, "perpendicular"),
    "mixed orientation": ({"changes": {1: {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}}}, "differs between"),
    "mixed spacing": ({"changes": {1: {"PixelSpacing": [1, 1]}}}, "PixelSpacing differs"),
    "mixed size": ({"changes": {1: {"Rows": 3}}}, "2 different sizes"),
    "single slice": ({"order": [0]}, "a single slice"),
    "multi-frame": ({"order": [0], "NumberOfFrames": 4}, "multi-frame"),
    "colour": ({"SamplesPerPixel": 3}, "colour"),
    "stacked aslant": ({"step": (0, 5, 2)}, "68 degrees"),
    "rescale": ({"changes": {1: {"RescaleSlope": None}}, "RescaleIntercept": None, "spacing": (1, -1)}, "positive"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_unsound_series_are_refused_in_one_line(
    tmp_path: Path, write_series: Callable, stack: np.ndarray, case: str
) -> None:
    arguments, message = BAD[case]
    write_series(tmp_path / "s", stack, **arguments)
    with pytest.raises(InputError, match=message) as caught:
        LoadVolume()(tmp_path / "s")
    assert "\n" not in str(caught.value)
    assert not any(secret in str(caught.value) for secret in (*SECRETS, str(tmp_path)))


def test_a_damaged_slice_is_refused(tmp_path: Path, write_series: Callable, stack: np.ndarray) -> None:
    """Cut in the pixels or in the header, also at an end of the volume, where no gap tells of it."""
    for name, keep in (("pixels", 0.97), ("header", 0.85), ("head", 0.6)):
        cut(write_series(tmp_path / name, stack)[4], keep)
        with pytest.raises(InputError, match="IM004"):
            LoadVolume()(tmp_path / name)


def test_what_is_no_series(tmp_path: Path, write_series: Callable, stack: np.ndarray) -> None:
    (tmp_path / "empty").mkdir()
    files = write_series(tmp_path / "s", stack)
    write_series(tmp_path / "r", stack, Modality="SEG")
    for path, message in (
        (tmp_path / "empty", "is a folder or archive with no DICOM images"),
        (tmp_path / "r", "5 DICOM objects but no image"),
        (files[0], "wanted the folder or zip"),
    ):
        with pytest.raises(InputError, match=message):
            LoadVolume()(path)


def evil_member(path: Path, member: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, bytes(128) + b"DICM")
    return path


def link_member(path: Path) -> Path:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    return path


def bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("big", "w") as file:
        file.write(bytes(128) + b"DICM")
        for _ in range(3):
            file.write(bytes(2**20))
    return path


def encrypted(path: Path) -> Path:
    evil_member(path, "a")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(raw))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: evil_member(p, "../../evil"), "point outside"),
        (lambda p: evil_member(p, "/tmp/evil"), "point outside"),
        (lambda p: evil_member(p, "a\\..\\..\\evil"), "point outside"),
        (lambda p: evil_member(p, "C:/evil"), "point outside"),
        (link_member, "symbolic links"),
        (bomb, "unpacks to 0.0 GiB in 1 files, at most 0.001 GiB"),
        (encrypted, "encrypted"),
        (lambda p: p.write_bytes(b"PK no archive") and p, "not a zip archive"),
        (lambda p: (evil_member(p, "notes") and cut(p)) or p, "not a zip archive"),
    ],
)
def test_archives_are_not_trusted(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path / "a.zip")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message) as caught:
        LoadVolume(readers=[DicomReader(max_zip_gb=0.001)])(path)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jitter=st.lists(st.floats(-0.05, 0.05), min_size=5, max_size=5), reverse=st.booleans())
def test_rounded_positions_are_regular(
    tmp_path: Path, write_series: Callable, stack: np.ndarray, jitter: list[float], reverse: bool
) -> None:
    """Positions that deviate by a few percent of the slice distance, as tables and rounding make them."""
    shutil.rmtree(tmp_path / "s", ignore_errors=True)
    changes = {k: {"ImagePositionPatient": [10, -20, round(30 + 2 * k + off, 4)]} for k, off in enumerate(jitter)}
    order = list(range(5))[:: -1 if reverse else 1]
    write_series(tmp_path / "s", stack, changes=changes, order=order)
    image = LoadVolume()(tmp_path / "s")
    assert np.array_equal(image[0].numpy(), stack.transpose(2, 1, 0) - 1000.0)
    assert abs(image.affine[2, 2] - 2) < 0.03


def test_real_series(shared: Path) -> None:
    """Twenty JPEG 2000 slices: agrees with pydicom's own decoding."""
    folder = shared / "data" / "ct_dicom"
    image = LoadVolume()(folder)
    assert image.shape == (1, 512, 512, 20)
    assert np.allclose(np.diag(image.affine), (-0.9765625, -0.9765625, 2, 1))
    for index, k in ((0, 19), (19, 0), (7, 12)):
        item = pydicom.dcmread(sorted(folder.glob("*.dcm"))[index])
        assert np.allclose(image.affine[2, 3] + 2 * k, item.ImagePositionPatient[2])
        assert np.array_equal(image[0, :, :, k].numpy().T, item.pixel_array.astype(np.float32) - 1024)
