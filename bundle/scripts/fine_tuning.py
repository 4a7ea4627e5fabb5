"""Start a run from weights of an earlier one: ours, a checkpoint of ours, or a published one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scripts.convert_checkpoint import convert_reference_state_dict
from scripts.errors import InputError
from scripts.handlers.checkpoints import TRAINING_ONLY

logger = logging.getLogger(__name__)
SHOWN_NAMES = 3


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
    _check(file, given, {name: value for name, value in own.items() if name not in kept})
    network.load_state_dict({**own, **given})
    logger.info("start from %s%s", file.name, f"; {len(kept)} tensors of the training heads are new" if kept else "")


def _read(file: Path, part: str | None) -> dict[str, torch.Tensor]:
    """The state dict in any of the files that may hold one."""
    if not file.is_file():
        raise InputError(f"fine-tuning: no weights at {file}; give the path of a state dict or checkpoint")
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as e:  # whatever bytes the file holds: struct, zip, pickle and their own kinds of error
        raise InputError(
            f"fine-tuning: {file.name} is no file of plain weights ({' '.join(str(e).split())[:160]})"
        ) from e
    if isinstance(content, Mapping) and isinstance(content.get("model_state_dict"), Mapping):
        return convert_reference_state_dict(content["model_state_dict"])
    if isinstance(content, Mapping) and isinstance(content.get("network"), Mapping):
        average = content.get("ema") or {}
        inner = {name.removeprefix("module."): v for name, v in average.items() if name.startswith("module.")}
        content = inner or content["network"]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(
            f"fine-tuning: {file.name} holds {type(content).__name__}; wanted a state dict, a checkpoint of a run, or "
            "a published checkpoint"
        )
    if part is not None and any(name.startswith(f"{part}.") for name in content):
        return {name.removeprefix(f"{part}."): v for name, v in content.items() if name.startswith(f"{part}.")}
    return dict(content)


def _check(file: Path, given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights of another network.

    Raises:
        InputError: with the first few names that differ.
    """
    complaints = [
        _complaint("lacks", [name for name in wanted if name not in given]),
        _complaint("has unknown", [name for name in given if name not in wanted]),
        _complaint(
            "has another shape in",
            [
                f"{name} {tuple(given[name].shape)} for {tuple(value.shape)}"
                for name, value in wanted.items()
                if name in given and given[name].shape != value.shape
            ],
        ),
    ]
    if any(complaints):
        raise InputError(
            f"fine-tuning: {file.name} does not fit this network: it {'; it '.join(filter(None, complaints))}; use the "
            "network_def (and the overlay, such as small_network.json) that it was trained with"
        )


def _complaint(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"{what} {', '.join(names[:SHOWN_NAMES])}{more}"
