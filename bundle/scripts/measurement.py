"""Measure the structures of a label map and the single objects among them: size, place, probability, diameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cc3d
import nibabel as nib
import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

MM3_PER_ML = 1000.0
# Voxels that are counted at a time: bincount widens to 64 bits, the whole volume at once would take gigabytes.
SLAB_VOXELS = 2**22
# Fewer points than this are compared directly, more through the corners of their convex hull.
DIRECT_POINTS = 600
DISTANCE_ROWS = 1024
# From a voxel's centre to the centres of its six faces, in voxels.
FACES = np.concatenate([np.eye(3), -np.eye(3)]) / 2


@dataclass(frozen=True)
class Measurement:
    """Size and place of one structure; every value None where it has no voxels."""

    voxels: int | None = None
    volume_ml: float | None = None
    mean_probability: float | None = None
    disagreement: float | None = None
    centroid_mm: tuple[float, ...] | None = None
    bounding_box: dict[str, list[int]] | None = None
    touches_border: bool | None = None

    def as_entry(self) -> dict[str, Any]:
        """Plain values in one dictionary, ready for JSON."""
        return asdict(self) | {"centroid_mm": None if self.centroid_mm is None else list(self.centroid_mm)}

    def crop(self) -> tuple[slice, ...]:
        """The part of the volume within the bounding box, empty where nothing was found."""
        box = self.bounding_box or {"first": [0] * 3, "last": [-1] * 3}
        return tuple(slice(a, b + 1) for a, b in zip(box["first"], box["last"], strict=True))


@dataclass(frozen=True)
class InstanceMeasurement:
    """One object of a lesion target."""

    id: int
    """Its value in the instance map, from 1."""
    name: str
    """The target's name."""
    label: int
    """The target's value in the label map."""
    longest_diameter_mm: float
    measurement: Measurement

    def as_row(self) -> dict[str, Any]:
        """Plain values in one dictionary, ready for JSON."""
        row = {"id": self.id, "name": self.name, "label": self.label, "longest_diameter_mm": self.longest_diameter_mm}
        return row | {key: value for key, value in self.measurement.as_entry().items() if key != "disagreement"}


def slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Slices along the first of three axes that hold about ``SLAB_VOXELS`` voxels each."""
    step = max(1, SLAB_VOXELS // max(1, int(np.prod(shape[1:]))))
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def count_labels(labels: np.ndarray, size: int) -> np.ndarray:
    """Voxels of each label: ``[H, W, D]`` integers in 0..size-1 to ``[size]`` int64."""
    counts = np.zeros(size, dtype=np.int64)
    for slab in slabs(labels.shape):
        counts += np.bincount(labels[slab].ravel(), minlength=size)
    return counts


def sum_by_label(labels: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Sum of a map over the voxels of each label.

    Args:
        labels: ``[H, W, D]`` integers in 0..size-1.
        values: ``[H, W, D]`` numbers.
        size: number of labels, background (which is left at 0) included.

    Returns:
        ``[size]`` float64.
    """
    sums = np.zeros(size)
    for slab in slabs(labels.shape):
        part = labels[slab].ravel()
        inside = np.flatnonzero(part)
        sums += np.bincount(part[inside], weights=values[slab].ravel()[inside].astype(np.float64), minlength=size)
    return sums


