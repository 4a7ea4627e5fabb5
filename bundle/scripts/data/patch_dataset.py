"""Patches of prepared cases: the transform that reads one, the dataset that draws cases by weight, their speed.

Sample i is a function of the run's seed and i alone, so that workers, ranks and resumed runs need no random state of
their own: they share the samples by number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Randomizable, Transform

from scripts.data.blosc2_cache import IMAGE_FILE, LABEL_FILE, read_patch
from scripts.data.case_list import prepared_cases
from scripts.data.datasets import SeededDataset
from scripts.data.sampling import draw_start


class PatchDataset(SeededDataset):
    """``SeededDataset`` whose cases are drawn by weight.

    Args:
        data, transform, length, seed: as there.
        weights: how likely each case is, from ``sampling.case_weights``; None: all as likely.

    Raises:
        ValueError: not one weight for each case, or none above 0.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any],
        length: int,
        seed: int = 0,
        weights: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        super().__init__(data, transform, length, seed)
        chances = np.ones(len(self.data)) if weights is None else np.asarray(weights, dtype=float)
        if chances.shape != (len(self.data),) or not (chances >= 0).all() or not chances.sum() > 0:
            raise ValueError(
                f"patches: weights of shape {chances.shape} for {len(self.data)} cases; give a number from 0 for each, "
                "not all 0"
            )
        self._upper = np.cumsum(chances) / chances.sum()

    def draw_case(self, rng: np.random.Generator) -> int:
        """Number of a case, drawn by its weight."""
        # Where rounding leaves the last bound below 1, the last case with a weight takes the rest.
        last = int(np.flatnonzero(np.diff(self._upper, prepend=0.0))[-1])
        return min(int(np.searchsorted(self._upper, rng.random(), side="right")), last)


class RandCachedPatchd(Randomizable, Transform):
    """Read a random patch of a prepared case.

    Takes an entry of ``prepared_cases`` and returns ``image`` ``[1, H, W, D]`` float32 and ``label`` ``[1, H, W, D]``
    uint8 or int16, MetaTensors whose affine is the patch's; ``sentences`` and ``modality`` for ``SampleQueriesd``;
    ``dataset`` and ``case`` (texts) and ``patch_start`` ``[3]``, which say where the sample comes from; ``progress``
    where it was given. Instances are all the class 1. What lies outside the volume is 0 in both.

    Args:
        patch_size: voxels.
        foreground: probability that a random class present is at the centre.
    """

    def __init__(self, patch_size: Sequence[int], foreground: float = 0.2) -> None:
        self.patch_size = tuple(int(side) for side in patch_size)
        self.foreground = foreground
        if len(self.patch_size) != 3 or min(self.patch_size) < 1 or not 0 <= foreground <= 1:
            raise ValueError(
                f"patches: patch size {list(patch_size)}, foreground {foreground} arrived; give three sides from 1 and "
                "a probability"
            )

    def randomize(self, data: Mapping[str, Any]) -> None:
        """Draw where the patch lies."""
        rng = np.random.default_rng(int(self.R.randint(2**31)))
        self._start = draw_start(data, self.patch_size, self.foreground, rng)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """See the class."""
        self.randomize(data)
        folder = Path(data["folder"])
        image = read_patch(folder, IMAGE_FILE, self._start, self.patch_size)
        label = read_patch(folder, LABEL_FILE, self._start, self.patch_size)
        if data["instances"]:
            label = (label > 0).view(np.uint8)
        elif label.dtype != np.uint8:
            label = label.astype(np.int16)  # torch can do little with uint16; class values are below 2**15
        shift = np.eye(4)
        shift[:3, 3] = self._start
        affine = torch.as_tensor(np.asarray(data["affine"]) @ shift)
        sample = {
            "image": MetaTensor(torch.from_numpy(image.astype(np.float32)[None]), affine=affine),
            "label": MetaTensor(torch.from_numpy(np.ascontiguousarray(label)[None]), affine=affine),
            "sentences": data["sentences"],
            "modality": data["modality"],
            "dataset": data["dataset"],
            "case": f"{data['dataset']}/{data['name']}",
            "patch_start": torch.tensor(self._start),
        }
        return sample | ({"progress": data["progress"]} if "progress" in data else {})


def measure_reading(
    folder: str | Path, patch_size: Sequence[int], patches: int = 50, foreground: float = 0.2, seed: int = 0
) -> float:
    """Patches per second that one worker reads, before augmentation; opening the files anew for each.

    Args:
        folder: of a prepared training set.
        patch_size: voxels.
        patches: how many to read.
        foreground: as in ``RandCachedPatchd``.
        seed: draws cases and places.
    """
    reader = RandCachedPatchd(patch_size, foreground)
    dataset = PatchDataset(prepared_cases(folder, section=None), reader, length=patches, seed=seed)
    started = time.perf_counter()
    for number in range(patches):
        dataset[number]
    return patches / (time.perf_counter() - started)
