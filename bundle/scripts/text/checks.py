"""Checks of JSON values for the readers of the terminology: a complaint says where, what arrived, what was wanted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


class Checker:
    """Returns a value that is as wanted, else raises.

    Args:
        source: what to call the file in errors.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def error(self, where: str, message: str) -> ValueError:
        """The error to raise: ``<source>: <where>: <message>``."""
        return ValueError(f"{self.source}: {where}: {message}")

    def fields(
        self, where: str, value: Any, needed: Collection[str] = (), allowed: Collection[str] | None = None
    ) -> Mapping[str, Any]:
        """An object with all ``needed`` fields, and no others than those and ``allowed`` (None: any)."""
        if not isinstance(value, Mapping):
            raise self.error(where, f"an object is wanted, got {type(value).__name__}")
        if missing := sorted(set(needed) - set(value)):
            raise self.error(where, f"missing {', '.join(missing)}")
        if allowed is not None and (extra := sorted(set(value) - set(needed) - set(allowed))):
            known = ", ".join(sorted({*needed, *allowed}))
            raise self.error(where, f"unknown field {', '.join(extra)}; known: {known}")
        return value

    def text(self, where: str, value: Any) -> str:
        """A string that says something and has no blanks around it."""
        if not isinstance(value, str) or not value or value != value.strip():
            raise self.error(where, f"a text without blanks around it is wanted, got {value!r}")
        return value

    def texts(self, where: str, value: Any, lower: bool = False) -> tuple[str, ...]:
        """A list of such strings; with ``lower``, in lower case, as they are compared with lower-case words."""
        if not isinstance(value, list) or not all(
            isinstance(item, str) and item.strip() == item != "" for item in value
        ):
            raise self.error(where, f"a list of non-empty strings is wanted, got {value!r}")
        if lower and (wrong := [item for item in value if item != item.lower()]):
            raise self.error(where, f"lower case is wanted (a capital never matches), got {wrong[0]!r}")
        return tuple(value)

    def flag(self, where: str, value: Any) -> bool:
        """true or false."""
        if not isinstance(value, bool):
            raise self.error(where, f"true or false is wanted, got {value!r}")
        return value

    def whole(self, where: str, value: Any, lowest: int) -> int:
        """A whole number of at least ``lowest``."""
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise self.error(where, f"a whole number from {lowest} is wanted, got {value!r}")
        return value

    def number(self, where: str, value: Any, lowest: float = float("-inf"), above: float = float("-inf")) -> float:
        """A finite number of at least ``lowest`` and above ``above``."""
        right_type = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not right_type or not lowest <= value < float("inf") or not value > above:
            limits = [f"of at least {lowest:g}"] * (lowest > float("-inf")) + [f"above {above:g}"] * (
                above > float("-inf")
            )
            raise self.error(where, " ".join(["a number", *limits, f"is wanted, got {value!r}"]))
        return float(value)
