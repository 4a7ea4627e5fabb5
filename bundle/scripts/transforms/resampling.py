"""Resample a volume to the grid that its plan asks for, and back, with prompts on the same grid.

The rules live in ``resampling_plan``; this module computes the grid from an image's affine and the targets asked for
and delegates to MONAI's ``Resize``, which gives exactly the planned number of voxels and keeps the volume's extent (the
published program resamples so, with nnU-Net's torch resampling; ``Spacing`` derives its shape from the voxel size and
may be a voxel off the plan).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, ResampleToMatch, Resize
from monai.transforms.utils import scale_affine
from monai.utils import TraceKeys, convert_to_tensor, ensure_tuple_rep

from scripts.request import decode_request
from scripts.text.terminology import Terminology
from scripts.transforms.resampling_plan import (
    ResamplingPlan,
    Shape,
    as_shape,
    default_terminology,
    plan_fixed,
    plan_resampling,
    working_spacing,
)
from scripts.transforms.training_spacing import plan_training_spacing

__all__ = [
    "DynamicSpacing",
    "DynamicSpacingd",
    "ResamplingPlan",
    "default_terminology",
    "plan_fixed",
    "plan_resampling",
    "plan_training_spacing",
    "resample_like",
    "working_spacing",
]

MODES = ("dynamic", "fixed")
INTERPOLATIONS = {"linear": "trilinear", "nearest": "nearest-exact"}  # plain "nearest" is off by up to half a voxel
SHARED_AXES = 1e-2
"""Drift (voxels) over a volume up to which two grids count as having the same axes."""
ROUNDING = 1e-6
"""Voxels; keeps a position halfway between two voxels from falling by an affine's rounding."""


class DynamicSpacing(InvertibleTransform):
    """Resample an image by the rules of dynamic resampling, or to one fixed spacing; invertible.

    Linear interpolation; where the plan has a coarse axis, that axis is resampled by itself with nearest sampling, so
    that thick slices are not blended. The inverse takes any number of channels (an image's or a prediction's) back to
    the grid and affine that came in, exactly, whatever the orientation or obliquity: only the voxels' number along
    each axis changes, never the axes.

    Args:
        patch_size: window of the network, voxels, in the order of the image's axes.
        target_spacing: spacing of the network, mm.
        stage: 1 (coarse) or 2 (fine), for the rules.
        mode: "dynamic", or "fixed" for weights trained at ``target_spacing``: voxel size / target spacing is the
            zoom, whatever the targets.
        antialias: average over as much of the input as an output voxel covers where an axis gets fewer voxels; plain
            linear interpolation reads two voxels and skips the rest. False is the published behaviour.
        interpolation: "linear" or "nearest" (for masks and label maps).
        swap_spacing: as ``swap`` of :func:`working_spacing`; set False for images whose header is to be trusted.
        terminology: has the policies; the bundle's own when None.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        target_spacing: Sequence[float],
        stage: int = 2,
        mode: str = "dynamic",
        antialias: bool = False,
        interpolation: str = "linear",
        swap_spacing: bool = True,
        terminology: Terminology | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"resampling: mode {mode!r} arrived; give one of {', '.join(MODES)}")
        if interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ValueError(f"resampling: interpolation {interpolation!r} arrived; give one of {known}")
        self.patch_size = tuple(int(side) for side in patch_size)
        self.target_spacing = tuple(float(value) for value in target_spacing)
        self.stage = stage
        self.mode = mode
        self.antialias = antialias
        self.interpolation = interpolation
        self.swap_spacing = swap_spacing
        self.terminology = terminology

    def plan(
        self, image: torch.Tensor, targets: Sequence[str] = (), spacing: Sequence[float] | None = None
    ) -> ResamplingPlan:
        """The plan for an image, without resampling it.

        Args:
            image: ``[C, H, W, D]`` with an affine.
            targets: policy keys such as "CT_Liver"; mode "fixed" needs none.
            spacing: working spacing, mm, where it is not the image's own: a crop keeps that of its whole volume.

        Raises:
            ValueError: no affine, not three axes, or what ``plan_resampling`` refuses.
        """
        shape, physical = image_geometry(image)
        if self.mode == "fixed":
            return plan_fixed(
                shape, physical, self.patch_size, self.target_spacing, targets, self.stage, self.terminology
            )
        working = working_spacing(physical, shape, self.swap_spacing) if spacing is None else spacing
        return plan_resampling(
            shape, working, self.patch_size, self.target_spacing, targets, self.stage, self.terminology
        )

    def __call__(
        self, image: torch.Tensor, targets: Sequence[str] = (), spacing: Sequence[float] | None = None
    ) -> MetaTensor:
        """Resample; arguments and errors as in :meth:`plan`. Returns ``[C, h, w, d]`` float32 of the planned shape."""
        plan = self.plan(image, targets, spacing)
        out, steps = _float_view(image), []
        for size, mode in self._steps(plan):
            steps.append({"mode": mode, "size": tuple(out.shape[1:])})
            out = _resize(out, size, mode, self.antialias)
        extra = {"steps": steps, "affine": image.affine.clone()}  # type: ignore[attr-defined]
        self.push_transform(out, orig_size=plan.native_shape, extra_info=extra)
        return out

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Bring ``[C, h, w, d]`` back to the grid and affine that came in, ``[C, H, W, D]`` float32."""
        extra = self.pop_transform(data)[TraceKeys.EXTRA_INFO]
        out = _float_view(data)
        for step in reversed(extra["steps"]):
            # Invertd asks for "nearest", meaning that values are copied; the centred kind copies the right ones.
            mode = INTERPOLATIONS["nearest"] if step["mode"] == "nearest" else step["mode"]
            out = _resize(out, step["size"], mode, antialias=False)
        out.affine = extra["affine"]  # as it was, not as two roundings leave it
        return out

    def _steps(self, plan: ResamplingPlan) -> list[tuple[Shape, str]]:
        """(shape, interpolation) of each step: in plane, then the coarse axis; none where nothing changes."""
        mode = INTERPOLATIONS[self.interpolation]
        steps = [(plan.shape, mode)]
        if (axis := plan.separate_axis) is not None:
            in_plane = as_shape((*plan.shape[:axis], plan.native_shape[axis], *plan.shape[axis + 1 :]))
            steps = [(in_plane, mode), (plan.shape, INTERPOLATIONS["nearest"])]
        before = [plan.native_shape, *(size for size, _ in steps)]
        return [step for step, old in zip(steps, before, strict=False) if step[0] != old]


