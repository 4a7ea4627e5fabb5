"""The region of interest: the box around the coarse stage's result that the fine stage works on.

Rule of the published program (section 2.6 of the paper, arXiv 2511.13001, names the growth of 1.1 to 1.5): the
result's box grows about its centre by the targets' margin, and to no less than one fine patch at the spacing that the
fine stage would choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.utils import convert_to_tensor

from scripts.text.terminology import Terminology
from scripts.transforms.resampling_plan import (
    SpacingRules,
    as_shape,
    as_triple,
    checked,
    checked_shape,
    exceeds_volume,
    limit_volume,
)

FINE_STAGE = 2

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Region:
    """A box of voxels, axes in the order of the volume (H, W, D)."""

    start: tuple[int, int, int]
    """First voxel."""
    stop: tuple[int, int, int]
    """One past the last voxel, as in a slice."""
    half_extent: tuple[float, float, float]
    """Half the region's side in voxels, before truncation and clipping."""
    spacing: tuple[float, float, float]
    """Spacing by which the least size was judged, mm."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels per axis."""
        h, w, d = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return h, w, d

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """For indexing the last three axes: ``image[(..., *region.slices)]``."""
        h, w, d = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return h, w, d

    @property
    def box(self) -> Box:
        """First and last voxel per axis, both inclusive."""
        h, w, d = ((a, b - 1) for a, b in zip(self.start, self.stop, strict=True))
        return h, w, d


def foreground_box(labels: torch.Tensor) -> Box | None:
    """First and last non-zero voxel per axis, both inclusive; None where the volume is empty.

    Args:
        labels: ``[..., H, W, D]``, any dtype; leading axes are taken together.
    """
    mask = convert_to_tensor(labels, track_meta=False) != 0
    box = []
    for axis in (-3, -2, -1):
        filled = mask.movedim(axis, 0).flatten(1).any(dim=1).nonzero()
        if len(filled) == 0:
            return None
        box.append((int(filled[0]), int(filled[-1])))
    return box[0], box[1], box[2]


def region_of_interest(
    shape: Sequence[int],
    spacing: Sequence[float],
    box: Sequence[Sequence[int]],
    targets: Sequence[str],
    patch_size: Sequence[int] = (192, 192, 192),
    target_spacing: Sequence[float] = (1.0, 1.0, 1.0),
    terminology: Terminology | None = None,
    dynamic: bool = True,
) -> Region:
    """The region around a box.

    Centre = mean of first and last voxel; half extent = (last - first + 1) * margin / 2, raised to at least
    patch / 2 * target spacing / r - 1, where r is the spacing by the fine stage's rules with the target spacing held
    fixed. The margin is the largest among the targets'. Bounds are centre -+ half extent, truncated to whole numbers
    and clipped to the volume; the published program takes both as inclusive. The crop keeps the working spacing of
    the whole volume, not r.

    Args:
        shape: (H, W, D) voxels of the whole volume.
        spacing: mm, as ``working_spacing`` returns it.
        box: (first, last) voxel of the coarse result per axis, both inclusive; see :func:`foreground_box`.
        targets: policy keys such as "CT_Liver".
        patch_size: window of the fine stage, voxels.
        target_spacing: spacing of the fine stage, mm.
        terminology: has the policies; the bundle's own when None.
        dynamic: False where the fine stage works at its fixed target spacing: then r is ``spacing`` itself.

    Raises:
        ValueError: a box outside the volume, or what ``plan_resampling`` refuses.
    """
    size, patch = checked_shape(shape), checked_shape(patch_size, "patch size")
    target, r = checked("target spacing", target_spacing), checked("spacing", spacing)
    if len(box) != 3 or any(not 0 <= first <= last < n for (first, last), n in zip(box, size, strict=True)):
        raise ValueError(
            f"region: box {box} arrived for a volume of {size}; give (first, last) per axis, inside the volume"
        )
    rules = SpacingRules(targets, FINE_STAGE, terminology, region=True)
    if dynamic:
        r, _ = rules.apply(size, r, patch, target)
        if not rules.single and exceeds_volume(size, r, patch):
            r = limit_volume(size, r, patch, target)
    margin = max(policy.roi_margin for policy in rules.policies)
    least = [c / 2 * t / step - 1 for c, t, step in zip(patch, target, r, strict=True)]
    start, stop, half_extent = _around(box, size, margin, least)
    return Region(as_shape(start), as_shape(stop), as_triple(half_extent), as_triple(r))


def grown_box(
    shape: Sequence[int], box: Sequence[Sequence[int]], targets: Sequence[str], terminology: Terminology | None = None
) -> tuple[slice, slice, slice]:
    """A box grown by the targets' margin alone, without a least size; arguments as in :func:`region_of_interest`."""
    margin = max(policy.roi_margin for policy in SpacingRules(targets, FINE_STAGE, terminology).policies)
    start, stop, _ = _around(box, checked_shape(shape), margin, (0, 0, 0))
    h, w, d = (slice(a, b) for a, b in zip(start, stop, strict=True))
    return h, w, d


def _around(
    box: Sequence[Sequence[int]], size: Sequence[int], margin: float, least: Sequence[float]
) -> tuple[list[int], list[int], list[float]]:
    """Start, stop and half extent about a box's centre: half of the box's side, grown, and no less than ``least``."""
    start, stop, half_extent = [], [], []
    for (first, last), n, smallest in zip(box, size, least, strict=True):
        half = max((last - first + 1) * margin / 2, smallest)
        centre = (first + last) / 2
        start.append(max(int(centre - half), 0))
        stop.append(min(int(centre + half), n - 1) + 1)
        half_extent.append(half)
    return start, stop, half_extent
