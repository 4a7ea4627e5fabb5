"""Answers as DICOM SEG by the app's own writer, in place of MONAI Label's, which names segments by their position."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel.endpoints import infer
from monailabel.interfaces.utils.app import app_instance


def mend_dicom_seg() -> None:
    """Make ``POST /infer/{model}?output=dicom_seg`` use the datastore's writer."""
    infer.nifti_to_dicom_seg = _write


def _write(series: str, label: str, label_info: Sequence[Mapping[str, Any]] | None, use_itk: bool = True) -> str:
    """Write a label map as DICOM SEG.

    Args:
        series: folder of the image's series, named by its uid.
        label: file of the label map.
        label_info: name and value of each segment, as clients send it.
        use_itk: MONAI Label's choice of writer; there is one here.

    Returns:
        The file, which is the caller's to remove.
    """
    with tempfile.NamedTemporaryFile(suffix=".dcm", delete=False) as file:
        path = Path(file.name)
    app_instance().datastore().dicom_seg(Path(series).name, label, {"label_info": label_info}, path)
    return str(path)
