"""Ask a network again about one target, in the windows that a correction touches and in no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import convert_to_tensor

from scripts.inferers.grid_boxes import SLACK, as_box, contains, cut_out, moved_box, whole_box
from scripts.inferers.prompt_source import PromptSource
from scripts.inferers.region import Box as VoxelBox
from scripts.inferers.stage import COARSE, FINE, Stage
from scripts.inferers.two_stage import TwoStageInferer
from scripts.inferers.window_grid import WindowGrid
from scripts.request import RequestedTarget
from scripts.transforms.grid_merger import GridMerger, shifted
from scripts.transforms.prompt_shapes import Box, Marks, bounding_box, join_boxes


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
    """What a stage sees of the image.

    Attributes:
        stage: coarse or fine.
        grid: the image on its grid ``[1, h, w, d]``.
        part: which box of the oriented image that is; all of it where None.
        members: the targets that were segmented together on it.
        anchored: its windows lie at fixed places of the image.
    """

    stage: Stage
    grid: MetaTensor
    part: Box | None
    members: tuple[RequestedTarget, ...]
    anchored: bool

    @property
    def keys(self) -> list[str]:
        return [target.key for target in self.members]

    @property
    def ids(self) -> list[int]:
        return [target.id for target in self.members]


class LocalUpdate:
    """Predictions around corrections, by the stages of a two-stage system.

    A target is asked about in the last stage of its route. The touched windows are those that see a voxel of the
    correction; their new predictions are averaged as always, and count where touched windows outweigh the others: up
    to the middle between the last touched and the next window. Everything further away stays as it was.

    The image on a stage's grid is kept between corrections, so that a correction costs its windows only. Where windows
    lie at fixed places of the image (``fine_grid`` "image"), the touched ones are among those that show everything
    found if that is one window, and else among those that show the corrected target.

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
        grid = self._shown(view, edited.box, prompt, found) if view.anchored else view.grid
        windows: WindowGrid = view.stage.inferer.grid(grid.shape[1:])  # type: ignore[attr-defined]
        box = moved_box(edited.box, self.affine, grid.affine, windows.shape)
        touched = windows.touching(box)
        seen = join_boxes(*(as_box(windows.inside(n)) for n in touched))
        part = cut_out(grid, seen)
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
        core = moved_box(_core(windows, touched), grid.affine, self.affine, self.shape, whole_voxels=True)
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
        members = tuple(t for t, own in routes if stage.number in own and (COARSE in own) == (COARSE in route))
        anchored = guided and self.system.anchored(stage)
        key = stage.number if not guided else -stage.number
        known = self._views.get(key)
        if known is not None and (known.part is None or contains(known.part, self._oriented(box))):
            return known
        keys = [target.key for target in members]
        part = None
        if guided and not anchored:
            part = self._region(stage, keys, box, bounding_box(np.isin(found, [target.id for target in members])))
        volume = self.image if part is None else cut_out(self.image, part)
        grid = stage.on_grid(volume, keys, stage.spacing(self.image))
        self._views[key] = _View(stage, grid, part, members, anchored)
        return self._views[key]

    def _shown(self, view: _View, box: Box, prompt: Callable[[Box], np.ndarray], found: np.ndarray) -> MetaTensor:
        """The windows of an image's grid for a correction.

        Where one window shows everything found, it is most likely the one of the first answer, whose features are
        known. Else those that show the corrected target are enough.
        """
        everything = self._voxels(box, bounding_box(np.isin(found, view.ids)))
        chosen = self.system.windows_around(view.stage, view.grid, self.image, view.keys, everything)
        windows = view.stage.inferer.grid([side.stop - side.start for side in chosen])  # type: ignore[attr-defined]
        if len(windows) > 1:
            own = self._voxels(box, bounding_box(prompt(whole_box(self.shape))))
            chosen = self.system.windows_around(view.stage, view.grid, self.image, view.keys, own)
        return cut_out(view.grid, chosen)

    def _region(self, stage: Stage, keys: Sequence[str], box: Box, marked: Box | None) -> Box:
        """The fine stage's part of the oriented image: around what was found, and the correction."""
        region = self.system.region(stage, self.image, keys, self._voxels(box, marked))
        return join_boxes(region, self._oriented(box))

    def _oriented(self, box: Box) -> Box:
        """A box of the image as stored on the image that the networks see."""
        return moved_box(box, self.affine, self.image.affine, self.image.shape[1:])

    def _voxels(self, box: Box, other: Box | None) -> VoxelBox:
        """First and last voxel, on the image that the networks see, of what two boxes of the stored image span."""
        whole = self._oriented(box if other is None else join_boxes(box, other))
        a, b, c = ((side.start, side.stop - 1) for side in whole)
        return a, b, c

    def _prompts(
        self, part: MetaTensor, prompt: Callable[[Box], np.ndarray], edited: Marks, positive: bool
    ) -> torch.Tensor | None:
        """The prompt ``[1, h, w, d]`` on a part of a grid, or None where it is empty: text alone."""
        source = moved_box(whole_box(part.shape[1:]), part.affine, self.affine, self.shape)
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
    return as_box(sides)
