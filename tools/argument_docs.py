"""What an argument of a class means, from the ``Args:`` of its docstring.

A text such as "see ``EncodePrompts``." is followed to the class it names, in the same module, so that a dictionary
transform need not repeat what its array transform says.
"""

from __future__ import annotations

import inspect
import pydoc
import re
from functools import cache

_ENTRY = re.compile(r"^ {4}(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*): (?P<text>.*(?:\n {5,}.*)*)", re.MULTILINE)
_SEE = re.compile(r"see ``(?P<name>[\w.]+)``\.?")


@cache
def argument_docs(target: str) -> dict[str, str]:
    """Argument -> what its docstring says, on one line.

    Args:
        target: dotted name of a class, function or method, as a config's ``_target_`` has it.

    Raises:
        ValueError: nothing of that name can be imported.
    """
    found = pydoc.locate(target)
    if found is None:
        raise ValueError(f"{target!r} cannot be imported: a config's _target_ names a class or function")
    docs: dict[str, str] = {}
    for part in (found, getattr(found, "__init__", None)):
        block = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", inspect.getdoc(part) or "", re.MULTILINE)
        for entry in _ENTRY.finditer(block.group(1) if block else ""):
            text = " ".join(entry["text"].split())
            docs.update({name.strip().lstrip("*"): text for name in entry["names"].split(",")})
    module = getattr(found, "__module__", "")
    return {name: _followed(module, name, text) for name, text in docs.items()}


def _followed(module: str, argument: str, text: str) -> str:
    """The text, or that of the class or function it refers to; empty where that says nothing."""
    reference = _SEE.fullmatch(text)
    if reference is None:
        return text
    names = (f"{module}.{reference['name']}", reference["name"])
    found = next((name for name in names if pydoc.locate(name) is not None), None)
    return argument_docs(found).get(argument, "") if found else ""


def summary(target: str) -> str:
    """The first line of a class's or function's docstring; empty where there is none."""
    return (inspect.getdoc(pydoc.locate(target)) or "").split("\n\n")[0]
