"""The training rule of dynamic resampling: the smallest target of a case decides how large the image is seen."""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import numpy as np

from scripts.transforms.resampling_plan import (
    LONGEST_AXIS,
    ResamplingPlan,
    checked,
    checked_shape,
    make_plan,
    separate_axis,
)


def smallest_target_extent(
    labels: np.ndarray, instances: bool = False, min_voxels: int = 10
) -> tuple[int, int, int] | None:
    """Extent in voxels, per axis, of the smallest target in a label map: that of its bounding box.

    Args:
        labels: ``[H, W, D]`` whole numbers, 0 is background.
        instances: True for lesions: the smallest 6-connected component of any class; False: the smallest class.
        min_voxels: what is smaller counts as noise, unless there is nothing else.

    Returns:
        Three extents, or None where there is no foreground.

    Raises:
        ValueError: not three axes.
    """
    labels = np.asarray(labels)
    if labels.ndim != 3 or labels.min(initial=0) < 0:
        raise ValueError(
            f"training spacing: labels of shape {labels.shape}, least {labels.min(initial=0)}, arrived; "
            "give one label map [H, W, D] of numbers from 0"
        )
    if instances:
        parts = cc3d.connected_components(labels, connectivity=6)
    else:
        parts = np.searchsorted(np.union1d([0], labels), labels).astype(np.uint32)
    found = cc3d.statistics(parts, no_slice_conversion=True)
    counts = np.asarray(found["voxel_counts"], dtype=float)[1:]
    if not len(counts):
        return None
    large = counts >= min_voxels
    smallest = int(np.where(large | ~large.any(), counts, np.inf).argmin())
    box = found["bounding_boxes"][1 + smallest]
    h, w, d = (int(box[2 * axis + 1]) - int(box[2 * axis]) + 1 for axis in range(3))
    return h, w, d


def plan_training_spacing(
    shape: Sequence[int],
    spacing: Sequence[float],
    patch_size: Sequence[int],
    target_spacing: Sequence[float],
    target_extent: Sequence[int] | None,
    fill: float = 0.5,
    longest: float = LONGEST_AXIS,
) -> ResamplingPlan:
    """The grid on which one training case is stored.

    What the paper says (section 2.5): the voxel spacing is adjusted "based on the physical size of the smallest
    foreground connected component or the smallest class-specific target"; the target should neither exceed the patch
    nor be lost in it; one zoom per case, from its smallest target; and, with spacing s, target spacing t, patch p,
    image dimension d and a scale factor alpha,

        s' = max(t, p alpha t / d) where s > t, else min(t, p alpha t / d),

    kept "within practical bounds". It gives neither alpha for training nor the bounds, and the formula holds the
    image's size, not the target's. Its training program is not among what our golden values were made with.

    Our reading: the target enters through alpha. An image at spacing s' has alpha * p voxels, so a target of extent e
    has alpha * p * e / d of them; it shall fill ``fill`` of the patch: alpha = fill * d / e. Bounds: alpha from 1 (the
    whole image in one patch, for targets nearly as large as the image) to ``longest`` patches (for small targets; the
    number of the paper's memory guard at inference), and s' never above s where s > t (no voxels finer than the target
    spacing). So a small target is seen at up to the image's own or the target resolution, a large one coarser.

    Args:
        shape: (H, W, D) voxels.
        spacing: mm, as ``working_spacing`` returns it.
        patch_size: window of the network, voxels.
        target_spacing: spacing of the network, mm.
        target_extent: e in voxels per axis, see :func:`smallest_target_extent`; None (nothing in the image) stands for
            a small target.
        fill: fraction of the patch's side that the smallest target should fill.
        longest: most patches along an axis.

    Returns:
        The plan; ``iterations`` is 0.

    Raises:
        ValueError: arguments of wrong length or sign, or a target larger than the image.
    """
    size, patch = checked_shape(shape), checked_shape(patch_size, "patch size")
    extent = (1, 1, 1) if target_extent is None else checked_shape(target_extent, "target extent")
    if any(e > d for e, d in zip(extent, size, strict=True)):
        raise ValueError(f"training spacing: a target of {extent} voxels arrived for an image of {size}")
    if not 0 < fill <= 1 or longest < 1:
        raise ValueError(f"training spacing: fill {fill}, longest {longest} arrived; give 0 < fill <= 1, longest >= 1")
    target = checked("target spacing", target_spacing)
    adjusted = []
    for d, s, p, t, e in zip(size, checked("spacing", spacing), patch, target, extent, strict=True):
        alpha = min(max(fill * d / e, 1.0), longest)
        k = p * alpha * t / d
        adjusted.append(min(s, max(t, k)) if s > t else min(t, k))
    return make_plan(size, adjusted, target, patch, separate_axis(adjusted, target), False, 0)
