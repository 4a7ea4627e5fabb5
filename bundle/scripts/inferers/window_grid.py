"""Where the windows of a volume lie, and how much each voxel of a window counts where windows overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers.utils import _get_scan_interval
from monai.utils import ensure_tuple_rep

Box = Sequence[slice]
# Index of a box in a volume with any axes before its three spatial ones.
Place = tuple[Any, ...]


class WindowGrid:
    """The windows of one volume.

    They advance by a fraction of a window, the last one along an axis is moved back to the border, and a volume
    smaller than a window is padded at its end, as in the published program. Starts along one axis do not depend on
    the others, and the Gaussian is a product of three: so the weight of a voxel, divided by the sum over all windows
    that cover it, is a product of three short vectors. Weights are normalised without any volume of counts.

    Args:
        shape: (H, W, D) of the volume in voxels.
        window: (h, w, d) of a window.
        overlap: fraction shared by neighbours.
        mode: "gaussian" or "constant" weighting.
        sigma_scale: the Gaussian's standard deviation as a fraction of the window; along an axis it never falls
            below 1e-3 of its middle.

    Attributes:
        slices: windows on the padded volume, in the order in which they are run.
    """

    def __init__(
        self,
        shape: Sequence[int],
        window: Sequence[int],
        overlap: float = 0.5,
        mode: str = "gaussian",
        sigma_scale: float = 0.125,
    ) -> None:
        self.shape, self.window = tuple(shape), tuple(window)
        padded = tuple(max(side, own) for side, own in zip(shape, window, strict=True))
        interval = _get_scan_interval(padded, self.window, 3, ensure_tuple_rep(overlap, 3))
        self.slices: list[tuple[slice, ...]] = dense_patch_slices(padded, self.window, interval)
        self._weights = [self._along(axis, padded[axis], mode, sigma_scale) for axis in range(3)]

    def __len__(self) -> int:
        return len(self.slices)

    def inside(self, index: int) -> tuple[slice, ...]:
        """The part of a window that lies in the volume, not in the padding."""
        return tuple(
            slice(part.start, min(part.stop, side)) for part, side in zip(self.slices[index], self.shape, strict=True)
        )

    def place(self, index: int, *before: int | slice) -> Place:
        """Index of a window's inside in ``[..., H, W, D]``; ``before`` picks along the first axes."""
        return (*before, ..., *self.inside(index))

    def crop(self, volume: torch.Tensor, index: int) -> torch.Tensor:
        """One window of ``[..., H, W, D]``, padded with zeros to its full size; a view where nothing is padded."""
        part = volume[self.place(index)]
        lacking = [own - side for own, side in zip(self.window, part.shape[-3:], strict=True)]
        return F.pad(part, [n for side in reversed(lacking) for n in (0, side)]) if any(lacking) else part

    def weight(self, index: int, device: torch.device | str | None = None) -> torch.Tensor:
        """Float32 share of a window in each voxel of its inside; over all windows they sum to 1 in every voxel."""
        height, width, depth = (
            self._weights[axis][part.start][: part.stop - part.start].to(device)
            for axis, part in enumerate(self.inside(index))
        )
        return height[:, None, None] * width[:, None] * depth

    def touching(self, box: Box) -> list[int]:
        """Windows that share at least one voxel with a box of three slices with start and stop."""
        return [
            index
            for index in range(len(self))
            if all(own.start < b.stop and b.start < own.stop for own, b in zip(self.inside(index), box, strict=True))
        ]

    def _along(self, axis: int, side: int, mode: str, sigma_scale: float) -> dict[int, torch.Tensor]:
        """Normalised weights along one axis by the window's start."""
        size = self.window[axis]
        starts = sorted({part[axis].start for part in self.slices})
        shape = compute_importance_map((size,), mode=mode, sigma_scale=sigma_scale).double()
        total = torch.zeros(side, dtype=torch.float64)
        for start in starts:
            total[start : start + size] += shape
        return {start: (shape / total[start : start + size]).float() for start in starts}