def measure(
    labels: np.ndarray,
    probability: np.ndarray,
    affine: np.ndarray,
    ids: Sequence[int],
    disagreement: np.ndarray | None = None,
) -> dict[int, Measurement]:
    """Measure structures in one pass over the volume.

    Args:
        labels: label map ``[H, W, D]``, integers from 0.
        probability: probability of each voxel's label, ``[H, W, D]``.
        affine: 4x4, voxel to RAS world in mm.
        ids: label values to measure.
        disagreement: difference of two predictions of each voxel's label, ``[H, W, D]``, or None if not measured.

    Returns:
        id -> measurement.
    """
    counts = count_labels(labels, int(labels.max(initial=0)) + 1)
    present = [label for label in ids if label < len(counts) and counts[label]]
    # Numbered without gaps: cc3d wants labels below the number of voxels, however small the volume.
    lookup = np.zeros(len(counts), dtype=np.uint16 if len(present) <= np.iinfo(np.uint16).max else np.uint32)
    lookup[present] = np.arange(1, len(present) + 1)
    compact = np.ascontiguousarray(lookup[labels])
    size = len(present) + 1
    sums = sum_by_label(compact, probability, size)
    differences = None if disagreement is None else sum_by_label(compact, disagreement, size)
    statistics = cc3d.statistics(compact, no_slice_conversion=True)
    ml_per_voxel = abs(np.linalg.det(affine[:3, :3])) / MM3_PER_ML
    last = np.array(labels.shape) - 1
    found = {label: Measurement() for label in ids}
    for number, label in enumerate(present, start=1):
        count, box = int(counts[label]), np.asarray(statistics["bounding_boxes"][number], dtype=int)
        low, high = box[0::2], box[1::2]
        centre = nib.affines.apply_affine(affine, statistics["centroids"][number])
        found[label] = Measurement(
            voxels=count,
            volume_ml=round(count * ml_per_voxel, 4),
            mean_probability=round(float(sums[number] / count), 4),
            disagreement=None if differences is None else round(float(differences[number] / count), 4),
            centroid_mm=tuple(round(float(value), 2) for value in centre),
            bounding_box={"first": low.tolist(), "last": high.tolist()},
            touches_border=bool((low == 0).any() or (high == last).any()),
        )
    return found


def measure_instances(
    instances: np.ndarray, owners: Sequence[int], names: Mapping[int, str], probability: np.ndarray, affine: np.ndarray
) -> list[InstanceMeasurement]:
    """Measure every object of an instance map.

    Args:
        instances: ``[H, W, D]``, 1..K with no gap, 0 elsewhere.
        owners: label value of the target that each of the K objects belongs to.
        names: label value -> name of the target.
        probability: probability of each voxel's label, ``[H, W, D]``.
        affine: 4x4, voxel to RAS world in mm.

    Returns:
        K measurements in the order of their ids.
    """
    found = measure(instances, probability, affine, range(1, len(owners) + 1))
    return [
        InstanceMeasurement(
            id=number,
            name=names[label],
            label=label,
            longest_diameter_mm=round(longest_diameter(instances[found[number].crop()] == number, affine), 2),
            measurement=found[number],
        )
        for number, label in enumerate(owners, start=1)
    ]


def longest_diameter(mask: np.ndarray, affine: np.ndarray) -> float:
    """Longest distance between two points of an object's surface.

    The surface's points are the centres of its voxels' outer faces: those are the vertices of its marching-cubes mesh,
    so that this is the "maximum 3D diameter" of radiomics (IBSI, PyRadiomics). It is too long by one voxel at most, and
    never 0: a single voxel measures its longest side.

    Args:
        mask: ``[h, w, d]`` bool, not empty; a crop does.
        affine: 4x4 (or its 3x3 part), voxel to world in mm; may be oblique or sheared.

    Returns:
        Millimetres.
    """
    points = (_corners(mask)[:, None] + FACES).reshape(-1, 3)
    # The hull is taken on the voxel grid, where its corners are those of the hull in space: the map is affine. It is
    # never flat, since the faces of even a single voxel span all three axes.
    if len(points) > DIRECT_POINTS:
        points = points[ConvexHull(points).vertices]
    world = points @ np.asarray(affine, dtype=float)[:3, :3].T
    rows = range(0, len(world), DISTANCE_ROWS)  # in blocks: a large object's hull has thousands of corners
    return float(np.sqrt(max(cdist(world[i : i + DISTANCE_ROWS], world[i:], "sqeuclidean").max() for i in rows)))


def _corners(mask: np.ndarray) -> np.ndarray:
    """Voxels ``[n, 3]`` that lie at an end along each of the axes; no other can be a corner of the convex hull."""
    corner = mask.copy()
    for axis in range(3):
        along, ends = np.moveaxis(mask, axis, 0), np.moveaxis(corner, axis, 0)
        ends[1:-1] &= ~(along[:-2] & along[2:])
    return np.argwhere(corner)