class DynamicSpacingd(MapTransform, InvertibleTransform):
    """Dictionary version of :class:`DynamicSpacing`; the targets come from the case's request.

    Args:
        keys: images ``[C, H, W, D]`` with an affine; all on one grid get one grid.
        patch_size, target_spacing, stage, mode, antialias, swap_spacing, terminology: as in the array class.
        interpolation: "linear" or "nearest", one for all keys or one for each.
        request_key: holds the encoded request; mode "fixed" does without.
        allow_missing_keys: do not complain about absent keys.
    """

    def __init__(
        self,
        keys: KeysCollection,
        patch_size: Sequence[int],
        target_spacing: Sequence[float],
        stage: int = 2,
        mode: str = "dynamic",
        antialias: bool = False,
        interpolation: str | Sequence[str] = "linear",
        swap_spacing: bool = True,
        terminology: Terminology | None = None,
        request_key: str = "request",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.request_key = request_key
        self.transforms = [
            DynamicSpacing(patch_size, target_spacing, stage, mode, antialias, one, swap_spacing, terminology)
            for one in ensure_tuple_rep(interpolation, len(self.keys))
        ]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with the images resampled."""
        d = dict(data)
        targets = self._targets(d)
        for key, transform in self.key_iterator(d, self.transforms):
            d[key] = transform(d[key], targets)
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with the images back on their own grid."""
        d = dict(data)
        for key, transform in self.key_iterator(d, self.transforms):
            d[key] = transform.inverse(d[key])
        return d

    def _targets(self, data: Mapping[Hashable, Any]) -> list[str]:
        """Policy keys of what is asked for; complains where the rules need them and there is no request."""
        if self.request_key in data:
            return [target.key for target in decode_request(data[self.request_key]).targets]
        if self.transforms[0].mode == "fixed":
            return []
        raise ValueError(
            f"resampling: no {self.request_key!r} among {sorted(map(str, data))}; dynamic spacing needs to know what "
            "is asked for: put EncodePromptsd before it, or set mode to 'fixed'"
        )


def image_geometry(image: torch.Tensor) -> tuple[Shape, tuple[float, ...]]:
    """(H, W, D) voxels and voxel size in mm of an image ``[C, H, W, D]``.

    Raises:
        ValueError: no MetaTensor, other axes, or an affine without three positive finite voxel sizes.
    """
    if not isinstance(image, MetaTensor):
        raise ValueError(
            f"resampling: a {type(image).__name__} arrived; give a MetaTensor, whose affine has the spacing"
        )
    if image.ndim != 4:
        raise ValueError(f"resampling: shape {tuple(image.shape)} arrived; give one image [C, H, W, D]")
    sizes = tuple(np.linalg.norm(image.affine.cpu().double().numpy()[:3, :3], axis=0).tolist())
    if not all(np.isfinite(sizes)) or min(sizes) <= 0:
        raise ValueError(f"resampling: voxel sizes {sizes} mm arrived; repair the image's affine")
    return as_shape(image.shape[1:]), sizes


def resample_like(mask: MetaTensor, image: MetaTensor) -> MetaTensor:
    """Put masks or label maps on an image's grid by nearest sampling.

    Goes channel by channel. Where the grids share their axes (a resampled or cropped image), voxels are only picked
    and nothing is held in floating point; otherwise one channel at a time goes through MONAI's ``ResampleToMatch``. An
    object thinner than the image's voxels may fall between them.

    Args:
        mask: ``[N, H, W, D]`` with an affine, any dtype.
        image: ``[C, h, w, d]`` with an affine.

    Returns:
        ``[N, h, w, d]`` of the mask's dtype, on its device; 0 outside the mask's grid.

    Raises:
        ValueError: no affine or other axes.
    """
    (shape, _), (wanted, _) = image_geometry(mask), image_geometry(image)
    to_mask = np.linalg.solve(mask.affine.cpu().double().numpy(), image.affine.cpu().double().numpy())
    scale, offset = np.diag(to_mask)[:3], to_mask[:3, 3]
    shared_axes = (np.abs(to_mask[:3, :3] - np.diag(scale)) @ np.asarray(wanted)).max() < SHARED_AXES
    channels = convert_to_tensor(mask, track_meta=False)
    out = torch.zeros((len(channels), *wanted), dtype=channels.dtype, device=channels.device)
    match = ResampleToMatch(mode="nearest", padding_mode="zeros", dtype="float32")
    for channel, place in zip(channels, out, strict=True):
        if not channel.any():
            continue
        if shared_axes:
            for axis in range(3):
                channel = _pick(channel, axis, scale[axis] * np.arange(wanted[axis]) + offset[axis], shape[axis])
        else:
            matched = match(MetaTensor(channel[None], affine=mask.affine), image)
            channel = convert_to_tensor(matched, track_meta=False)[0]
        place.copy_(channel)
    return MetaTensor(out, affine=image.affine.clone())


def _pick(data: torch.Tensor, axis: int, positions: np.ndarray, count: int) -> torch.Tensor:
    """The voxels of one axis nearest to ``positions``, zero outside; a position between two takes the later one."""
    index = np.floor(positions + 0.5 + ROUNDING).astype(np.int64)
    outside = torch.as_tensor((index < 0) | (index >= count), device=data.device)
    picked = data.index_select(axis, torch.as_tensor(index.clip(0, count - 1), device=data.device))
    return picked.index_fill_(axis, outside.nonzero()[:, 0], 0)


def _resize(image: MetaTensor, size: Sequence[int], mode: str, antialias: bool) -> MetaTensor:
    """Resize without a trace of its own; the affine follows."""
    fewer = any(new < old for new, old in zip(size, image.shape[1:], strict=True))
    if antialias and fewer and mode == INTERPOLATIONS["linear"]:
        return _resize_antialiased(image, size)
    resize = Resize(tuple(size), mode=mode, dtype=torch.float32)
    with resize.trace_transform(False):
        return resize(image)  # type: ignore[return-value]


def _resize_antialiased(image: MetaTensor, size: Sequence[int]) -> MetaTensor:
    """Linear interpolation with a kernel that widens with the output's voxels; unchanged where an axis gets more.

    torch has it for two axes at a time (MONAI's Gaussian smoothing took 70 times as long), so (W, D) come first.
    """
    c, h, w, d = image.shape
    plane = F.interpolate(image.as_tensor().reshape(c * h, 1, w, d), tuple(size[1:]), mode="bilinear", antialias=True)
    lines = plane.reshape(c, 1, h, -1)
    lines = F.interpolate(lines, (size[0], lines.shape[-1]), mode="bilinear", antialias=True)
    out = MetaTensor(lines.reshape(c, *size)).copy_meta_from(image)
    out.affine = image.affine.double() @ torch.as_tensor(scale_affine((h, w, d), tuple(size))).to(image.affine.device)
    return out


def _float_view(image: torch.Tensor) -> MetaTensor:
    """The same voxels as float32, with a history of their own."""
    out = MetaTensor(convert_to_tensor(image, track_meta=False).to(torch.float32))
    return out.copy_meta_from(image)
