"""One run over the windows of a volume: cut them out, predict those that need it, add them up."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.inferers import Inferer
from tqdm import tqdm

from scripts.inferers.feature_cache import FeatureCache, digest
from scripts.inferers.window_grid import WindowGrid
from scripts.inferers.window_sum import WindowSum
from scripts.transforms.grid_merger import unpack_mask

# Probabilities [B, N, ...] and their disagreement [B, 1, ...], None where none was measured.
Answer = tuple[torch.Tensor, "torch.Tensor | None"]


@dataclass
class RunStatistics:
    """What one run did.

    Attributes:
        windows: windows looked at, over all images of the batch.
        predicted: of these, run through the network.
        skipped: of these, not run because the image does not vary in them.
        cached: of these, taken from the window cache.
        seconds: wall-clock time.
        device: where the probabilities were added up.
    """

    windows: int = 0
    predicted: int = 0
    skipped: int = 0
    cached: int = 0
    seconds: float = 0.0
    device: str = "cpu"


@dataclass(frozen=True)
class Question:
    """What is asked of a volume.

    Attributes:
        image: ``[B, 1, H, W, D]``.
        network: see ``PromptWindowInferer.__call__``, as all of these.
        queries: ``[N, L]``.
        prompts: ``[B, N, H, W, D]``, or packed ``[B, ceil(N / 8), H, W, D]``, or None.
        grid: the windows.
        options: keyword arguments for the window inferer: tensors that serve every window whole, and plain values.
        keep: places of the queries whose answers are wanted, all where None.
    """

    image: torch.Tensor
    network: Callable[..., torch.Tensor]
    queries: torch.Tensor
    prompts: torch.Tensor | None
    grid: WindowGrid
    options: Mapping[str, Any] = field(default_factory=dict)
    keep: list[int] | None = None

    @property
    def classes(self) -> int:
        """How many answers are wanted."""
        return len(self.queries if self.keep is None else self.keep)


@dataclass
class _Window:
    """One window on its way: without ``answer`` it still has to be predicted."""

    item: int
    index: int
    image: torch.Tensor
    prompts: torch.Tensor | None
    key: Hashable = None
    answer: Answer | None = None


class WindowRun:
    """A pass over the windows of one question.

    Args:
        question: what is asked.
        sums: where answers are added up; it also names the windows.
        window_inferer: gives the probabilities of a batch of windows, alone or with their disagreement.
        batch_size: windows per call.
        skip_constant: leave out windows in which the image does not vary and no prompt is set.
        cache: of single windows' answers, or None.

    Attributes:
        statistics: what was done so far.
    """

    def __init__(
        self,
        question: Question,
        sums: WindowSum,
        window_inferer: Callable[..., Any],
        batch_size: int,
        skip_constant: bool,
        cache: FeatureCache | None,
    ) -> None:
        self.question = question
        self.sums = sums
        self.window_inferer = window_inferer
        self.batch_size = batch_size
        self.skip_constant = skip_constant
        self.cache = cache
        self.statistics = RunStatistics(windows=len(sums.numbers) * len(question.image), device=sums.device.type)
        self._key = None if cache is None else self._key_of_all_windows(cache)

    def __call__(self, progress: bool = False) -> Answer:
        """Predict windows in batches and add them up, always in the order of their numbers.

        Args:
            progress: show a bar.

        Returns:
            What ``WindowSum.result`` says.
        """
        with tqdm(total=self.statistics.windows, desc="segmenting", unit="window", disable=not progress) as bar:
            queue: list[_Window] = []
            for window in self._windows():
                if window is None:
                    bar.update()
                    continue
                queue.append(window)
                if sum(waiting.answer is None for waiting in queue) == self.batch_size:
                    bar.update(self._finish(queue))
                    queue = []
            bar.update(self._finish(queue))
        return self.sums.result()

    def _windows(self) -> Iterator[_Window | None]:
        """Windows in order, None in place of those that are left out."""
        for item in range(len(self.question.image)):
            for index in self.sums.numbers:
                if self.skip_constant and self._is_empty(item, index):
                    self.statistics.skipped += 1
                    yield None
                else:
                    yield self._cut_out(item, index)

    def _is_empty(self, item: int, index: int) -> bool:
        """Whether a window shows one value only. A prompt there is a person's word, and is heard nevertheless."""
        place = self.question.grid.place(index, item)
        darkest, brightest = self.question.image[place].aminmax()
        return bool(darkest == brightest) and (
            self.question.prompts is None or not bool(self.question.prompts[place].any())
        )

    def _cut_out(self, item: int, index: int) -> _Window:
        """A window of image and prompts, with its answer where the cache knows it."""
        row, grid, prompts = slice(item, item + 1), self.question.grid, self.question.prompts
        image = grid.crop(self.question.image[row], index)
        own = None if prompts is None else self._unpacked(grid.crop(prompts[row], index)).to(image)
        window = _Window(item, index, image, own)
        if self._key is not None and self.cache is not None:
            window.key = (*self._key, digest(image), None if own is None else digest(own))
            found = self.cache.get(window.key, image.device)
            if found is not None:
                window.answer = _as_answer(found)
                self.statistics.cached += 1
        return window

    def _unpacked(self, prompts: torch.Tensor) -> torch.Tensor:
        """Prompts ``[1, N, h, w, d]`` of a window, packed or not."""
        count = len(self.question.queries)
        if prompts.shape[1] == count:  # of one class, packed bits are the mask itself
            return prompts
        return torch.stack([unpack_mask(prompts[0], n) for n in range(count)])[None]

    def _finish(self, queue: list[_Window]) -> int:
        """Predict those windows of the queue that have no answer yet, as one batch, and add all of them."""
        waiting = [window for window in queue if window.answer is None]
        if waiting:
            for window, answer in zip(waiting, self._predict(waiting), strict=True):
                window.answer = answer
                if window.key is not None and self.cache is not None:
                    window.answer = _as_answer(self.cache.put(window.key, (t for t in answer if t is not None)))
            self.statistics.predicted += len(waiting)
        for window in queue:
            if window.answer is not None:
                self.sums.add(window.item, window.index, *window.answer)
        return len(queue)

    def _predict(self, waiting: list[_Window]) -> list[Answer]:
        """The answer for each window, its disagreement reduced to that of each voxel's most probable class."""
        ask = self.question
        image = torch.cat([window.image for window in waiting])
        given = [window.prompts for window in waiting if window.prompts is not None]
        prompts = torch.cat(given) if given else None
        out = self.window_inferer(image, ask.network, ask.queries, prompts, **ask.options)
        probabilities, disagreement = out if isinstance(out, tuple) else (out, None)
        if ask.keep is not None:
            probabilities = probabilities[:, ask.keep]
            disagreement = None if disagreement is None else disagreement[:, ask.keep]
        rows = probabilities.split(1)
        if disagreement is None:
            return [(row, None) for row in rows]
        if disagreement.shape[1] > 1:
            disagreement = disagreement.gather(1, probabilities.argmax(dim=1, keepdim=True))
        return list(zip(rows, disagreement.split(1), strict=True))

    def _key_of_all_windows(self, cache: FeatureCache) -> tuple[Hashable, ...] | None:
        """What every window's answer depends on besides its own voxels; None where that cannot be told."""
        ask = self.question
        if not isinstance(ask.network, torch.nn.Module) or not isinstance(self.window_inferer, Inferer):
            return None
        options = {"queries": ask.queries, "keep": ask.keep, **ask.options}
        asked = tuple((n, digest(v) if isinstance(v, torch.Tensor) else repr(v)) for n, v in sorted(options.items()))
        return ("window", *cache.computation_key(ask.network, ask.image.device), _settings(self.window_inferer), asked)


def _settings(inferer: Inferer) -> tuple[Hashable, ...]:
    """Class and plain settings of an inferer and of those it wraps: equal ones give equal answers."""
    plain = {
        name: _settings(value) if isinstance(value, Inferer) else repr(value)
        for name, value in sorted(vars(inferer).items())
        if isinstance(value, (Inferer, bool, int, float, str, tuple, list, torch.dtype, type(None)))
    }
    return (type(inferer).__qualname__, *plain.items())


def _as_answer(tensors: Sequence[torch.Tensor]) -> Answer:
    return tensors[0], tensors[1] if len(tensors) > 1 else None
