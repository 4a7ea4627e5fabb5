"""Plan the grid on which a volume is segmented: the rules of dynamic resampling, axis by axis.

The rules come from the published inference program, of which section 2.5 of the paper (arXiv 2511.13001) prints one
formula: the last step here, :func:`limit_volume`. Their numbers that depend on the class asked for are read from the
terminology's policy table. Per axis: spacing ``s`` in mm, ``n`` voxels, patch ``c``, target spacing ``t`` in mm. Both
``s`` and ``t`` move; their ratio is the zoom, so an axis gets ``round(s / t * n)`` voxels. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from scripts.text.concepts import Policy
from scripts.text.terminology import Terminology

LENGTH_LIMITS = (1000, 1000, 700)
"""Longest axis, in voxels and in mm, that is worked at fine spacing (H, W, D)."""
ANISOTROPY = 3.0
"""Ratio of largest to smallest spacing above which the coarse axis is resampled apart."""
LEAST_SPACING = 0.1
"""A smaller stored spacing (mm) is not believed and becomes 1.0."""
ZOOM_STEP, LARGEST_ZOOM = 1.25, 50.0
VOLUME_LIMIT, LONGEST_AXIS = 1.8, 1.9
"""Memory guard: a volume above 1.8^3 patches has its axes cut to 1.9 patches."""

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ResamplingPlan:
    """How one volume is resampled; all triples in the order of its axes, (H, W, D)."""

    native_shape: Shape
    """Voxels before resampling."""
    spacing: Triple
    """Spacing after the rules, mm; not the true voxel size, see :meth:`voxel_size`."""
    target_spacing: Triple
    """Target spacing after the rules, mm."""
    shape: Shape
    """Voxels after resampling."""
    padded_shape: Shape
    """``shape``, zero-padded at the end to at least one patch."""
    separate_axis: int | None
    """The coarse axis, resampled by itself with nearest sampling; None: all axes together."""
    needs_downsampling: bool
    """Whether the volume exceeded the memory guard's limit."""
    iterations: int
    """Extra self-refinement passes; used for instance (lesion) targets only."""

    def voxel_size(self, voxel_size: Sequence[float]) -> Triple:
        """Physical voxel size after resampling, mm, for an image of physical ``voxel_size``.

        The extent of the volume stays: old size * old voxels / new voxels. This is what the affine must say; the
        plan's own spacings are working numbers.
        """
        return as_triple(v * n / m for v, n, m in zip(voxel_size, self.native_shape, self.shape, strict=True))


@lru_cache(maxsize=1)
def default_terminology() -> Terminology:
    """The bundle's own terminology, read once."""
    return Terminology.load()


def working_spacing(file_spacing: Sequence[float], shape: Sequence[int], swap: bool = True) -> Triple:
    """First clean-up of a stored spacing, as the published program does it.

    Values below 0.1 mm become 1.0. If the axis of largest spacing is not the axis with the fewest slices, and that
    spacing exceeds 0.5 mm, the two values change places: challenge files have spacings in the wrong order. Ties go to
    the first axis in the order D, H, W.

    Args:
        file_spacing: three numbers, mm, in the order of ``shape``.
        shape: (H, W, D) voxels.
        swap: False where the spacing comes from a trusted header (NIfTI, DICOM) and must not change places.

    Returns:
        Three numbers, mm, rounded to float32.

    Raises:
        ValueError: not three positive finite numbers each.
    """
    size = checked_shape(shape)
    spacing = [_float32(s) if s >= LEAST_SPACING else 1.0 for s in checked("spacing", file_spacing)]
    first_d = (2, 0, 1)
    coarse = max(first_d, key=lambda axis: spacing[axis])
    fewest = min(first_d, key=lambda axis: size[axis])
    if swap and coarse != fewest and spacing[coarse] > 0.5:
        spacing[coarse], spacing[fewest] = spacing[fewest], spacing[coarse]
    return as_triple(spacing)


