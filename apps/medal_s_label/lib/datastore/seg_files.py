"""Between label maps and the DICOM SEG objects of an archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom

from lib.datastore.label_names import name_values, segments_of
from scripts.data.dicom_seg import write_dicom_seg
from scripts.data.dicom_series import Series
from scripts.errors import InputError
from scripts.metadata import program, read_metadata
from scripts.text.terminology import Terminology


@dataclass(frozen=True)
class SegWriter:
    """Writes label maps with the codes of a terminology, in the name of a program ("name", "version")."""

    terminology: Terminology
    program: Mapping[str, str]

    @classmethod
    def from_bundle(cls, root: Path) -> SegWriter:
        """As a bundle's ``configs`` have them.

        Raises:
            InputError: no such bundle.
        """
        terminology = Terminology.load(root / "configs" / "terminology.json")
        return cls(terminology, program(read_metadata(root)))

    def write(self, path: Path, labels: np.ndarray, info: Mapping[str, Any], series: Series) -> list[dict[str, Any]]:
        """Write the structures that a label map holds.

        Args:
            path: where to.
            labels: ``[columns, rows, slices]``, on the grid of the series.
            info: ``params`` of the request, see ``name_values``.
            series: the source.

        Returns:
            ``[{"name", "idx"}]`` of the segments, ``idx`` being the value in the label map.

        Raises:
            InputError: no structure, a value without a name, or a series that a SEG cannot refer to.
        """
        values = [int(value) for value in np.unique(labels) if value]
        if not values:
            raise InputError("the label map is empty: there is nothing to save")
        segments = segments_of(name_values(values, info), self.terminology, series.modality)
        write_dicom_seg(path, labels, segments, [item.path for item in series.slices], self.program, reviewed=True)
        return [{"name": segment.name, "idx": segment.label} for segment in segments]


def read_dicom_seg(path: Path, series: Series) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A DICOM SEG, of whatever maker, as a label map on the grid of the series that it refers to.

    Where segments overlap, the later one has the voxel.

    Args:
        path: the SEG.
        series: its source.

    Returns:
        ``[columns, rows, slices]``, whose values are the segment numbers, and ``[{"name", "idx"}]`` of its segments.

    Raises:
        InputError: it does not say to which slices its frames belong.
    """
    seg = hd.seg.segread(path)
    uids = [str(pydicom.dcmread(s.path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID) for s in series.slices]
    try:
        frames = seg.get_pixels_by_source_instance(
            uids, combine_segments=True, skip_overlap_checks=True, assert_missing_frames_are_empty=True
        )
    except (RuntimeError, KeyError, ValueError, AttributeError) as e:
        raise InputError("a label in the archive does not belong slice by slice to its series: it is left out") from e
    names = _names(seg.SegmentSequence)
    labels = np.ascontiguousarray(np.asarray(frames).transpose(2, 1, 0))
    return labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16), names


def _names(sequence: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"name": str(item.SegmentLabel), "idx": int(item.SegmentNumber)} for item in sequence]
