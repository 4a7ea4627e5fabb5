"""What the bundle's metadata say of it: name, version, and the structures that its weights know.

Configs refer to the metadata through this module, as not every program that reads a config reads them along (MONAI's
bundle commands do, MONAI Label's bundle tasks do not).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.errors import InputError


def read_metadata(bundle_root: str | Path) -> dict[str, Any]:
    """The content of ``configs/metadata.json``.

    Raises:
        InputError: there is none, or it is damaged.
    """
    file = Path(bundle_root).expanduser() / "configs" / "metadata.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as e:
        raise InputError(f"no readable configs/metadata.json in {bundle_root}: give the folder of the bundle") from e


def trained_structures(metadata: Mapping[str, Any]) -> list[str]:
    """Names of the structures that the weights know: the channels of the prediction but the background."""
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    return [name for number, name in channels.items() if int(number) > 0]


def program(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Name and version, for reports and DICOM headers."""
    return {"name": metadata["name"], "version": metadata["version"]}
