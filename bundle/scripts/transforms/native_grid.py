"""Bring class probabilities to the input's own grid and merge them into a label map on the way."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialResample, Transform
from monai.utils import MetaKeys, convert_to_tensor

from scripts.request import decode_request

FLOAT_BYTES = 4


class MergeOnGrid(Transform):
    """Resample ``[N, h, w, d]`` probabilities to another grid and keep the best class of each voxel.

    Works slab by slab along the output's first axis, so that memory grows with the volume, not with N: N full-size
    probability volumes never exist. The resampling goes straight from one affine to the other and is therefore
    right for any orientation, obliquity or anisotropy.

    Args:
        threshold: a voxel whose best probability is below it is background.
        mode: interpolation of ``SpatialResample``.
        slab_mb: bytes, in MiB, of the N-class slab in work; at least one slice is done at a time.
    """

    def __init__(self, threshold: float = 0.5, mode: str = "bilinear", slab_mb: float = 256) -> None:
        self.threshold = threshold
        self.slab_mb = slab_mb
        # Border: a voxel at the rim lies up to half a coarse voxel outside the coarse grid's centres.
        self.resample = SpatialResample(mode=mode, padding_mode="border", dtype="float32")

    def __call__(  # type: ignore[override]
        self,
        probabilities: torch.Tensor,
        ids: Sequence[int],
        affine: torch.Tensor,
        dst_affine: torch.Tensor,
        dst_shape: Sequence[int],
    ) -> tuple[MetaTensor, MetaTensor]:
        """Merge.

        Args:
            probabilities: ``[N, h, w, d]`` in 0..1.
            ids: label value of each class, N positive integers.
            affine: 4x4 voxel to world matrix of ``probabilities``.
            dst_affine: 4x4 matrix of the output grid.
            dst_shape: (H, W, D) of the output grid.

        Returns:
            Label map ``[1, H, W, D]``, uint8 or (ids above 255) int32; and the best class's probability, float16.

        Raises:
            ValueError: where ids and channels differ in number.
        """
        if len(ids) != len(probabilities) or min(ids) < 1:
            raise ValueError(f"{len(probabilities)} classes need as many positive label values, got {list(ids)}")
        shape = tuple(int(side) for side in dst_shape)
        affine, dst_affine = torch.as_tensor(affine).double().cpu(), torch.as_tensor(dst_affine).double().cpu()
        source = MetaTensor(convert_to_tensor(probabilities, track_meta=False).float(), affine=affine)
        values = torch.tensor(list(ids), dtype=torch.uint8 if max(ids) <= 255 else torch.int32)
        labels = torch.zeros(shape, dtype=values.dtype)
        best = torch.zeros(shape, dtype=torch.float16)
        slice_bytes = FLOAT_BYTES * len(ids) * shape[1] * shape[2]
        step = max(1, int(self.slab_mb * 2**20 / max(slice_bytes, 1)))
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            slab_affine = dst_affine.clone()
            slab_affine[:3, 3] += dst_affine[:3, 0] * start
            with self.resample.trace_transform(False):
                slab = self.resample(source, dst_affine=slab_affine, spatial_size=(stop - start, *shape[1:]))
            top, winner = convert_to_tensor(slab, track_meta=False).max(dim=0)
            labels[start:stop] = torch.where(top >= self.threshold, values.to(top.device)[winner], 0).cpu()
            best[start:stop] = top.half().cpu()
        return MetaTensor(labels[None], affine=dst_affine), MetaTensor(best[None], affine=dst_affine)


class MergeOnGridd(MapTransform):
    """Dictionary version of ``MergeOnGrid``: the grid is that of the image as it was in its file.

    Args:
        keys: probabilities, one key.
        image_key: preprocessed image on the probabilities' grid; its metadata remembers the file's grid.
        label_key: where the label map goes.
        probability_key: where the best probability goes.
        request_key: the request, whose targets give the label values.
        threshold: see ``MergeOnGrid``.
        mode: see ``MergeOnGrid``.
        slab_mb: see ``MergeOnGrid``.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        image_key: str = "image",
        label_key: str = "label_map",
        probability_key: str = "probability",
        request_key: str = "request",
        threshold: float = 0.5,
        mode: str = "bilinear",
        slab_mb: float = 256,
    ) -> None:
        super().__init__(keys)
        self.transform = MergeOnGrid(threshold, mode, slab_mb)
        self.image_key = image_key
        self.label_key = label_key
        self.probability_key = probability_key
        self.request_key = request_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with label map and probability added."""
        d = dict(data)
        ids = [target.id for target in decode_request(d[self.request_key]).targets]
        image = d[self.image_key]
        for key in self.key_iterator(d):
            d[self.label_key], d[self.probability_key] = self.transform(
                d[key], ids, image.affine, image.meta[MetaKeys.ORIGINAL_AFFINE], native_shape(image)
            )
        return d


def native_shape(image: MetaTensor) -> tuple[int, ...]:
    """(H, W, D) of an image as it was in its file."""
    return tuple(int(side) for side in image.meta[MetaKeys.SPATIAL_SHAPE][:3])
