"""Measure the structures of a label map and say what was understood: the content of the JSON report."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import nibabel as nib
import numpy as np
import torch
from monai.transforms import Transform
from monai.utils import ImageMetaKey, MetaKeys

from scripts.request import Request, RequestedTarget, decode_request

MM3_PER_ML = 1000.0
CONVENTIONS = {
    "world": "RAS millimetres: x to the patient's right, y to the front, z upwards grow positive",
    "bounding_box": "first and last voxel index on each axis of the image as stored, both inclusive",
    "mean_probability": "mean probability of the structure's voxels on the image's grid",
    "null": "the structure was not found",
}


@dataclass(frozen=True)
class Measurement:
    """Size and place of one structure; every value None where it has no voxels."""

    voxels: int | None = None
    volume_ml: float | None = None
    mean_probability: float | None = None
    centroid_mm: tuple[float, ...] | None = None
    bounding_box: dict[str, list[int]] | None = None
    touches_border: bool | None = None


def measure(
    labels: np.ndarray, probability: np.ndarray, affine: np.ndarray, ids: Sequence[int]
) -> dict[int, Measurement]:
    """Measure structures in one pass over the volume.

    Args:
        labels: label map ``[H, W, D]``, integers.
        probability: probability of each voxel's label, ``[H, W, D]``.
        affine: 4x4, voxel to RAS world in mm.
        ids: label values to measure.

    Returns:
        id -> measurement.
    """
    # One more label than any asked for, so that the statistics have an entry for each, found or not.
    statistics = cc3d.statistics(np.ascontiguousarray(labels.astype(np.uint16, copy=False)), no_slice_conversion=True)
    counts, boxes, centres = (statistics[key] for key in ("voxel_counts", "bounding_boxes", "centroids"))
    sums = np.zeros(max(len(counts), max(ids) + 1))
    for plane, weights in zip(labels, probability, strict=True):  # plane by plane: bincount widens to float64
        sums += np.bincount(plane.ravel(), weights=weights.ravel().astype(np.float64), minlength=len(sums))
    ml_per_voxel = abs(np.linalg.det(affine[:3, :3])) / MM3_PER_ML
    last = np.array(labels.shape) - 1
    found: dict[int, Measurement] = {}
    for label in ids:
        count = int(counts[label]) if label < len(counts) else 0
        if not count:
            found[label] = Measurement()
            continue
        low, high = np.asarray(boxes[label][0::2], dtype=int), np.asarray(boxes[label][1::2], dtype=int)
        centre = nib.affines.apply_affine(affine, centres[label])
        found[label] = Measurement(
            voxels=count,
            volume_ml=round(count * ml_per_voxel, 4),
            mean_probability=round(float(sums[label] / count), 4),
            centroid_mm=tuple(round(float(value), 2) for value in centre),
            bounding_box={"first": low.tolist(), "last": high.tolist()},
            touches_border=bool((low == 0).any() or (high == last).any()),
        )
    return found


def build_report(
    request: Request, found: Mapping[int, Measurement], image: Mapping[str, Any], bundle: Mapping[str, Any]
) -> dict[str, Any]:
    """Assemble the report: no times, no paths, no dates, so that the same input gives the same bytes.

    Args:
        request: what was asked.
        found: measurements by label value.
        image: facts about the image, see ``describe_image``.
        bundle: name and version of the program.

    Returns:
        Plain dictionaries, lists, strings and numbers.
    """
    return {
        "bundle": dict(bundle),
        "image": dict(image),
        "request": {"text": list(request.text), "modality": request.modality},
        "structures": [_entry(target, found[target.id]) for target in request.targets],
        "conventions": dict(CONVENTIONS),
    }


def describe_image(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Name and geometry of an image from its metadata as loaded; of the path only the file's name."""
    affine = np.asarray(meta[MetaKeys.ORIGINAL_AFFINE], dtype=float)
    facts: dict[str, Any] = {
        "name": Path(str(meta[ImageMetaKey.FILENAME_OR_OBJ])).name,
        "shape": [int(side) for side in meta[MetaKeys.SPATIAL_SHAPE][:3]],
        "spacing_mm": [round(float(value), 6) for value in nib.affines.voxel_sizes(affine)],
        "orientation": "".join(nib.aff2axcodes(affine)),
        "affine": [[round(float(value), 6) for value in row] for row in affine],
    }
    if meta.get("filled_voxels"):
        facts["filled_voxels"] = int(meta["filled_voxels"])
    return facts


class ReportStructuresd(Transform):
    """Add the report to a postprocessed case.

    Args:
        bundle: name and version of the program.
        label_key: label map ``[1, H, W, D]``.
        probability_key: best probability ``[1, H, W, D]``.
        image_key: preprocessed image with the metadata of its file.
        request_key: the request.
        report_key: where the report goes.
    """

    def __init__(
        self,
        bundle: Mapping[str, Any],
        label_key: str = "label_map",
        probability_key: str = "probability",
        image_key: str = "image",
        request_key: str = "request",
        report_key: str = "report",
    ) -> None:
        self.bundle = dict(bundle)
        self.label_key = label_key
        self.probability_key = probability_key
        self.image_key = image_key
        self.request_key = request_key
        self.report_key = report_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with the report added."""
        d = dict(data)
        request = decode_request(d[self.request_key])
        meta = d[self.image_key].meta
        found = measure(
            _volume(d[self.label_key]),
            _volume(d[self.probability_key]),
            np.asarray(meta[MetaKeys.ORIGINAL_AFFINE], dtype=float),
            [target.id for target in request.targets],
        )
        d[self.report_key] = build_report(request, found, describe_image(meta), self.bundle)
        return d


def format_table(report: Mapping[str, Any]) -> str:
    """The structures of a report as lines of text: name, volume in ml, mean probability."""
    rows = report["structures"]
    width = max([len("structure"), *(len(row["name"]) for row in rows)])
    lines = [f"{'structure':<{width}}  {'volume ml':>10}  {'mean prob.':>10}"]
    for row in rows:
        if row["voxels"] is None:
            lines.append(f"{row['name']:<{width}}  {'not found':>10}  {'-':>10}")
        else:
            border = "  touches the border" if row["touches_border"] else ""
            lines.append(f"{row['name']:<{width}}  {row['volume_ml']:>10.2f}  {row['mean_probability']:>10.2f}{border}")
    return "\n".join(lines)


def _entry(target: RequestedTarget, found: Measurement) -> dict[str, Any]:
    return {
        "name": target.name,
        "label": target.id,
        "modality": target.modality,
        "kind": target.kind,
        "understood_from": target.matched,
        "how": target.how,
        "asked_with": target.sentence,
        "score": target.score,
        "voxels": found.voxels,
        "volume_ml": found.volume_ml,
        "mean_probability": found.mean_probability,
        "centroid_mm": None if found.centroid_mm is None else list(found.centroid_mm),
        "bounding_box": found.bounding_box,
        "touches_border": found.touches_border,
        "color": list(target.color),
    }


def _volume(tensor: torch.Tensor) -> np.ndarray:
    return torch.as_tensor(tensor).squeeze(0).cpu().numpy()
