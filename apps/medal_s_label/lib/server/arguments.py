"""What a request's arguments may hold, so that none of them reads or writes outside the datastore.

MONAI Label joins ids, tags and file names to paths as they arrive, and takes an image or label named in ``params`` for
a path of the server. Names must therefore be names, and no text in ``params`` may be a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import UploadFile

from lib.server.errors import RequestError

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Files of voxels. Formats that carry Python objects or point at other files are not among them."""
UPLOAD_ENDINGS: Mapping[str, tuple[str, ...]] = {
    "file": VOLUME_ENDINGS,
    "label": (*VOLUME_ENDINGS, ".bin"),
    "files": (*VOLUME_ENDINGS, ".dcm", ".zip"),
}
_NAMES = ("image", "id", "label", "tag", "model", "method", "strategy", "user")
_JSON = ("params", "info")
_SESSION = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UNSAFE_NAME = re.compile(r"[/\\\x00-\x1f\x7f]|^\.")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_EXTENSION = re.compile(r"(\.[A-Za-z0-9]{1,8}){1,2}")
_LONGEST_NAME = 200
_SERVERS_OWN = ("image", "image_path", "session", "file", "user", "model_filename")
_OWN_ENDINGS = ("_path", "_dir", "_root", "_uri", "_url")


def check_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an endpoint, ready to be passed on.

    Args:
        arguments: by the names of the endpoint's parameters; unknown ones pass as they are.

    Raises:
        RequestError: 400, with what is wrong and what is wanted.
    """
    checked = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, UploadFile):
            checked[name] = _check_upload(name, value)
        elif name == "files" and isinstance(value, list):
            checked[name] = [_check_upload(name, item) for item in value]
        elif name in _JSON:
            checked[name] = _check_json(name, value, arguments)
        elif name in _NAMES and isinstance(value, str):
            check_name(name, value)
        elif name == "session_id" and value and not _SESSION.fullmatch(value):
            raise RequestError(400, "session_id is none of this server's: PUT /session/ gives one")
        elif name == "path":
            _check_path(value)
    return checked


def check_name(kind: str, name: str) -> None:
    """Refuse a name that could be a path.

    Args:
        kind: what it names, for the message.
        name: an id, a tag, the name of a model; empty where there is none.

    Raises:
        RequestError: 400.
    """
    if _UNSAFE_NAME.search(name) or len(name) > _LONGEST_NAME:
        raise RequestError(
            400,
            f"{kind} must be a name: at most {_LONGEST_NAME} characters, no slash, no control character, no dot first",
        )


def _check_upload(name: str, upload: UploadFile) -> UploadFile:
    """An uploaded file under a name that is safe to derive paths from: no folders, one known ending, no other dots."""
    base = re.split(r"[/\\]", upload.filename or "")[-1]
    endings = UPLOAD_ENDINGS.get(name, ())
    ending = next((known for known in endings if base.lower().endswith(known)), None)
    if ending is None:
        raise RequestError(400, f"the file uploaded as {name} must be one of {', '.join(endings) or 'no kind'}")
    stem = re.sub(r"[^\w-]", "_", base[: -len(ending)]) or "upload"
    upload.filename = stem[:_LONGEST_NAME] + ending
    return upload


def _check_json(name: str, value: object, arguments: Mapping[str, Any]) -> object:
    """An object of JSON, as text or read already, whose values are no paths."""
    try:
        content = json.loads(value or "{}") if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"{name} is no JSON ({type(error).__name__})") from None
    if content is None:
        return value
    if not isinstance(content, dict):
        raise RequestError(400, f"{name} must be an object of JSON, such as {{}}, got a {type(content).__name__}")
    _walk(content, _check_text)
    if name == "params":
        _check_params(content, arguments)
    return value


def _check_params(params: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """``params`` may not overrule the address of the request, nor anything that the server decides."""
    for key, value in params.items():
        if value and (key in _SERVERS_OWN or key.endswith(_OWN_ENDINGS)):
            raise RequestError(400, f"params may not hold {key!r}: the server decides it")
    for key in ("model", "method", "strategy"):
        # Where the address names none, as when a label is saved, it is information like any other.
        if key in arguments and params.get(key, arguments[key]) != arguments[key]:
            raise RequestError(400, f"params name another {key} than the address of the request does")
    for key in ("label_tag", "tag", "run_id"):
        if isinstance(params.get(key), str):
            check_name(key, params[key])
    extension = params.get("result_extension")
    if extension and not (isinstance(extension, str) and _EXTENSION.fullmatch(extension)):
        raise RequestError(400, "result_extension must be an ending such as .nrrd or .nii.gz")
    images = params.get("images")
    for image in images if isinstance(images, list) else ():
        check_name("images", str(image))


def _walk(value: object, check: Callable[[str], None]) -> None:
    """Call ``check`` with every text in a value read from JSON, keys included."""
    if isinstance(value, str):
        check(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            check(str(key))
            _walk(item, check)
    elif isinstance(value, list):
        for item in value:
            _walk(item, check)


def _check_text(text: str) -> None:
    """Refuse a text that leads to a file."""
    start = text.strip().lower()
    leads = start.startswith(("/", "\\", "~/", "file:")) or bool(_DRIVE.match(start))
    if "\x00" in text or leads or ".." in re.split(r"[/\\]", start):
        raise RequestError(400, "params may not hold paths: name images by their id and send labels as files")


def _check_path(path: str) -> None:
    """Refuse a path of an address that leads upwards, however often it was encoded."""
    plain = unquote(path)
    while plain != unquote(plain):
        plain = unquote(plain)
    if "\x00" in plain or plain.startswith("/") or ".." in re.split(r"[/\\]", plain):
        raise RequestError(400, "the address leads out of what this server offers")
