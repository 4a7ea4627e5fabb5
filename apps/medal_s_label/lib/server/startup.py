"""What must hold before the server starts: where it listens, that the port is free, that the archive answers."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import socket
import sys
from collections.abc import Mapping

import requests
import uvicorn
from monailabel.config import settings
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from lib.server.errors import StartupError
from lib.server.guards import LOOPBACK_NAMES

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 10


def serving_config() -> uvicorn.Config | None:
    """The configuration of the server that is starting this app; None where no server does, as in a training process.

    uvicorn starts the app first and listens afterwards, so what is changed here still counts. The app is not told who
    starts it: the configuration is found on the stack.
    """
    frame = sys._getframe()
    while frame is not None:
        config = getattr(frame.f_locals.get("self"), "config", None)
        if isinstance(config, uvicorn.Config):
            return config
        frame = frame.f_back  # type: ignore[assignment]
    return None


def is_loopback(host: str | None) -> bool:
    """Whether only this machine reaches a server that listens at ``host``."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host or "0.0.0.0").is_loopback
    except ValueError:
        return False


def listen_safely(config: uvicorn.Config, arguments: list[str]) -> None:
    """Make the server listen on this machine only, unless an address was asked for; MONAI Label's default is all.

    Args:
        config: of the server that is starting; its ``host`` may be changed.
        arguments: of the command line.

    Raises:
        StartupError: several worker processes, whose address is taken already.
    """
    if config.host == "0.0.0.0" and not _asks_for_host(arguments):
        if config.workers > 1:
            raise StartupError("with --workers an address must be given: add --host 127.0.0.1")
        config.host = LOOPBACK_NAMES[0]
        logger.info("listening on this machine only; --host ADDRESS lets others in (see Security in the README)")
    elif not is_loopback(config.host):
        lacks = [
            text
            for absent, text in (
                (not config.is_ssl, "no TLS (--ssl_keyfile, --ssl_certfile)"),
                (not settings.MONAI_LABEL_AUTH_ENABLE, "no users and roles (MONAI_LABEL_AUTH_ENABLE)"),
            )
            if absent
        ]
        if lacks:
            logger.warning("other machines reach this server, with %s: see Security in the README", " and ".join(lacks))


def _asks_for_host(arguments: list[str]) -> bool:
    """Whether the command line names an address, by MONAI Label's own parser."""
    from monailabel.main import Main

    parser = argparse.ArgumentParser(add_help=False)
    Main().args_start_server(parser)
    parser.set_defaults(host=None)
    return parser.parse_known_args(arguments)[0].host is not None


def check_port(host: str, port: int) -> None:
    """Find out that the port is taken before the model is loaded, not after.

    Raises:
        StartupError: another program listens there, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartupError(
                f"cannot listen on {host} port {port} ({error.strerror}): choose another with --port, or stop the"
                " program that has it"
            ) from None


def check_archive(url: str) -> None:
    """Ask the DICOM archive for one study.

    Args:
        url: DICOMweb root.

    Raises:
        StartupError: it does not answer, or not as an archive does.
    """
    name, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    parts = [url.rstrip("/"), settings.MONAI_LABEL_QIDO_PREFIX or "", "studies"]
    try:
        answer = requests.get(
            "/".join(part for part in parts if part),
            params={"limit": "1"},
            headers={"Accept": "application/dicom+json"},
            auth=(name, password) if name and password else None,
            timeout=_TIMEOUT_SECONDS,
        )
    except requests.RequestException as error:
        raise StartupError(
            f"the DICOM archive at {url} does not answer ({type(error).__name__}): is it running, and is this its"
            " DICOMweb address?"
        ) from None
    if answer.status_code in (401, 403):
        raise StartupError(
            f"the DICOM archive at {url} refuses us ({answer.status_code}): set MONAI_LABEL_DICOMWEB_USERNAME and"
            " MONAI_LABEL_DICOMWEB_PASSWORD"
        )
    if answer.status_code >= 400:
        raise StartupError(
            f"the DICOM archive at {url} answers {answer.status_code}: --studies wants its DICOMweb root, such as"
            " http://127.0.0.1:8042/dicom-web"
        )


class OneLine(logging.Filter):
    """Turns uvicorn's trace of an error that the user can mend into one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True; the record may be changed."""
        message = startup_message(sys.exc_info()[1])
        if record.levelno >= logging.ERROR and message and record.getMessage().startswith("Traceback"):
            record.msg, record.args, record.exc_info = f"error: {message}", (), None
        return True


def startup_message(error: BaseException | None) -> str | None:
    """The line for the person who starts the server; None for an error that is none of theirs.

    Args:
        error: what stopped the start, or None.
    """
    if error is None:
        return None
    if isinstance(error, MONAILabelException) and error.error == MONAILabelError.APP_INIT_ERROR:
        return " ".join(str(error.msg).split())
    ours: BaseException | None = error
    if type(error).__name__ != StartupError.__name__:
        try:
            from scripts.errors import find_user_error
        except ImportError:  # the bundle was not found, or is none
            return None
        ours = find_user_error(error)
    return None if ours is None else " ".join(str(ours).split())


def check_start(studies: str, conf: Mapping[str, str]) -> uvicorn.Config | None:
    """Everything that can be known before the model is loaded.

    Args:
        studies: folder or DICOMweb address.
        conf: what ``--conf`` gave; ``check_archive false`` starts without asking the archive.

    Returns:
        The configuration of the server that starts this app, its address made safe; None where no server does.

    Raises:
        StartupError: the reason why the server cannot start.
    """
    config = serving_config()
    if config is None:
        return None
    names = logging.getLogger("uvicorn.error")
    names.filters = [known for known in names.filters if type(known).__name__ != OneLine.__name__]
    names.addFilter(OneLine())
    listen_safely(config, sys.argv[1:])
    if config.fd is None and config.uds is None and config.workers == 1:
        check_port(config.host, config.port)
    asks = str(conf.get("check_archive", "true")).lower() not in ("false", "no", "0")
    if asks and studies.startswith(("http://", "https://")) and "googleapis.com" not in studies:
        check_archive(studies)
    return config
