"""Start a run from weights of an earlier one: ours, a checkpoint of ours, or a published one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from scripts.convert_checkpoint import convert_reference_state_dict
from scripts.errors import InputError
from scripts.handlers.checkpoints import TRAINING_ONLY
from scripts.weights import describe_misfit, is_state_dict, part_of, read_plain

logger = logging.getLogger(__name__)


def start_from(
    network: nn.Module, path: str | Path | None, part: str | None = None, fresh: Sequence[str] = TRAINING_ONLY
) -> None:
    """Fill a network with weights; every one has to fit, but for heads that only training needs.

    Nothing in the network belongs to a certain target, text says what is wanted: new targets need no new weights.

    Args:
        network: filled in place.
        path: a state dict such as ``model.pt``; a checkpoint of a run (its moving average, where it has one); or a
            published checkpoint, whose names are converted. None leaves the network as it is.
        part: see ``scripts.weights.load_weights``.
        fresh: prefixes of parameters that may be in the file or not; those that are not start anew.

    Raises:
        InputError: no such file, nothing in it that could be weights, or other names or shapes (which).
    """
    if path is None:
        return
    file = Path(path)
    state = _read(file, part)
    own = network.state_dict()
    kept = {name for name in own if name.startswith(tuple(fresh)) and name not in state}
    given = {name: value for name, value in state.items() if name in own or not name.startswith(tuple(fresh))}
    if misfit := describe_misfit(given, {name: value for name, value in own.items() if name not in kept}):
        raise InputError(
            f"fine-tuning: {file.name} does not fit this network: it {misfit}; use the network_def (and the overlay, "
            "such as small_network.json) that it was trained with"
        )
    network.load_state_dict({**own, **given})
    logger.info("start from %s%s", file.name, f"; {len(kept)} tensors of the training heads are new" if kept else "")


def _read(file: Path, part: str | None) -> dict[str, torch.Tensor]:
    """The state dict in any of the files that may hold one."""
    if not file.is_file():
        raise InputError(f"fine-tuning: no weights at {file}; give the path of a state dict or checkpoint")
    content = read_plain(file)
    if isinstance(content, Mapping) and isinstance(content.get("model_state_dict"), Mapping):
        return convert_reference_state_dict(content["model_state_dict"])
    if isinstance(content, Mapping) and isinstance(content.get("network"), Mapping):
        average = content.get("ema") or {}
        inner = {name.removeprefix("module."): v for name, v in average.items() if name.startswith("module.")}
        content = inner or content["network"]
    if not is_state_dict(content):
        raise InputError(
            f"fine-tuning: {file.name} holds {type(content).__name__}; wanted a state dict, a checkpoint of a run, or "
            "a published checkpoint"
        )
    return part_of(content, part)
