"""Run the app with MONAI Label's plain start command."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from clinic.processes import Service

APP = Path(__file__).resolve().parents[1]


class LabelServer(Service):
    """The app on 127.0.0.1.

    Args:
        studies: folder or DICOMweb address.
        port: of the server.
        folder: for the log.
        conf: for ``--conf``.
        environment: MONAI Label's settings, such as ``MONAI_LABEL_DICOMWEB_SEARCH_FILTER``.
        app: folder of the app.
    """

    def __init__(
        self,
        studies: str,
        port: int,
        folder: Path,
        conf: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        app: Path = APP,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        options = [part for key, value in (conf or {}).items() for part in ("--conf", key, value)]
        command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", studies]
        command += ["--host", "127.0.0.1", "--port", str(port), *options]
        # MONAI Label looks up the tools of its own packages on PATH.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        log = folder / "server.log"
        super().__init__(command, f"{self.url}/info/", log, {"PATH": path, **(environment or {})}, folder)
