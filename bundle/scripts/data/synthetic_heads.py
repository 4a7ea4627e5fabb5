"""Write whole synthetic scans with their truth, so that any tool can be scored on anatomy that no network has seen."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from scripts.errors import InputError

logger = logging.getLogger(__name__)
NAMES_FILE = "labels.json"


def write_scans(dataset: Sequence[Mapping[str, Any]], names: Mapping[int, str], folder: str | Path) -> list[Path]:
    """Draw every sample of a dataset and write ``images/scan_*.nii.gz``, ``labels/scan_*.nii.gz`` and their names.

    The folder is then a source for ``python -m scripts.cli evaluate`` and for ``configs/evaluate.json``.

    Args:
        dataset: samples with ``image`` and ``label``, MetaTensors ``[1, H, W, D]``; drawn one at a time.
        names: structure of each label value.
        folder: made if absent; files of the same names are replaced.

    Returns:
        The images.

    Raises:
        InputError: the folder cannot be written to.
    """
    root = Path(folder).expanduser()
    files = []
    try:
        for kind in ("images", "labels"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        for number in range(len(dataset)):
            sample = dataset[number]
            name = f"scan_{number:03d}.nii.gz"
            _save(root / "labels" / name, sample["label"], np.int16)
            files.append(_save(root / "images" / name, sample["image"], np.float32))
            logger.info("scan %d of %d: %s", number + 1, len(dataset), files[-1])
        unfinished = root / f".{NAMES_FILE}"
        unfinished.write_text(json.dumps({str(value): name for value, name in names.items()}, indent=1) + "\n")
        unfinished.replace(root / NAMES_FILE)
    except OSError as e:
        raise InputError(f"synthetic scans: cannot write to {root} ({e.strerror})") from e
    return files


def _save(path: Path, volume: MetaTensor, dtype: type[np.generic]) -> Path:
    """Write one volume whole or not at all."""
    values = torch.as_tensor(volume.as_tensor())[0].numpy().astype(dtype)
    unfinished = path.with_name(f".{path.name}")
    nib.save(nib.Nifti1Image(values, volume.affine.numpy()), unfinished)
    return unfinished.replace(path)
