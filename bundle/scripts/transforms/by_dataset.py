"""Augmentation in named steps, some of which a dataset may leave out or have its own way."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
from monai.transforms import Randomizable, Transform


class AugmentByDataset(Randomizable, Transform):
    """Named steps one after another; a dataset may leave a step out or have its own in its place.

    Args:
        steps: name -> transform of the dictionary, in the order in which they run.
        overrides: beginning of a dataset's name -> name of a step -> its transform, or null for none. Of several
            beginnings that fit, the longest counts.
        dataset_key: where the data names its dataset; data that does not takes the steps as they are.

    Raises:
        ValueError: an override of a step that there is not.
    """

    def __init__(
        self,
        steps: Mapping[str, Callable[[Any], Any]],
        overrides: Mapping[str, Mapping[str, Callable[[Any], Any] | None]] | None = None,
        dataset_key: str = "dataset",
    ) -> None:
        self.steps, self.dataset_key = dict(steps), dataset_key
        self.overrides = {prefix: dict(table) for prefix, table in (overrides or {}).items()}
        for prefix, table in self.overrides.items():
            if unknown := sorted(table.keys() - self.steps.keys()):
                raise ValueError(
                    f"augment: overrides of {prefix!r} name {unknown}, which are no steps; known: {list(self.steps)}"
                )

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> AugmentByDataset:
        """Seed every step by its place, so that an override changes the chance of no other step."""
        super().set_random_state(seed, state)
        for name, step in self.steps.items():
            own = int(self.R.randint(2**31))
            for choice in (step, *(table.get(name) for table in self.overrides.values())):
                if isinstance(choice, Randomizable):
                    choice.set_random_state(seed=own)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data``, augmented."""
        d = dict(data)
        dataset = str(d.get(self.dataset_key, ""))
        fitting = [prefix for prefix in self.overrides if dataset.startswith(prefix)]
        steps = self.steps | (self.overrides[max(fitting, key=len)] if fitting else {})
        for step in steps.values():
            d = d if step is None else step(d)
        return d
