"""Sliding windows whose spatial prompts travel with the image."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor

from scripts.errors import InputError
from scripts.inferers.feature_cache import GIB, FeatureCache
from scripts.inferers.refinement import RefinementInferer
from scripts.inferers.window_grid import Box, WindowGrid
from scripts.inferers.window_run import Answer, Question, RunStatistics, WindowRun
from scripts.inferers.window_sum import WindowSum
from scripts.transforms.grid_merger import BITS

logger = logging.getLogger(__name__)

ACCUMULATORS = {"float16": torch.float16, "float32": torch.float32}


class PromptWindowInferer(Inferer):
    """Window inference for a network that takes an image, text queries and spatial prompts.

    Windows advance by half a patch, the last one is moved back to the border, and a volume smaller than a window is
    padded with zeros at its end, as in the published program. Weights are normalised beforehand, so that the one
    volume per class that is kept holds probabilities from the first window to the last.

    Where the GPU runs out of memory, the volume is started again once, window by window and added up on the host.

    Args:
        roi_size: window in voxels, three numbers; multiples of the network's divisor.
        sw_batch_size: windows per network call.
        overlap: fraction shared by neighbouring windows.
        mode: "gaussian" or "constant" weighting.
        sigma_scale: Gaussian's standard deviation as a fraction of the window.
        window_inferer: called as ``(image, network, queries, prompts)`` on each window, returns probabilities, alone
            or with their disagreement; one text-only pass where None.
        device: where windows are added up; see ``memory_gb`` where None.
        progress: show a bar with the windows done.
        accumulate: "float16" (probabilities within 2e-3, half the memory) or "float32".
        memory_gb: GiB that the accumulators may take on the image's device; larger ones lie on the host. None sets
            no bound.
        skip_constant: do not run windows in which the image does not vary (padding, air cut to one value) and no
            prompt is set; their probability is 0.
        return_disagreement: return a pair, see ``__call__``.
        window_cache: keeps the probabilities of single windows for calls with ``windows``; None recomputes them.

    Attributes:
        last_run: what the last call did. With threads: the last call that ended.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        sw_batch_size: int = 1,
        overlap: float = 0.5,
        mode: str = "gaussian",
        sigma_scale: float = 0.125,
        window_inferer: Callable[..., Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = True,
        accumulate: str = "float32",
        memory_gb: float | None = None,
        skip_constant: bool = True,
        return_disagreement: bool = False,
        window_cache: FeatureCache | None = None,
    ) -> None:
        super().__init__()
        if len(roi_size) != 3 or min(roi_size) < 1 or sw_batch_size < 1 or not 0 <= overlap < 1:
            raise ValueError(
                "window inferer: wanted three positive sides in roi_size, sw_batch_size >= 1 and 0 <= overlap < 1, got "
                f"roi_size={roi_size}, sw_batch_size={sw_batch_size}, overlap={overlap}"
            )
        if accumulate not in ACCUMULATORS:
            raise ValueError(f"window inferer: accumulate must be 'float16' or 'float32', got {accumulate!r}")
        self.window_size = tuple(int(side) for side in roi_size)
        self.sw_batch_size = sw_batch_size
        self.overlap, self.mode, self.sigma_scale = overlap, mode, sigma_scale
        self.window_inferer = RefinementInferer(iterations=0) if window_inferer is None else window_inferer
        self.device = None if device is None else torch.device(device)
        self.show_progress = progress
        self.accumulate = ACCUMULATORS[accumulate]
        self.memory_gb = memory_gb
        self.skip_constant = skip_constant
        self.return_disagreement = return_disagreement
        self.window_cache = window_cache
        self.last_run = RunStatistics()

    def grid(self, shape: Sequence[int]) -> WindowGrid:
        """The windows of a volume of ``shape`` voxels and their weights."""
        return WindowGrid(shape, self.window_size, self.overlap, self.mode, self.sigma_scale)

    def windows(self, shape: Sequence[int]) -> list[tuple[slice, ...]]:
        """The windows of a volume of ``shape`` voxels, after padding, in the order in which they are run."""
        return self.grid(shape).slices

    def touched_windows(self, shape: Sequence[int], box: Box) -> list[int]:
        """Numbers of the windows that see any voxel of a box (three slices): an edit there can change only these."""
        return self.grid(shape).touching(box)

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        queries: torch.Tensor,
        prompts: torch.Tensor | None = None,
        windows: Sequence[int] | None = None,
        previous: torch.Tensor | Answer | None = None,
        return_disagreement: bool | None = None,
        keep: Sequence[int] | None = None,
        **options: Any,
    ) -> torch.Tensor | Answer:
        """Segment a whole volume, or bring an earlier answer up to date where prompts were edited.

        An update equals a full call with the same arguments, provided that nothing outside the given windows changed
        since ``previous``. Voxels of the given windows also belong to neighbours; what those said comes from
        ``window_cache``, and is computed again where it is not there.

        Args:
            inputs: image ``[B, 1, H, W, D]``.
            network: any callable ``(image, queries, prompts)`` giving logits ``[B, N, H, W, D]``.
            queries: ``[B, N, L]`` or ``[N, L]``; with several images in a batch all ask the same.
            prompts: starting S_p ``[B, N, H, W, D]`` of any type, on any device, or uint8 ``[B, ceil(N / 8), H, W, D]``
                packed by ``pack_masks``; None is text-only.
            windows: numbers of the windows to predict anew, from ``touched_windows``; all where None.
            previous: what the call before returned; needed with ``windows``, and left as it is.
            return_disagreement: for this call, instead of the constructor's; also handed to the window inferer.
            keep: places of the queries whose probabilities are wanted, all N where None; the others are asked along
                for the sake of their prompts.
            options: handed to the window inferer where not None, such as ``iterations`` and ``mirrored_queries``.

        Returns:
            Probabilities ``[B, N, H, W, D]`` (of ``keep``: their number instead of N) in the accumulators' type and
            place, with the metadata of ``inputs``; with ``return_disagreement`` also the disagreement of each voxel's
            most probable class ``[B, 1, H, W, D]``, or None where the window inferer measured none.

        Raises:
            ValueError: where shapes disagree, or one of ``windows`` and ``previous`` comes without the other.
            InputError: the GPU's memory does not suffice for a single window.
        """
        began = time.perf_counter()
        given = {**options, "return_disagreement": return_disagreement}
        question = self._question(inputs, network, queries, prompts, given, keep)
        start = _checked_start(question, previous, windows)
        out = self._run_within_memory(question, start, windows)
        self.last_run.seconds = time.perf_counter() - began
        logger.info("%s", self.last_run)
        probabilities = _like(out[0], inputs)
        if not (self.return_disagreement if return_disagreement is None else return_disagreement):
            return probabilities
        return probabilities, None if out[1] is None else _like(out[1], inputs)

    def _question(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        queries: torch.Tensor,
        prompts: torch.Tensor | None,
        options: Mapping[str, Any],
        keep: Sequence[int] | None,
    ) -> Question:
        shape = tuple(inputs.shape[2:])
        queries = queries[0] if queries.ndim == 3 else queries
        planes = (len(queries), math.ceil(len(queries) / BITS))
        if prompts is not None and tuple(prompts.shape) not in [(inputs.shape[0], n, *shape) for n in planes]:
            raise ValueError(
                f"prompts of shape {tuple(prompts.shape)} do not fit {len(queries)} queries on an image of {shape}"
            )
        image = convert_to_tensor(inputs, track_meta=False)
        own = None if prompts is None else convert_to_tensor(prompts, track_meta=False)
        given = {name: value for name, value in options.items() if value is not None}
        return Question(image, network, queries, own, self.grid(shape), given, None if keep is None else list(keep))

    def _run_within_memory(self, question: Question, start: Answer | None, windows: Sequence[int] | None) -> Answer:
        """The run as set up or, where the GPU's memory is too small for it, the one that needs least."""
        for batch_size, device in ((self.sw_batch_size, self._place(question)), (1, torch.device("cpu"))):
            try:
                return self._attempt(question, batch_size, device, start, windows)
            except torch.cuda.OutOfMemoryError:
                logger.warning("out of GPU memory: %d windows at once, added up on %s", batch_size, device.type)
            torch.cuda.empty_cache()
        raise InputError(
            f"window inferer: the GPU's memory does not hold one window of {self.window_size} with "
            f"{len(question.queries)} targets: take a smaller roi_size, ask fewer targets at once, or device cpu"
        )

    def _attempt(
        self,
        question: Question,
        batch_size: int,
        device: torch.device,
        start: Answer | None,
        windows: Sequence[int] | None,
    ) -> Answer:
        """One run; where it fails for lack of memory, all it held is free again afterwards."""
        with torch.no_grad():
            items = len(question.image)
            sums = WindowSum(question.grid, items, question.classes, self.accumulate, device, start, windows)
            run = WindowRun(question, sums, self.window_inferer, batch_size, self.skip_constant, self.window_cache)
            out = run(self.show_progress)
        self.last_run = run.statistics
        return out

    def _place(self, question: Question) -> torch.device:
        """Where the accumulators lie."""
        own = question.image.device
        if self.device is not None:
            return self.device
        voxels = question.image[:, 0].numel()
        size = voxels * (question.classes + 1) * self.accumulate.itemsize / GIB
        if self.memory_gb is None or size <= self.memory_gb or own.type == "cpu":
            return own
        logger.info("probabilities need %.2f GiB, more than memory_gb=%g: kept on the host", size, self.memory_gb)
        return torch.device("cpu")


def _checked_start(
    question: Question, previous: torch.Tensor | Answer | None, windows: Sequence[int] | None
) -> Answer | None:
    """The earlier answer that an update begins with, None for a run from scratch."""
    if (previous is None) != (windows is None):
        raise ValueError("window inferer: windows and previous belong together, give both or neither")
    if previous is None or windows is None:
        return None
    if windows and not 0 <= min(windows) <= max(windows) < len(question.grid):
        raise ValueError(f"window inferer: windows must lie in 0..{len(question.grid) - 1}, got {list(windows)}")
    probabilities, disagreement = previous if isinstance(previous, tuple) else (previous, None)
    wanted = (len(question.image), question.classes, *question.grid.shape)
    if tuple(probabilities.shape) != wanted:
        raise ValueError(f"window inferer: previous has shape {tuple(probabilities.shape)}, not the {wanted} asked for")
    plain = convert_to_tensor(probabilities, track_meta=False)
    return plain, None if disagreement is None else convert_to_tensor(disagreement, track_meta=False)


def _like(volume: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """A volume with the image's metadata, in its own type and place."""
    return convert_to_dst_type(volume, image, dtype=volume.dtype, device=volume.device)[0]
