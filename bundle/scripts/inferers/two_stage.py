"""The whole system as one inferer: a coarse look at the volume, then a fine one at the region it found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import nibabel as nib
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_tensor

from scripts.inferers.anchored_windows import covering_windows, image_middle
from scripts.inferers.grid_boxes import Box, cut_out, moved_box
from scripts.inferers.prompt_source import PromptSource
from scripts.inferers.region import Box as VoxelBox
from scripts.inferers.region import foreground_box, grown_box, region_of_interest
from scripts.inferers.stage import COARSE, FINE, Stage
from scripts.request import RequestedTarget, decode_request
from scripts.text import Terminology
from scripts.transforms.grid_merger import GridMerger
from scripts.transforms.postprocess import remove_small_components

logger = logging.getLogger(__name__)
BYTES_PER_PROBABILITY = 2  # accumulators are float16
BY_POLICY = "policy"
REGION, IMAGE = "region", "image"


@dataclass(frozen=True)
class _Case:
    """One volume and what is asked of it."""

    volume: MetaTensor
    networks: Any
    queries: torch.Tensor
    mirrored: torch.Tensor | None
    targets: tuple[RequestedTarget, ...]
    masks: MetaTensor | None
    stages: tuple[int, ...]

    @property
    def ids(self) -> list[int]:
        return [target.id for target in self.targets]

    def keys(self, classes: Sequence[int]) -> list[str]:
        return [self.targets[n].key for n in classes]


class TwoStageInferer(Inferer):
    """Coarse and fine stage, region of interest, prompts from one to the other (paper section 2.6).

    Stage 1 sees the whole volume. The box of what it finds, grown, is the region in which stage 2 works at its finer
    grid, with stage 1's masks as spatial prompts; where stage 1 finds nothing, stage 2 takes the whole volume. Each
    target's policy may exclude a stage. A mask of the user's stays the prompt of its target in both stages.

    Targets are worked in blocks, so that the probabilities in memory fit ``memory_gb`` however many are asked for;
    each block is merged at the image's own resolution before the next one starts. Blocks do not change the answer.

    Args:
        terminology: has the targets' policies.
        coarse: stage 1; may be None where it is never run.
        fine: stage 2; likewise.
        stages: which to run, of 1 and 2. A target whose policy leaves none of them is run in all of them.
        threshold: a voxel belongs to a structure from this probability on.
        refinements: self-refinements after a first pass: "policy" (lesions as their policy says, anatomy none, as
            published) or a number for every target.
        memory_gb: budget for probabilities on a stage's grid.
        min_voxels: smaller objects of anatomy are removed from stage 1's masks before they become prompts.
        keep_masks: also return every target's own mask; they may overlap.
        keep_disagreement: also return how far the predictions of a refinement (or of mirrored images) disagree.
        fine_grid: where the fine stage's windows lie. "region", as published: from the corner of the region of
            interest, which is cut out and resampled by itself. "image": at fixed places of the whole image on the fine
            grid, of which those are run that show what the coarse stage found; questions about one image then meet
            the same windows, so that a cache of features serves all of them, see ``covering_windows``. With dynamic
            resampling, whose grids depend on the question, it is as "region".
        default: gives ``request`` and ``queries`` (and ``mirrored_queries``) to a caller who hands on nothing but the
            image, see ``EncodePromptsd.default``; such a caller (MONAI Label's own bundle app) has the coarse network
            only, so stage 1 alone is run.

    Raises:
        ValueError: a stage is to be run but not given, or an option that does not exist.
    """

    def __init__(
        self,
        terminology: Terminology,
        coarse: Stage | None = None,
        fine: Stage | None = None,
        stages: Sequence[int] = (COARSE, FINE),
        threshold: float = 0.5,
        refinements: int | str = BY_POLICY,
        memory_gb: float = 4.0,
        min_voxels: int = 10,
        keep_masks: bool = False,
        keep_disagreement: bool = False,
        fine_grid: str = REGION,
        default: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.stage = {number: stage for number, stage in ((COARSE, coarse), (FINE, fine)) if stage is not None}
        self.stages = tuple(sorted({int(number) for number in stages}))
        if not self.stages or not set(self.stages) <= set(self.stage):
            raise ValueError(f"stages is [1], [2] or [1, 2] of those given ({sorted(self.stage)}), got {list(stages)}")
        if refinements != BY_POLICY and (not str(refinements).isdigit()):
            raise ValueError(f"refinements is 'policy' or a number from 0 on, got {refinements!r}")
        if not 0 < threshold <= 1 or memory_gb <= 0:
            raise ValueError(f"wanted 0 < threshold <= 1 and memory_gb > 0, got {threshold} and {memory_gb}")
        if fine_grid not in (REGION, IMAGE):
            raise ValueError(f"fine_grid is '{REGION}' or '{IMAGE}', got {fine_grid!r}")
        self.terminology = terminology
        self.threshold = threshold
        self.refinements = refinements
        self.memory_gb = memory_gb
        self.min_voxels = min_voxels
        self.keep_masks = keep_masks
        self.keep_disagreement = keep_disagreement
        self.fine_grid = fine_grid
        self.default = default

    def __call__(  # type: ignore[override]
        self,
        inputs: MetaTensor,
        network: Any,
        queries: torch.Tensor | None = None,
        request: str | Sequence[str] | None = None,
        prompts: MetaTensor | None = None,
        mirrored_queries: torch.Tensor | None = None,
        **_: Any,
    ) -> dict[str, torch.Tensor]:
        """Segment one volume.

        Args:
            inputs: image ``[1, 1, H, W, D]`` at its own resolution, axes as the networks want them, with its affine.
            network: the network, or a ``torch.nn.ModuleDict`` of both.
            queries: ``[1, N, L]`` or ``[N, L]``; the default's where None.
            request: the encoded request, or a batch of one; the default's where None.
            prompts: packed masks ``[1, ceil(N / 8), H, W, D]`` on the image's grid (see ``pack_masks``), or None.
            mirrored_queries: queries of the targets' other sides, for mirroring.

        Returns:
            ``label_map`` ``[1, 1, H, W, D]`` and ``probability`` (float16) on the grid of ``inputs``; with
            ``keep_masks`` also ``mask_bits``, with ``keep_disagreement`` also ``disagreement``.

        Raises:
            ValueError: more than one image, or no request and no default.
        """
        if len(inputs) != 1:
            raise ValueError(f"one volume at a time is segmented, got a batch of {len(inputs)}")
        stages = self.stages
        if queries is None or request is None:
            if self.default is None:
                raise ValueError("no request and queries were given, and there is no default")
            known = self.default()
            request, queries = known["request"], known["queries"].to(inputs.device)
            if "mirrored_queries" in known:
                mirrored_queries = known["mirrored_queries"].to(inputs.device)
            stages = (COARSE,) if COARSE in self.stages else self.stages
        text = request if isinstance(request, str) else request[0]
        case = _Case(
            volume=cast(MetaTensor, inputs[0]),
            networks=network,
            queries=queries[0] if queries.ndim == 3 else queries,
            mirrored=mirrored_queries[0] if mirrored_queries is not None else None,
            targets=decode_request(text).targets,
            masks=None if prompts is None else cast(MetaTensor, prompts[0]),
            stages=stages,
        )
        with torch.inference_mode():
            merger = self._segment(case)
        found = {
            "label_map": merger.labels,
            "probability": merger.probability,
            "mask_bits": merger.mask_bits,
            "disagreement": merger.disagreement,
        }
        return {name: value[None] for name, value in found.items() if value is not None}

    def _segment(self, case: _Case) -> GridMerger:
        routes = [self.route(target, case.stages) for target in case.targets]
        first = [n for n, route in enumerate(routes) if COARSE in route]
        only_first = [n for n in first if FINE not in routes[n]]
        final, coarse = self._merger(case), None
        if first:
            coarse = final if only_first == first else self._merger(case, plain=True)
            sinks = {coarse: first} if coarse is final else {coarse: first, final: only_first}
            self._run(self.stage[COARSE], case, first, PromptSource(case.masks, None, case.ids), sinks)
        guided = [n for n in first if FINE in routes[n]]
        if guided and coarse is not None:
            labels = self._clean(coarse.labels, case.targets)
            found = self._found(case, labels)
            source = PromptSource(case.masks, labels, case.ids)
            self._run(self.stage[FINE], case, guided, source, {final: guided}, found)
        unguided = [n for n, route in enumerate(routes) if COARSE not in route]
        if unguided:
            source = PromptSource(case.masks, None, case.ids)
            self._run(self.stage[FINE], case, unguided, source, {final: unguided})
        return final

    def route(self, target: RequestedTarget, stages: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """The stages that a target goes through, in their order, of those given or all that are run."""
        run = self.stages if stages is None else stages
        allowed = tuple(n for n in run if n in self.terminology.policy(target.key).stages)
        if not allowed:
            logger.info("%s is not meant for stage %s alone; run all the same", target.name, run)
        return allowed or run

    def _merger(self, case: _Case, plain: bool = False) -> GridMerger:
        return GridMerger(
            case.volume.shape[1:],
            case.volume.affine,
            case.ids,
            self.threshold,
            keep_masks=self.keep_masks and not plain,
            keep_disagreement=self.keep_disagreement and not plain,
        )

    def _run(
        self,
        stage: Stage,
        case: _Case,
        classes: Sequence[int],
        source: PromptSource,
        sinks: Mapping[GridMerger, Sequence[int]],
        found: VoxelBox | None = None,
    ) -> None:
        """Predict some targets in one stage, block by block, and merge each where it is wanted.

        ``found`` is the box of the image to look at, all of it where None.
        """
        grid, window = self.look_at(stage, case.volume, case.keys(classes), found)
        prompts = source.on_grid(grid).packed(classes)
        blocks = self._blocks(stage, case, classes, grid)
        logger.info("stage %d: %s, targets: %d, in %d blocks", stage.number, _facts(grid), len(classes), len(blocks))
        for steps, group, block in blocks:
            # All targets see each other's prompts, so where there are any those of other blocks are asked along.
            asked = list(classes) if prompts is not None else group if steps else block
            probabilities, disagreement = stage(
                grid,
                case.networks,
                case.queries[asked],
                prompts,
                iterations=steps,
                mirrored_queries=None if case.mirrored is None else case.mirrored[asked],
                keep=None if len(asked) == len(block) else [asked.index(n) for n in block],
                return_disagreement=True if self.keep_disagreement else None,
            )
            for merger, wanted in sinks.items():
                places = [place for place, n in enumerate(block) if n in wanted]
                chosen = probabilities if len(places) == len(block) else probabilities[places]
                merger.add(chosen, [block[place] for place in places], grid.affine, window, disagreement)

    def _blocks(
        self, stage: Stage, case: _Case, classes: Sequence[int], grid: MetaTensor
    ) -> list[tuple[int, list[int], list[int]]]:
        """Refinements, all targets that get as many, and those to keep: no more than memory allows.

        One volume of the budget is left for the disagreement.
        """
        most = max(1, int(self.memory_gb * 2**30 / (BYTES_PER_PROBABILITY * grid[0].numel())) - 1)
        steps = {n: self._steps(case.targets[n], stage.number) for n in classes}
        blocks = []
        for count, group in groupby(sorted(classes, key=steps.__getitem__), key=steps.__getitem__):
            members = list(group)
            blocks += [(count, members, members[start : start + most]) for start in range(0, len(members), most)]
        return blocks

    def _steps(self, target: RequestedTarget, number: int) -> int:
        if self.refinements != BY_POLICY:
            return int(self.refinements)
        return self.terminology.policy(target.key).refine_steps[number - 1] if target.kind == "lesion" else 0

    def _clean(self, labels: MetaTensor, targets: Sequence[RequestedTarget]) -> MetaTensor:
        anatomy = [target.id for target in targets if target.kind == "anatomy"]
        plain = convert_to_tensor(labels[0], track_meta=False)
        return MetaTensor(remove_small_components(plain, self.min_voxels, anatomy)[None], affine=labels.affine)

    def _found(self, case: _Case, labels: MetaTensor) -> VoxelBox | None:
        """The box of what stage 1 and the user marked; None, the whole volume, where neither marked anything."""
        marked = labels[0] != 0 if case.masks is None else (labels[0] != 0) | (case.masks != 0).any(dim=0)
        box = foreground_box(marked)
        if box is None:
            logger.info("stage 1 found nothing: stage 2 works on the whole volume")
        return box

    def anchored(self, stage: Stage) -> bool:
        """Whether a stage's windows lie at fixed places.

        Dynamic grids depend on the question, and those of a whole image are coarser than a region's.
        """
        return self.fine_grid == IMAGE and stage.resample.mode == "fixed"

    def look_at(
        self, stage: Stage, volume: MetaTensor, keys: Sequence[str], found: VoxelBox | None
    ) -> tuple[MetaTensor, Box | None]:
        """What a stage sees of a volume ``[1, H, W, D]``, on its grid, for targets that lie in a box.

        Args:
            stage: coarse or fine.
            volume: at its own resolution.
            keys: policy keys of the targets.
            found: first and last voxel along each axis, inclusive; None is the whole volume.

        Returns:
            ``[1, h, w, d]`` with its affine, and the part of the volume that answers may be written to; all of it
            where None.
        """
        spacing = stage.spacing(volume)
        if found is None:
            return stage.on_grid(volume, keys, spacing), None
        if self.anchored(stage):
            grid = stage.on_grid(volume, keys, spacing)
            return cut_out(grid, self.windows_around(stage, grid, volume, keys, found)), None
        region = self.region(stage, volume, keys, found)
        return stage.on_grid(cut_out(volume, region), keys, spacing), region

    def region(self, stage: Stage, volume: MetaTensor, keys: Sequence[str], found: VoxelBox) -> Box:
        """The region of interest around a box; arguments as in ``look_at``."""
        return region_of_interest(
            volume.shape[1:],
            stage.spacing(volume),
            found,
            keys,
            stage.resample.patch_size,
            stage.resample.target_spacing,
            self.terminology,
            stage.resample.mode == "dynamic",
        ).slices

    def windows_around(
        self, stage: Stage, grid: MetaTensor, volume: MetaTensor, keys: Sequence[str], found: VoxelBox
    ) -> Box:
        """The part of a grid of the whole volume, made of windows at fixed places, that shows a box of the volume.

        Args:
            stage: whose windows.
            grid: the volume on the stage's grid.
            volume: ``[1, H, W, D]``.
            keys: policy keys of the targets.
            found: first and last voxel along each axis of the volume, inclusive.
        """
        box = grown_box(volume.shape[1:], found, keys, self.terminology)
        wanted = moved_box(box, volume.affine, grid.affine, grid.shape[1:])
        return covering_windows(stage.inferer.grid(grid.shape[1:]), image_middle(grid), wanted)  # type: ignore[attr-defined]


def _facts(grid: MetaTensor) -> str:
    sizes = nib.affines.voxel_sizes(grid.affine.cpu().numpy())
    return f"grid {tuple(grid.shape[1:])} at {', '.join(f'{size:.2f}' for size in sizes)} mm"
