"""Moving average of the weights, which often scores better than the last weights do; off unless it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """Exponential moving average of a network's weights after every optimiser step.

    Args:
        network: the network that is trained.
        decay: share of the old average that each step keeps, such as 0.999; None keeps no average.

    Raises:
        ValueError: a decay that is not between 0 and 1.
    """

    def __init__(self, network: nn.Module, decay: float | None = None) -> None:
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"training: ema_decay has to lie between 0 and 1, got {decay}; null keeps no average")
        self.trained = network
        self.average = (
            None
            if decay is None
            else AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay)).requires_grad_(False)
        )

    @property
    def network(self) -> nn.Module:
        """The network to validate and to export: the average, or where there is none the trained one."""
        return self.trained if self.average is None else self.average.module

    def attach(self, engine: Engine) -> None:
        """Run after every iteration."""
        if self.average is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Take the trained weights into the average; the first time they are the average."""
        assert self.average is not None
        self.average.update_parameters(self.trained)

    def state_dict(self) -> dict[str, Any]:
        """The average and how often it was updated; empty where there is none."""
        return {} if self.average is None else self.average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        if self.average is not None:
            self.average.load_state_dict(state)
