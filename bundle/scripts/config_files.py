"""Find the configs that a command names: those of the bundle by name, others by path."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from scripts.errors import InputError

BUNDLE = Path(__file__).resolve().parents[1]


def config_file(name: str | Path, command: str, known: Iterable[str] | None = None, root: Path = BUNDLE) -> str:
    """Path of a config.

    Args:
        name: of one in the bundle's ``configs``, such as "challenge", or the path of any file.
        command: who asks, for the message.
        known: names to propose in the message; all configs of the bundle by default.
        root: folder of the bundle.

    Raises:
        InputError: there is none.
    """
    for path in (Path(name).expanduser(), root / "configs" / f"{name}.json"):
        if path.is_file():
            return str(path.resolve())
    names = known if known is not None else (path.stem for path in (root / "configs").glob("*.json"))
    raise InputError(f"{command}: no config {str(name)!r}: give a file, or one of {', '.join(sorted(names))}")
