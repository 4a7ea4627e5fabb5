"""Series come whole from the archive, compressed ones too, and again when they have grown; nothing is half kept."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from clinic.mr_series import write_mr_series
from lib.datastore.archive import Archive
from lib.datastore.archive_store import ArchiveStore
from lib.server.errors import RequestError
from scripts.errors import InputError
from scripts.transforms.reading import LoadVolume

pytestmark = pytest.mark.e2e


def store(archive: Any, bundle_dir: Path, folder: Path, modality: str = "MR", **options: Any) -> ArchiveStore:
    return ArchiveStore(
        Archive(archive.url), bundle_dir, {"Modality": modality}, cache_path=str(folder), list_seconds=0, **options
    )


def series(folder: Path, seed: str, slices: int = 9) -> list[Path]:
    values = np.random.default_rng(len(seed)).normal(100, 30, (14, 12, slices)).astype(np.float32)
    return write_mr_series(nib.Nifti1Image(values, np.diag([2.0, 2.5, 3.0, 1.0])), folder, seed)


def uid(files: list[Path]) -> str:
    return str(pydicom.dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID)


def test_a_series_that_grew_is_fetched_again(archive: Any, bundle_dir: Path, tmp_path: Path) -> None:
    files = series(tmp_path / "s", "grows")
    archive.send(files[:5])
    datastore = store(archive, bundle_dir, tmp_path / "cache")
    assert nib.load(datastore.get_image_uri(uid(files))).shape == (14, 12, 5)
    archive.send(files[5:])
    assert nib.load(datastore.get_image_uri(uid(files))).shape == (14, 12, 9)


def test_the_volume_is_the_series(archive: Any, bundle_dir: Path, tmp_path: Path) -> None:
    files = series(tmp_path / "s", "same")
    archive.send(files)
    image = nib.load(store(archive, bundle_dir, tmp_path / "cache").get_image_uri(uid(files)))
    direct = LoadVolume()(tmp_path / "s")
    assert np.array_equal(np.asarray(image.dataobj), direct[0].numpy())
    assert np.allclose(image.affine, np.asarray(direct.affine), atol=1e-4)


def test_slices_with_a_gap_are_refused_each_time(archive: Any, bundle_dir: Path, tmp_path: Path) -> None:
    files = series(tmp_path / "s", "gap")
    archive.send(files[:3] + files[5:])
    datastore = store(archive, bundle_dir, tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(InputError, match="slices are missing"):
            datastore.get_image_uri(uid(files))
    assert not list((tmp_path / "cache").rglob("*.nii.gz"))


def test_jpeg_2000_is_fetched_as_it_is(archive: Any, bundle_dir: Path, tmp_path: Path, shared: Path) -> None:
    files = sorted((shared / "data" / "ct_dicom").rglob("*.dcm"))
    archive.send(files)
    datastore = store(archive, bundle_dir, tmp_path / "cache", "CT")
    image = nib.load(datastore.get_image_uri(uid(files)))
    assert image.shape == (512, 512, 20)
    assert np.asarray(image.dataobj).min() == -1024


@pytest.mark.parametrize("name", ["1.2.3.4", "../../etc", "", "1.2/../3", "9" * 65])
def test_unknown_series_leave_no_trace(archive: Any, bundle_dir: Path, tmp_path: Path, name: str) -> None:
    datastore = store(archive, bundle_dir, tmp_path / "cache")
    before = sorted(tmp_path.rglob("*"))
    for method in (datastore.get_image_uri, lambda n: datastore.save_label(n, "x.nii.gz", "final", {})):
        with pytest.raises(RequestError) as refused:
            method(name)
        assert refused.value.status_code == 404
    assert sorted(tmp_path.rglob("*")) == before


def test_leftovers_and_unused_series_are_removed_at_the_start(archive: Any, bundle_dir: Path, tmp_path: Path) -> None:
    files = series(tmp_path / "s", "old")
    archive.send(files)
    datastore = store(archive, bundle_dir, tmp_path / "cache")
    volume = Path(datastore.get_image_uri(uid(files)))
    (volume.parent / ".unfinished_x").mkdir()
    (volume.parent / ".unfinished_x" / "1.dcm").touch()
    hours_ago = time.time() - 2 * 3600  # a younger one may be another process's, at work
    os.utime(volume.parent / ".unfinished_x", (hours_ago, hours_ago))
    assert store(archive, bundle_dir, tmp_path / "cache").get_image_info(uid(files))["Modality"] == "MR"
    assert volume.is_file()
    assert not (volume.parent / ".unfinished_x").exists()
    store(archive, bundle_dir, tmp_path / "cache", keep_days=-1)
    assert not volume.exists()
    assert not (volume.parent / uid(files)).exists()


def test_the_cache_names_nobody(archive: Any, bundle_dir: Path, tmp_path: Path) -> None:
    files = series(tmp_path / "s", "private")
    archive.send(files)
    datastore = store(archive, bundle_dir, tmp_path / "cache")
    datastore.get_image_uri(uid(files))
    index = next((tmp_path / "cache").rglob("datastore_v2.json"))
    header = pydicom.dcmread(files[0])
    for secret in (header.PatientID, str(header.PatientName), header.PatientBirthDate):
        assert secret not in index.read_text()
    assert index.parent.stat().st_mode & 0o077 == 0
