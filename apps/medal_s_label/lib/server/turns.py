"""Turns at a scarce resource: a few requests run, a few wait in order of arrival, the next one is sent away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import anyio.to_thread
from fastapi import Request

from lib.server.errors import RequestError

Answer = TypeVar("Answer")

CLIENT_GONE = 499
_POLL_SECONDS = 0.25


class Turns:
    """Runs work in worker threads, in turns.

    Args:
        parallel: how many run at the same time.
        waiting: how many may wait; None for any number.
        retry_after: seconds after which one that was sent away may try again.
    """

    def __init__(self, parallel: int, waiting: int | None = None, retry_after: int = 5) -> None:
        self.waiting, self.retry_after = waiting, retry_after
        self._turns = anyio.CapacityLimiter(parallel)
        # Whether a request may run was decided by its turn; a thread is then there for it.
        self._threads = anyio.CapacityLimiter(parallel)

    async def run(self, request: Request, work: Callable[[], Answer]) -> Answer:
        """What ``work`` returns, once it is this request's turn.

        Work that has begun runs to its end, whether or not the client still waits for it.

        Raises:
            RequestError: too many wait (503), or the client left before its turn came (499, seen by nobody).
        """
        async with self._turn(request):
            return await anyio.to_thread.run_sync(work, limiter=self._threads)

    @asynccontextmanager
    async def _turn(self, request: Request) -> AsyncIterator[None]:
        """Hold one of the turns."""
        holder = object()
        await self._wait(request, holder)
        try:
            yield
        finally:
            self._turns.release_on_behalf_of(holder)

    async def _wait(self, request: Request, holder: object) -> None:
        """Wait for a turn, for as long as the client does."""
        try:
            self._turns.acquire_on_behalf_of_nowait(holder)
            return
        except anyio.WouldBlock:
            pass
        queued = self._turns.statistics().tasks_waiting
        if self.waiting is not None and queued >= self.waiting:
            raise RequestError(
                503,
                f"The server is busy: {queued} requests wait already. Try again in a moment.",
                {"Retry-After": str(self.retry_after)},
            )
        got = False
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_when_gone, request, group.cancel_scope)
            await self._turns.acquire_on_behalf_of(holder)
            got = True
            group.cancel_scope.cancel()
        if not got:
            raise RequestError(CLIENT_GONE, "The client left before its turn came.")


async def _cancel_when_gone(request: Request, scope: anyio.CancelScope) -> None:
    """Cancel ``scope`` as soon as the client of ``request`` has closed its connection."""
    while not await request.is_disconnected():
        await anyio.sleep(_POLL_SECONDS)
    scope.cancel()
