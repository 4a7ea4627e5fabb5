"""Processes of one training run, as torchrun starts them: who am I, where do I compute, sums over all of us.

Everything here also works in a run of one process that torchrun did not start: it is then the first of one.
"""

from __future__ import annotations

import datetime
import os

import torch
from torch import distributed

from scripts.errors import InputError

STARTED_BY = "python -m torch.distributed.run --nproc_per_node=2 -m monai.bundle run ..."


def rank() -> int:
    """Number of this process among those that torchrun started, from 0."""
    return distributed.get_rank() if _joined() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes torchrun started."""
    return distributed.get_world_size() if _joined() else int(os.environ.get("WORLD_SIZE", 1))


def join(backend: str | None = None, timeout_minutes: float = 30.0) -> torch.device:
    """Meet the other processes and choose this one's device; a second call does not join again.

    Args:
        backend: ``nccl`` with one GPU for each process, or ``gloo`` on the CPU; by default the former where there is
            a GPU.
        timeout_minutes: how long to wait for a process that does not answer, such as one that writes a checkpoint.

    Returns:
        The device of this process.

    Raises:
        InputError: not started by torchrun, or fewer GPUs than processes on this machine.
    """
    chosen = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    if "WORLD_SIZE" not in os.environ:
        raise InputError(
            f"training: several processes are wanted but torchrun did not start this one; use {STARTED_BY}"
        )
    local = int(os.environ.get("LOCAL_RANK", 0))
    if chosen == "nccl" and local >= torch.cuda.device_count():
        raise InputError(
            f"training: process {local} of this machine has no GPU, there are {torch.cuda.device_count()}; start as "
            "many processes as GPUs (--nproc_per_node), or set backend to gloo"
        )
    device = torch.device("cuda", local) if chosen == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not _joined():
        distributed.init_process_group(chosen, timeout=datetime.timedelta(minutes=timeout_minutes))
    return device


def leave() -> None:
    """Close the connection to the other processes, if there is one."""
    if _joined():
        distributed.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return number() == 0


def processes() -> int:
    """How many processes have joined; 1 without any."""
    return distributed.get_world_size() if _joined() else 1


def number() -> int:
    """Number of this process among those that have joined; 0 without any."""
    return distributed.get_rank() if _joined() else 0


def total(value: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over the processes, the same in each; ``value`` stays as it is."""
    summed = value.detach().clone()
    if _joined():
        distributed.all_reduce(summed)
    return summed


def of_first(value: torch.Tensor) -> torch.Tensor:
    """The first process's tensor, in each process; ``value`` stays as it is."""
    shared = value.detach().clone()
    if _joined():
        distributed.broadcast(shared, src=0)
    return shared


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
