"""Ignite handlers that MONAI and ignite lack: gradient clipping, exact resume, export of the trained weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.handlers import CheckpointLoader
from torch import nn

from scripts.data.datasets import ResumableSampler

logger = logging.getLogger(__name__)


class GradientClipper:
    """Scale the gradients down to a largest L2 norm before every optimiser step.

    Args:
        network: its parameters' gradients are clipped together.
        max_norm: largest norm.
    """

    def __init__(self, network: nn.Module, max_norm: float = 1.0) -> None:
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        """Run after every backward pass."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip in place."""
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class ResumeLatest:
    """Continue from the newest checkpoint of a folder, if there is one, with the very next sample.

    The run's state is the network's, the optimiser's and the schedule's parameters and the trainer's iteration; the
    samples follow from the iteration alone (``SeededDataset``), so nothing else needs saving.

    Args:
        ckpt_dir: folder that the run's ``CheckpointSaver`` writes.
        load_dict: what to restore, as given to the saver.
        sampler: sampler of the training data, set to the first sample not yet seen.
        batch_size: samples per iteration.
        pattern: file pattern of the checkpoints.
        map_location: device to load to.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        load_dict: dict,
        sampler: ResumableSampler,
        batch_size: int = 1,
        pattern: str = "checkpoint_*=*.pt",
        map_location: Any = "cpu",
    ) -> None:
        self.ckpt_dir, self.load_dict, self.pattern = Path(ckpt_dir), load_dict, pattern
        self.sampler, self.batch_size, self.map_location = sampler, batch_size, map_location

    def attach(self, engine: Engine) -> None:
        """Run before the first epoch."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load and move the sampler on."""
        newest = sorted(self.ckpt_dir.glob(self.pattern), key=lambda file: file.stat().st_mtime)
        if not newest:
            return
        CheckpointLoader(str(newest[-1]), self.load_dict, map_location=self.map_location)(engine)
        self.sampler.start = engine.state.iteration * self.batch_size
        logger.info("resumed from %s at iteration %d", newest[-1].name, engine.state.iteration)


class ProgressLogger:
    """Log the mean loss of every ``interval`` iterations with the learning rate and the time left.

    Args:
        interval: iterations between two lines.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, interval: int = 50) -> None:
        self.optimizer, self.interval = optimizer, interval
        self._losses: list[float] = []
        self._since = 0.0

    def attach(self, engine: Engine) -> None:
        """Run at the start and after every iteration."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self._since = time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        """Collect, and log every ``interval`` iterations."""
        self._losses.append(loss_of(engine.state.output))
        if engine.state.iteration % self.interval:
            return
        now, total = time.perf_counter(), (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0)
        per_step = (now - self._since) / len(self._losses)
        logger.info(
            "step %d/%d loss %.4f lr %.2e %.2f s/step, %.0f min left",
            engine.state.iteration,
            total,
            sum(self._losses) / len(self._losses),
            self.optimizer.param_groups[0]["lr"],
            per_step,
            (total - engine.state.iteration) * per_step / 60,
        )
        self._losses, self._since = [], now


def loss_of(output: Any) -> float:
    """The loss of a trainer's output, as a number."""
    return float(output["loss"].detach())


def masks_of(output: Mapping[str, Any], threshold: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true masks ``[B, N, H, W, D]`` of an engine's output, as MONAI's metrics take them.

    Args:
        output: with ``pred`` and ``label``, a dict with ``masks``.
        threshold: 0 for logits, 0.5 for probabilities.
    """
    return (output["pred"] >= threshold).float(), output["label"]["masks"].float()


def export_weights(
    network: nn.Module, path: str | Path, drop: Sequence[str] = ("level_embeddings.",), half: bool = True
) -> Path:
    """Write a network's parameters as the plain state dict that the bundle ships.

    Args:
        network: the trained network.
        path: target file; replaced atomically.
        drop: prefixes of parameters that only training needs.
        half: store floating-point parameters as float16.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().cpu().half() if half and tensor.is_floating_point() else tensor.detach().cpu()
        for name, tensor in network.state_dict().items()
        if not name.startswith(tuple(drop))
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)
    logger.info("wrote %s (%.1f MB)", path.name, path.stat().st_size / 1e6)
    return path
