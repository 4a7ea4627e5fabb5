"""MONAI Label's endpoints, each checked and run off the event loop, with the role checks they have.

MONAI Label runs every request in its event loop, where one inference keeps all others waiting, the DICOM proxy and
``/info/`` included. Here each endpoint keeps its signature, and with it its role check, and its work goes to a thread.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    login,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
)
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import remove_file

from lib.server.arguments import check_arguments
from lib.server.errors import RequestError, as_answer
from lib.server.known import check_known
from lib.server.options import ServerOptions
from lib.server.turns import CLIENT_GONE, Turns

logger = logging.getLogger(__name__)

MODULES = (
    info,
    model,
    infer,
    batch_infer,
    train,
    activelearning,
    scoring,
    datastore,
    logs,
    ohif,
    proxy,
    session,
)
"""What is served, in MONAI Label's order. Not served: slides of pathology (``wsi_infer``) and what is listed below."""
NOT_SERVED = frozenset({("PUT", "/model/{model}"), ("DELETE", "/model/{model}")})
"""A model is replaced by training or by hand, never by an upload: weights can be code."""
_PAGES = frozenset({"/", "/docs", "/openapi.json", "/favicon.ico", "/static"})
_TEMPORARY: Mapping[str, tuple[str, ...]] = {"infer": (".dcm",), "datastore": ("dataset.zip",)}
"""By router, ends of the names of files that were made for one answer, and that MONAI Label would leave behind."""
_QUICK = frozenset({"info", "login", "logs", "ohif"})
_numbers = itertools.count(1)


def serve_routes(app: FastAPI, options: ServerOptions) -> None:
    """Replace MONAI Label's routes of an application by the checked ones; calling it again does the same once more.

    ``POST /reload``, which lets anybody rebuild the app, goes.

    Args:
        app: ``monailabel.app.app``, which may have started.
        options: limits.
    """
    # The answers that keep a viewer going must not wait behind downloads, nor these behind a dead archive.
    quick, slow, archive = Turns(16), Turns(16), Turns(32)
    inference = Turns(options.infer_parallel, options.infer_waiting)
    router = APIRouter()
    for module in (login, *MODULES) if settings.MONAI_LABEL_AUTH_ENABLE else MODULES:
        name = module.__name__.rpartition(".")[2]
        turns = {"infer": inference, "proxy": archive}.get(name, quick if name in _QUICK else slow)
        for route in module.router.routes:
            if isinstance(route, APIRoute) and not any(
                (method, route.path) in NOT_SERVED for method in _methods(route)
            ):
                _add(router, route, _served(route, name, turns, options.upload_limit))
    app.router.routes[:] = [route for route in app.router.routes if _is_page(route)]
    app.include_router(router, prefix=settings.MONAI_LABEL_API_STR)
    app.openapi_schema = None
    app.add_exception_handler(Exception, _answer_unexpected)


def _is_page(route: object) -> bool:
    """Whether a route is one of the application's own pages."""
    return getattr(route, "path", None) in _PAGES


def _methods(route: APIRoute) -> list[str]:
    """Methods that a route answers."""
    return sorted(route.methods or ())


def _add(router: APIRouter, route: APIRoute, endpoint: Callable[..., Any]) -> None:
    """Put a route with another endpoint into a router."""
    router.add_api_route(
        route.path,
        endpoint,
        methods=_methods(route),
        name=route.name,
        summary=route.summary,
        tags=route.tags,
        responses=route.responses,
        response_model=route.response_model,
        deprecated=route.deprecated,
        include_in_schema=route.include_in_schema,
    )


def _served(route: APIRoute, router: str, turns: Turns, upload_limit: int) -> Callable[..., Any]:
    """A route's endpoint: its arguments checked, its work in a thread, its errors answered in one line."""
    endpoint = route.endpoint
    signature = inspect.signature(endpoint)
    has_request = "request" in signature.parameters

    async def served(**arguments: Any) -> Any:
        request: Request = arguments["request"] if has_request else arguments.pop("request")
        number, started = next(_numbers), time.perf_counter()
        try:
            if router == "proxy":
                await request.body()  # read here: the thread has no way to wait for it
            checked = check_arguments(arguments)
            work = functools.partial(_work, endpoint, router, checked, upload_limit)
            answer = await turns.run(request, work)
            if await request.is_disconnected():
                raise RequestError(CLIENT_GONE, "The client left before it was answered.")
        except Exception as error:
            response = as_answer(error, number)
            _log(number, request, route, response.status_code, started)
            await _tidy(arguments)
            raise response from None
        _log(number, request, route, 200, started)
        return answer

    served.__name__, served.__doc__ = endpoint.__name__, endpoint.__doc__
    served.__signature__ = signature if has_request else _with_request(signature)  # type: ignore[attr-defined]
    return served


def _work(endpoint: Callable[..., Any], router: str, arguments: Mapping[str, Any], upload_limit: int) -> Any:
    """Run MONAI Label's endpoint; in a thread, for it blocks."""
    if router == "proxy" and not settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://")):
        raise RequestError(404, "the studies are a folder: there is no DICOM archive behind this server")
    check_known(app_instance(), router, arguments, upload_limit)
    answer = asyncio.run(endpoint(**arguments))
    if isinstance(answer, FileResponse) and str(answer.filename).endswith(_TEMPORARY.get(router, ())):
        tasks = arguments.get("background_tasks") or BackgroundTasks()
        tasks.add_task(remove_file, answer.path)
        answer.background = tasks
    return answer


def _with_request(signature: inspect.Signature) -> inspect.Signature:
    """A signature with the request added; FastAPI passes it to one parameter only."""
    own = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    return signature.replace(parameters=[*signature.parameters.values(), own])


async def _tidy(arguments: Mapping[str, Any]) -> None:
    """Remove uploaded and resulting files, which FastAPI does only after a success."""
    for value in arguments.values():
        if isinstance(value, BackgroundTasks):
            await value()


def _log(number: int, request: Request, route: APIRoute, status: int, started: float) -> None:
    """One line per request, without anything that the client sent."""
    seconds = time.perf_counter() - started
    level = logging.DEBUG if route.endpoint.__module__.endswith(("info", "ohif", "proxy")) else logging.INFO
    logger.log(level, "request %d: %s %s: %d in %.3f s", number, request.method, route.path, status, seconds)


async def _answer_unexpected(request: Request, error: Exception) -> JSONResponse:
    """The answer to an error outside of the endpoints, such as in a role check."""
    answer = as_answer(error, next(_numbers))
    return JSONResponse({"detail": answer.detail}, answer.status_code, headers=answer.headers)
