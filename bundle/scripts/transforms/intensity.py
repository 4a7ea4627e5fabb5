"""Scale grey values to 0..255 as the method does for each modality (spec: "Intensity")."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ScaleIntensityRange, Transform
from monai.utils import ImageMetaKey

from scripts.errors import InputError
from scripts.request import decode_request

logger = logging.getLogger(__name__)
DEFAULT_WINDOW = "soft_tissue"
DICOM_MODALITIES = {"CT": "CT", "MR": "MRI", "PT": "PET", "US": "US"}  # code of the header -> ours
# Width and level in Hounsfield units, the values of configs/terminology.json.
CT_WINDOWS: Mapping[str, tuple[float, float]] = {
    "soft_tissue": (400, 40),
    "lung": (1500, -160),
    "brain": (80, 40),
    "bone": (1800, 400),
}
OUTPUT_MAX = 255.0
# 'kthvalue' sorts: beyond this many voxels a regular subset gives the percentiles to well below one grey step.
PERCENTILE_VOXELS = 2_000_000


class ScaleByModality(Transform):
    """Clip and scale one image to 0..255: CT by window, others between percentiles of the non-zero voxels.

    Images stored as uint8 pass unchanged: they are within 0..255 already. That is judged by the ``stored_dtype``
    of the metadata, or the tensor's own type.

    Args:
        modality: "CT", "MRI", "US", "PET" or "Microscopy"; a call may give another.
        window: name of the CT window where a call gives none.
        windows: name -> (width, level) in Hounsfield units.
        percentiles: lower and upper, in percent, for everything but CT.
    """

    def __init__(
        self,
        modality: str = "MRI",
        window: str = DEFAULT_WINDOW,
        windows: Mapping[str, Sequence[float]] | None = None,
        percentiles: Sequence[float] = (0.5, 99.5),
    ) -> None:
        self.modality = modality
        self.window = window
        self.windows = dict(CT_WINDOWS if windows is None else windows)
        self.percentiles = tuple(percentiles)

    def __call__(self, image: torch.Tensor, modality: str | None = None, window: str | None = None) -> torch.Tensor:
        """Scale one image.

        Args:
            image: ``[1, H, W, D]``, Hounsfield units for CT.
            modality: overrides the constructor's.
            window: overrides the constructor's.

        Returns:
            float32 of the same shape in 0..255; metadata kept.

        Raises:
            ValueError: unknown window, or no contrast.
        """
        stored = image.meta.get("stored_dtype") if isinstance(image, MetaTensor) else None
        if (stored or str(image.dtype).removeprefix("torch.")) == "uint8":
            return image.to(torch.float32)
        low, high = self._range(image, modality or self.modality, window or self.window)
        scaled: Any = ScaleIntensityRange(low, high, 0.0, OUTPUT_MAX, clip=True)(image)
        return scaled

    def _range(self, image: torch.Tensor, modality: str, window: str) -> tuple[float, float]:
        if modality.upper() == "CT":
            if window not in self.windows:
                raise ValueError(f"unknown CT window {window!r}, wanted one of {sorted(self.windows)}")
            width, level = self.windows[window]
            return level - width / 2, level + width / 2
        values = image.as_tensor() if isinstance(image, MetaTensor) else image
        values = values[values != 0].to(torch.float32)
        values = values[:: -(-values.numel() // PERCENTILE_VOXELS) or 1]
        low, high = (_percentile(values, p) for p in self.percentiles)
        if not high > low:  # e.g. a mask-like image with one grey value beside zero
            low, high = float(image.min()), float(image.max())
        if not high > low:
            raise InputError(f"the image has the value {low:g} everywhere, its grey values cannot be scaled")
        return low, high


class ScaleByModalityd(MapTransform):
    """Dictionary version of ``ScaleByModality``; modality and window come from the request where there is one.

    Targets that agree on a CT window get it, others the constructor's. A DICOM header that says another modality than
    the request is warned of: the grey values would be scaled for the wrong one.

    Args:
        keys: images to scale.
        modality: see ``ScaleByModality``.
        window: see ``ScaleByModality``.
        windows: see ``ScaleByModality``.
        percentiles: see ``ScaleByModality``.
        request_key: entry with the request.
        allow_missing_keys: skip absent keys.
    """

    def __init__(
        self,
        keys: KeysCollection,
        modality: str = "MRI",
        window: str = DEFAULT_WINDOW,
        windows: Mapping[str, Sequence[float]] | None = None,
        percentiles: Sequence[float] = (0.5, 99.5),
        request_key: str = "request",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = ScaleByModality(modality, window, windows, percentiles)
        self.request_key = request_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with scaled images."""
        d = dict(data)
        modality = window = None
        if self.request_key in d:
            request = decode_request(d[self.request_key])
            wanted = {target.window for target in request.targets}
            modality, window = request.modality, wanted.pop() if len(wanted) == 1 else None
        for key in self.key_iterator(d):
            if modality is not None:
                _warn_of_another(modality, d[key])
            d[key] = self.transform(d[key], modality, window)
        return d


def _warn_of_another(modality: str, image: torch.Tensor) -> None:
    """Say so where the image's DICOM header contradicts the modality of the request."""
    if not isinstance(image, MetaTensor):
        return
    stored = DICOM_MODALITIES.get(str(image.meta.get("modality")))
    if stored is not None and stored != modality:
        name = Path(str(image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "image"))).name
        logger.warning("%s: the DICOM header says %s, the request is for %s: set modality", name, stored, modality)


def _percentile(values: torch.Tensor, percent: float) -> float:
    """Linearly interpolated percentile, as ``numpy.percentile``; ``torch.quantile`` refuses large inputs."""
    position = percent / 100 * (values.numel() - 1)
    below = int(position)
    low = float(values.kthvalue(below + 1).values)
    high = float(values.kthvalue(min(below + 2, values.numel())).values)
    return low + (high - low) * (position - below)
