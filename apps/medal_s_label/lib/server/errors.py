"""What went wrong, as the status and the one line that a client gets; traces stay in the log."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping

import requests
from fastapi import HTTPException
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)

logger = logging.getLogger(__name__)


class RequestError(HTTPException):
    """A request that is answered with an error.

    Args:
        status: HTTP status, 400 to 599.
        message: one line for the user: what arrived, what was wanted, what to do.
        headers: more headers of the answer, such as ``Retry-After``.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, dict(headers) if headers else None)


class StartupError(ValueError):
    """The server cannot start; the message is the one line that the person who started it reads."""


def as_answer(error: BaseException, request_number: int) -> HTTPException:
    """The answer to a request that raised ``error``.

    Args:
        error: whatever was raised while the request was served.
        request_number: where the log has the details of an unexpected error.
    """
    if isinstance(error, HTTPException):
        return error
    known = _as_user_error(error) or _as_archive_error(error) or _as_resource_error(error)
    if known is not None:
        return known
    logger.error("request %d failed", request_number, exc_info=error)
    return RequestError(
        500, f"The server failed on this request, and goes on; its log has the details under request {request_number}."
    )


def _as_user_error(error: BaseException) -> RequestError | None:
    """What the user can mend: 400 for a wrong question, 404 for something that is not there."""
    # Imported when needed: MONAI Label unloads and re-imports the bundle's package.
    from scripts.errors import find_user_error

    ours = find_user_error(error)
    if ours is not None:
        return RequestError(400, " ".join(str(ours).split()))
    if isinstance(error, (ImageNotFoundException, LabelNotFoundException)):
        return RequestError(404, str(error.msg))
    if isinstance(error, MONAILabelException) and error.error == MONAILabelError.INVALID_INPUT:
        return RequestError(400, str(error.msg))
    return None


def _as_archive_error(error: BaseException) -> RequestError | None:
    """What the DICOM archive answered, or did not."""
    if not isinstance(error, requests.RequestException):
        return None
    status = error.response.status_code if error.response is not None else None
    if status == 404:
        return RequestError(404, "The DICOM archive does not have what was asked for.")
    said = f"answered with status {status}" if status else "does not answer"
    logger.warning("the DICOM archive %s (%s)", said, type(error).__name__)
    return RequestError(502, f"The DICOM archive {said}; try again, or have it looked after.", {"Retry-After": "10"})


def _as_resource_error(error: BaseException) -> RequestError | None:
    """What the machine has too little of."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        logger.error("no space left on a disk of the server")
        return RequestError(507, "The server's disk is full: nothing was saved. Free some space and try again.")
    # torch names its own error class; torch itself is not needed here.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        logger.error("too little memory for a request")
        return RequestError(503, "The server has too little memory for this request now.", {"Retry-After": "30"})
    if isinstance(error, TimeoutError):
        return RequestError(504, "The inference took longer than the server allows.")
    return None
