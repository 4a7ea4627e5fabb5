"""Validate every so many steps, and leave a picture of what the network answered."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from matplotlib import colormaps
from monai.engines import Evaluator

from scripts.data.datasets import SeededDataset
from scripts.preview import draw_preview

logger = logging.getLogger(__name__)


def masks_of(output: Mapping[str, Any], threshold: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true masks ``[B, N, H, W, D]`` of an engine's output, as MONAI's metrics take them.

    Args:
        output: with ``pred`` and ``label``, a dict with ``masks``.
        threshold: 0 for logits, 0.5 for probabilities.
    """
    return (output["pred"] >= threshold).float(), output["label"]["masks"].float()


def key_metric(engine: Engine) -> float:
    """The first metric of an evaluator that has run; higher is better."""
    state: Any = engine.state
    return float(state.metrics[state.key_metric_name])


class Validate:
    """Run an evaluator every so many iterations and at the end; its epoch is the trainer's iteration.

    MONAI's ``ValidationHandler`` hands on the trainer's epoch, of which a run of ours has only one.

    Args:
        evaluator: what to run.
        interval: iterations between two validations.

    Raises:
        ValueError: this process has no sample to validate, and the others would wait for it for ever.
    """

    def __init__(self, evaluator: Evaluator, interval: int) -> None:
        if not evaluator.state.epoch_length:
            raise ValueError("training: this process has no validation sample; val_samples has to reach world_size")
        self.evaluator, self.interval = evaluator, interval

    def attach(self, engine: Engine) -> None:
        """Run after every ``interval`` iterations, and after the last."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self)
        engine.add_event_handler(Events.COMPLETED, self._last)

    def _last(self, engine: Engine) -> None:
        if engine.state.iteration % self.interval:
            self(engine)

    def __call__(self, engine: Engine) -> None:
        """Validate."""
        self.evaluator.run(engine.state.iteration)


class PreviewWriter:
    """Draw the first case of every validation: ``truth.png`` once and ``step_000500.png`` and so on.

    Args:
        folder: where the pictures go; made when the first is written.
        dataset: of the validation, for the names of the structures.
        spacing: of its patches, mm.
        threshold: see ``masks_of``.
    """

    def __init__(
        self, folder: str | Path, dataset: SeededDataset, spacing: float | Sequence[float], threshold: float = 0.0
    ) -> None:
        self.folder, self.dataset, self.threshold = Path(folder), dataset, threshold
        self.spacing = np.broadcast_to(np.asarray(spacing, dtype=float), 3)

    def attach(self, engine: Engine) -> None:
        """Run after every evaluator's first iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    def __call__(self, engine: Engine) -> None:
        """Draw, unless there is nothing to ask for in the case."""
        state: Any = engine.state
        image = state.output["image"][0, 0].float().cpu().numpy()
        values = state.batch["query_values"][0].tolist()
        sentences = self.dataset.case_of(0)[1]["sentences"]
        names = [str(sentences[value][0]) for value in values if value]
        if not names:
            return
        scores = state.output["pred"][0, : len(names)].float().cpu()
        masks = state.output["label"]["masks"][0, : len(names)].float().cpu()
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "truth.png").exists():
            self._draw("truth.png", image, _label_map(masks, 0.5), names, "Truth")
        name = f"step_{state.epoch:06d}.png"
        self._draw(name, image, _label_map(scores, self.threshold), names, f"Answer after step {state.epoch}")

    def _draw(self, file: str, image: np.ndarray, labels: np.ndarray, names: Sequence[str], title: str) -> None:
        voxel_ml = float(np.prod(self.spacing)) / 1000
        palette = colormaps["tab20"].colors  # type: ignore[attr-defined]
        structures = [
            {
                "name": name,
                "label": label,
                "color": [round(255 * part) for part in palette[label % len(palette)]],
                "volume_ml": voxel_ml * count if (count := int((labels == label).sum())) else None,
            }
            for label, name in enumerate(names, start=1)
        ]
        content = draw_preview(image, labels, np.diag([*self.spacing, 1.0]), structures, title)
        temporary = self.folder / f".{file}.partial"
        temporary.write_bytes(content)
        temporary.replace(self.folder / file)


def _label_map(scores: torch.Tensor, threshold: float) -> np.ndarray:
    """Number (from 1) of the channel ``[N, H, W, D]`` that is highest, 0 where none reaches the threshold."""
    best, channel = scores.max(dim=0)
    return torch.where(best >= threshold, channel + 1, 0).numpy().astype(np.int16)


class StopEarly:
    """Let ignite's ``EarlyStopping``, which has a state but no fitting ``attach`` in all versions, follow an evaluator.

    Args:
        rule: the ``EarlyStopping``.
    """

    def __init__(self, rule: EarlyStopping) -> None:
        self.rule = rule

    def attach(self, engine: Engine) -> None:
        """Run after every validation."""
        engine.add_event_handler(Events.COMPLETED, self.rule)


def attach_all(handlers: Iterable[Any], engine: Engine) -> None:
    """Attach handlers to an engine, in their order."""
    for handler in handlers:
        handler.attach(engine)
