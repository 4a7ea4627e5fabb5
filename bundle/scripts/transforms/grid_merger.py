"""Bring class probabilities to the input's own grid and merge them into a label map on the way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from monai.utils import MetaKeys, convert_to_tensor

BITS = 8
SHARED_AXES = 1e-3
"""Drift (voxels of the source) over a box up to which two grids count as having the same axes."""
Box = tuple[slice, slice, slice]


class GridMerger:
    """Collects the probabilities of classes, block by block, into one label map on another grid.

    Memory grows with the volume, not with the number of classes: at no time does more than one class exist on the
    output grid, and each only within the box that it can occupy. That box is exact: linear interpolation reaches the
    threshold only next to a voxel that does, so that everything further away may be left out. The resampling goes
    straight from one affine to the other and is right for any orientation, obliquity or anisotropy.

    The result does not depend on how the classes were split into blocks, except that of classes with equal
    probability the one added first keeps the voxel.

    Args:
        shape: (H, W, D) of the output grid.
        affine: its 4x4 voxel to world matrix.
        ids: label value of each class, N positive integers.
        threshold: a voxel whose best probability is below it is background.
        keep_masks: also keep every class's own mask, which may overlap others, as one bit per voxel.
        keep_disagreement: also keep the disagreement of each voxel's class, where any was measured.
        mode: interpolation of ``SpatialResample``.
        slab_mb: size in MiB of the largest float32 piece in work; at least one slice is done at a time.

    Raises:
        ValueError: label values that are not positive.
    """

    def __init__(
        self,
        shape: Sequence[int],
        affine: torch.Tensor,
        ids: Sequence[int],
        threshold: float = 0.5,
        keep_masks: bool = False,
        keep_disagreement: bool = False,
        mode: str = "bilinear",
        slab_mb: float = 256,
    ) -> None:
        if not ids or min(ids) < 1:
            raise ValueError(f"every class needs a positive label value, got {list(ids)}")
        size = tuple(int(side) for side in shape)
        self.affine = torch.as_tensor(affine).double().cpu()
        self.ids = tuple(int(value) for value in ids)
        self.threshold = threshold
        self.slab_voxels = slab_mb * 2**20 / 4
        # Border: a voxel at the rim lies up to half a coarse voxel outside the coarse grid's centres.
        self.resample = SpatialResample(mode=mode, padding_mode="border", dtype="float32")
        self._labels = torch.zeros(size, dtype=torch.uint8 if max(ids) <= 255 else torch.int16)
        self._probability = torch.zeros(size, dtype=torch.float16)
        planes = math.ceil(len(ids) / BITS)
        self._masks = torch.zeros((planes, *size), dtype=torch.uint8) if keep_masks else None
        self.keep_disagreement = keep_disagreement
        self._disagreement: torch.Tensor | None = None

    @property
    def labels(self) -> MetaTensor:
        """Label map ``[1, H, W, D]``: uint8, or int16 where a label value exceeds 255."""
        return MetaTensor(self._labels[None], affine=self.affine)

    @property
    def probability(self) -> MetaTensor:
        """Probability of each voxel's label, float16 ``[1, H, W, D]``; 0 in the background."""
        return MetaTensor(self._probability[None], affine=self.affine)

    @property
    def mask_bits(self) -> MetaTensor | None:
        """uint8 ``[ceil(N / 8), H, W, D]``: bit ``n % 8`` of plane ``n // 8`` is the mask of class n."""
        return None if self._masks is None else MetaTensor(self._masks, affine=self.affine)

    @property
    def disagreement(self) -> MetaTensor | None:
        """Disagreement at each labelled voxel, float16 ``[1, H, W, D]``; 0 in the background; None if not measured."""
        return None if self._disagreement is None else MetaTensor(self._disagreement[None], affine=self.affine)

    def add(
        self,
        probabilities: torch.Tensor,
        classes: Sequence[int],
        affine: torch.Tensor,
        window: Box | None = None,
        disagreement: torch.Tensor | None = None,
    ) -> None:
        """Merge a block of classes.

        Args:
            probabilities: ``[n, h, w, d]`` in 0..1, on any grid.
            classes: which of the N classes they are, n places in ``ids``.
            affine: 4x4 voxel to world matrix of ``probabilities``.
            window: the part of the output they may write to; all of it where None.
            disagreement: ``[1, h, w, d]`` of the whole block, or None.

        Raises:
            ValueError: where classes and channels differ in number.
        """
        if len(classes) != len(probabilities):
            raise ValueError(f"{len(probabilities)} channels of probabilities for {len(classes)} classes")
        values = convert_to_tensor(probabilities, track_meta=False)
        spread = None
        if disagreement is not None and self.keep_disagreement:
            spread = convert_to_tensor(disagreement, track_meta=False)
            if self._disagreement is None:
                self._disagreement = torch.zeros_like(self._probability)
        source = torch.as_tensor(affine).double().cpu()
        for index, channel in zip(classes, values, strict=True):
            core = _bounding_box(channel >= self.threshold)
            if core is not None:
                self._add_class(index, channel, source, core, window, spread)

    def _add_class(
        self,
        index: int,
        channel: torch.Tensor,
        affine: torch.Tensor,
        core: tuple[list[int], list[int]],
        window: Box | None,
        disagreement: torch.Tensor | None,
    ) -> None:
        first, last = [low - 1 for low in core[0]], [high + 1 for high in core[1]]
        crop = tuple(
            slice(max(low, 0), min(high + 1, side)) for low, high, side in zip(first, last, channel.shape, strict=True)
        )
        crop_affine = shifted(affine, [part.start for part in crop])
        pieces = [channel[crop]]
        if disagreement is not None:
            pieces.append(disagreement[0][crop])
        part = MetaTensor(torch.stack([piece.float() for piece in pieces]), affine=crop_affine)
        for box in self._boxes(first, last, affine, window):
            found = self._moved(part, box).half().cpu()
            self._write(index, box, found[0], found[1] if len(found) > 1 else None)

    def _moved(self, part: MetaTensor, box: Box) -> torch.Tensor:
        """Channels ``[C, h, w, d]`` on a box of the output, float32."""
        size = [side.stop - side.start for side in box]
        place = shifted(self.affine, [side.start for side in box])
        to_source = torch.linalg.solve(part.affine.double().cpu(), place)
        scale = torch.diagonal(to_source)[:3]
        drift = (to_source[:3, :3] - torch.diag(scale)).abs() @ torch.tensor(size).double()
        plain = convert_to_tensor(part, track_meta=False)
        if self.resample.mode == "bilinear" and drift.max() < SHARED_AXES:
            return _stretched(plain, size, scale.tolist(), to_source[:3, 3].tolist())
        with self.resample.trace_transform(False):
            moved = self.resample(part, dst_affine=place, spatial_size=size)
        return convert_to_tensor(moved, track_meta=False)

    def _write(self, index: int, box: Box, found: torch.Tensor, disagreement: torch.Tensor | None) -> None:
        inside = found >= self.threshold
        if self._masks is not None:
            self._masks[index // BITS][box] |= inside.to(torch.uint8) << (index % BITS)
        best = self._probability[box]
        wins = inside & (found > best)
        best[wins] = found[wins]
        self._labels[box][wins] = self.ids[index]
        if disagreement is not None and self._disagreement is not None:
            self._disagreement[box][wins] = disagreement[wins]

    def _boxes(self, first: Sequence[int], last: Sequence[int], affine: torch.Tensor, window: Box | None) -> list[Box]:
        """The output voxels that a box of source voxels reaches, cut into slabs along the first axis."""
        limits = window if window is not None else tuple(slice(0, side) for side in self._labels.shape)
        corners = torch.cartesian_prod(*(torch.tensor(pair).double() for pair in zip(first, last, strict=True)))
        to_output = torch.linalg.solve(self.affine, affine)
        moved = corners @ to_output[:3, :3].T + to_output[:3, 3]
        # A thousandth of a voxel of slack, lest rounding in the affines cut off a voxel that lies just on the face.
        low = torch.ceil(moved.amin(dim=0) - 1e-3).long().tolist()
        high = torch.floor(moved.amax(dim=0) + 1e-3).long().tolist()
        box = [
            slice(max(a, limit.start), min(b + 1, limit.stop)) for a, b, limit in zip(low, high, limits, strict=True)
        ]
        if any(side.stop <= side.start for side in box):
            return []
        slice_voxels = math.prod(side.stop - side.start for side in box[1:])
        step = max(1, int(self.slab_voxels / slice_voxels))
        starts = range(box[0].start, box[0].stop, step)
        return [(slice(start, min(start + step, box[0].stop)), box[1], box[2]) for start in starts]


def _stretched(
    values: torch.Tensor, size: Sequence[int], scale: Sequence[float], offset: Sequence[float]
) -> torch.Tensor:
    """Linear interpolation along each axis by itself, voxels beyond the rim repeated.

    Where grids share their axes it gives what sampling in space gives, in a fraction of its time and without its
    grid of coordinates: a product with a matrix that has two weights a row.

    Args:
        values: float32 ``[C, h, w, d]``.
        size: (H, W, D) of the result.
        scale: voxels of ``values`` for a voxel of the result, by axis.
        offset: place of the result's first voxel in ``values``, by axis.
    """
    along = []
    for old, new, step, first in zip(values.shape[1:], size, scale, offset, strict=True):
        places = (torch.arange(new, dtype=torch.float64) * step + first).clamp(0, old - 1)
        distance = (places[:, None] - torch.arange(old, dtype=torch.float64)).abs()
        along.append((1 - distance).clamp(min=0).to(values))
    lines = torch.matmul(values, along[2].T)
    planes = torch.matmul(along[1], lines)
    return torch.matmul(along[0], planes.flatten(2)).unflatten(2, planes.shape[2:])


def shifted(affine: torch.Tensor, start: Sequence[int]) -> torch.Tensor:
    """The 4x4 affine of a grid whose voxel ``start`` has become voxel 0."""
    moved = affine.clone()
    moved[:3, 3] += affine[:3, :3] @ torch.as_tensor(list(start), dtype=affine.dtype)
    return moved


def native_shape(image: MetaTensor) -> tuple[int, ...]:
    """(H, W, D) of an image as it was in its file."""
    return tuple(int(side) for side in image.meta[MetaKeys.SPATIAL_SHAPE][:3])


def unpack_mask(mask_bits: torch.Tensor, index: int) -> torch.Tensor:
    """bool ``[H, W, D]`` of class ``index`` from ``GridMerger.mask_bits``."""
    return (mask_bits[index // BITS] >> (index % BITS) & 1).bool()


def pack_masks(masks: Iterable[torch.Tensor]) -> torch.Tensor:
    """uint8 ``[ceil(N / 8), H, W, D]`` of N masks ``[H, W, D]``, see ``GridMerger.mask_bits``.

    From a generator, only one mask at a time is in memory.
    """
    planes: list[torch.Tensor] = []
    for index, mask in enumerate(masks):
        if index % BITS == 0:
            planes.append(torch.zeros(mask.shape, dtype=torch.uint8))
        planes[-1] |= (mask != 0).to(torch.uint8).cpu() << (index % BITS)
    return torch.stack(planes)


def filled_masks(mask_bits: torch.Tensor, count: int) -> list[bool]:
    """Which of the first ``count`` masks of ``GridMerger.mask_bits`` have any voxel, without unpacking them."""
    planes = convert_to_tensor(mask_bits, track_meta=False).cpu().numpy()
    seen = [int(np.bitwise_or.reduce(plane, axis=None)) for plane in planes]
    return [bool(seen[index // BITS] >> (index % BITS) & 1) for index in range(count)]


def _bounding_box(mask: torch.Tensor) -> tuple[list[int], list[int]] | None:
    """First and last index of True along each axis, or None where there is none."""
    flat = mask.any(dim=2)
    profiles = flat.any(dim=1), flat.any(dim=0), mask.flatten(0, 1).any(dim=0)
    if not bool(profiles[0].any()):
        return None
    places = [torch.nonzero(profile).flatten() for profile in profiles]
    return [int(place[0]) for place in places], [int(place[-1]) for place in places]
