"""Gradients between backward pass and optimiser: clip them, and stop the run before a bad one reaches the weights."""

from __future__ import annotations

import math
from typing import Any

from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn

from scripts.data.datasets import SeededDataset

from .progress import loss_of

SHOWN_SAMPLES = 16
CASE_KEYS = ("case", "name", "image", "label")


class NonFiniteError(ValueError):
    """A loss or gradient that is not a number; the weights are those before the step."""


class GradientClipper:
    """Scale the gradients down to a largest L2 norm before every optimiser step.

    The norm before clipping is left in ``engine.state.gradient_norm``, a tensor.

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
        state: Any = engine.state
        state.gradient_norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class NonFiniteGuard:
    """Stop at a loss or gradient that is not finite, and say which samples it came from.

    It stops before the optimiser's step, so that neither the weights nor the optimiser's averages have seen it. All
    processes of a run stop together, because they share the loss and the gradients.

    Args:
        dataset: of the training samples.
        samples_per_step: of all processes together.
        gradients: look at the gradients' norm as well, which ``GradientClipper`` has to leave before; not with a
            gradient scaler, which meets infinite gradients by skipping the step.
    """

    def __init__(self, dataset: SeededDataset, samples_per_step: int, gradients: bool = True) -> None:
        self.dataset, self.samples_per_step, self.gradients = dataset, samples_per_step, gradients

    def attach(self, engine: Engine) -> None:
        """Run after every backward pass."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Check the step that is about to be made.

        Raises:
            NonFiniteError: naming the samples and their cases.
        """
        loss = loss_of(engine.state.output)
        norm = float(getattr(engine.state, "gradient_norm", 0.0)) if self.gradients else 0.0
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradients' norm is {norm} (loss {loss:.4g})"
        raise NonFiniteError(
            f"training: {what} in step {engine.state.iteration}, of samples {self._samples(engine.state.iteration)}; "
            "the weights before this step are kept. Look at these cases, or lower segment_lr; a new start of the run "
            "begins with this step"
        )

    def _samples(self, step: int) -> str:
        """Numbers and cases of a step's samples, as text."""
        first = (step - 1) * self.samples_per_step
        shown = range(first, first + min(self.samples_per_step, SHOWN_SAMPLES))
        more = self.samples_per_step - len(shown)
        return ", ".join(map(self._describe, shown)) + (f" and {more} more" if more else "")

    def _describe(self, index: int) -> str:
        number, case = self.dataset.case_of(index)
        name = next((case[key] for key in CASE_KEYS if isinstance(case.get(key), str)), f"number {number} of the list")
        return f"{index} (case {case['dataset']}/{name})" if "dataset" in case else f"{index} (case {name})"
