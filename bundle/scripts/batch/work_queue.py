"""Share numbered pieces of work among the processes of a run, so that each piece is done exactly once.

Cases differ tenfold in size and need nothing of each other, so that processes draw the next number from a common
counter instead of being dealt a fixed part, and the first collects one answer for each. The counter lives in the
key-value store through which ``torch.distributed`` processes find each other; no process group is needed: nothing
depends on gloo or NCCL, no time-out ends a long case, and a machine without a GPU can help one that has some.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

POLL_SECONDS = 0.2
FIND_EACH_OTHER = timedelta(minutes=30)


class WorkQueue:
    """Numbers 0, 1, ... for whoever asks next.

    Args:
        store: the store that all processes share; one of this process alone when None.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(self, store: dist.Store | None = None, rank: int = 0, world_size: int = 1) -> None:
        self.store = dist.PrefixStore("medal_s_batch", dist.HashStore() if store is None else store)
        self.rank = rank
        self.world_size = world_size

    @classmethod
    def from_environment(cls) -> WorkQueue:
        """The queue of this run: alone, or with the others where torchrun started this process."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        store, rank, world_size = next(iter(dist.rendezvous("env://", timeout=FIND_EACH_OTHER)))
        return cls(store, rank, world_size)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prepares and collects."""
        return self.rank == 0

    def once(self, name: str, task: Callable[[], object]) -> None:
        """Run a task in the first process; the others wait until it is done."""
        if self.is_first:
            task()
            self.store.set(name, "done")
        self._wait(name)

    def claim(self, count: int) -> int | None:
        """The next of ``count`` numbers that no process has taken, or None when all are."""
        number = self.store.add("claimed", 1) - 1
        return number if number < count else None

    def publish(self, number: int, answer: Any) -> None:
        """Hand in the answer (JSON) for a number."""
        self.store.set(f"answer {number}", json.dumps(answer))

    def collect(self, count: int) -> list[Any]:
        """All answers in order of their numbers; waits for those that other processes still work on."""
        answers = []
        for number in range(count):
            self._wait(f"answer {number}")
            answers.append(json.loads(self.store.get(f"answer {number}")))
        return answers

    def _wait(self, key: str) -> None:
        # The store's own wait has a time limit and cannot be interrupted from the keyboard.
        while not self.store.check([key]):
            time.sleep(POLL_SECONDS)


def local_device() -> str:
    """This process's own GPU, or the processor: ``cuda:<LOCAL_RANK>`` under torchrun, else ``cuda:0``, else ``cpu``."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
