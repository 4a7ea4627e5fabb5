"""One optimiser step, over several micro-batches and processes: the ``iteration_update`` of a MONAI trainer.

MONAI's own accumulation counts micro-batches as iterations, so that schedules, clipping and checkpoints no longer go
by optimiser steps, and gives every micro-batch the same weight. Here an iteration is a step. The loss is a mean over
queries, and batches have different numbers of them: each is weighted by its share of the step's queries, so that the
step is the same however its samples are split over micro-batches and processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from monai.engines import IterationEvents, SupervisedTrainer
from monai.utils.enums import CommonKeys
from torch import nn

from scripts import distributed

Batch = Mapping[str, Any]


class MicroBatches:
    """The batches of a loader in groups, one group for each optimiser step.

    Args:
        loader: of micro-batches.
        count: micro-batches in a step.
    """

    def __init__(self, loader: Iterable[Batch], count: int = 1) -> None:
        if count < 1:
            raise ValueError(f"training: accumulation has to be a whole number from 1, got {count}")
        self.loader, self.count = loader, count

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = iter(self.loader)
        while group := list(islice(batches, self.count)):
            yield group


class OptimiserStep:
    """Forward and backward passes of a step's micro-batches, then one step of the optimiser.

    Fires MONAI's ``FORWARD_COMPLETED`` and ``LOSS_COMPLETED`` for every micro-batch, ``BACKWARD_COMPLETED`` once, when
    the gradients are complete and unscaled, and ``MODEL_COMPLETED``. The output is ``loss``, that of the whole step
    over all processes. Random numbers of the networks (dropout) come from ``seed``, the step and the process, so that
    a resumed run needs no saved random state.

    Args:
        device: of the network.
        dtype: autocast's; with float16 the loss is scaled, and the scale is part of the run's state.
        seed: of the run.
        weight_key: entry of a batch, ``[B, N]``, whose sum is the number of queries that its loss is a mean over.
        shared_keys: entries that hold for a whole step; the step's first sample, of the first process, decides.
    """

    def __init__(
        self,
        device: str | torch.device,
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
        weight_key: str = "query_mask",
        shared_keys: Sequence[str] = ("label_withheld",),
    ) -> None:
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=dtype == torch.float16)
        self.seed, self.weight_key, self.shared_keys = seed, weight_key, tuple(shared_keys)

    def __call__(self, engine: SupervisedTrainer, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Make the step of ``batches``."""
        state: Any = engine.state
        torch.manual_seed(self._random_seed(state.iteration))
        batches = self._agree(batches, state.device)
        queries = [float(batch[self.weight_key].sum()) for batch in batches]
        everywhere = max(float(distributed.total(torch.tensor(sum(queries), device=state.device))), 1.0)
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
        mean = torch.zeros((), device=state.device)
        for place, (batch, count) in enumerate(zip(batches, queries, strict=True), start=1):
            with _exchanging(engine.network, last=place == len(batches)):
                loss = self._loss(engine, batch) * (count / everywhere)
                # DistributedDataParallel averages the gradients over the processes; their sum is wanted.
                self.scaler.scale(loss * distributed.processes()).backward()
            mean += loss.detach()
        state.output = {CommonKeys.LOSS: distributed.total(mean)}
        self.scaler.unscale_(engine.optimizer)
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.scaler.step(engine.optimizer)
        self.scaler.update()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return state.output

    def state_dict(self) -> dict[str, Any]:
        """The scaler's; empty where nothing is scaled."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        if state:
            self.scaler.load_state_dict(dict(state))

    def _random_seed(self, step: int) -> int:
        entropy = [self.seed, step, distributed.number()]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _agree(self, batches: Sequence[Batch], device: torch.device) -> list[Batch]:
        """The batches, with the first sample's values under ``shared_keys`` in all of them."""
        present = [key for key in self.shared_keys if key in batches[0]]
        if not present:
            return list(batches)
        own = [torch.as_tensor(batches[0][key]).flatten()[0] for key in present]
        chosen = distributed.of_first(torch.stack(own).to(device)).cpu()
        return [
            {
                **batch,
                **{k: value.expand_as(torch.as_tensor(batch[k])) for k, value in zip(present, chosen, strict=True)},
            }
            for batch in batches
        ]

    def _loss(self, engine: SupervisedTrainer, batch: Batch) -> torch.Tensor:
        """Mean loss over the queries of one micro-batch."""
        state: Any = engine.state
        image, targets, args, kwargs = engine.prepare_batch(
            batch, state.device, engine.non_blocking, **engine.to_kwargs
        )
        state.output = {CommonKeys.IMAGE: image, CommonKeys.LABEL: targets}
        state.output[CommonKeys.PRED] = engine.inferer(image, engine.network, *args, **kwargs)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        state.output[CommonKeys.LOSS] = engine.loss_function(state.output[CommonKeys.PRED], targets)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        return state.output[CommonKeys.LOSS]


def _exchanging(network: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Let the processes exchange gradients after the last micro-batch alone."""
    if last or not isinstance(network, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()
