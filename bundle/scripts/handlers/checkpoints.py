"""Checkpoints of a run: written whole or not at all, the last few and the best kept, the newest sound one resumed.

What to keep is read off the file names, so that a run that was killed and started again knows its older files.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from scripts import distributed
from scripts.data.datasets import ResumableSampler

from .gradients import NonFiniteError
from .validation import key_metric

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "checkpoint_iteration={}.pt"
BEST_NAME = "best_metric={:.5f}_step={}.pt"
TRAINING_ONLY = ("level_embeddings.",)  # parameters that only deep supervision needs


def write_whole(content: Any, path: Path) -> None:
    """``torch.save`` to a file that appears when its last byte is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class Checkpoints:
    """Write the run's state every so many iterations and at the end; only the first process writes.

    Where the run is stopped by ``NonFiniteError``, the state before that step is written, so that a new start of the
    run begins with it.

    Args:
        ckpt_dir: folder of the files, ``checkpoint_iteration=500.pt`` and so on.
        state: name -> object with a ``state_dict``, or None for one that is switched off; ``trainer`` is the engine.
        interval: iterations between two checkpoints; what a killed run loses at most.
        keep_last: how many files to keep.
    """

    def __init__(self, ckpt_dir: str | Path, state: Mapping[str, Any], interval: int, keep_last: int = 2) -> None:
        if interval < 1 or keep_last < 1:
            raise ValueError(
                f"training: ckpt_interval {interval} and keep_last {keep_last} arrived; both are whole numbers from 1"
            )
        self.ckpt_dir, self.state, self.interval, self.keep_last = Path(ckpt_dir), _in_use(state), interval, keep_last
        self._written = 0

    def attach(self, engine: Engine) -> None:
        """Run after every ``interval`` iterations, at the end, and where the run fails."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self)
        engine.add_event_handler(Events.COMPLETED, self)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)

    def __call__(self, engine: Engine) -> None:
        """Write the present state, unless it has just been written."""
        self._write(engine.state.iteration)

    def _failed(self, engine: Engine, error: BaseException) -> None:
        if isinstance(error, NonFiniteError):
            self._write(engine.state.iteration - 1)
        raise error

    def _write(self, iteration: int) -> None:
        path = self.ckpt_dir / CHECKPOINT_NAME.format(iteration)
        if not distributed.is_first() or iteration == self._written:
            return
        content = {name: part.state_dict() for name, part in self.state.items()}
        content["trainer"] = {**content["trainer"], "iteration": iteration}
        write_whole(content, path)
        self._written = iteration
        for old in [*checkpoint_files(self.ckpt_dir)[self.keep_last :], *self.ckpt_dir.glob(".checkpoint_*.partial")]:
            old.unlink(missing_ok=True)
        logger.info("wrote %s", path.name)


class ResumeLatest:
    """Continue from the newest sound checkpoint of a folder, if there is one, with the very next sample.

    The run's state is what ``Checkpoints`` wrote; the samples and the network's random numbers follow from the
    iteration alone (``SeededDataset``, ``OptimiserStep``), so nothing else needs saving. A file that cannot be read is
    passed over with a warning.

    Args:
        ckpt_dir: folder that the run's ``Checkpoints`` writes.
        load_dict: what to restore, as given to ``Checkpoints``.
        sampler: sampler of the training data, set to the first sample not yet seen.
        batch_size: samples per iteration, in all processes together.
        map_location: device to load to.
        optional: parts that a checkpoint may lack, because they were switched on since; they start anew.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        load_dict: Mapping[str, Any],
        sampler: ResumableSampler,
        batch_size: int = 1,
        map_location: Any = "cpu",
        optional: Sequence[str] = ("step", "ema", "early_stop"),
    ) -> None:
        self.ckpt_dir, self.load_dict, self.optional = Path(ckpt_dir), _in_use(load_dict), tuple(optional)
        self.sampler, self.batch_size, self.map_location = sampler, batch_size, map_location

    def attach(self, engine: Engine) -> None:
        """Run before the first iteration."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load and move the sampler on.

        Raises:
            ValueError: there are checkpoints but none can be read, or one of another configuration.
        """
        found = self._newest_sound()
        if found is None:
            return
        file, content = found
        self._restore(file, content)
        engine.state.iteration = int(content["trainer"]["iteration"])
        engine.state.epoch = engine.state.iteration // (engine.state.epoch_length or 1)
        self.sampler.start = engine.state.iteration * self.batch_size
        logger.info("resumed from %s at iteration %d", file.name, engine.state.iteration)

    def _newest_sound(self) -> tuple[Path, dict[str, Any]] | None:
        files = checkpoint_files(self.ckpt_dir)
        for file in files:
            try:
                return file, torch.load(file, map_location=self.map_location, weights_only=True)
            except Exception as e:  # whatever bytes the file holds: zip, pickle, end of file and their own kinds
                logger.warning("%s cannot be read (%s): taking the one before", file.name, _first_words(e))
        if files:
            raise ValueError(
                f"training: none of the {len(files)} checkpoints in {self.ckpt_dir} can be read; remove them to start "
                "the run from its beginning, or choose another output_dir"
            )
        return None

    def _restore(self, file: Path, content: Mapping[str, Any]) -> None:
        parts = {name: part for name, part in self.load_dict.items() if name != "trainer"}
        missing = [name for name in (*parts, "trainer") if name not in content and name not in self.optional]
        if missing:
            raise ValueError(f"training: {file.name} lacks {missing}, it is no checkpoint of this kind of run")
        for name, part in parts.items():
            if not content.get(name):
                if part.state_dict():
                    logger.warning("%s holds no %s: it starts anew", file.name, name)
                continue
            try:
                part.load_state_dict(content[name])
            except (RuntimeError, ValueError, KeyError) as e:
                raise ValueError(
                    f"training: {file.name} does not fit the {name} of this config ({_first_words(e)}); "
                    "use the config that wrote it, or choose another output_dir"
                ) from e


