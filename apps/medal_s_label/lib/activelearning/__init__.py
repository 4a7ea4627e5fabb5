"""Which study a reader should look at next, and answers for all of them ahead of time."""

from __future__ import annotations

from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

from .batch_inference import BatchInference
from .least_certain import NAME, LeastCertain
from .uncertainty import Uncertainty

__all__ = ["BatchInference", "LeastCertain", "Uncertainty", "strategies"]


def strategies(uncertainty: Uncertainty) -> dict[str, Strategy]:
    """The app's strategies by name; ``uncertainty`` is the app's own, which batch inference shares."""
    return {NAME: LeastCertain(uncertainty), "first": First(), "random": Random()}
