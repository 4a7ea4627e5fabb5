"""What is refused before a request is looked at: bodies that are too large, and other web sites' scripts."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.server.errors import RequestError

LOOPBACK_NAMES = ("127.0.0.1", "localhost")
_READING = ("GET", "HEAD", "OPTIONS")


class BodyLimit:
    """Answers 413 to a request whose body has more than ``limit`` bytes, whether it says so or not."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count what is read of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        said = Headers(scope=scope).get("content-length", "0")
        if not said.isdecimal() or int(said) > self.limit:
            await _refuse(self._error(), scope, receive, send)
            return
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.limit:
                raise self._error()  # FastAPI answers it where it reads the body
            return message

        await self.app(scope, counted, send)

    def _error(self) -> RequestError:
        return RequestError(
            413, f"The request has more than {self.limit // 2**20} MiB, the most this server takes (upload_limit_mb)."
        )


class OriginGuard:
    """Answers 403 to a request that changes something and comes from a page of another site.

    A browser sends such requests without asking the server first; it names the page's site in ``Origin``. Viewers and
    clients that are no browsers send none.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self.app, self.origins = app, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http" and scope["method"] not in _READING:
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            own = origin is not None and urlsplit(origin).netloc == headers.get("host")
            if origin is not None and not own and origin.rstrip("/") not in self.origins:
                error = RequestError(
                    403, "Requests from pages of other sites are refused; MONAI_LABEL_CORS_ORIGINS lists the allowed."
                )
                await _refuse(error, scope, receive, send)
                return
        await self.app(scope, receive, send)


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"detail": error.detail}, error.status_code)(scope, receive, send)


def stand_guard(app: FastAPI, upload_limit: int, origins: Collection[str], hosts: Collection[str]) -> None:
    """Replace an application's middleware by the guards, though it may have started.

    Args:
        app: the application, whose open CORS rule goes.
        upload_limit: bytes that a request's body may have.
        origins: ``scheme://host:port`` of other sites whose pages may use this server.
        hosts: names under which the server may be addressed; empty for any. They keep out pages whose site's name was
            made to point at this machine.
    """
    allowed = [origin.rstrip("/") for origin in origins]
    guards = [Middleware(BodyLimit, limit=upload_limit), Middleware(OriginGuard, origins=allowed)]
    if hosts:
        guards.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False))
    if allowed:
        cors = Middleware(
            CORSMiddleware, allow_origins=allowed, allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
        )
        guards.insert(0, cors)
    app.user_middleware = guards
    # Starlette builds the stack at the first call, which is the start-up that we are in.
    app.middleware_stack = app.build_middleware_stack()
