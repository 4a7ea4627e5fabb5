"""Run Orthanc, from Debian's packages, as the clinic's DICOMweb archive, and fill it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import requests

from clinic.processes import Service

PLUGINS = (
    Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"),
    Path("/usr/local/share/orthanc/plugins/libOrthancDicomWeb.so"),
)
BOUNDARY = "medal-s-series"


class Orthanc(Service):
    """An archive on 127.0.0.1 that refuses all but local clients.

    Args:
        folder: for its database, configuration and log.
        port: of its HTTP server.

    Raises:
        RuntimeError: Orthanc or its DICOMweb plugin is not installed.
    """

    def __init__(self, folder: Path, port: int) -> None:
        program = shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        plugin = next((path for path in PLUGINS if path.exists()), None)
        if program is None or plugin is None:
            raise RuntimeError("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
        folder.mkdir(parents=True, exist_ok=True)
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/dicom-web"
        config = folder / "orthanc.json"
        config.write_text(json.dumps(_configuration(folder / "db", plugin, port), indent=1))
        super().__init__([program, str(config)], f"{self.root}/system", folder / "orthanc.log")

    def send(self, files: Sequence[Path]) -> None:
        """Store DICOM files by STOW-RS.

        Raises:
            RuntimeError: the archive did not keep them all (it answers 200 even then).
        """
        before = self.count()
        parts = [
            f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + file.read_bytes() + b"\r\n"
            for file in files
        ]
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        answer = requests.post(
            f"{self.url}/studies",
            data=b"".join(parts) + f"--{BOUNDARY}--\r\n".encode(),
            headers={"Content-Type": kind, "Accept": "application/dicom+json"},
            timeout=120,
        )
        answer.raise_for_status()
        if self.count() - before != len(files):
            raise RuntimeError(f"the archive kept {self.count() - before} of {len(files)} files")

    def count(self) -> int:
        """Instances in the archive."""
        return int(requests.get(f"{self.root}/statistics", timeout=10).json()["CountInstances"])


def _configuration(database: Path, plugin: Path, port: int) -> dict[str, object]:
    return {
        "StorageDirectory": str(database),
        "IndexDirectory": str(database),
        "Plugins": [str(plugin)],
        # Orthanc 1.10 listens on all interfaces whatever it is told; this makes it answer local clients only.
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "HttpPort": port,
        "DicomServerEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Host": f"127.0.0.1:{port}"},
    }
