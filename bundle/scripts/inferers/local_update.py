"""Ask a network again about one target, in the windows that a correction touches and in no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialCrop
from monai.utils import convert_to_tensor

from scripts.inferers.prompt_source import PromptSource
from scripts.inferers.region import region_of_interest
from scripts.inferers.stage import COARSE, FINE, Stage
from scripts.inferers.two_stage import TwoStageInferer
from scripts.inferers.window_grid import WindowGrid
from scripts.request import RequestedTarget
from scripts.transforms.grid_merger import GridMerger, shifted
from scripts.transforms.prompt_shapes import Box, Marks, bounding_box, join_boxes

SLACK = 1e-3
"""Voxels by which affines may round."""


@dataclass(frozen=True)
class Update:
    """A target's new answer in a part of the image.

    Attributes:
        box: slices along H, W and D of the image as stored.
        mask: bool ``[h, w, d]``.
        probability: float16 ``[h, w, d]``; 0 outside the mask.
        windows: how many windows were predicted.
    """

    box: Box
    mask: np.ndarray
    probability: np.ndarray
    windows: int


@dataclass(frozen=True)
class _View:
    """What a stage sees: the image on its grid ``[1, h, w, d]``, and which box of the oriented image that is."""

    stage: Stage
    grid: MetaTensor
    part: Box | None


class LocalUpdate:
    """Predictions around corrections, by the stages of a two-stage system.

    A target is asked about in the last stage of its route. The touched windows are those that see a voxel of the
    correction; their new predictions are averaged as always, and count where touched windows outweigh the others: up
    to the middle between the last touched and the next window. Everything further away stays as it was.

    The image on a stage's grid is kept between corrections, so that a correction costs its windows only.

    Args:
        system: stages, policies and threshold.
        image: preprocessed, ``[1, H, W, D]`` with its affine, axes as the networks want them.
        networks: the network, or the stages' in a ``ModuleDict``.
        targets: all that was asked for: they decide the grids together, as when they were first segmented.
        shape: (H, W, D) of the image as stored; corrections and updates are on that grid.
        affine: its 4x4 voxel to world matrix.
        iterations: refinements after each prediction.
    """

    def __init__(
        self,
        system: TwoStageInferer,
        image: MetaTensor,
        networks: Any,
        targets: Sequence[RequestedTarget],
        shape: Sequence[int],
        affine: np.ndarray,
        iterations: int = 0,
    ) -> None:
        self.system, self.networks, self.targets, self.iterations = system, networks, tuple(targets), iterations
        self.image = image
        self.shape = tuple(int(side) for side in shape)
        self.affine = torch.as_tensor(np.asarray(affine, dtype=float))
        self._views: dict[int, _View] = {}

    def __call__(
        self,
        number: int,
        query: torch.Tensor,
        prompt: Callable[[Box], np.ndarray],
        edited: Marks,
        positive: bool,
        found: np.ndarray,
        mirrored_query: torch.Tensor | None = None,
    ) -> Update:
        """Predict.

        Args:
            number: place of the target among ``targets``.
            query: ``[1, L]``, on the device of the network.
            prompt: gives the target's prompt, bool, in any box of the image as stored.
            edited: the correction; windows that see it are predicted.
            positive: whether it adds to the prompt.
            found: label map ``[H, W, D]`` as stored; the fine stage's region contains what it marks.
            mirrored_query: see ``TwoStageInferer``.
        """
        view = self._view(number, edited.box, found)
        windows: WindowGrid = view.stage.inferer.grid(view.grid.shape[1:])  # type: ignore[attr-defined]
        box = self._moved(edited.box, self.affine, view.grid.affine, windows.shape)
        touched = windows.touching(box)
        seen = join_boxes(*(_as_box(windows.inside(n)) for n in touched))
        part = _cut_out(view.grid, seen)
        with torch.inference_mode():
            probabilities, _ = view.stage(
                part,
                self.networks,
                query,
                self._prompts(part, prompt, edited, positive),
                iterations=self.iterations,
                mirrored_queries=mirrored_query,
                return_disagreement=False,
            )
        core = self._moved(_core(windows, touched), view.grid.affine, self.affine, self.shape, whole_voxels=True)
        return self._merged(probabilities, part.affine, join_boxes(core, edited.box), len(touched))

    @property
    def nbytes(self) -> int:
        """Bytes of the image and of its copies on the stages' grids."""
        return self.image.nbytes + sum(view.grid.nbytes for view in self._views.values())

    def _view(self, number: int, box: Box, found: np.ndarray) -> _View:
        """The grid on which a target is asked about, made when first needed."""
        route = self.system.route(self.targets[number])
        stage = self.system.stage[route[-1]]
        routes = [(target, self.system.route(target)) for target in self.targets]
        guided = COARSE in route and stage.number == FINE
        members = [t for t, own in routes if stage.number in own and (COARSE in own) == (COARSE in route)]
        place = self._moved(box, self.affine, self.image.affine, self.image.shape[1:])
        key = stage.number if not guided else -stage.number
        known = self._views.get(key)
        if known is not None and (known.part is None or _contains(known.part, place)):
            return known
        keys = [target.key for target in members]
        part = self._region(stage, keys, [target.id for target in members], place, found) if guided else None
        volume = self.image if part is None else _cut_out(self.image, part)
        self._views[key] = _View(stage, stage.on_grid(volume, keys, stage.spacing(self.image)), part)
        return self._views[key]

    def _region(self, stage: Stage, keys: Sequence[str], ids: Sequence[int], place: Box, found: np.ndarray) -> Box:
        """The fine stage's part of the oriented image: around what was found, and the correction."""
        marked = bounding_box(np.isin(found, ids))
        whole = place
        if marked is not None:
            whole = join_boxes(place, self._moved(marked, self.affine, self.image.affine, self.image.shape[1:]))
        (a, b), (c, d), (e, f) = ((side.start, side.stop - 1) for side in whole)
        region = region_of_interest(
            self.image.shape[1:],
            stage.spacing(self.image),
            ((a, b), (c, d), (e, f)),
            keys,
            stage.resample.patch_size,
            stage.resample.target_spacing,
            self.system.terminology,
            stage.resample.mode == "dynamic",
        )
        return join_boxes(region.slices, place)

    def _prompts(
        self, part: MetaTensor, prompt: Callable[[Box], np.ndarray], edited: Marks, positive: bool
    ) -> torch.Tensor | None:
        """The prompt ``[1, h, w, d]`` on a part of a grid, or None where it is empty: text alone."""
        source = self._moved(_whole(part.shape[1:]), part.affine, self.affine, self.shape)
        bits = torch.from_numpy(prompt(source).astype(np.uint8))[None]
        mask = MetaTensor(bits, affine=shifted(self.affine, [side.start for side in source]))
        known = PromptSource(mask, None, [1]).on_grid(part).packed([0])  # of one class, its bits are its mask
        if known is None and not positive:
            return None
        shown = torch.zeros(part.shape) if known is None else known.float()
        shown[0][self._marked(part, edited)] = float(positive)
        return shown if shown.any() else None

    def _marked(self, part: MetaTensor, edited: Marks) -> torch.Tensor:
        """bool ``[h, w, d]``: the correction on a part of a grid, which nearest sampling might miss.

        A voxel of the grid belongs to it with at least half as many marked voxels as the fullest one: half of its
        volume for a large mark, any share for a thin line.
        """
        matrix = torch.linalg.solve(part.affine.cpu().double(), self.affine).numpy()
        counts = np.zeros(part.shape[1:], dtype=np.int32)
        first = [side.start for side in edited.box]
        for row, plane in enumerate(edited.mask):  # plane by plane: indices take far more memory than a mask
            voxels = np.argwhere(plane[None]) + first + [row, 0, 0]
            places = np.floor(voxels @ matrix[:3, :3].T + matrix[:3, 3] + 0.5 + SLACK).astype(int)
            inside = ((places >= 0) & (places < part.shape[1:])).all(axis=1)
            np.add.at(counts, tuple(places[inside].T), 1)
        return torch.from_numpy((counts > 0) & (2 * counts >= counts.max()))

    def _merged(self, probabilities: torch.Tensor, affine: torch.Tensor, box: Box, windows: int) -> Update:
        """Probabilities ``[1, h, w, d]`` at the image's own resolution, in a box of it."""
        size = [side.stop - side.start for side in box]
        origin = shifted(self.affine, [side.start for side in box])
        merger = GridMerger(size, origin, [1], self.system.threshold)
        merger.add(probabilities, [0], affine)
        found = convert_to_tensor(merger.labels, track_meta=False)[0].numpy() != 0
        probability = convert_to_tensor(merger.probability, track_meta=False)[0].numpy()
        return Update(box, found, probability, windows)

    @staticmethod
    def _moved(
        box: Box, source: torch.Tensor, goal: torch.Tensor, shape: Sequence[int], whole_voxels: bool = False
    ) -> Box:
        """A box of one grid on another one: all voxels that it reaches, or those whose centre lies in it.

        At least one voxel, and none outside ``shape``.
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
        return _as_box([slice(int(a), int(b)) for a, b in zip(start, stop, strict=True)])


def _core(windows: WindowGrid, touched: Sequence[int]) -> Box:
    """Voxels of a grid where touched windows count: up to the middle between them and the next untouched window."""
    sides = []
    for axis, side in enumerate(windows.shape):
        starts = sorted({part[axis].start for part in windows.slices})
        own = sorted({windows.slices[n][axis].start for n in touched})
        low, high = starts.index(own[0]), starts.index(own[-1])
        half = windows.window[axis] / 2
        first = 0 if low == 0 else int(np.ceil((starts[low - 1] + starts[low]) / 2 + half))
        last = side if high == len(starts) - 1 else int(np.floor((starts[high] + starts[high + 1]) / 2 + half))
        sides.append(slice(first, min(last, side)))
    return _as_box(sides)


def _cut_out(image: MetaTensor, box: Box) -> MetaTensor:
    """A box of ``[1, H, W, D]`` with its own affine."""
    part: Any = SpatialCrop(roi_slices=list(box))(image)
    return part


def _contains(box: Box, part: Box) -> bool:
    return all(b.start <= p.start and p.stop <= b.stop for b, p in zip(box, part, strict=True))


def _whole(shape: Sequence[int]) -> Box:
    return _as_box([slice(0, int(side)) for side in shape])


def _as_box(sides: Sequence[slice]) -> Box:
    a, b, c = sides
    return a, b, c
