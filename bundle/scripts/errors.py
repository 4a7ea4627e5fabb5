"""Errors a person can act on: one clear line on the terminal instead of a traceback.

MONAI wraps what goes wrong inside a config expression or a transform in ``RuntimeError``; the exception hook
looks through that chain for an error of ours.
"""

from __future__ import annotations

import logging
import sys
from types import TracebackType

_ENGINE_LOGGERS = tuple(f"ignite.engine.engine.{name}" for name in ("SupervisedEvaluator", "SupervisedTrainer"))


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what arrived, what was wanted and what to do."""


def find_user_error(error: BaseException | None) -> ValueError | None:
    """The first error of ours in an exception's chain of causes, or None.

    Ours is every ``ValueError`` raised by this bundle's own code: its message is written for the user. Names decide,
    not classes: MONAI Label unloads and re-imports ``scripts``, after which ``isinstance`` fails.

    Args:
        error: any exception, or None.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ValueError) and _raised_here(error):
            return error
        error = error.__cause__ or error.__context__
    return None


def _raised_here(error: BaseException) -> bool:
    """Whether the statement that raised ``error`` stands in a module of this package."""
    if type(error).__name__ in ("InputError", "UnknownPromptError"):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").split(".")[0] == "scripts"


def install_excepthook() -> None:
    """Print an error of ours as one ``error: ...`` line with exit code 1, and Ctrl-C likewise (the exit code is then
    Python's own); leave every other exception alone.

    Calling it twice is harmless. It also silences the engine's own log lines about such an error, which would
    otherwise repeat it with the wrapping transform's name.
    """
    previous = sys.excepthook
    if getattr(previous, "shows_user_errors", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        ours = find_user_error(error)
        if issubclass(kind, KeyboardInterrupt):
            sys.stderr.write("\nerror: interrupted; a batch goes on where it was when it is started again\n")
        elif ours is None:
            previous(kind, error, trace)
        else:
            sys.stderr.write(f"error: {' '.join(str(ours).split())}\n")

    hook.shows_user_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook
    for name in _ENGINE_LOGGERS:
        logging.getLogger(name).addFilter(_is_not_about_user_error)


def _is_not_about_user_error(record: logging.LogRecord) -> bool:
    """Logging filter: False for what an engine logs while an error of ours passes through it."""
    return find_user_error(sys.exc_info()[1]) is None
