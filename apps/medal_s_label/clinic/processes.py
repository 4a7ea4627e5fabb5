"""Start programs of the clinic, wait until they answer, and stop them with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import requests
from typing_extensions import Self

POLL_SECONDS = 0.2
STOP_SECONDS = 10.0


class Service:
    """A program that answers HTTP; use it as a context to have it stopped.

    Args:
        command: what to run.
        address: answers with a success status once the program is ready.
        log: file for all that it prints.
        environment: added to this process's own.
        folder: where to run it.
    """

    def __init__(
        self,
        command: Sequence[str],
        address: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.command, self.address, self.log, self.folder = list(command), address, log, folder
        self.environment = {**os.environ, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 300.0) -> Self:
        """Run the program and wait for its first answer.

        Raises:
            RuntimeError: it ended or did not answer in time; the message holds the end of its log.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.command[0]} ended with {self.process.returncode}:\n{self.tail()}")
            with contextlib.suppress(requests.RequestException):
                if requests.get(self.address, timeout=5).ok:
                    return self
            time.sleep(POLL_SECONDS)
        self.stop()
        raise RuntimeError(f"{self.command[0]} does not answer at {self.address} after {seconds:.0f} s:\n{self.tail()}")

    def stop(self) -> None:
        """End the program and its children; harmless when it has ended."""
        self._signal(signal.SIGTERM)
        if self.process is not None:
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it as a power cut would."""
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self if self.process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _signal(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)


def free_port(wanted: int = 0) -> int:
    """The wanted port of 127.0.0.1, or another where it is taken or 0."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise RuntimeError("no free port on 127.0.0.1")
