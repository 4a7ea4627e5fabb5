"""Simulate the prompts that an earlier, coarser stage or a hurried hand gives: whole structures with wrong borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.transforms import Randomizable, Transform

NOISE_STEP = 4
"""Coarse voxels between two nodes of the noise: faults are several voxels wide, as a network's are."""


class RandRoughPrompt(Randomizable, Transform):
    """Masks at a coarser resolution with smooth faults: grown, shrunk, with bumps, holes and blobs elsewhere.

    Algorithm 1 of the paper (``RandSpatialPrompt``) keeps or drops blocks, but what it keeps is exact to the voxel.
    A network trained on it alone copies a prompt's border, and a second stage then repeats the first one's faults.

    Args:
        p_zero: probability that both prompts are empty.
        p_channel_drop: probability that a channel is left out as a whole.
        factors: sides of a coarse voxel in voxels, one of which is drawn.
        noise: range of the faults' standard deviation, as a share of a voxel's filling (0 to 1).
        threshold: range of the filling from which a voxel belongs to the prompt.
    """

    def __init__(
        self,
        p_zero: float = 0.35,
        p_channel_drop: float = 0.1,
        factors: Sequence[float] = (2.0, 3.0, 4.0),
        noise: tuple[float, float] = (0.0, 0.3),
        threshold: tuple[float, float] = (0.3, 0.7),
    ) -> None:
        self.p_zero, self.p_channel_drop = p_zero, p_channel_drop
        self.factors, self.noise, self.threshold = tuple(factors), noise, threshold

    def randomize(self, data: Any = None) -> None:
        """Draw what one call needs beyond the noise itself."""
        self._empty = self.R.uniform() < self.p_zero
        self._factor = float(self.R.choice(self.factors))
        self._noise, self._threshold = self.R.uniform(*self.noise), self.R.uniform(*self.threshold)
        self._generator = torch.Generator().manual_seed(int(self.R.randint(2**31)))

    def __call__(self, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts of one sample.

        Args:
            masks: 0/1, ``[N, H, W, D]``, any dtype.

        Returns:
            S_p ``[N, H, W, D]`` and S_f ``[1, H, W, D]``, both uint8 0/1; S_f is 1 where any prompt is.
        """
        self.randomize()
        shape, count = masks.shape[1:], len(masks)
        if self._empty or count == 0:
            return torch.zeros(masks.shape, dtype=torch.uint8), torch.zeros(1, *shape, dtype=torch.uint8)
        coarse = [max(round(side / self._factor), 1) for side in shape]
        nodes = [max(side // NOISE_STEP, 1) for side in coarse]
        filling = F.interpolate((masks > 0).float()[None], size=coarse, mode="area")
        faults = torch.randn(1, count, *nodes, generator=self._generator) * self._noise
        filling += F.interpolate(faults, size=coarse, mode="trilinear", align_corners=False)
        kept = torch.rand(count, generator=self._generator) >= self.p_channel_drop
        filling[:, ~kept] = 0
        prompts = F.interpolate(filling, size=shape, mode="trilinear", align_corners=False)[0] > self._threshold
        return prompts.view(torch.uint8), prompts.any(dim=0, keepdim=True).view(torch.uint8)