def plan_resampling(
    shape: Sequence[int],
    spacing: Sequence[float],
    patch_size: Sequence[int],
    target_spacing: Sequence[float],
    targets: Sequence[str],
    stage: int,
    terminology: Terminology | None = None,
) -> ResamplingPlan:
    """The grid on which a volume is segmented. The order of ``targets`` and repeats among them do not matter.

    Args:
        shape: (H, W, D) voxels.
        spacing: mm, as :func:`working_spacing` returns it.
        patch_size: window of the network, voxels.
        target_spacing: spacing of the network, mm.
        targets: policy keys such as "CT_Liver", at least one; unknown keys get the default policy.
        stage: 1 (coarse) or 2 (fine).
        terminology: has the policies; the bundle's own when None.

    Returns:
        The plan. Spacings are computed in float32, as in the published program.

    Raises:
        ValueError: an argument of wrong length, not positive or not finite; no target; another stage.
    """
    size, patch = checked_shape(shape), checked_shape(patch_size, "patch size")
    rules = SpacingRules(targets, stage, terminology)
    s, t = rules.apply(size, checked("spacing", spacing), patch, checked("target spacing", target_spacing))
    too_large = exceeds_volume(size, s, patch)
    if too_large and not rules.single:
        s = limit_volume(size, s, patch, t)
    return make_plan(size, s, t, patch, separate_axis(s, t), too_large, rules.iterations)


def plan_fixed(
    shape: Sequence[int],
    spacing: Sequence[float],
    patch_size: Sequence[int],
    target_spacing: Sequence[float],
    targets: Sequence[str] = (),
    stage: int = 2,
    terminology: Terminology | None = None,
) -> ResamplingPlan:
    """The grid for weights that were trained at one spacing: spacing / target is the zoom, all axes together.

    Arguments and errors as in :func:`plan_resampling`, but ``spacing`` is the physical voxel size, and ``targets``
    decide the refinement alone (none: the default policy).
    """
    size, patch = checked_shape(shape), checked_shape(patch_size, "patch size")
    s, t = checked("spacing", spacing), checked("target spacing", target_spacing)
    return make_plan(size, s, t, patch, None, False, SpacingRules(targets or ("",), stage, terminology).iterations)


def make_plan(
    shape: Shape,
    spacing: Sequence[float],
    target: Sequence[float],
    patch: Shape,
    axis: int | None,
    needs_downsampling: bool,
    iterations: int,
) -> ResamplingPlan:
    """The plan that final spacings lead to; fields as in :class:`ResamplingPlan`."""
    resampled = zoomed_shape(shape, spacing, target)
    return ResamplingPlan(
        native_shape=shape,
        spacing=as_triple(spacing),
        target_spacing=as_triple(target),
        shape=resampled,
        padded_shape=as_shape(max(n, c) for n, c in zip(resampled, patch, strict=True)),
        separate_axis=axis,
        needs_downsampling=needs_downsampling,
        iterations=iterations,
    )


class SpacingRules:
    """The per-axis rules for one set of targets in one stage.

    Args:
        targets, stage, terminology: as in :func:`plan_resampling`.
        region: rules for the region of interest: another length limit, and the target spacing stays.
    """

    def __init__(
        self, targets: Sequence[str], stage: int, terminology: Terminology | None = None, region: bool = False
    ) -> None:
        keys = sorted({targets} if isinstance(targets, str) else set(targets))
        if not keys:
            raise ValueError("resampling: no targets arrived; give at least one policy key such as 'CT_Liver'")
        if stage not in (1, 2):
            raise ValueError(f"resampling: stage {stage!r} arrived; give 1 (coarse) or 2 (fine)")
        terminology = default_terminology() if terminology is None else terminology
        self.policies = [terminology.policy(key) for key in keys]
        self.single = len(keys) == 1
        self.region = region
        self.index = stage - 1
        self.common_limit = self._longest(terminology.default_policy)
        self.unit = any(policy.unit_spacing for policy in self.policies)
        self.factor = max(policy.spacing_factor[self.index] for policy in self.policies)
        self.iterations = min(policy.refine_steps[self.index] for policy in self.policies)

    def apply(
        self, shape: Shape, spacing: Sequence[float], patch: Shape, target: Sequence[float]
    ) -> tuple[list[float], list[float]]:
        """Spacing and target spacing after the rules, before the memory guard; three numbers each."""
        pairs = [self._axis(*axis) for axis in zip(shape, spacing, patch, target, LENGTH_LIMITS, strict=True)]
        return [s for s, _ in pairs], [t for _, t in pairs]

    def _axis(self, n: int, spacing: float, c: int, t: float, limit: int) -> tuple[float, float]:
        s = 1.0 if self.unit else _float32(spacing)
        if s < 1 and n <= limit:
            s = 1.0
        if self.single:
            s = self._for_single_target(n, s, c, t)
        if s * n > limit and s > t:
            s = _float32(t)
        elif s * n < c * t and not self.region:
            t = min(t, max(s * n / c, s / _largest_zoom(n, c)))
        return _float32(s * self.factor), t

    def _for_single_target(self, n: int, s: float, c: int, t: float) -> float:
        """One target alone may be seen larger, and its volume is kept to so many patches."""
        policy = self.policies[0]
        if s > 1:
            s = _float32(max(s / policy.spacing_divisor[self.index], t))
            if s / t > ANISOTROPY:
                s = _float32(3 * s / (s / t - 0.5))
        for patches in (self.common_limit, self._longest(policy)):
            if n > patches * c:
                return _float32(patches * c / n)
        return s

    def _longest(self, policy: Policy) -> float:
        return policy.roi_max_patches if self.region else policy.max_patches


