"""Where the bundle lies, and that its code can be imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from lib.server.errors import StartupError

DEFAULT = Path(__file__).resolve().parents[3] / "bundle"
ENVIRONMENT = "MEDAL_S_BUNDLE"
NEEDED = ("configs/inference.json", "configs/metadata.json", "configs/terminology.json", "scripts/pipeline.py")


def find_bundle(conf: Mapping[str, str]) -> Path:
    """The bundle's folder: conf ``bundle``, else the environment's ``MEDAL_S_BUNDLE``, else that of the repository.

    The folder is put first on Python's path, so that ``scripts`` can be imported whatever the working directory.

    Args:
        conf: what ``--conf`` gave.

    Raises:
        StartupError: the folder holds no such bundle.
    """
    given = conf.get("bundle") or os.environ.get(ENVIRONMENT) or DEFAULT
    folder = Path(given).expanduser().resolve()
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise StartupError(
            f"no Medal S bundle in {given} ({missing[0]} is not there): give its folder with --conf bundle FOLDER"
        )
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return folder
