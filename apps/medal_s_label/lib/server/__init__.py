"""The server around the app: MONAI Label's own, with its requests checked, queued and answered in one line.

prepare(studies, conf)  # first thing in the app: address, port, archive, logs
install(app)            # last thing in the app: routes, limits, role check
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import uvicorn

from lib.server import startup
from lib.server.errors import RequestError, StartupError
from lib.server.guards import LOOPBACK_NAMES, stand_guard
from lib.server.logs import keep_patients_out
from lib.server.options import ServerOptions
from lib.server.roles import mend_token_check

if TYPE_CHECKING:
    from monailabel.interfaces.app import MONAILabelApp

__all__ = ["RequestError", "ServerOptions", "StartupError", "install", "prepare"]

logger = logging.getLogger(__name__)


def prepare(studies: str, conf: Mapping[str, str]) -> uvicorn.Config | None:
    """Check, before anything slow, that the server can start; keep patient data out of the logs from here on.

    Where no server starts the app, as in MONAI Label's training process, only the logs are seen to. Called before the
    bundle is looked for, so that its absence is reported in one line too.

    Args:
        studies: folder or DICOMweb address.
        conf: what ``--conf`` gave.

    Returns:
        The configuration of the server that starts the app, or None.

    Raises:
        StartupError: the reason why it cannot start, in one line.
    """
    keep_patients_out((studies,) if not studies.startswith(("http://", "https://")) else ())
    ServerOptions.from_conf(conf)
    return startup.check_start(studies, conf)


def install(app: MONAILabelApp) -> None:
    """Serve an app with the checked routes; does nothing where MONAI Label's web application is not in use.

    Args:
        app: the app, with its datastore and tasks made.

    Raises:
        StartupError: an option that cannot be used.
    """
    if "monailabel.app" not in sys.modules:
        return
    from monailabel.app import app as web
    from monailabel.config import settings

    from lib.server.dicom_seg import mend_dicom_seg
    from lib.server.routes import serve_routes

    options = ServerOptions.from_conf(app.conf)
    mend_token_check()
    mend_dicom_seg()
    serve_routes(web, options)
    origins = [str(origin) for origin in settings.MONAI_LABEL_CORS_ORIGINS]
    stand_guard(web, options.upload_limit, origins, _hosts(options, origins))
    _warn_of_emptiness(app)


def _hosts(options: ServerOptions, origins: list[str]) -> list[str]:
    """Names under which the server may be addressed; empty for any, where it was put into a network without a list."""
    config = startup.serving_config()
    if config is not None and not startup.is_loopback(config.host) and not options.allowed_hosts:
        return []
    named = [origin.partition("://")[2].partition("/")[0].partition(":")[0] for origin in origins]
    return [*LOOPBACK_NAMES, *options.allowed_hosts, *named]


def _warn_of_emptiness(app: MONAILabelApp) -> None:
    """Say when there is nothing to segment, which is no error: images can come later."""
    from monailabel.config import settings

    if app.datastore().list_images():
        return
    if app.studies.startswith(("http://", "https://")):
        sought = ", ".join(f"{key} {value}" for key, value in settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER.items())
        hint = f"it was searched for {sought} (MONAI_LABEL_DICOMWEB_SEARCH_FILTER)"
    else:
        hint = f"files of {', '.join(settings.MONAI_LABEL_DATASTORE_FILE_EXT[:3])} in its folder would be found"
    logger.warning("the datastore has no images yet: %s", hint)
