"""Which DICOM SEG in an archive is the newest label of each series."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from pydicom.dataset import Dataset

from lib.datastore.archive import Archive

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArchivedLabel:
    """A DICOM SEG in an archive."""

    study: str
    series: str
    image: str
    """Series that it refers to; "" where it names none."""
    made: str
    """Date and time of its content, as text that sorts."""


class ArchivedLabels:
    """The labels of an archive, asked for at most once in a while.

    What one SEG says about itself never changes, so it is read once only.

    Args:
        archive: where they are.
        list_seconds: how long a listing is believed.
    """

    def __init__(self, archive: Archive, list_seconds: float) -> None:
        self.archive = archive
        self.list_seconds = list_seconds
        self._read: dict[str, ArchivedLabel] = {}
        self._listed: float | None = None
        self._newest: dict[str, ArchivedLabel] = {}
        self._one_at_a_time = threading.Lock()

    def newest(self) -> dict[str, ArchivedLabel]:
        """UID of an image -> its newest label.

        Raises:
            RequestError: 503, the archive does not answer.
        """
        with self._one_at_a_time:
            if self._listed is None or time.monotonic() - self._listed > self.list_seconds:
                self._newest = self._find()
                self._listed = time.monotonic()
            return dict(self._newest)

    def forget_listing(self) -> None:
        """Ask the archive again next time."""
        self._listed = None

    def _find(self) -> dict[str, ArchivedLabel]:
        found: dict[str, ArchivedLabel] = {}
        for item in self.archive.search({"Modality": "SEG"}):
            label = self._describe(item)
            if label.image and (label.image not in found or label.made >= found[label.image].made):
                found[label.image] = label
        return found

    def _describe(self, item: Dataset) -> ArchivedLabel:
        series, study = str(item.SeriesInstanceUID), str(item.StudyInstanceUID)
        if series not in self._read:
            meta = self.archive.metadata(study, series)
            refers = meta.get("ReferencedSeriesSequence") or []
            if not refers:
                logger.warning("a segmentation in the archive names no series: it is left out")
            image = str(refers[0].SeriesInstanceUID) if refers else ""
            made = f"{meta.get('ContentDate') or ''} {meta.get('ContentTime') or ''}"
            self._read[series] = ArchivedLabel(study, series, image, made)
        return self._read[series]
