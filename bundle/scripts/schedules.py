"""Learning-rate schedule of the published recipes: warm-up and half cosine, started anew several times."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def restarting_cosine(step: int, steps: Sequence[int], warmup: Sequence[int], lr: Sequence[float]) -> float:
    """Rate at ``step`` (counted from 1) of segments with ``steps``, ``warmup`` and peak ``lr`` each.

    A boundary step belongs to the segment it ends. On a segment's last step the cosine's denominator grows by one,
    so that the rate is never exactly 0 (published code). Past the last segment the last step's rate stays.
    """
    ends = list(accumulate(steps))
    step = min(max(step, 1), ends[-1])
    segment = bisect_left(ends, step)
    length, warm, peak = steps[segment], warmup[segment], lr[segment]
    inside = step - (ends[segment] - length)
    if inside <= warm:
        return peak * inside / warm
    span = length - warm + (1 if inside == length else 0)
    return peak * 0.5 * (1 + math.cos(math.pi * (inside - warm) / span))


class RestartingCosine(LRScheduler):
    """``restarting_cosine`` as a torch scheduler, to be stepped after every optimiser step.

    Args:
        optimizer: its groups all get the same rate.
        steps: length of each segment in optimiser steps.
        warmup: warm-up steps of each segment.
        lr: peak rate of each segment.

    Raises:
        ValueError: if the lists differ in length.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps: Sequence[int],
        warmup: Sequence[int],
        lr: Sequence[float],
        last_epoch: int = -1,
    ) -> None:
        if not len(steps) == len(warmup) == len(lr):
            raise ValueError(f"steps, warmup and lr must be equally long, got {len(steps)}, {len(warmup)}, {len(lr)}")
        self.steps, self.warmup, self.lr = list(steps), list(warmup), list(lr)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Rate of the coming optimiser step, for every parameter group."""
        rate = restarting_cosine(self.last_epoch + 1, self.steps, self.warmup, self.lr)
        return [rate for _ in self.optimizer.param_groups]
