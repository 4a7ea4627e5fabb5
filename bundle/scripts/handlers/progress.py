"""What a run tells while it goes: a line in the log every so many steps, and MLflow where it is asked for."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler

from scripts.errors import InputError

logger = logging.getLogger(__name__)


def loss_of(output: Any) -> float:
    """The loss of a trainer's output, as a number."""
    return float(output["loss"].detach())


class ProgressLogger:
    """Log the mean loss of every ``interval`` iterations with the learning rate and the time left.

    Args:
        optimizer: the learning rate is its first group's.
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


def mlflow_handler(
    tracking_uri: str,
    output_dir: str | Path,
    training: bool,
    experiment: str = "medal_s",
    loss: Callable[[Any], float] = loss_of,
) -> MLFlowHandler:
    """MONAI's handler for MLflow: the loss of every step of a trainer, or the metrics of every validation.

    Args:
        tracking_uri: where MLflow keeps its records, such as ``sqlite:///runs/mlflow.db`` or a server's address.
        output_dir: its last part names the run, so that trainer, evaluator and a resumed run share one.
        training: for the trainer; else for the evaluator.
        experiment: MLflow's name for a collection of runs.
        loss: number to record from the trainer's output.

    Raises:
        InputError: MLflow is not installed.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise InputError(
            f"training: tracking_uri is '{tracking_uri}' but mlflow is not installed; install it (pip install mlflow) "
            "or leave tracking_uri at null, TensorBoard's files are written in any case"
        )
    return MLFlowHandler(
        tracking_uri=tracking_uri,
        experiment_name=experiment,
        run_name=Path(output_dir).name,
        iteration_log=training,
        epoch_log=not training,
        output_transform=loss,
        tag_name="train_loss",
    )