class BestWeights:
    """After every validation, write the weights if they are among the best so far; only the first process writes.

    Args:
        network: whose weights to write, as ``export_weights`` does.
        folder: of the files, ``best_metric=0.81234_step=500.pt`` and so on.
        keep: how many to keep; 0 writes none.
    """

    def __init__(self, network: nn.Module, folder: str | Path, keep: int = 1) -> None:
        self.network, self.folder, self.keep = network, Path(folder), keep

    def attach(self, engine: Engine) -> None:
        """Run after the evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Compare with the files that are there, by the evaluator's first metric; higher is better."""
        score = key_metric(engine)
        if not distributed.is_first() or not self.keep or not math.isfinite(score):
            return
        path = self.folder / BEST_NAME.format(score, engine.state.epoch)
        best = self._files()
        if len(best) >= self.keep and _score(path) <= _score(best[self.keep - 1]):
            return
        export_weights(self.network, path)
        for file in self._files()[self.keep :]:
            file.unlink()

    def _files(self) -> list[Path]:
        """The files that are there, the best first."""
        return sorted(self.folder.glob(BEST_NAME.split("=")[0] + "=*.pt"), key=_score, reverse=True)


def checkpoint_files(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, the one of the highest iteration first."""
    pattern = re.compile(re.escape(CHECKPOINT_NAME).replace(r"\{\}", r"(\d+)"))
    numbered = [(int(match[1]), file) for file in Path(folder).glob("*.pt") if (match := pattern.fullmatch(file.name))]
    return [file for _, file in sorted(numbered, reverse=True)]


def export_weights(
    network: nn.Module, path: str | Path, drop: Sequence[str] = TRAINING_ONLY, half: bool = True
) -> Path:
    """Write a network's parameters as the plain state dict that the bundle ships; only the first process writes.

    Args:
        network: the trained network.
        path: target file; replaced atomically.
        drop: prefixes of parameters that only training needs.
        half: store floating-point parameters as float16.
    """
    path = Path(path)
    if not distributed.is_first():
        return path
    state = {
        name: tensor.detach().cpu().half() if half and tensor.is_floating_point() else tensor.detach().cpu()
        for name, tensor in network.state_dict().items()
        if not name.startswith(tuple(drop))
    }
    write_whole(state, path)
    logger.info("wrote %s (%.1f MB)", path.name, path.stat().st_size / 1e6)
    return path


def _score(file: Path) -> float:
    """Score in the name of a file of ``BestWeights``."""
    return float(file.name.split("=")[1].split("_")[0])


def _first_words(error: Exception) -> str:
    """The beginning of a library's message, on one line."""
    return " ".join(str(error).split())[:160]


def _in_use(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that the config switches off."""
    return {name: part for name, part in parts.items() if part is not None}
