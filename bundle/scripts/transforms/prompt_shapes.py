"""Turn points, boxes, scribbles and drawn masks into masks of the voxels they mean, on the image's own grid.

Only the box around the marked voxels is ever made, never a mask of the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import apply_affine, voxel_sizes

from scripts.errors import InputError

Box = tuple[slice, slice, slice]
DEFAULT_RADIUS = 3.0
"""Radius of a point in voxels of the image's middle size; micrometres or millimetres, a click is a few voxels."""

ROUNDING = 1e-6
"""Share of a radius; voxels just on a ball's surface belong to it on all sides."""


@dataclass(frozen=True)
class Marks:
    """Marked voxels of an image: the box around them, and which voxels of the box are meant.

    Attributes:
        box: slices with start and stop along H, W and D of the image.
        bits: the box's mask, one bit per voxel (``numpy.packbits``), so that many can be remembered.
    """

    box: Box
    bits: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Sides of the box in voxels."""
        return tuple(side.stop - side.start for side in self.box)

    @property
    def mask(self) -> np.ndarray:
        """bool ``[h, w, d]`` of the box."""
        return unpack(self.bits, self.shape)

    def within(self, box: Box) -> np.ndarray:
        """bool ``[h, w, d]`` of another box of the same image."""
        found = np.zeros([side.stop - side.start for side in box], dtype=bool)
        common = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(self.box, box, strict=True)]
        if all(side.start < side.stop for side in common):
            ours = tuple(slice(c.start - a.start, c.stop - a.start) for c, a in zip(common, self.box, strict=True))
            theirs = tuple(slice(c.start - b.start, c.stop - b.start) for c, b in zip(common, box, strict=True))
            found[theirs] = self.mask[ours]
        return found


class PromptShapes:
    """Shapes on one image.

    Args:
        shape: (H, W, D) of the image in voxels.
        affine: its 4x4 voxel to world matrix, mm; may be oblique or anisotropic.
    """

    def __init__(self, shape: Sequence[int], affine: np.ndarray) -> None:
        self.shape = tuple(int(side) for side in shape)
        self.affine = np.asarray(affine, dtype=float)
        self.default_radius = DEFAULT_RADIUS * float(np.median(voxel_sizes(self.affine)))

    def one_of(
        self,
        point: Sequence[float] | None = None,
        scribble: Sequence[Sequence[float]] | np.ndarray | torch.Tensor | None = None,
        box: Sequence[Sequence[float]] | None = None,
        mask: np.ndarray | torch.Tensor | None = None,
        world: bool = False,
        radius: float | None = None,
    ) -> Marks:
        """The marks of whichever shape is given.

        Args:
            point: see ``point``.
            scribble: points as for ``scribble``, or drawn voxels as for ``drawn``.
            box: two corners, see ``box``.
            mask: see ``drawn``; a MetaTensor's affine is checked.
            world: see the shapes.
            radius: see ``scribble``.

        Raises:
            InputError: none or several shapes, or what the shape refuses.
        """
        shapes = {"point": point, "scribble": scribble, "box": box, "mask": mask}
        given = [name for name, shape in shapes.items() if shape is not None]
        if len(given) != 1:
            raise InputError(f"prompt: give one of {', '.join(shapes)}, got {' and '.join(given) or 'none'}")
        if point is not None:
            return self.point(point, radius, world)
        if box is not None:
            if len(box) != 2:
                raise InputError(f"prompt: a box is two opposite corners of three numbers, got {box!r}")
            return self.box(box[0], box[1], world)
        if scribble is not None and np.ndim(scribble) < 3:
            return self.scribble(np.asarray(scribble), radius, world)
        drawn = mask if mask is not None else scribble
        affine = drawn.affine.cpu().numpy() if isinstance(drawn, MetaTensor) else None
        return self.drawn(
            drawn.detach().cpu().numpy() if isinstance(drawn, torch.Tensor) else np.asarray(drawn), affine
        )

    def point(self, point: Sequence[float], radius: float | None = None, world: bool = False) -> Marks:
        """A ball, round in space. See ``scribble``."""
        return self.scribble([point], radius, world)

    def scribble(
        self, points: Sequence[Sequence[float]] | np.ndarray, radius: float | None = None, world: bool = False
    ) -> Marks:
        """A stroke through points: all voxels near the line, at least those nearest to its points.

        Args:
            points: K points of three numbers: voxel indices, or world coordinates in mm.
            radius: mm; ``default_radius`` where None.
            world: the points are in RAS mm of the affine.

        Raises:
            InputError: no points, a point outside the image, or a radius that is no positive number.
        """
        places = self._places(points, world, "point")
        reach = self.default_radius if radius is None else float(radius)
        if not (np.isfinite(reach) and reach > 0):
            raise InputError(f"prompt: the radius must be a positive number of mm, got {radius}")
        per_axis = reach * np.linalg.norm(np.linalg.inv(self.affine[:3, :3]), axis=1)
        box = self._box(places.min(axis=0) - per_axis, places.max(axis=0) + per_axis)
        mask = np.zeros([side.stop - side.start for side in box], dtype=bool)
        ends = places[1:] if len(places) > 1 else places
        for first, last in zip(places[: len(ends)], ends, strict=True):
            part = self._box(np.minimum(first, last) - per_axis, np.maximum(first, last) + per_axis)
            inner = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))
            mask[inner] |= self._capsule(part, first, last, reach)
        origin = [side.start for side in box]
        mask[tuple((self._nearest(places) - origin).T)] = True
        return Marks(box, np.packbits(mask))

    def box(self, first: Sequence[float], last: Sequence[float], world: bool = False) -> Marks:
        """A filled box between two opposite corners, both inclusive.

        Args:
            first: voxel index of a corner, or its world coordinates in mm.
            last: the opposite corner.
            world: the corners are in RAS mm. The box lies along the image's own axes all the same.

        Raises:
            InputError: a corner outside the image.
        """
        corners = self._nearest(self._places([first, last], world, "box corner"))
        box = _slices(corners.min(axis=0), corners.max(axis=0) + 1)
        return Marks(box, np.packbits(np.ones([side.stop - side.start for side in box], dtype=bool)))

    def drawn(self, mask: np.ndarray, affine: np.ndarray | None = None) -> Marks:
        """A mask drawn on this image.

        Args:
            mask: ``[H, W, D]`` or ``[1, H, W, D]`` of the image's shape, non-zero where marked.
            affine: its 4x4 matrix where it is known: it must be the image's.

        Raises:
            InputError: another grid, an empty mask, or values that are no numbers.
        """
        values = np.asarray(mask)
        values = values[0] if values.ndim == 4 and len(values) == 1 else values
        if values.shape != self.shape:
            raise InputError(
                f"prompt: the mask has shape {values.shape}, the image {self.shape}: draw it on this image"
            )
        if values.dtype.kind not in "buif" or (values.dtype.kind == "f" and not np.isfinite(values).all()):
            raise InputError(f"prompt: the mask holds {values.dtype} values that are no finite numbers")
        if affine is not None:
            self._check_place(np.asarray(affine, dtype=float))
        box = bounding_box(values)
        if box is None:
            raise InputError("prompt: the mask is empty: mark at least one voxel, or use reset to drop prompts")
        return Marks(box, np.packbits(values[box] != 0))

    def _places(self, points: Sequence[Sequence[float]] | np.ndarray, world: bool, what: str) -> np.ndarray:
        """Voxel positions ``[K, 3]``, each inside the image."""
        try:
            given = np.asarray(points, dtype=float)
        except (TypeError, ValueError) as e:
            raise InputError(f"prompt: a {what} is three numbers, got {points!r}") from e
        if given.ndim != 2 or given.shape[1] != 3 or len(given) == 0 or not np.isfinite(given).all():
            raise InputError(f"prompt: a {what} is three finite numbers, got {points!r}")
        places = apply_affine(np.linalg.inv(self.affine), given) if world else given
        outside = (places < -0.5).any(axis=1) | (places >= np.asarray(self.shape) - 0.5).any(axis=1)
        if outside.any():
            number = int(outside.argmax())
            at = f" (voxel {_text(places[number])})" if world else ""
            hint = "" if world else "; world coordinates in mm need world=True"
            raise InputError(
                f"prompt: {what} {_text(given[number])}{at} is outside the image, whose voxel indices go from 0, 0, 0 "
                f"to {_text(np.asarray(self.shape) - 1)}{hint}"
            )
        return places

    def _nearest(self, places: np.ndarray) -> np.ndarray:
        return np.clip(np.floor(places + 0.5).astype(int), 0, np.asarray(self.shape) - 1)

    def _box(self, low: np.ndarray, high: np.ndarray) -> Box:
        """Voxels between two positions, cut at the image; at least the voxel nearest to the middle."""
        middle = self._nearest((low + high) / 2)
        start = np.clip(np.minimum(np.ceil(low).astype(int), middle), 0, None)
        stop = np.minimum(np.maximum(np.floor(high).astype(int), middle) + 1, self.shape)
        nearest = self._nearest(np.stack([low, high]))
        return _slices(np.minimum(start, nearest[0]), np.maximum(stop, nearest[1] + 1))

    def _capsule(self, box: Box, first: np.ndarray, last: np.ndarray, radius: float) -> np.ndarray:
        """bool of the box: voxels within ``radius`` mm of a line."""
        offsets = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in box), indexing="ij"), axis=-1) - first
        linear = self.affine[:3, :3]
        away, line = offsets @ linear.T, linear @ (last - first)
        length = float(line @ line)
        along = np.clip(away @ line / length, 0, 1)[..., None] if length > 0 else 0.0
        return np.linalg.norm(away - along * line, axis=-1) <= radius * (1 + ROUNDING)

    def _check_place(self, affine: np.ndarray) -> None:
        corners = np.stack(np.meshgrid(*[(0, side - 1) for side in self.shape], indexing="ij"), axis=-1).reshape(-1, 3)
        apart = np.linalg.norm(apply_affine(affine, corners) - apply_affine(self.affine, corners), axis=1).max()
        if not apart <= 0.05 * voxel_sizes(self.affine).min():
            raise InputError(
                f"prompt: the mask lies elsewhere in space than the image (corners up to {apart:.2f} mm apart): draw "
                "it on this image or resample it to it"
            )


def unpack(bits: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """bool of ``shape`` from ``numpy.packbits``."""
    return np.unpackbits(bits, count=int(np.prod(shape))).view(bool).reshape(tuple(shape))


def bounding_box(values: np.ndarray) -> Box | None:
    """The box around the non-zero voxels of ``[H, W, D]``, or None where there are none."""
    filled = values if values.dtype == bool else values != 0
    plane = filled.any(axis=2)
    if not plane.any():
        return None
    profiles = plane.any(axis=1), plane.any(axis=0), filled.any(axis=(0, 1))
    places = [np.flatnonzero(profile) for profile in profiles]
    return _slices([place[0] for place in places], [place[-1] + 1 for place in places])


def join_boxes(*boxes: Box) -> Box:
    """The smallest box around some boxes."""
    return _slices(
        [min(box[axis].start for box in boxes) for axis in range(3)],
        [max(box[axis].stop for box in boxes) for axis in range(3)],
    )


def _slices(start: Sequence[int] | np.ndarray, stop: Sequence[int] | np.ndarray) -> Box:
    a, b, c = (slice(int(low), int(high)) for low, high in zip(start, stop, strict=True))
    return a, b, c


def _text(values: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in np.asarray(values))
