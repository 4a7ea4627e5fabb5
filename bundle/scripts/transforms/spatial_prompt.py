"""Simulate the spatial prompts of training from the true masks: Algorithm 1 of the paper."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, Transform


class RandSpatialPrompt(Randomizable, Transform):
    """Coarse, incomplete and partly wrong copies of the masks, block by block (paper section 2.2, Algorithm 1).

    Args:
        p_zero: probability that both prompts are empty.
        p_channel_drop: probability that a channel is left out as a whole.
        drop_range: range of the probability that a block is dropped.
        add_range: range of the probability that a block is added.
        block_sizes: cube sides in voxels, one of which is drawn.
    """

    def __init__(
        self,
        p_zero: float = 0.35,
        p_channel_drop: float = 0.1,
        drop_range: tuple[float, float] = (0.3, 0.9),
        add_range: tuple[float, float] = (0.0, 0.02),
        block_sizes: Sequence[int] = (4, 8, 16, 32),
    ) -> None:
        self.p_zero, self.p_channel_drop = p_zero, p_channel_drop
        self.drop_range, self.add_range, self.block_sizes = drop_range, add_range, tuple(block_sizes)

    def randomize(self, data: Any = None) -> None:
        """Draw what one call needs beyond the per-block draws."""
        self._empty = self.R.uniform() < self.p_zero
        self._block = int(self.R.choice(self.block_sizes))
        self._p_drop = self.R.uniform(*self.drop_range)
        self._p_add = self.R.uniform(*self.add_range)
        self._generator = torch.Generator().manual_seed(int(self.R.randint(2**31)))

    def _subset(self, channels: int, blocks: Sequence[int]) -> torch.Tensor:
        """A random non-empty subset of channels, of random size, for every block: bool ``[N, *blocks]``."""
        scores = torch.rand(channels, *blocks, generator=self._generator)
        size = torch.randint(1, channels + 1, tuple(blocks), generator=self._generator)
        rank = scores.argsort(dim=0).argsort(dim=0)
        return rank < size

    def __call__(self, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts of one sample.

        Args:
            masks: 0/1, ``[N, H, W, D]``, any dtype.

        Returns:
            S_p ``[N, H, W, D]`` and S_f ``[1, H, W, D]``, both uint8 0/1.
        """
        self.randomize()
        masks = masks > 0
        shape = masks.shape[1:]
        if self._empty or len(masks) == 0:
            return torch.zeros(masks.shape, dtype=torch.uint8), torch.zeros(1, *shape, dtype=torch.uint8)
        blocks = [-(-side // self._block) for side in shape]
        drop = torch.rand(*blocks, generator=self._generator) < self._p_drop
        # Added blocks are drawn among those that are not dropped, so that the two never coincide.
        add = (torch.rand(*blocks, generator=self._generator) < self._p_add) & ~drop
        kept = torch.rand(len(masks), generator=self._generator) >= self.p_channel_drop
        keep = self._subset(len(masks), blocks) & ~drop & kept.reshape(-1, 1, 1, 1)
        added = self._subset(len(masks), blocks) & add
        prompts = self._select(masks, keep, added)
        union = masks[kept].view(torch.uint8).amax(dim=0, keepdim=True) if kept.any() else torch.zeros(1, *shape)
        return prompts, self._select(union.bool(), ~drop[None], add[None])

    def _select(self, masks: torch.Tensor, keep: torch.Tensor, add: torch.Tensor) -> torch.Tensor:
        """Masks ``[C, H, W, D]`` where their block is kept, and everything where it is added; uint8.

        The blocks ``[C, h, w, d]`` are spread along the last axis and broadcast along the others, which costs a
        fraction of upsampling them in memory.
        """
        side, shape = self._block, masks.shape[1:]
        padding = [
            p for size, count in zip(shape[::-1], keep.shape[:0:-1], strict=True) for p in (0, count * side - size)
        ]
        padded = F.pad(masks, padding) if any(padding) else masks
        voxels = padded.reshape(len(masks), keep.shape[1], side, keep.shape[2], side, padded.shape[3])

        def spread(blocks: torch.Tensor) -> torch.Tensor:
            return blocks.repeat_interleave(side, dim=3)[:, :, None, :, None]

        chosen = (voxels & spread(keep)).logical_or_(spread(add)).reshape(padded.shape)
        return chosen[:, : shape[0], : shape[1], : shape[2]].contiguous().view(torch.uint8)


class RandSpatialPromptd(Randomizable, MapTransform):
    """Dictionary form: masks under each key give ``<key>_prompt`` (S_p) and ``<key>_foreground`` (S_f).

    Args:
        keys: keys of the masks ``[N, H, W, D]``.
        transform: the array transform.
        p_withhold: probability that S_p is withheld from the network altogether, which ``<key>_withheld`` says (10 % of
            the training steps in the paper's recipe); the prompts themselves stay in the data.
    """

    def __init__(self, keys: KeysCollection, transform: RandSpatialPrompt, p_withhold: float = 0.1) -> None:
        super().__init__(keys)
        self.transform = transform
        self.p_withhold = p_withhold

    def set_random_state(self, seed: int | None = None, state: Any = None) -> RandSpatialPromptd:
        """Seed the array transform as well."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with the prompts added."""
        d = dict(data)
        for key in self.key_iterator(d):
            prompts, foreground = self.transform(d[key])
            d[f"{key}_withheld"] = bool(self.R.uniform() < self.p_withhold)
            d[f"{key}_prompt"], d[f"{key}_foreground"] = prompts, foreground
        return d
