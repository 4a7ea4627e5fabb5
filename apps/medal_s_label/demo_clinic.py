"""Start a clinic with one demonstration study: Orthanc, the MONAI Label app and the address of the viewer.

python apps/medal_s_label/demo_clinic.py; Ctrl-C stops everything.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
import time
from pathlib import Path

APP = Path(__file__).resolve().parent
sys.path[:0] = [str(APP), str(APP.parents[1] / "bundle")]

import nibabel as nib  # noqa: E402
import pydicom  # noqa: E402

from clinic.label_server import LabelServer  # noqa: E402
from clinic.mr_series import write_mr_series  # noqa: E402
from clinic.orthanc import Orthanc  # noqa: E402
from clinic.processes import free_port  # noqa: E402
from scripts.data.demo import write_template  # noqa: E402

logger = logging.getLogger("demo_clinic")
SEARCH_FILTER = '{"Modality": "MR"}'  # MONAI Label lists CT only by default


def run(folder: Path, port: int, archive_port: int) -> None:
    """Start archive and server, show the address, and wait until the user has enough.

    Args:
        folder: for the archive's database, the cache and the logs; an archive that is there is used again.
        port: of the server; another one where it is taken.
        archive_port: of the archive.
    """
    with Orthanc(folder / "orthanc", free_port(archive_port)) as archive:
        files = write_mr_series(nib.load(write_template(folder / "head.nii.gz")), folder / "series")
        if not archive.count():
            archive.send(files)
        study = pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID
        environment = {
            "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": SEARCH_FILTER,
            "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache"),
        }
        server = LabelServer(archive.url, free_port(port), folder, environment=environment)
        logger.info("archive: %s, %d files; the server starts (about half a minute)", archive.url, archive.count())
        with server.start():
            logger.info("open in a browser: %s/ohif/monai-label?StudyInstanceUIDs=%s", server.url, study)
            logger.info("there, press the button beside the server's address; 3D Slicer connects to %s", server.url)
            logger.info("log: %s; Ctrl-C stops everything", server.log)
            while server.process is not None and server.process.poll() is None:
                time.sleep(0.5)
            logger.error("the server has ended:\n%s", server.tail())


def main(arguments: list[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", help="keep the archive here; a temporary folder, removed at the end, by default")
    parser.add_argument("--port", type=int, default=8000, help="of the server and the viewer")
    parser.add_argument("--archive_port", type=int, default=8042)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Either signal lets the context managers stop what they started, also where a shell had it ignored.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if options.folder:
            run(Path(options.folder).resolve(), options.port, options.archive_port)
        else:
            with tempfile.TemporaryDirectory(prefix="medal_s_clinic_") as folder:
                run(Path(folder), options.port, options.archive_port)
    except KeyboardInterrupt:
        logger.info("stopped")
    except RuntimeError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
