"""Add up what windows say of a volume, in one volume per class and no more."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scripts.inferers.window_grid import WindowGrid


class WindowSum:
    """Probabilities of a volume while its windows come in.

    Each window is multiplied by its normalised weight and added in place, so the sum is the weighted mean from the
    start, without a volume of counts or a division at the end.

    An update of an earlier sum empties the given windows and adds to them alone; every window that shares a voxel
    with them has to be added again. Added in the order of their numbers, windows give bit for bit what a sum from
    scratch gives.

    Args:
        grid: of the volume.
        items: images in the batch.
        classes: N.
        dtype: of the sum.
        device: of the sum.
        previous: the earlier sum, ``[items, N, H, W, D]`` and its disagreement; it is copied.
        windows: numbers of the windows whose prediction may have changed; None begins a new sum.

    Attributes:
        numbers: the windows to add, in order.
    """

    def __init__(
        self,
        grid: WindowGrid,
        items: int,
        classes: int,
        dtype: torch.dtype,
        device: torch.device,
        previous: tuple[torch.Tensor, torch.Tensor | None] | None = None,
        windows: Sequence[int] | None = None,
    ) -> None:
        self.grid, self.items, self.dtype, self.device = grid, items, dtype, device
        self.numbers = list(range(len(grid)))
        self._changed: torch.Tensor | None = None
        self._disagreement: torch.Tensor | None = None
        if previous is None or windows is None:
            self._probabilities = torch.zeros(items, classes, *grid.shape, dtype=dtype, device=device)
            return
        self._changed = torch.zeros(grid.shape, dtype=torch.bool, device=device)
        self._probabilities = previous[0].to(dtype=dtype, device=device, copy=True)
        if previous[1] is not None:
            self._disagreement = previous[1].to(dtype=dtype, device=device, copy=True)
        numbers: set[int] = set()
        for index in windows:
            inside = grid.inside(index)
            self._changed[inside] = True
            for volume in (self._probabilities, self._disagreement):
                if volume is not None:
                    volume[grid.place(index)] = 0
            numbers.update(grid.touching(inside))
        self.numbers = sorted(numbers)

    def add(self, item: int, index: int, probabilities: torch.Tensor, disagreement: torch.Tensor | None) -> None:
        """Add one window of one image.

        Args:
            item: image of the batch.
            index: number of the window.
            probabilities: ``[1, N, h, w, d]`` of the whole window, padding included.
            disagreement: ``[1, 1, h, w, d]``, or None where none was measured.
        """
        inside = self.grid.inside(index)
        weight = self.grid.weight(index, probabilities.device)
        if self._changed is not None:
            weight = weight * self._changed[inside].to(weight.device)
        weight = weight.to(self.device, self.dtype)
        if disagreement is not None and self._disagreement is None:
            self._disagreement = torch.zeros(self.items, 1, *self.grid.shape, dtype=self.dtype, device=self.device)
        for volume, part in ((self._probabilities, probabilities), (self._disagreement, disagreement)):
            if volume is not None and part is not None:
                height, width, depth = weight.shape
                own = part[0, :, :height, :width, :depth]
                volume[self.grid.place(index, item)].addcmul_(own.to(self.device, self.dtype), weight)

    def result(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Probabilities ``[items, N, H, W, D]`` and the disagreement ``[items, 1, H, W, D]`` or None."""
        if self.dtype == torch.float16:
            self._probabilities.clamp_(max=1)  # rounding may carry a sum of weights past 1
        return self._probabilities, self._disagreement
