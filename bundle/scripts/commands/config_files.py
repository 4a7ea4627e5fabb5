"""Find the configs that a command names: those of the bundle by name, others by path."""

from __future__ import annotations

from pathlib import Path

from scripts.errors import InputError

BUNDLE = Path(__file__).resolve().parents[2]


def config_file(name: str, command: str) -> str:
    """Path of a config.

    Args:
        name: of one in the bundle's ``configs``, such as "challenge", or the path of any file.
        command: who asks, for the message.

    Raises:
        InputError: there is none.
    """
    for path in (Path(name).expanduser(), BUNDLE / "configs" / f"{name}.json"):
        if path.is_file():
            return str(path.resolve())
    known = ", ".join(sorted(path.stem for path in (BUNDLE / "configs").glob("*.json")))
    raise InputError(f"{command}: no config {name!r}: give a file, or one of {known}")
