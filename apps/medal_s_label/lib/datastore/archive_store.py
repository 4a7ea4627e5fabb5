"""A DICOMweb archive as datastore: series come as volumes, corrected labels go back as coded DICOM SEG."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.utils import MetaKeys
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.utils.others.generic import md5_digest
from pydicom.dataset import Dataset

from lib.datastore.archive import Archive, check_uid
from lib.datastore.archived_labels import ArchivedLabel, ArchivedLabels
from lib.datastore.folder_store import FolderStore, check_name
from lib.datastore.label_volumes import read_labels
from lib.datastore.seg_files import SegWriter, read_dicom_seg
from lib.server.errors import RequestError
from scripts.data.dicom_series import Series, find_series
from scripts.data.label_files import write_nifti
from scripts.errors import InputError
from scripts.transforms.reading import LoadVolume

logger = logging.getLogger(__name__)
FINAL = DefaultLabelTag.FINAL.value
VOLUME_SUFFIX = ".nii.gz"
CACHE = Path("~/.cache/monailabel/medal_s")
UNFINISHED_SECONDS = 3600
"""No file takes longer to write."""


class ArchiveStore(FolderStore, DICOMWebDatastore):
    """The series of an archive, with a cache folder of what was fetched.

    An image is named by its SeriesInstanceUID and read by the bundle's own DICOM reader; the label with the tag "final"
    lives in the archive, others in the cache. The cache remembers no more about a patient than what the volumes show.

    Args:
        archive: asked for everything.
        bundle_root: folder of the bundle.
        search_filter: which series are images, such as ``{"Modality": "MR"}``.
        cache_path: where series are kept; a folder under the user's home where None.
        list_seconds: how long a listing is believed.
        keep_days: series that nobody asked for in this time are removed from the cache at the next start.
    """

    def __init__(
        self,
        archive: Archive,
        bundle_root: Path,
        search_filter: Mapping[str, Any],
        cache_path: str | None = None,
        list_seconds: float = 10.0,
        keep_days: float = 30.0,
    ) -> None:
        self.archive = archive
        self.writer = SegWriter.from_bundle(bundle_root)
        self.list_seconds = list_seconds
        self._client = archive.client
        self._search_filter = dict(search_filter)
        self._convert_to_nifti = True
        self._listed: tuple[float, dict[str, Dataset]] = (-np.inf, {})
        self._labels = ArchivedLabels(archive, list_seconds)
        self._fetching = threading.RLock()
        folder = Path(cache_path or CACHE).expanduser() / md5_digest(archive.client.base_url)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # series with their headers will lie here
        _clean(folder, keep_days)
        FolderStore.__init__(self, str(folder), extensions=(f"*{VOLUME_SUFFIX}",))

    def name(self) -> str:
        """Address of the archive."""
        return str(self.archive.client.base_url)

    def status(self) -> dict[str, Any]:
        """Counts of images and labels; with the reason as ``error`` while the archive is down."""
        try:
            return dict(super().status())
        except RequestError as e:
            logger.warning("%s", e.detail)
            return {"total": 0, "completed": 0, "label_tags": {}, "error": e.detail}

    def list_images(self) -> list[str]:
        """UIDs of the series that the search filter finds."""
        return list(self._images())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images to which a SEG in the archive refers."""
        labelled = self._labels.newest()
        return [image for image in self._images() if image in labelled]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images without a SEG in the archive, in the archive's order."""
        labelled = self._labels.newest()
        return [image for image in self._images() if image not in labelled]

    def get_image_uri(self, image_id: str) -> str:
        """The series as ``.nii.gz``, fetched when it is first asked for or has got more slices since.

        What the cache has is served while the archive is down.

        Raises:
            RequestError: 404, no such series; 503, the archive does not answer; 507, no room.
            InputError: slices that do not make one regular volume.
        """
        path = Path(self._datastore.image_path()) / f"{check_uid(image_id)}{VOLUME_SUFFIX}"
        with self._fetching:
            self._forget_if_changed(image_id, path)
            if not path.is_file():
                self._convert(self._series_folder(image_id), path)
            if image_id not in self._datastore.objects:
                self._enter_image(image_id, path.name, VOLUME_SUFFIX, self._describe(image_id))
        return str(path.resolve())

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """UIDs and modality of the series, and the path of its volume once fetched."""
        return dict(super().get_image_info(image_id)) or self._describe(image_id)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Path of a label map ``.nii.gz``; "" where there is none.

        Args:
            label_id: the image; for the tag "final" also the series of a SEG.
            label_tag: "final" is looked up in the archive.
            image_id: of a SEG's image, found by itself where empty.
        """
        tag = check_name(label_tag, "label tag")
        if tag != FINAL:
            return str(super().get_label_uri(label_id, tag))
        check_uid(label_id)
        for image, label in self._labels.newest().items():
            if label_id in (image, label.series):
                return self._final_label(image, label)
        return ""

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any]) -> str:
        """Keep a label; one with the tag "final" goes to the archive first, under the patient's study.

        Args:
            image_id: SeriesInstanceUID of the image.
            label_filename: see ``FolderStore.save_label``.
            label_tag: "final" or another name.
            label_info: must name the values of a final label, see ``label_names.name_values``.

        Returns:
            The image's id.

        Raises:
            RequestError: 502, the archive did not keep it; 503, it does not answer; nothing was saved then.
            InputError: an empty label, another grid, or values without a name.
        """
        tag = check_name(label_tag, "label tag")
        image = self.get_image_uri(image_id)
        labels, affine = read_labels(Path(label_filename), Path(image))
        info = dict(label_info)
        if tag == FINAL:
            uid, names = self._send(image_id, labels, info)
            info.update(label_info=names, SeriesInstanceUID=uid)
        self._put_label(image_id, tag, labels, image, affine, info)
        return image_id

    def dicom_seg(self, image_id: str, label_filename: str | Path, label_info: Mapping[str, Any], path: Path) -> None:
        """Write a label map of an image as DICOM SEG without saving it; arguments as for ``save_label``."""
        labels, _ = read_labels(Path(label_filename), Path(self.get_image_uri(image_id)))
        self.writer.write(path, labels, label_info, self._series(image_id))

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Images with their final labels, fetched from the archive where another station made them.

        A label that cannot be read is left out with a warning.
        """
        labelled = self._labels.newest()
        for image in self._images():
            if image in labelled:
                try:
                    self._final_label(image, labelled[image])
                except InputError as e:
                    logger.warning("a label is left out: %s", e)
        for image in set(self._datastore.filter_by_tag(FINAL)) - set(labelled):
            logger.info("a label is no longer in the archive: forgotten here too")
            FolderStore.remove_label(self, image, FINAL)
        return list(super(DICOMWebDatastore, self).datalist(full_path))

    def add_image(self, image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> str:
        """Always refused: images reach an archive by DICOM."""
        raise RequestError(400, "images of an archive arrive there by DICOM: send the series to the archive")

    def remove_image(self, image_id: str) -> None:
        """Always refused: this server deletes nothing in an archive."""
        raise RequestError(400, "series are deleted in the archive, not here")

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label from the cache; one in the archive is refused."""
        if check_name(label_tag, "label tag") == FINAL:
            raise RequestError(400, "final labels are deleted in the archive, not here")
        super().remove_label(label_id, label_tag)

    def _images(self) -> dict[str, Dataset]:
        """The archive's series by UID."""
        read, found = self._listed
        if time.monotonic() - read > self.list_seconds:
            found = {str(item.SeriesInstanceUID): item for item in self.archive.search(self._search_filter)}
            if not found:
                logger.warning(
                    "no series in the archive matches %s (MONAI_LABEL_DICOMWEB_SEARCH_FILTER)", self._search_filter
                )
            self._listed = (time.monotonic(), found)
        return found

    def _forget_if_changed(self, image_id: str, path: Path) -> None:
        """Remove a series from the cache that was fetched before all of its slices had arrived in the archive."""
        folder = path.parent / image_id
        if not folder.is_dir():
            return
        os.utime(folder)  # it is in use: see ``_clean``
        listed: Dataset | None = None
        with contextlib.suppress(RequestError):
            listed = self._images().get(image_id)
        count = None if listed is None else listed.get("NumberOfSeriesRelatedInstances")
        if count is not None and int(count) != len(list(folder.iterdir())):
            logger.info("a series has changed in the archive: fetched again")
            path.unlink(missing_ok=True)
            shutil.rmtree(folder)

    def _describe(self, image_id: str) -> dict[str, Any]:
        """What viewers need to know of a series; nothing about the patient."""
        item = self._images().get(image_id) or self.archive.find(image_id)
        keys = ("SeriesInstanceUID", "StudyInstanceUID", "Modality")
        return {key: str(item[key].value) for key in keys if key in item}

    def _series_folder(self, image_id: str) -> Path:
        """The DICOM files of a series."""
        folder = Path(self._datastore.image_path()).resolve() / check_uid(image_id)
        with self._fetching:
            if not folder.is_dir():
                study = str(self.archive.find(image_id).StudyInstanceUID)
                self.archive.fetch(study, image_id, folder)
        return folder

    def _series(self, image_id: str) -> Series:
        return find_series(self._series_folder(image_id), "the series")

    def _convert(self, folder: Path, path: Path) -> None:
        """Write a series as one volume."""
        volume = LoadVolume()(folder)
        values = volume[0].numpy()
        whole = (values == np.round(values)).all() and np.abs(values).max(initial=0) <= np.iinfo(np.int16).max
        try:
            with tempfile.TemporaryDirectory(prefix=".unfinished_", dir=path.parent) as scratch:
                affine = np.asarray(volume.meta[MetaKeys.ORIGINAL_AFFINE], dtype=float)
                write_nifti(Path(scratch) / path.name, values.astype(np.int16) if whole else values, folder, affine)
                (Path(scratch) / path.name).replace(path)
        except OSError as e:
            raise RequestError(507, f"cannot keep the volume in the cache ({e.strerror}): make room on the disk") from e

    def _send(self, image_id: str, labels: np.ndarray, info: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        """Store a label map in the archive; returns the UID of its series and the names of its values."""
        with tempfile.TemporaryDirectory(prefix="medal_s_") as scratch:
            path = Path(scratch) / "label.dcm"
            names = self.writer.write(path, labels, info, self._series(image_id))
            seg = pydicom.dcmread(path)
        self.archive.store(seg)
        self._labels.forget_listing()
        logger.info("stored a label of %d segments in the archive", len(names))
        return str(seg.SeriesInstanceUID), names

    def _final_label(self, image_id: str, label: ArchivedLabel) -> str:
        """Path of the newest label of an image, fetched where the cache has another or none."""
        image = self.get_image_uri(image_id)
        known = self._datastore.label(image_id, FINAL)
        path = Path(self._datastore.label_path(FINAL)) / f"{image_id}{VOLUME_SUFFIX}"
        if known is None or known.info.get("SeriesInstanceUID") != label.series or not path.is_file():
            with self._fetching, tempfile.TemporaryDirectory(prefix="medal_s_") as scratch:
                self.archive.fetch(label.study, label.series, Path(scratch) / "seg")
                file = next((Path(scratch) / "seg").iterdir())
                labels, names = read_dicom_seg(file, self._series(image_id))
                affine = np.asarray(LoadVolume()(image).meta[MetaKeys.ORIGINAL_AFFINE], dtype=float)
            info = {"label_info": names, "SeriesInstanceUID": label.series}
            self._put_label(image_id, FINAL, labels, image, affine, info)
        return str(path.resolve())


def _clean(folder: Path, keep_days: float) -> None:
    """Remove what a killed process left unfinished, and series that were not used for a long time.

    Training and batch processes come here too, while the server is writing: what is young may be in use.
    """
    for leftover in folder.rglob(".unfinished_*"):
        with contextlib.suppress(FileNotFoundError):
            if leftover.stat().st_mtime < time.time() - UNFINISHED_SECONDS:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    limit = time.time() - keep_days * 86400
    for volume in folder.glob(f"*{VOLUME_SUFFIX}"):
        series = volume.with_name(volume.name[: -len(VOLUME_SUFFIX)])
        last_used = (series if series.is_dir() else volume).stat().st_mtime
        if last_used < limit:
            volume.unlink()
            shutil.rmtree(series, ignore_errors=True)
