"""Refuse an exported network that holds anything but plain arithmetic and plain numbers.

``torch.export.load`` trusts its file. It unpickles entries that say so, and falls back to full unpickling where the
restricted one fails; it evaluates the texts of symbolic sizes; it looks operators up by dotted names that reach all of
``torch``; it turns names into source code. Here everything is refused that is not known to be harmless: names of
entries, operators, size expressions and every other text in the graph, one by one. What passes is copied entry by
entry into a fresh archive, so that torch reads exactly what was checked.
"""

from __future__ import annotations

import ast
import io
import json
import re
import struct
import zipfile
from typing import Any

from scripts.errors import InputError
from scripts.export.facts import ProgramFacts

FACTS_FILE = "medal_s.json"
GRAPH, FACTS, SAMPLE_INPUTS = "models/model.json", f"extra/{FACTS_FILE}", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
_TENSOR = re.compile(r"data/(weights/weight_\d+|constants/tensor_\d+)")
_MARKS = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
_LONGEST_MARK = 100
_DAMAGED = (
    *(zipfile.BadZipFile, struct.error, UnicodeDecodeError, EOFError),
    *(NotImplementedError, RecursionError, MemoryError),
)

# What the networks of this bundle consist of; ``aten`` as a whole also has operators that open files.
_ATEN = """
    _adaptive_avg_pool3d.default adaptive_avg_pool3d.default add.Tensor add.Scalar arange.default arange.start_step
    arange.start avg_pool3d.default bmm.default cat.default chunk.default clone.default contiguous.default
    conv3d.default conv_transpose3d.input cos.default div.Tensor dropout.default expand.default flatten.using_ints
    gelu.default gt.Scalar instance_norm.default layer_norm.default leaky_relu.default leaky_relu_.default
    linear.default mul.Tensor mul.Scalar permute.default pow.Scalar reciprocal.default relu.default reshape.default
    scaled_dot_product_attention.default select.int sin.default slice.Tensor split.Tensor stack.default
    sum.dim_IntList sym_size.int to.dtype to.device transpose.int unflatten.int unsqueeze.default view.default
    zeros_like.default _to_copy.default alias.default
"""
OPERATORS = frozenset(f"torch.ops.aten.{name}" for name in _ATEN.split()) | frozenset(
    f"_operator.{name}" for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "ge", "gt", "le", "lt")
)
_SIZE_FUNCTIONS = frozenset(
    ("Symbol", "Integer", "Add", "Mul", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv")
)
_SIZE_PARTS = (
    *(ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp),
    *(ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.USub),
)
# Before torch evaluates a size by sympy, sympy takes out line breaks, so that after a backslash code could follow where
# Python's parser saw a comment. With these signs alone both read the same.
_SIZE = re.compile(r"[A-Za-z0-9_ ()'+\-*/%,=]+", re.ASCII)
# A name may not begin with two underscores, as those of Python's own machinery do.
_PLAIN = re.compile(r"|(?!__)[A-Za-z_]\w*", re.ASCII)
_DOTTED = re.compile(r"|(?!__)[A-Za-z_]\w*(\.(?!__)\w+)*", re.ASCII)
_VERSION = re.compile(r"[\w.+]+", re.ASCII)
_RANGE = re.compile(r"(\d+\*)?[a-z]+\d+", re.ASCII)
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")
_DOTTED_KEYS = frozenset(("fqn", "parameter_name", "buffer_name", "tensor_constant_name"))


class _RefusedError(Exception):
    """Something that a plain program does not have; the text says what."""


def checked_copy(content: bytes, name: str) -> tuple[bytes, ProgramFacts]:
    """An archive of the same entries, each of them harmless.

    Args:
        content: of the file.
        name: of the file, for messages.

    Returns:
        The copy, and the facts in it.

    Raises:
        InputError: anything that is not known to be harmless.
    """
    try:
        entries = _entries(content)
        for entry in (GRAPH, WEIGHTS, CONSTANTS):
            _check(_json(entries[entry]), "")
        facts = ProgramFacts.from_json(entries[FACTS])
    except _RefusedError as e:
        raise InputError(
            f"{name}: refused, it is no plain exported network: {e}. Export it yourself: python -m scripts.cli export"
        ) from e
    except _DAMAGED as e:
        raise InputError(f"{name}: damaged, or no exported network ({type(e).__name__}): export it again") from e
    return _packed(entries), facts


def _entries(content: bytes) -> dict[str, bytes]:
    """Entries by their place in the archive's one folder."""
    found: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for info in archive.infolist():
            place = info.filename.partition("/")[2]
            if place in found or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise _RefusedError(f"its entry {info.filename[:80]!r} is compressed, encrypted or there twice")
            found[place] = archive.read(info)
    for place, value in found.items():
        known = place in (GRAPH, FACTS, WEIGHTS, CONSTANTS) or _TENSOR.fullmatch(place)
        mark = place in _MARKS and len(value) <= _LONGEST_MARK
        if not known and not mark and not (place == SAMPLE_INPUTS and not value):
            raise _RefusedError(f"it has an entry {place[:80]!r} of {len(value)} bytes")
    missing = [place for place in (GRAPH, FACTS, WEIGHTS, CONSTANTS) if place not in found]
    if missing:
        raise _RefusedError(f"it lacks {', '.join(missing)}")
    return found


def _packed(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for place, value in entries.items():
            archive.writestr(zipfile.ZipInfo(f"network/{place}"), value)
    return buffer.getvalue()


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as e:
        raise _RefusedError(f"its description is not JSON ({e})") from e


def _check(value: Any, key: str) -> None:
    """Look at every text below ``value``, which stands at ``key``."""
    if key == "use_pickle" and value is not False:
        raise _RefusedError("it has pickled tensors")
    if key == "metadata" and value != {}:
        raise _RefusedError("its graph has notes, which a plain one does not")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_name(name, key)
            _check(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, key)
    elif isinstance(value, str):
        _check_text(value, key)


def _check_name(name: str, key: str) -> None:
    """Keys: names of fields, of weights (dotted) or of sizes (with a factor)."""
    fits = _RANGE.fullmatch(name) if key == "range_constraints" else _DOTTED.fullmatch(name)
    if not fits:
        raise _RefusedError(f"it has a name {name[:80]!r}")


def _check_text(text: str, key: str) -> None:
    if key == "target":
        if text not in OPERATORS:
            raise _RefusedError(f"it calls {text[:80]!r}, which is no operator of this bundle's networks")
    elif key == "expr_str":
        _check_size(text)
    elif key in ("in_spec", "out_spec"):
        _check_structure(text)
    elif key == "torch_version":
        if not _VERSION.fullmatch(text):
            raise _RefusedError(f"it names a version {text[:80]!r}")
    else:
        pattern = _DOTTED if key in _DOTTED_KEYS else _PLAIN
        if not pattern.fullmatch(text):
            raise _RefusedError(f"it has a text {text[:80]!r} at {key!r}")


def _check_size(text: str) -> None:
    """A symbolic size, which torch evaluates: sums, products and quotients of numbers and symbols, nothing else."""
    if not _SIZE.fullmatch(text):
        raise _RefusedError(f"it has a size {text[:80]!r}")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError) as e:
        raise _RefusedError(f"it has a size {text[:80]!r}") from e
    for part in ast.walk(tree):
        fits = isinstance(part, _SIZE_PARTS)
        if isinstance(part, ast.Call):
            fits = isinstance(part.func, ast.Name) and part.func.id in _SIZE_FUNCTIONS
        elif isinstance(part, ast.Name):
            fits = part.id in _SIZE_FUNCTIONS or _RANGE.fullmatch(part.id) is not None
        elif isinstance(part, ast.Constant):
            # A text is a symbol's name; sympy would evaluate any other.
            fits = type(part.value) in (int, bool) or (type(part.value) is str and bool(_RANGE.fullmatch(part.value)))
        if not fits:
            raise _RefusedError(f"it has a size {text[:80]!r}")


def _check_structure(text: str) -> None:
    """How arguments and results are nested: JSON within JSON."""
    if not text:
        return

    def walk(value: Any) -> None:
        if isinstance(value, list):
            for inner in value:
                walk(inner)
        elif isinstance(value, dict):
            if value.get("type") not in _CONTAINERS or value.get("context") not in (None, "null", "[]"):
                raise _RefusedError(f"it has arguments of type {str(value.get('type'))[:80]!r}")
            walk(value.get("children_spec"))
        elif value is not None and type(value) is not int:
            raise _RefusedError(f"it has arguments {str(value)[:80]!r}")

    walk(_json(text.encode()))
