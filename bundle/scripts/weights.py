"""Load shipped weights strictly, once, and say which keys differ when they do not fit."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from scripts.errors import InputError

logger = logging.getLogger(__name__)
SHOWN_KEYS = 3
# torch keeps one list of stand-ins for the whole process: a thread that is done would take those of another away.
_LOADING = threading.Lock()


def load_weights(network: torch.nn.Module, path: str | Path, part: str | None = None) -> None:
    """Load a state dict into a network; nothing but tensors is unpickled.

    Args:
        network: filled in place; half-precision weights are widened to its own type.
        path: file with a state dict.
        part: where one file holds several networks, the prefix of this one's names, such as "coarse" in
            ``coarse.backbone...``; a file without such names holds this network alone.

    Raises:
        InputError: no such file, no state dict, or other keys or shapes (which).
    """
    file = Path(path)
    if not file.is_file():
        key = "fine_weights" if part == "fine" else "weights"
        raise InputError(f"no weights at {path}: train them, or give the path of a state dict with {key}")
    state = read_plain(file)
    if not is_state_dict(state):
        raise InputError(f"{file.name}: wanted a state dict (names to tensors), got {type(state).__name__}")
    if odd := [key for key, value in state.items() if not is_dense(value)]:
        raise InputError(f"{file.name}: {odd[0]} is no dense tensor; give weights saved by torch.save")
    state = part_of(state, part)
    if misfit := describe_misfit(state, network.state_dict()):
        raise InputError(
            f"{file.name} holds weights of another layout: it {misfit}; use the network_def they were trained with"
        )
    network.load_state_dict(state)


def read_plain(file: Path, mmap: bool = False) -> Any:
    """What a file of tensors and plain containers holds; nothing else is unpickled.

    NumPy's scalars, which published checkpoints hold as learning rates, become objects without content.

    Args:
        file: written by ``torch.save``.
        mmap: read a tensor from the file when it is used, not all at once; for files in torch's zip format only.

    Raises:
        InputError: anything else.
    """
    try:
        with _LOADING, torch.serialization.safe_globals(_NUMPY_STAND_INS):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as e:  # whatever bytes the file holds: struct, zip, pickle and their own kinds of error
        raise InputError(f"{file.name}: not a file of plain weights ({' '.join(str(e).split())[:160]})") from e


def is_state_dict(content: object) -> bool:
    """Whether it maps names to tensors."""
    return isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    )


def part_of(state: Mapping[str, torch.Tensor], part: str | None) -> dict[str, torch.Tensor]:
    """One network's tensors of a file that holds several, see ``load_weights``; else all."""
    if part is None or not any(key.startswith(f"{part}.") for key in state):
        return dict(state)
    return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}


def describe_misfit(given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str:
    """The first few names and shapes in which two state dicts differ; empty where they fit."""
    other = [
        f"{key} {tuple(given[key].shape)} for {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in given and given[key].shape != value.shape
    ]
    complaints = (
        _complaint("lacks", [key for key in wanted if key not in given]),
        _complaint("has unknown", [key for key in given if key not in wanted]),
        _complaint("has another shape in", other),
    )
    return "; it ".join(complaint for complaint in complaints if complaint)


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether every element is stored: not sparse, quantised, without content or one number said to be many."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def sha256_of(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class _Inert:
    """Stands for what a pickle would have NumPy make: takes any arguments and any state, keeps none of it."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _stand_in(path: str) -> type[_Inert]:
    """An inert class that torch.load finds under a path: it goes by module and name, which are those of NumPy."""
    module, _, name = path.rpartition(".")
    return type(name, (_Inert,), {"__module__": module, "__qualname__": name})


# Nothing of NumPy itself is called. The first of them by its names in NumPy 1 and 2.
_NUMPY_STAND_INS: list[Any] = [
    _stand_in(path) for path in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
]


class WeightsLoader:
    """Ignite handler that loads weights when the engine first starts, and not again when it is reused.

    Args:
        network: filled in place.
        path: see ``load_weights``.
        part: see ``load_weights``.
    """

    def __init__(self, network: torch.nn.Module, path: str | Path, part: str | None = None) -> None:
        self.network = network
        self.path = path
        self.part = part
        self.loaded = False

    def attach(self, engine: Engine) -> None:
        """Register with an engine."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, _: Engine | None = None) -> None:
        """Load, if not done yet."""
        if not self.loaded:
            load_weights(self.network, self.path, self.part)
            self.loaded = True
            logger.info("weights loaded from %s", Path(self.path).name)


def _complaint(what: str, keys: list[Any]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return f"{what} {', '.join(keys[:SHOWN_KEYS])}{more}"
