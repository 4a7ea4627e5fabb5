"""Learning from corrected labels: the training task, and the weights that it has published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.train import TrainTask

from .fine_tuning import FineTuning
from .weights_store import WeightsStore, WeightsWatch

__all__ = ["FineTuning", "WeightsStore", "WeightsWatch", "trainers"]


def trainers(
    bundle_root: str | Path,
    store: WeightsStore,
    modality: str,
    inference: Mapping[str, Any] | None = None,
    name: str = "medal_s",
) -> dict[str, TrainTask]:
    """The app's training tasks by name.

    Args:
        bundle_root: folder of the bundle.
        store: published weights; the app merges ``store.current()`` into the keys that it builds its pipeline with, and
            asks a ``WeightsWatch`` before each request whether to build it anew.
        modality: of images of which the datastore does not tell it.
        inference: keys of the inference config that the app replaces.
        name: of the task.
    """
    task = FineTuning(bundle_root, store, modality, inference)
    return {name: task} if task.is_valid() else {}
