"""Simulate scans of thick slices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor


class RandThickSlices(RandomizableTransform):
    """Average an image over slices along one random axis and interpolate back, as resampling such a scan does.

    MONAI's ``RandSimulateLowResolution`` coarsens all axes alike; clinical series are coarse along one.

    Args:
        prob: probability to act.
        thickness: range of the slice thickness in mm.
        spacing: voxel spacing of the image in mm (isotropic).
    """

    def __init__(self, prob: float = 0.25, thickness: tuple[float, float] = (3.0, 7.0), spacing: float = 1.0) -> None:
        super().__init__(prob)
        self.thickness, self.spacing = thickness, spacing

    def randomize(self, data: None = None) -> None:
        """Draw whether, along which axis and how thick."""
        super().randomize(data)
        self._axis, self._thickness = int(self.R.randint(3)), self.R.uniform(*self.thickness)

    def __call__(self, image: torch.Tensor, randomize: bool = True) -> torch.Tensor:
        """``[C, H, W, D]`` to the same shape and dtype."""
        if randomize:
            self.randomize()
        if not self._do_transform:
            return image
        plain = convert_to_tensor(image, track_meta=False).float()[None]
        size = list(image.shape[1:])
        size[self._axis] = max(round(size[self._axis] * self.spacing / self._thickness), 1)
        thick = F.interpolate(plain, size=size, mode="area")
        back = F.interpolate(thick, size=list(image.shape[1:]), mode="trilinear", align_corners=False)[0]
        return convert_to_dst_type(back, image)[0]


class RandThickSlicesd(RandomizableTransform, MapTransform):
    """Dictionary form.

    Args:
        keys: keys of the images.
        prob: see ``RandThickSlices``.
        thickness: see ``RandThickSlices``.
        spacing: see ``RandThickSlices``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.25,
        thickness: tuple[float, float] = (3.0, 7.0),
        spacing: float = 1.0,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.transform = RandThickSlices(1.0, thickness, spacing)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandThickSlicesd:
        """Seed the array transform as well."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data``; images under several keys share axis and thickness."""
        d = dict(data)
        self.randomize(None)
        if self._do_transform:
            self.transform.randomize()
            for key in self.key_iterator(d):
                d[key] = self.transform(d[key], randomize=False)
        return d
