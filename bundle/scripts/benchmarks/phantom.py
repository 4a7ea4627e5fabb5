"""A volume and a network whose answer is known, so that a whole run has structures to carry through to its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import nn

SOFT_TISSUE = (-160, 240)
SPACING_MM = (0.8, 0.8, 1.0)
# A grey-value ramp, normalised to mean 0 and variance 1, runs from -sqrt(3) to sqrt(3).
RAMP_END = 3**0.5
STEEPNESS = 6.0


def write_ramp(path: Path, shape: tuple[int, int, int]) -> Path:
    """Write a CT whose grey value rises steadily along its last axis through the soft-tissue window, as NIfTI."""
    voxels = np.empty(shape, np.int16)
    voxels[:] = np.linspace(*SOFT_TISSUE, shape[2]).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([*SPACING_MM, 1.0])), path)
    return path


class BandNetwork(nn.Module):
    """Stands in for a network: every query finds a band of grey values, so on a ramp a slice of the volume.

    A real network of the size in question lies inside and is run on one window out of ``every``, so that weights and
    activations take the memory they would; its answer is not used.

    Args:
        network: the real one, a ``ReusableNetwork``.
        every: windows of which one goes through it.
        width: of a band, as a share of the ramp.
    """

    def __init__(self, network: nn.Module, every: int = 100, width: float = 0.04) -> None:
        super().__init__()
        self.network, self.every, self.width = network, every, width
        self._windows = 0

    def features(self, image: torch.Tensor, with_plain: bool = False) -> tuple[torch.Tensor, ...]:
        """The image is all that ``answer`` needs."""
        if self._is_turn():
            self.network.features(image, with_plain)  # type: ignore[operator]
        return image, image

    def answer(self, features: Any, queries: torch.Tensor, prompts: torch.Tensor | None = None) -> torch.Tensor:
        """Logits ``[B, N, H, W, D]``."""
        return self._bands(features[0], queries)

    def forward(
        self,
        image: torch.Tensor,
        queries: torch.Tensor,
        prompts: torch.Tensor | None = None,
        foreground: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits ``[B, N, H, W, D]``."""
        if self._is_turn():
            self.network(image, queries, prompts, foreground)
        return self._bands(image, queries)

    def _is_turn(self) -> bool:
        self._windows += 1
        return self._windows % self.every == 1

    def _bands(self, image: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        asked = queries[0] if queries.ndim == 3 else queries
        logits = image.new_empty(len(image), len(asked), *image.shape[2:])
        for number, centre in enumerate(self._centres(asked)):
            apart = (image[:, 0] - centre).abs_().div_(self.width * RAMP_END)
            torch.sub(STEEPNESS, apart, alpha=STEEPNESS, out=logits[:, number])
        return logits

    def _centres(self, queries: torch.Tensor) -> list[float]:
        """A place on the ramp for each query, by its content alone: a target keeps it whatever it is asked with."""
        weights = torch.linspace(1, 97, queries.shape[-1], dtype=torch.float64, device=queries.device)
        places = ((queries.double() @ weights) * 1000).frac().abs()
        return ((2 * places - 1) * RAMP_END).tolist()
