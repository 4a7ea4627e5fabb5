"""Keep what a network computed, within a byte budget, under keys made of everything it was computed from.

A wrong hit would show one patient's anatomy as another's, so a key holds the content of the window (a cryptographic
hash of its bytes), the identity of the network and a hash of its weights, the device and the precision. Nothing is
looked up by place, file name or time.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

logger = logging.getLogger(__name__)

GIB = 2**30
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, None: None}
# Values of each tensor that are read on every call to notice an edit which autograd does not count.
SAMPLES = 8


@runtime_checkable
class ReusableNetwork(Protocol):
    """A network whose features do not depend on what is asked, such as ``scripts.networks.MedalS``."""

    def features(self, image: torch.Tensor, with_plain: bool = False) -> Sequence[torch.Tensor | None]:
        """Tensors with the batch first; the last may be None."""
        ...

    def answer(
        self, features: Sequence[torch.Tensor], queries: torch.Tensor, prompts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits ``[B, N, H, W, D]``."""
        ...


@dataclass(frozen=True)
class CacheStatistics:
    """What a cache holds and how often it helped, since it was made or cleared."""

    entries: int
    bytes: int
    hits: int
    misses: int
    evictions: int


@dataclass(frozen=True)
class _Entry:
    """Stored tensors, and the types they had before they were stored."""

    tensors: tuple[torch.Tensor, ...]
    dtypes: tuple[torch.dtype, ...]
    bytes: int


@dataclass(frozen=True)
class _Known:
    """A network's number in this cache, the state of its weights when they were hashed, and the hash."""

    number: int
    stamp: bytes
    weights: bytes


class FeatureCache:
    """Tensors by key; when the budget is full, those used longest ago go first. Threads may share it.

    What is stored in a narrower type is also handed out rounded on the call that computed it: an answer never
    depends on whether the cache helped.

    Args:
        max_gb: budget in GiB; an entry larger than all of it is not kept, and with 0 nothing is hashed or moved.
        dtype: stored floating-point type, "float16" or "bfloat16"; None keeps the computed one, exactly. A tensor
            that float16 cannot hold keeps its own type.
        device: where entries are kept; None leaves them on the device that computed them.

    Raises:
        ValueError: a negative budget or another type.
    """

    def __init__(
        self, max_gb: float = 2.0, dtype: str | None = "float16", device: torch.device | str | None = "cpu"
    ) -> None:
        if max_gb < 0:
            raise ValueError(f"feature cache: wanted max_gb >= 0, got {max_gb}; 0 keeps nothing")
        if dtype not in DTYPES:
            raise ValueError(f"feature cache: dtype must be 'float16', 'bfloat16' or null, got {dtype!r}")
        self.max_bytes = int(max_gb * GIB)
        self.dtype = DTYPES[dtype]
        self.device = None if device is None else torch.device(device)
        self._lock = threading.RLock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._networks: weakref.WeakKeyDictionary[torch.nn.Module, _Known] = weakref.WeakKeyDictionary()
        self._numbers = 0
        self._bytes = self._hits = self._misses = self._evictions = 0

    @property
    def statistics(self) -> CacheStatistics:
        """Present contents and counts."""
        with self._lock:
            return CacheStatistics(len(self._entries), self._bytes, self._hits, self._misses, self._evictions)

    def clear(self) -> None:
        """Forget every entry and start counting anew."""
        with self._lock:
            self._entries.clear()
            self._networks.clear()
            self._bytes = self._hits = self._misses = self._evictions = 0

    def get(self, key: Hashable, device: torch.device | str | None = None) -> tuple[torch.Tensor, ...] | None:
        """The tensors under ``key`` in the types they were computed in, or None. Do not edit them.

        Args:
            key: see ``window_key``.
            device: where they are wanted; where they are kept if None.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self._misses += 1
                return None
            self._entries.move_to_end(key)
            self._hits += 1
        return _restored(entry, device)

    def put(self, key: Hashable, tensors: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Keep tensors, and return them as every later ``get`` will, on their own device."""
        made = self._narrowed(tuple(tensors))
        if made.bytes <= self.max_bytes:  # else it stays where it is: what is not kept is not carried to the host
            entry = self._stored(made)
            with self._lock:
                replaced = self._entries.pop(key, None)
                self._bytes += entry.bytes - (replaced.bytes if replaced else 0)
                self._entries[key] = entry
                while self._bytes > self.max_bytes:
                    _, oldest = self._entries.popitem(last=False)
                    self._bytes -= oldest.bytes
                    self._evictions += 1
                    if self._evictions == 1:
                        logger.info("the feature cache is full (%.2f GiB): oldest go first", self.max_bytes / GIB)
        return _restored(made, None)

    def features(self, network: Any, image: torch.Tensor, with_plain: bool = False) -> tuple[Any, ...]:
        """``network.features(image)``, computed only for those images of the batch that are not known yet.

        Args:
            network: a ``ReusableNetwork`` in evaluation mode.
            image: ``[B, 1, H, W, D]``; each of the batch has its own entry.
            with_plain: passed on.

        Returns:
            The network's feature tensors, batch first.
        """
        if self.max_bytes == 0:  # nothing to look up: no hashes
            made = [t for t in network.features(image, with_plain=with_plain) if t is not None]
            return _restored(self._narrowed(tuple(made)), None)
        base = (*self.computation_key(network, image.device), "features", with_plain)
        keys = [(*base, digest(window)) for window in image]
        parts = {key: self.get(key, image.device) for key in keys}
        missing = [index for index, key in enumerate(keys) if parts[key] is None]
        if missing:
            batch = image if len(missing) == len(image) else image[missing]
            made = [t for t in network.features(batch, with_plain=with_plain) if t is not None]
            for row, index in enumerate(missing):
                parts[keys[index]] = self.put(keys[index], (t[row : row + 1] for t in made))
        rows = [part for key in keys if (part := parts[key]) is not None]
        return rows[0] if len(rows) == 1 else tuple(torch.cat(column) for column in zip(*rows, strict=True))

    def computation_key(self, network: torch.nn.Module, device: torch.device) -> tuple[Hashable, ...]:
        """What decides a network's output besides its inputs: itself, its weights, the device and the precision."""
        return (
            self._identity(network),
            device.type,
            torch.is_autocast_enabled(device.type),
            torch.get_autocast_dtype(device.type),
        )

    def _identity(self, network: torch.nn.Module) -> tuple[int, bytes]:
        """A number that no two networks of this process share, and a hash of all its parameters and buffers.

        The hash is made anew only when a tensor was exchanged or edited. Edits through ``tensor.data`` escape
        autograd's counters; a sample of every tensor shows them unless they leave the whole sample as it was: after
        such surgery on single values call ``clear``.
        """
        stamp = _weights_stamp(network)
        with self._lock:
            known = self._networks.get(network)
            if known is None or known.stamp != stamp:
                number = self._numbers if known is None else known.number
                self._numbers += known is None
                known = _Known(number, stamp, _weights_digest(network))
                self._networks[network] = known
            return known.number, known.weights

    def _narrowed(self, tensors: tuple[torch.Tensor, ...]) -> _Entry:
        """Tensors in the type in which they are kept, where they are."""
        narrowed = []
        for tensor in tensors:
            kept = tensor.detach()
            if self.dtype is not None and kept.dtype == torch.float32:
                narrow = kept.to(self.dtype)
                kept = narrow if self.dtype == torch.bfloat16 or narrow.isfinite().all() else kept
            narrowed.append(kept)
        return _Entry(tuple(narrowed), tuple(t.dtype for t in tensors), sum(t.nbytes for t in narrowed))

    def _stored(self, entry: _Entry) -> _Entry:
        """An entry where it is kept, with memory of its own."""
        tensors = []
        for tensor in entry.tensors:
            kept = tensor.to(self.device or tensor.device)
            # A row of a batch would keep the whole batch alive.
            tensors.append(kept.clone() if kept.untyped_storage().nbytes() > kept.nbytes else kept)
        return _Entry(tuple(tensors), entry.dtypes, entry.bytes)


