"""Run ``python -m MODULE ...`` and ``python -c CODE`` commands one after another, with torch and MONAI imported once.

A line on the standard input is one command, a JSON object with ``words`` (without "python"), ``folder`` and ``log``;
the answer is its exit code and its seconds of CPU time. Each command has a forked process of its own, which differs
from a fresh interpreter only in what is imported already: for a page with five commands that saves minutes.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from typing import NoReturn

import matplotlib

matplotlib.use("Agg")

import monai.bundle
import monai.engines
import monai.handlers
import monai.transforms  # noqa: F401


def become(words: list[str], folder: str, log: str) -> None:
    """Run the command in this process, its output in the file ``log``."""
    os.chdir(folder)
    with open(os.devnull) as nothing, open(log, "ab") as output:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.path[0] = ""
    kind, what, *arguments = words
    sys.argv = [what if kind == "-m" else kind, *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(what, "<page>", "exec"), {"__name__": "__main__"})
    else:
        raise SystemExit(f"a command begins with -m or -c, got {kind!r}")


def finish(words: list[str], folder: str, log: str) -> NoReturn:
    """Run the command and end this process as Python would, but without taking apart what was imported: seconds."""
    code: object = None
    try:
        become(words, folder, log)
    except SystemExit as error:
        code = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # ours writes one line
        code = 1
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    """Serve until the standard input ends."""
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if not child:
            finish(**json.loads(line))
        _, status, used = os.wait4(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)} {used.ru_utime + used.ru_stime:.1f}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
