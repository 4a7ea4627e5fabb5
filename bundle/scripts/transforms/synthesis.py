"""Synthesise images of any contrast from label maps alone, after Billot et al., SynthSeg (MedIA 2023).

The two transforms turn a label map of the whole field of view (targets and all other tissues) into a patch: first the
anatomy is moved and deformed, then each tissue gets a random mean and deviation. Bias field, blur, noise and gamma
are MONAI's own transforms and follow in the config.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform
from monai.transforms.utils import create_rotate, create_scale, create_shear


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(seed))


class RandDeformLabels(Randomizable, Transform):
    """Cut one randomly placed, rotated, scaled, sheared and smoothly deformed patch out of a label map.

    Sampling is nearest-neighbour on a grid ``oversample`` times finer than the patch, so that the image drawn from it
    shows partial volume after pooling. What lies outside the map becomes 0.

    Args:
        patch_size: voxels of the patch, before oversampling.
        spacing: voxel spacing of the patch in mm.
        source_spacing: voxel spacing of the label maps in mm (isotropic).
        oversample: grid points per voxel and axis.
        rotate: largest rotation about each axis in degrees.
        scale: range of the scale factor common to the axes.
        aspect: how far each axis may be scaled further, as a share.
        shear: largest shear coefficient.
        shift: how far, in mm, the patch may be off the map's centre beyond what the map's own size allows.
        deform_std: range of the deformation's standard deviation in mm.
        deform_nodes: range of the control grid's nodes per axis.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        spacing: float,
        source_spacing: float = 1.0,
        oversample: int = 2,
        rotate: float = 15.0,
        scale: tuple[float, float] = (0.85, 1.15),
        aspect: float = 0.05,
        shear: float = 0.02,
        shift: float = 10.0,
        deform_std: tuple[float, float] = (0.0, 4.0),
        deform_nodes: tuple[int, int] = (4, 10),
    ) -> None:
        self.shape = tuple(size * oversample for size in patch_size)
        self.step = spacing / oversample / source_spacing
        self.source_spacing = source_spacing
        self.rotate, self.scale, self.aspect = np.deg2rad(rotate), scale, aspect
        self.shear, self.shift = shear, shift
        self.deform_std, self.deform_nodes = deform_std, deform_nodes

    def randomize(self, data: Sequence[int]) -> None:
        """Draw the patch's place and shape for a label map with ``data`` voxels per axis."""
        extent = np.asarray(self.shape) * self.step
        slack = np.abs(np.asarray(data) - extent) / 2 + self.shift / self.source_spacing
        self._centre = (np.asarray(data) - 1) / 2 + self.R.uniform(-slack, slack)
        rotation = create_rotate(3, self.R.uniform(-self.rotate, self.rotate, 3).tolist())
        factors = self.R.uniform(*self.scale) * self.R.uniform(1 - self.aspect, 1 + self.aspect, 3)
        scale = create_scale(3, factors.tolist())
        shear = create_shear(3, self.R.uniform(-self.shear, self.shear, 6).tolist())
        self._matrix = (rotation @ shear @ scale)[:3, :3]
        self._nodes = int(self.R.randint(self.deform_nodes[0], self.deform_nodes[1] + 1))
        self._std = self.R.uniform(*self.deform_std) / self.source_spacing
        self._seed = self.R.randint(2**31)

    def _displacement(self) -> torch.Tensor:
        """Smooth displacement ``[3, *shape]`` in voxels of the label map."""
        nodes = torch.randn(1, 3, *[self._nodes] * 3, generator=_generator(self._seed)) * self._std
        return F.interpolate(nodes, size=self.shape, mode="trilinear", align_corners=True)[0]

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels ``[1, X, Y, Z]`` (any integer dtype) to ``[1, *shape]`` of the same dtype."""
        size = labels.shape[1:]
        self.randomize(size)
        position = self._displacement()
        matrix = torch.as_tensor(self._matrix * self.step, dtype=torch.float32)
        for axis, count in enumerate(self.shape):
            offset = torch.arange(count, dtype=torch.float32) - (count - 1) / 2
            shape = [3, 1, 1, 1]
            shape[axis + 1] = count
            position += (matrix[:, axis : axis + 1] * offset).reshape(shape)
        position += torch.as_tensor(self._centre, dtype=torch.float32).reshape(3, 1, 1, 1)
        index = position.round_().to(torch.int32)
        limit = torch.tensor(size, dtype=torch.int32).reshape(3, 1, 1, 1)
        inside = ((index >= 0) & (index < limit)).all(dim=0)
        flat = (index[0] * size[1] + index[1]) * size[2] + index[2]
        flat *= inside
        sampled = labels.reshape(-1)[flat]
        return (sampled * inside.to(sampled.dtype)).unsqueeze(0)


def _table(values: Mapping[int, float], size: int, dtype: torch.dtype) -> torch.Tensor:
    """Lookup table of ``size`` rows; -1 where ``values`` says nothing."""
    table = torch.full((size,), -1, dtype=dtype)
    for value, content in values.items():
        table[int(value)] = content
    return table


class RandTissueContrast(Randomizable, Transform):
    """Draw an image from a label map: every tissue its own random mean and deviation, then partial volume.

    The means lie between T1-like ones and fully random ones. A network that starts on random contrast learns far
    slower than one whose contrast widens as it learns, so the share of randomness may grow with the training run.

    Args:
        tissues: each with ``values`` (label values that look alike, such as both sides of a structure), ``mean`` (in
            a T1-weighted head, 0..255) and optionally ``outside: true`` (removed by brain extraction).
        jitter: standard deviation of the tissue means around the T1-like ones.
        deviation: range of the deviation within a tissue.
        oversample: pooling factor from the label map's grid to the patch.
        background: probability that label 0 is exactly 0, as in most archives.
        strip: probability that the outside tissues are removed.
        widest: largest share of randomness, 0 (always T1-like) to 1.
        full_random: probability of entirely random means, growing with the share.
        ramp: progress of the run (0 to 1) between which the share grows from 0 to ``widest``.
    """

    def __init__(
        self,
        tissues: Sequence[Mapping[str, Any]],
        jitter: float = 12.0,
        deviation: tuple[float, float] = (2.0, 20.0),
        oversample: int = 2,
        background: float = 0.7,
        strip: float = 0.1,
        widest: float = 1.0,
        full_random: float = 0.3,
        ramp: tuple[float, float] = (0.0, 0.6),
    ) -> None:
        self.means = np.asarray([tissue["mean"] for tissue in tissues], dtype=np.float32)
        self.outside = np.asarray([bool(tissue.get("outside", False)) for tissue in tissues])
        tissue_of = {value: index for index, tissue in enumerate(tissues) for value in tissue["values"]}
        self.tissue_of = _table(tissue_of, max(tissue_of) + 1, torch.int32)
        self.background_tissue = tissue_of[0]
        self.jitter, self.deviation, self.oversample = jitter, deviation, oversample
        self.background, self.strip = background, strip
        self.widest, self.full_random, self.ramp = widest, full_random, ramp

    def randomize(self, data: float) -> None:
        """Draw means and deviations; ``data`` is the progress of the run, 0 to 1."""
        count, empty = len(self.means), self.background_tissue
        share = self.widest * float(np.interp(data, self.ramp, (0, 1)))
        weight = 1.0 if self.R.uniform() < self.full_random * share else self.R.uniform() * share
        means = (1 - weight) * (self.means + self.R.normal(0, self.jitter, count))
        means += weight * self.R.uniform(0, 255, count)
        deviations = self.R.uniform(*self.deviation, count)
        if self.R.uniform() < self.background:
            means[empty], deviations[empty] = 0, 0
        if self.R.uniform() < self.strip:
            means[self.outside], deviations[self.outside] = means[empty], deviations[empty]
        self._means, self._deviations = np.clip(means, 0, 255), deviations
        self._seed = self.R.randint(2**31)

    def __call__(self, labels: torch.Tensor, progress: float = 1.0) -> torch.Tensor:
        """Label map ``[1, H, W, D]`` to an image ``[1, H / oversample, ...]``, float32, 0 or more.

        Raises:
            ValueError: if a label value belongs to no tissue.
        """
        self.randomize(progress)
        index = self.tissue_of[labels.clamp(max=len(self.tissue_of) - 1).to(torch.int32)]
        if int(labels.max()) >= len(self.tissue_of) or int(index.min()) < 0:
            unknown = [v for v in labels.unique().tolist() if v >= len(self.tissue_of) or self.tissue_of[v] < 0]
            raise ValueError(f"label values {unknown} belong to no tissue: add them to the tissue table")
        image = torch.randn(labels.shape, generator=_generator(self._seed))
        image *= torch.as_tensor(self._deviations, dtype=torch.float32)[index]
        image += torch.as_tensor(self._means, dtype=torch.float32)[index]
        return F.avg_pool3d(image.unsqueeze(0), self.oversample)[0].clamp_(min=0)


class PoolLabels(Transform):
    """Rename a label map's values and bring it to a coarser grid: each voxel takes its block's commonest value.

    Args:
        factor: block size.
        targets: new value of each label value; values that are not listed become 0.
    """

    def __init__(self, targets: Mapping[int, int], factor: int = 2) -> None:
        self.factor = factor
        values = {int(value): target for value, target in targets.items()}
        self.lookup = _table(values, max(values) + 1, torch.int16).clamp(min=0)

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        """``[1, H, W, D]`` to ``[1, H / factor, ...]``, int16."""
        known = labels < len(self.lookup)
        targets = self.lookup[(labels * known).to(torch.int32)] * known
        f = self.factor
        blocks = targets[0].unfold(0, f, f).unfold(1, f, f).unfold(2, f, f)
        return blocks.reshape(*blocks.shape[:3], -1).mode(dim=-1).values.unsqueeze(0)


class RandSynthesizeImaged(Randomizable, MapTransform):
    """Dictionary form of the three: from the label map under ``keys`` to an image and its label map.

    Args:
        keys: key of the label map; replaced by the patch's target label map.
        deform: places and deforms the patch.
        contrast: draws the image.
        pool: brings the labels to the patch's grid and from tissues to targets.
        spacing: voxel spacing of the patch in mm, for the affine of the results.
        image_key: where the image goes.
        progress_key: where the data says how far the run is (0 to 1; 1 if absent).
    """

    def __init__(
        self,
        keys: KeysCollection,
        deform: RandDeformLabels,
        contrast: RandTissueContrast,
        pool: PoolLabels,
        spacing: float = 1.0,
        image_key: str = "image",
        progress_key: str = "progress",
    ) -> None:
        super().__init__(keys)
        self.deform, self.contrast, self.pool = deform, contrast, pool
        self.affine = torch.diag(torch.tensor([spacing, spacing, spacing, 1.0], dtype=torch.float64))
        self.image_key, self.progress_key = image_key, progress_key

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandSynthesizeImaged:
        """Seed the parts as well."""
        super().set_random_state(seed, state)
        for part in (self.deform, self.contrast):
            part.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with image and label map."""
        d = dict(data)
        for key in self.key_iterator(d):
            labels = self.deform(torch.as_tensor(d[key]))
            image = self.contrast(labels, float(d.get(self.progress_key, 1.0)))
            d[self.image_key] = MetaTensor(image, affine=self.affine)
            d[key] = MetaTensor(self.pool(labels), affine=self.affine)
        return d