def digest(tensor: torch.Tensor) -> bytes:
    """A 256-bit hash of a tensor's values, type and shape (blake2b)."""
    plain = tensor.detach().cpu().contiguous()
    result = hashlib.blake2b(f"{plain.dtype} {tuple(plain.shape)} ".encode(), digest_size=32)
    if plain.numel():
        result.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return result.digest()


def _restored(entry: _Entry, device: torch.device | str | None) -> tuple[torch.Tensor, ...]:
    return tuple(t.to(device=device, dtype=d) for t, d in zip(entry.tensors, entry.dtypes, strict=True))


def _weights(network: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _weights_stamp(network: torch.nn.Module) -> bytes:
    """A cheap mark that changes when weights are loaded, trained, moved or edited in place."""
    tensors = _weights(network)
    marks = [(n, t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype, tuple(t.shape)) for n, t in tensors]
    samples = [_sample(t.detach()).double() for _, t in tensors if t.numel()]
    result = hashlib.blake2b(repr(marks).encode(), digest_size=32)
    if samples:
        result.update(digest(torch.cat(samples)))
    return result.digest()


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """A few values spread over a tensor, without copying all of a tensor that is stored channels last."""
    size = tensor.numel()
    dense = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) == size
    flat = tensor.as_strided((size,), (1,)) if dense else tensor.reshape(-1)
    return flat[:: max(1, size // SAMPLES)][:SAMPLES]


def _weights_digest(network: torch.nn.Module) -> bytes:
    result = hashlib.blake2b(digest_size=32)
    for name, tensor in _weights(network):
        result.update(f"{len(name)} {name} ".encode() + digest(tensor))
    return result.digest()