def exceeds_volume(shape: Shape, spacing: Sequence[float], patch: Shape) -> bool:
    """Whether the volume, spacing times voxels over all axes, exceeds 1.8^3 patches (section 2.6 of the paper)."""
    volume = math.prod(s * n for s, n in zip(spacing, shape, strict=True))
    return volume > VOLUME_LIMIT**3 * math.prod(patch)


def limit_volume(shape: Shape, spacing: Sequence[float], patch: Shape, target: Sequence[float]) -> list[float]:
    """Memory guard: coarser where an axis is longer than 1.9 patches.

    Section 2.5 of the paper, with alpha = 1.9: s' = max(t, alpha p t / d) where s > t, else min(t, alpha p t / d). The
    published program divides by 1.1 in the first case.
    """
    out = []
    for n, s, c, t in zip(shape, spacing, patch, target, strict=True):
        if s * n > LONGEST_AXIS * c * t:
            k = LONGEST_AXIS * c * t / n
            s = _float32(max(t, k / 1.1) if s > t else min(t, k))
        out.append(s)
    return out


def zoomed_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> Shape:
    """Voxels after resampling: spacing / target * voxels, half to even, at least one."""
    return as_shape(max(1, round(s / t * n)) for n, s, t in zip(shape, spacing, target, strict=True))


def separate_axis(spacing: Sequence[float], target: Sequence[float]) -> int | None:
    """The one coarse axis of an anisotropic spacing, else of an anisotropic target; None where there is none or two."""
    for values in (spacing, target):
        largest = max(values)
        if largest / min(values) > ANISOTROPY:
            coarse = [axis for axis, value in enumerate(values) if value == largest]
            return coarse[0] if len(coarse) == 1 else None
    return None


def _largest_zoom(n: int, c: int) -> float:
    """Largest power of 1.25, at most 50, by which ``n`` voxels still fit into a patch of ``c``; 1 where none does."""
    zoom = 1.0
    while zoom * ZOOM_STEP <= LARGEST_ZOOM and n <= c / (zoom * ZOOM_STEP):
        zoom *= ZOOM_STEP
    return zoom


def _float32(value: float) -> float:
    return float(np.float32(value))


def checked(name: str, values: Sequence[float]) -> list[float]:
    """Three positive finite numbers, or a ValueError that calls them by ``name``."""
    numbers = [float(value) for value in values]
    if len(numbers) != 3 or not all(math.isfinite(value) and value > 0 for value in numbers):
        raise ValueError(f"resampling: {name} {numbers} arrived; give three positive finite numbers (H, W, D)")
    return numbers


def checked_shape(values: Sequence[int], name: str = "shape") -> Shape:
    """Three positive whole numbers, or a ValueError that calls them by ``name``."""
    numbers = checked(name, values)
    if any(number != int(number) for number in numbers):
        raise ValueError(f"resampling: {name} {numbers} arrived; give three whole numbers of voxels (H, W, D)")
    return as_shape(numbers)


def as_triple(values: Iterable[float]) -> Triple:
    """Three numbers as floats."""
    h, w, d = (float(value) for value in values)
    return h, w, d


def as_shape(values: Iterable[float]) -> Shape:
    """Three whole numbers as integers."""
    h, w, d = (int(value) for value in values)
    return h, w, d
