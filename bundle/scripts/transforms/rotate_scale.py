"""Rotate and scale a patch at random, each with its own probability, in one resampling."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, ResizeWithPadOrCrop, Transform
from monai.transforms.utils import create_rotate, create_scale
from monai.utils import convert_to_dst_type, ensure_tuple_rep
from nibabel.affines import voxel_sizes


class RandRotateScale(Randomizable, Transform):
    """Rotate and scale a volume about its centre, each with its own probability, in one resampling.

    nnU-Net's spatial transform without deformation, except that it turns in mm rather than in voxels, that the image
    is interpolated linearly (there: cubic) and labels take their nearest voxel. Outside is 0. The affine stays: it is
    the patient who moves.

    Args:
        prob_rotate: probability of a rotation about all three axes.
        prob_scale: probability of a scaling.
        degrees: largest angle about each axis.
        scale: range of the factor by which things grow.
        size: voxels of the result, cut out of the middle; a patch cut larger beforehand has no empty corners. None
            keeps the size.
    """

    def __init__(
        self,
        prob_rotate: float = 0.2,
        prob_scale: float = 0.2,
        degrees: float = 30.0,
        scale: tuple[float, float] = (0.7, 1.4),
        size: Sequence[int] | None = None,
    ) -> None:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"augment: scale has to be a range of factors above 0, got {tuple(scale)}")
        self.prob_rotate, self.prob_scale = prob_rotate, prob_scale
        self.degrees, self.scale, self.size = degrees, scale, size

    def randomize(self, data: Any = None) -> None:
        """Draw the matrix from the result's to the volume's coordinates in mm; None where nothing moves."""
        rotate, enlarge = self.R.uniform(size=2) < (self.prob_rotate, self.prob_scale)
        angles = np.deg2rad(self.R.uniform(-self.degrees, self.degrees, 3)) * rotate
        factor = self.R.uniform(*self.scale) if enlarge else 1.0
        moves = create_rotate(3, angles.tolist()) @ create_scale(3, [1 / factor] * 3)
        self._matrix = moves[:3, :3] if rotate or enlarge else None

    def __call__(self, volume: torch.Tensor, mode: str = "bilinear", randomize: bool = True) -> torch.Tensor:
        """``[C, H, W, D]`` of any dtype to the same dtype, ``[C, *size]``.

        Args:
            volume: with an affine, if its voxels are not cubes.
            mode: ``bilinear`` (of a volume: trilinear) or ``nearest``.
            randomize: False moves as the call before did, for a label map beside its image.
        """
        if randomize:
            self.randomize()
        size = tuple(volume.shape[1:]) if self.size is None else tuple(self.size)
        if self._matrix is None:
            return volume if size == tuple(volume.shape[1:]) else ResizeWithPadOrCrop(size)(volume)
        grid = F.affine_grid(self._theta(volume, size), [1, 1, *size], align_corners=False)
        plain = torch.as_tensor(volume).as_subclass(torch.Tensor)
        moved = F.grid_sample(plain[None].float(), grid, mode=mode, padding_mode="zeros", align_corners=False)[0]
        return convert_to_dst_type(moved, volume, dtype=plain.dtype)[0]

    def _theta(self, volume: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """The matrix for ``affine_grid``: of coordinates that run from -1 to 1 and are listed last axis first."""
        affine = np.asarray(volume.affine) if isinstance(volume, MetaTensor) else np.eye(4)
        spacing = voxel_sizes(affine)
        voxels = self._matrix * spacing[None, :] / spacing[:, None]
        share = voxels * np.asarray(size)[None, :] / np.asarray(volume.shape[1:])[:, None]
        theta = np.concatenate([share[::-1, ::-1], np.zeros((3, 1))], axis=1)
        return torch.as_tensor(theta, dtype=torch.float32)[None]


class RandRotateScaled(Randomizable, MapTransform):
    """Dictionary form: all keys move alike.

    Args:
        keys: volumes ``[C, H, W, D]`` of one size.
        transform: the array transform.
        mode: interpolation of each key.
    """

    def __init__(self, keys: KeysCollection, transform: RandRotateScale, mode: str | Sequence[str]) -> None:
        super().__init__(keys)
        self.transform, self.mode = transform, ensure_tuple_rep(mode, len(self.keys))

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandRotateScaled:
        """Seed the array transform as well."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data``, moved."""
        d = dict(data)
        self.transform.randomize()
        for key, mode in self.key_iterator(d, self.mode):
            d[key] = self.transform(d[key], mode, randomize=False)
        return d
