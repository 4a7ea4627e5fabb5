"""What a training run needs beyond MONAI and ignite: the optimiser step and handlers, one file for each idea."""

from .average import WeightAverage
from .checkpoints import BestWeights, Checkpoints, ResumeLatest, export_weights
from .gradients import GradientClipper, NonFiniteError, NonFiniteGuard
from .progress import ProgressLogger, loss_of, mlflow_handler
from .step import MicroBatches, OptimiserStep
from .validation import PreviewWriter, StopEarly, Validate, attach_all, key_metric, masks_of

__all__ = [
    "BestWeights",
    "Checkpoints",
    "GradientClipper",
    "MicroBatches",
    "NonFiniteError",
    "NonFiniteGuard",
    "OptimiserStep",
    "PreviewWriter",
    "ProgressLogger",
    "ResumeLatest",
    "StopEarly",
    "Validate",
    "WeightAverage",
    "attach_all",
    "export_weights",
    "key_metric",
    "loss_of",
    "masks_of",
    "mlflow_handler",
]
