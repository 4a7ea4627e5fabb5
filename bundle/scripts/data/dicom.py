"""Read a DICOM series, from a folder or a zip archive, as one volume in physical units.

Headers are read with pydicom, pixels with ITK's GDCM, which decodes all the usual compressions (JPEG, JPEG-LS, JPEG
2000, RLE).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import itk
import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils import MetaKeys, SpaceKeys

from scripts.data.dicom_series import Series, Slice, find_series
from scripts.data.dicom_suv import suv_factor
from scripts.data.zip_folder import PREAMBLE_BYTES, is_dicom, open_folder
from scripts.errors import InputError

logger = logging.getLogger(__name__)
ZIP_SUFFIX = ".zip"
SLICES_KEY = "dicom_slices"
MODALITY_KEY = "modality"
UNITS_KEY = "units"


class DicomReader(ImageReader):
    """MONAI reader of one DICOM series as a ``[columns, rows, slices]`` float32 volume.

    The metadata hold the geometry, ``modality`` (the header's code: CT, MR, PT), ``units`` ("HU", "SUVbw" or "stored")
    and ``dicom_slices`` (JSON text: the files in slice order, for ``source_slices``). Nothing about the patient.

    Args:
        series: which series of several, see ``find_series``.
        max_zip_gb: most GiB that an archive may unpack to.
    """

    def __init__(self, series: int | None = None, max_zip_gb: float = 8.0) -> None:
        super().__init__()
        self.series = series
        self.max_zip_gb = max_zip_gb

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """True for a folder, a zip archive or a DICOM file."""
        names = filename if isinstance(filename, (list, tuple)) else (filename,)
        return all(is_dicom_source(Path(name)) for name in names)

    def read(self, data: Any, **kwargs: Any) -> tuple[np.ndarray, dict]:
        """Read the whole series: an archive's files are gone afterwards.

        Raises:
            InputError: see ``find_series`` and ``open_folder``; also for slices that cannot be decoded.
        """
        path = Path(data[0] if isinstance(data, (list, tuple)) else data)
        if path.is_file() and path.suffix.lower() != ZIP_SUFFIX:
            raise InputError(f"{path.name}: one file of a DICOM series, wanted the folder or zip of all its slices")
        with open_folder(path, self.max_zip_gb) as folder:
            series = find_series(folder, path.name, self.series)
            volume = _read_pixels(series, path.name)
            names = [item.path.relative_to(folder).as_posix() for item in series.slices]
        meta: dict[str, Any] = {
            MetaKeys.AFFINE: series.affine,
            MetaKeys.ORIGINAL_AFFINE: series.affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(series.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
            MODALITY_KEY: series.modality,
            UNITS_KEY: _to_units(volume, series, path.name),
            "stored_dtype": _stored_dtype(series),
            SLICES_KEY: json.dumps(names),
        }
        return volume, meta

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """What ``read`` returned."""
        volume, meta = img
        return volume, meta


def is_dicom_source(path: Path) -> bool:
    """Whether ``DicomReader`` is the reader for a path: a folder, a zip archive, or a file that begins as DICOM."""
    if path.is_dir() or path.suffix.lower() == ZIP_SUFFIX:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return is_dicom(file.read(PREAMBLE_BYTES + 4))


def read_modality(path: str | Path, series: int | None = None) -> str:
    """Modality code of a series, such as CT, MR or PT, from the headers alone.

    Raises:
        InputError: see ``find_series``.
    """
    with open_folder(Path(path)) as folder:
        return find_series(folder, Path(path).name, series).modality


@contextlib.contextmanager
def source_slices(path: str | Path, meta: Mapping[str, Any]) -> Iterator[list[Path]]:
    """The files of a volume that ``DicomReader`` read, in slice order, while the context lasts.

    Args:
        path: folder or archive.
        meta: metadata of the volume.

    Raises:
        InputError: the volume came from elsewhere, or files are gone.
    """
    if SLICES_KEY not in meta:
        raise InputError(f"{Path(path).name} is no DICOM series: DICOM SEG refers to DICOM images")
    with open_folder(Path(path)) as folder:
        files = [folder / name for name in json.loads(meta[SLICES_KEY])]
        missing = sum(not file.is_file() for file in files)
        if missing:
            raise InputError(f"{Path(path).name}: {missing} slices that were read are gone: run again")
        yield files


def _read_pixels(series: Series, name: str) -> np.ndarray:
    """``[columns, rows, slices]`` float32 with each slice's own rescaling applied."""
    columns, rows, count = series.shape
    stack = np.empty((count, rows, columns), np.float32)
    for number, item in enumerate(series.slices):
        stack[number] = _read_slice(item, (rows, columns), name)
    return stack.transpose(2, 1, 0)


def _read_slice(item: Slice, shape: tuple[int, int], name: str) -> np.ndarray:
    source = itk.GDCMImageIO.New()
    try:
        pixels = itk.array_from_image(itk.imread(str(item.path), pixel_type=itk.F, imageio=source))
    except RuntimeError as e:
        raise InputError(
            f"{name}: the pixels of {item.path.name} cannot be decoded (damaged, or an unknown compression): export "
            "the series again"
        ) from e
    pixels = pixels.reshape(pixels.shape[-2:])
    if pixels.shape != shape:
        raise InputError(f"{name}: {item.path.name} holds {pixels.shape} pixels, its header says {shape}")
    # GDCM leaves out the rescaling of some kinds of images, such as MR.
    slope, intercept = _rescaling(item)
    if (source.GetRescaleSlope(), source.GetRescaleIntercept()) == (1.0, 0.0) and (slope, intercept) != (1.0, 0.0):
        pixels = pixels * np.float32(slope) + np.float32(intercept)
    return pixels


def _rescaling(item: Slice) -> tuple[float, float]:
    try:
        slope = item.header.get("RescaleSlope")
        intercept = item.header.get("RescaleIntercept")
        return float(1 if slope is None else slope), float(0 if intercept is None else intercept)
    except (TypeError, ValueError) as e:
        raise InputError(f"{item.path.name}: the rescale slope or intercept in the header is no number") from e


def _to_units(volume: np.ndarray, series: Series, name: str) -> str:
    """Turn PET into SUV where possible, in place; the name of the unit."""
    if series.modality == "CT":
        return "HU"
    if series.modality != "PT":
        return "stored"
    factor, reason = suv_factor([item.header for item in series.slices])
    if factor is None:
        logger.warning("%s: PET values are left as stored, not turned into SUV: %s", name, reason)
        return "stored"
    volume *= np.float32(factor)
    return "SUVbw"


def _stored_dtype(series: Series) -> str:
    """Type of the values: "uint8" only for 8-bit grey values without rescaling, which need no windowing."""
    if any(_rescaling(item) != (1.0, 0.0) for item in series.slices):
        return "float32"
    header = series.slices[0].header
    return f"{'int' if header.get('PixelRepresentation') else 'uint'}{header.get('BitsAllocated', 16)}"
