"""Check the voxels of a loaded volume before anything is computed from them."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ImageMetaKey

from scripts.errors import InputError

logger = logging.getLogger(__name__)


class CheckVoxels(Transform):
    """Refuse volumes without contrast or with voxels that are no numbers.

    Args:
        fill_non_finite: replace NaN and infinite voxels by the smallest finite one instead of refusing them; their
            count is logged and kept as ``filled_voxels`` in the metadata.
    """

    def __init__(self, fill_non_finite: bool = False) -> None:
        self.fill_non_finite = fill_non_finite

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Check one volume.

        Args:
            image: ``[1, H, W, D]`` float.

        Returns:
            The volume itself, or a filled copy.

        Raises:
            InputError: NaN or infinite voxels (with their number), or the same value everywhere.
        """
        name = Path(str(getattr(image, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, "image"))).name
        finite = torch.isfinite(image)
        bad = int(finite.numel() - finite.sum())
        if bad == finite.numel():
            raise InputError(f"{name}: every voxel is NaN or infinite")
        if bad:
            if not self.fill_non_finite:
                raise InputError(
                    f"{name}: {bad} of {finite.numel()} voxels are NaN or infinite; "
                    "set fill_non_finite to true to replace them by the smallest finite value"
                )
            logger.warning("%s: %d NaN or infinite voxels replaced by the smallest finite value", name, bad)
            image = torch.where(finite, image, image[finite].min())
        if float(image.min()) == float(image.max()):
            raise InputError(f"{name}: every voxel has the value {float(image.min()):g}, there is nothing to segment")
        if isinstance(image, MetaTensor) and bad:
            image.meta["filled_voxels"] = bad
        return image


class CheckVoxelsd(MapTransform):
    """Dictionary version of ``CheckVoxels``.

    Args:
        keys: entries that hold a volume.
        fill_non_finite: see ``CheckVoxels``.
        allow_missing_keys: skip absent keys.
    """

    def __init__(self, keys: KeysCollection, fill_non_finite: bool = False, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = CheckVoxels(fill_non_finite)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with checked volumes."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.transform(d[key])
        return d
