"""Where the spatial prompts of a stage come from: the user's masks, or the coarse stage's answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from monai.utils import convert_to_tensor

from scripts.transforms.grid_merger import filled_masks, pack_masks, unpack_mask
from scripts.transforms.resampling import resample_like


class PromptSource:
    """Masks at the image's own resolution, given out on a stage's grid for as many classes as are in work.

    A class takes the user's mask where there is one, else its label in the coarse map, else nothing.

    Args:
        bits: user's masks, packed, uint8 ``[ceil(N / 8), H, W, D]`` (see ``pack_masks``); None without any.
        labels: coarse label map ``[1, H, W, D]``; None without any.
        ids: label value of each class.
    """

    def __init__(self, bits: MetaTensor | None, labels: MetaTensor | None, ids: Sequence[int]) -> None:
        self.bits, self.labels, self.ids = bits, labels, tuple(ids)
        self.given = set() if bits is None else {n for n, filled in enumerate(filled_masks(bits, len(ids))) if filled}

    def on_grid(self, grid: MetaTensor) -> PromptSource:
        """The same prompts on the grid of ``grid`` ``[1, h, w, d]``; nearest voxels, so that bits stay bits."""
        moved = [None if masks is None else resample_like(masks, grid) for masks in (self.bits, self.labels)]
        result = PromptSource(None, moved[1], self.ids)
        result.bits, result.given = moved[0], self.given
        return result

    def packed(self, classes: Sequence[int]) -> torch.Tensor | None:
        """Prompts of some classes, see ``pack_masks``; None where all are empty: text alone."""
        if self.labels is None and not self.given.intersection(classes):
            return None
        bits = pack_masks(self._channel(n) for n in classes)
        return bits if bits.any() else None

    def _channel(self, n: int) -> torch.Tensor:
        if self.bits is not None and (n in self.given or self.labels is None):
            return _plain(self.bits, n)
        labels: torch.Tensor = self.labels  # type: ignore[assignment]
        return convert_to_tensor(labels, track_meta=False)[0].cpu() == self.ids[n]


def _plain(bits: MetaTensor, n: int) -> torch.Tensor:
    return unpack_mask(convert_to_tensor(bits, track_meta=False).cpu(), n)
