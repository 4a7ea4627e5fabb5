"""Boxes of voxels, and the same boxes on another grid of the same image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialCrop

from scripts.transforms.prompt_shapes import Box

SLACK = 1e-3
"""Voxels by which affines may round."""


def moved_box(
    box: Box, source: torch.Tensor, goal: torch.Tensor, shape: Sequence[int], whole_voxels: bool = False
) -> Box:
    """A box of one grid on another one: all voxels that it reaches, or those whose centre lies in it.

    Args:
        box: slices with start and stop.
        source: 4x4 voxel to world matrix of the box's grid.
        goal: that of the other grid.
        shape: (H, W, D) of the other grid; the result has at least one voxel, and none outside.
        whole_voxels: only voxels whose centre lies in the box.
    """
    corners = np.stack(np.meshgrid(*[(s.start - 0.5, s.stop - 0.5) for s in box], indexing="ij"), -1).reshape(-1, 3)
    matrix = np.linalg.solve(goal.cpu().double().numpy(), source.cpu().double().numpy())
    places = corners @ matrix[:3, :3].T + matrix[:3, 3]
    low, high = places.min(axis=0) + SLACK, places.max(axis=0) - SLACK
    limit = np.asarray(shape)
    if whole_voxels:
        start, stop = np.ceil(low), np.floor(high) + 1
    else:
        start, stop = np.floor(low + 0.5), np.floor(high + 0.5) + 1
    start = np.clip(start, 0, limit - 1).astype(int)
    stop = np.clip(stop, start + 1, limit).astype(int)
    return as_box([slice(int(a), int(b)) for a, b in zip(start, stop, strict=True)])


def cut_out(image: MetaTensor, box: Box) -> MetaTensor:
    """A box of ``[1, H, W, D]`` with its own affine."""
    part: Any = SpatialCrop(roi_slices=list(box))(image)
    return part


def contains(box: Box, part: Box) -> bool:
    """Whether a box holds another one."""
    return all(b.start <= p.start and p.stop <= b.stop for b, p in zip(box, part, strict=True))


def whole_box(shape: Sequence[int]) -> Box:
    """All of a grid of (H, W, D) voxels."""
    return as_box([slice(0, int(side)) for side in shape])


def as_box(sides: Sequence[slice]) -> Box:
    """Three slices as the tuple that indexes a volume."""
    a, b, c = sides
    return a, b, c
