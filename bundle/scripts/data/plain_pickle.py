"""Unpickle nothing but plain data: dictionaries, lists, texts, numbers, and NumPy arrays and scalars of these.

A pickle is a program. Here none of its calls reaches NumPy or anything else: the few names that an object array's
pickle needs are replaced by stand-ins of our own, which note their arguments; every other name is refused before it
is looked up. Arrays become lists, NumPy scalars Python numbers.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
from typing import Any

import numpy as np

MAX_BYTES = 16 * 2**20
MAX_ITEMS = 100_000
MAX_DEPTH = 16
# Booleans, integers, floating point numbers, texts; with or without byte order.
PLAIN_DTYPE = re.compile(r"[<>|=]?[?biufU][0-9]{0,6}")


def load_plain(content: bytes) -> Any:
    """The plain data in a pickle.

    Args:
        content: the pickle, at most 16 MiB.

    Raises:
        ValueError: it holds anything else, is damaged or too large; nothing in it was run.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"a pickle of {len(content)} bytes, wanted at most {MAX_BYTES}")
    try:
        return _plain(_PlainUnpickler(io.BytesIO(content)).load())
    # Whatever goes wrong in a stranger's program means only that it is not plain data.
    except (pickle.UnpicklingError, ValueError, TypeError, EOFError, AttributeError, IndexError, KeyError) as e:
        raise ValueError("a pickle that holds more than plain dictionaries, texts and numbers, or is damaged") from e
    except (OverflowError, MemoryError, RecursionError, ImportError, UnicodeError, struct.error) as e:
        raise ValueError("a damaged pickle") from e


class _Inert:
    """A stand-in: no attribute of it can be set, and state that a pickle brings for it is refused."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("state for an object that has none")


class _DType(_Inert):
    """Stands for ``numpy.dtype("...")``; its state (byte order, fields) is not needed for plain types."""

    __slots__ = ("code",)

    def __init__(self, code: str) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        byte_order = state[1]
        if byte_order in ("<", ">"):
            self.code = byte_order + self.code.lstrip("<>|=")

    def numbers(self, raw: bytes) -> np.ndarray:
        """Decode raw numbers or texts."""
        if not isinstance(self.code, str) or not PLAIN_DTYPE.fullmatch(self.code):
            raise pickle.UnpicklingError("an array of something else than numbers or texts")
        return np.frombuffer(raw, np.dtype(self.code))


class _Array(_Inert):
    """Stands for an array: takes the state that NumPy writes and keeps its items as a list."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: list | None = None

    def __setstate__(self, state: Any) -> None:
        _, _, dtype, _, items = state
        if isinstance(items, list):
            self.items = items
        elif isinstance(items, bytes) and isinstance(dtype, _DType):
            self.items = dtype.numbers(items).tolist()
        else:
            raise pickle.UnpicklingError("an array in an unknown form")


class _MakeDType(_Inert):
    __slots__ = ()

    def __call__(self, code: str, *_: Any) -> _DType:
        return _DType(code)


class _MakeArray(_Inert):
    __slots__ = ()

    def __call__(self, *_: Any) -> _Array:
        return _Array()


class _MakeScalar(_Inert):
    __slots__ = ()

    def __call__(self, dtype: _DType, raw: bytes) -> Any:
        return dtype.numbers(raw).tolist()[0]


class _PlainUnpickler(pickle.Unpickler):
    """Gives stand-ins, made anew each time, for the names of an array's pickle and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            if name == "_reconstruct":
                return _MakeArray()
            if name == "scalar":
                return _MakeScalar()
        if module == "numpy" and name == "dtype":
            return _MakeDType()
        if module == "numpy" and name == "ndarray":
            return _Inert()
        raise pickle.UnpicklingError("a name that plain data does not need")


def _plain(value: Any) -> Any:
    """A copy in which arrays are lists; refuses what is not plain, nested deeply or (by references) endlessly large."""
    left = MAX_ITEMS

    def copy(item: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError("too many or too deeply nested items")
        if item is None or isinstance(item, (bool, int, float, str)):
            return item
        if isinstance(item, _Array):
            item = item.items or []
        if isinstance(item, (list, tuple)):
            return [copy(part, depth + 1) for part in item]
        if isinstance(item, dict):
            return {copy(key, depth + 1): copy(part, depth + 1) for key, part in item.items()}
        raise ValueError("something that is not plain data")

    return copy(value, 0)
