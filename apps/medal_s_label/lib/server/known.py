"""Whether the things that a request names exist: models, images, sessions; answered before the work begins."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from typing import Any

from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.app import MONAILabelApp
from starlette.datastructures import UploadFile

from lib.server.errors import RequestError

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
# What a request's address can name, by router: (parameter, what the app has under such names).
_TASKS = {
    "infer": ("model", "_infers"),
    "batch_infer": ("model", "_infers"),
    "model": ("model", "_infers"),
    "train": ("model", "_trainers"),
    "scoring": ("method", "_scoring_methods"),
    "activelearning": ("strategy", "_strategies"),
}


def check_known(app: MONAILabelApp, router: str, arguments: Mapping[str, Any], upload_limit: int) -> None:
    """Refuse a request that names something which is not there. May ask the archive: not for the event loop.

    Args:
        app: the app that is served.
        router: name of the module of ``monailabel.endpoints`` that serves the request.
        arguments: by the names of the endpoint's parameters, checked already.
        upload_limit: bytes that an archive may unpack to.

    Raises:
        RequestError: 404 for what is unknown, 400 for what cannot be.
    """
    _check_task(app, router, arguments)
    if isinstance(app.datastore(), DICOMWebDatastore):
        _check_uids(arguments)
    if router == "infer":
        _check_image(app, arguments)
    for upload in arguments.get("files") or ():
        _check_archive(upload, bool(arguments.get("uncompress")), upload_limit)


def _check_task(app: MONAILabelApp, router: str, arguments: Mapping[str, Any]) -> None:
    """404 for a model, method or strategy that the app does not have."""
    parameter, attribute = _TASKS.get(router, ("", ""))
    if parameter not in arguments:
        return
    tasks = getattr(app, attribute) or {}
    if arguments[parameter] not in tasks:
        names = ", ".join(sorted(tasks)) or "none"
        raise RequestError(404, f"there is no {parameter} {arguments[parameter]!r} here; there are: {names}")


def _check_uids(arguments: Mapping[str, Any]) -> None:
    """Series of an archive are named by DICOM uids; other names would meet the cache's own files."""
    for key in ("image", "id", "label"):
        value = arguments.get(key)
        if isinstance(value, str) and value and not (len(value) <= 64 and _UID.fullmatch(value)):
            raise RequestError(404, f"{key} must be the uid of a series of the archive")


def _check_image(app: MONAILabelApp, arguments: Mapping[str, Any]) -> None:
    """An inference needs an image that is there: of the datastore, of a session, or sent along."""
    image, session = arguments.get("image"), arguments.get("session_id")
    if session:
        sessions = app.sessions()
        if sessions is None or not sessions.get_session(session):
            raise RequestError(404, "there is no such session, or no more: send its image again with PUT /session/")
    elif image:
        if not app.datastore().get_image_uri(image):
            raise RequestError(404, "there is no such image in the datastore: GET /datastore/?output=all lists them")
    elif not arguments.get("file"):
        raise RequestError(400, "an inference needs an image: give image, session_id or file")


def _check_archive(upload: UploadFile, uncompress: bool, limit: int) -> None:
    """An uploaded archive is unpacked only when it is a zip, stays in its folder and stays small."""
    is_zip = str(upload.filename).endswith(".zip")
    if not uncompress and not is_zip:
        return
    if not is_zip or not uncompress:
        raise RequestError(400, "an archive of images must be a .zip sent with uncompress=true")
    try:
        with zipfile.ZipFile(upload.file) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        raise RequestError(400, "the uploaded .zip cannot be read") from None
    finally:
        upload.file.seek(0)
    if any(item.filename.startswith("/") or ".." in re.split(r"[/\\]", item.filename) for item in members):
        raise RequestError(400, "the uploaded .zip holds names that lead out of it")
    if sum(item.file_size for item in members) > limit:
        raise RequestError(413, f"the uploaded .zip unpacks to more than {limit // 2**20} MiB")
