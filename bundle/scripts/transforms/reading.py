"""Read one medical volume with MONAI's loader, refusing what is not a sound 3-D scalar image.

The readers look at the header as it is in the file. nibabel and MONAI mend headers while reading (a zero voxel
size becomes 1, a negative one its absolute value, an sform that disagrees with the voxel size is replaced), which
would put a mask in the wrong place without a word.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import ITKReader, MetaTensor, NibabelReader
from monai.data.image_reader import ImageReader
from monai.transforms import LoadImage, MapTransform, Transform
from monai.utils import MetaKeys

from scripts.data.dicom import ZIP_SUFFIX, DicomReader
from scripts.data.npz_reader import NPZ_SUFFIX, NpzReader
from scripts.data.volume_checks import SPATIAL_RANK, check_geometry, check_shape
from scripts.errors import InputError

NIBABEL_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
FLAT_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
UNREADABLE = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, OSError, EOFError, zlib.error)


def image_name(path: str | Path) -> str:
    """File name without its image suffix, folder name as it is: ``/data/head.nii.gz`` -> ``head``."""
    name = Path(path).name
    if Path(path).is_dir():
        return name or Path(path).resolve().name
    for suffix in (*NIBABEL_SUFFIXES, *ITK_SUFFIXES, NPZ_SUFFIX, ZIP_SUFFIX):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


class StrictNibabelReader(NibabelReader):
    """nibabel formats (NIfTI, MGH) with the header taken as stored."""

    def __init__(self) -> None:
        super().__init__(squeeze_non_spatial_dims=True)

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """True where nibabel reads this kind of file."""
        names = filename if isinstance(filename, (list, tuple)) else (filename,)
        return all(str(name).lower().endswith(NIBABEL_SUFFIXES) for name in names)

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> Any:
        """Open one file and check its header; voxels stay on disk until ``get_data``.

        Raises:
            InputError: see ``check_geometry`` and ``check_shape``; also for a file that is no such image.
        """
        self.filenames = data if isinstance(data, (list, tuple)) else (data,)
        path = Path(self.filenames[0])
        try:
            with _quiet_nibabel():
                image: Any = nib.load(path)
                raw = _raw_nifti_header(path, type(image.header))
        except UNREADABLE as e:
            raise InputError(f"{path.name}: not an image, or a damaged one ({_reason(e)})") from e
        header: Any = image.header
        dtype = image.get_data_dtype()
        if dtype.fields is not None:
            check_shape(path.name, image.shape, components=len(dtype.fields))
        if dtype.kind == "c":
            raise InputError(f"{path.name}: complex voxel values, wanted real ones: take the magnitude first")
        check_shape(path.name, image.shape)
        zooms = header.get_zooms() if raw is None else raw["pixdim"][1 : SPATIAL_RANK + 1]
        check_geometry(path.name, zooms[:SPATIAL_RANK], image.affine)
        return image

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Voxels and metadata; ``stored_dtype`` is added to the latter.

        Raises:
            InputError: where the file ends too early or its compression is damaged.
        """
        try:
            array, meta = super().get_data(img)
        except (OSError, EOFError, ValueError, zlib.error) as e:
            name = Path(self.filenames[0]).name
            raise InputError(f"{name}: truncated or damaged file ({_reason(e)}): copy it again") from e
        scaling = (getattr(img.dataobj, "slope", 1), getattr(img.dataobj, "inter", 0))
        meta["stored_dtype"] = "float32" if scaling != (1, 0) else str(img.get_data_dtype())
        return array, meta


class StrictITKReader(ITKReader):
    """ITK formats (NRRD, MetaImage), with ITK's complaints as one line."""

    def __init__(self) -> None:
        super().__init__()

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """True where ITK reads this kind of file."""
        names = filename if isinstance(filename, (list, tuple)) else (filename,)
        return all(str(name).lower().endswith(ITK_SUFFIXES) for name in names)

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> Any:
        """Read one file after checking its header.

        Raises:
            InputError: see ``check_geometry`` and ``check_shape``; also for a file that is no such image.
        """
        self.filenames = data if isinstance(data, (list, tuple)) else (data,)
        path = Path(self.filenames[0])
        try:
            header = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
            if header is None:
                raise InputError(f"{path.name}: not an image, or a damaged one (no {path.suffix} header found)")
            header.SetFileName(str(path))
            header.ReadImageInformation()
            rank = header.GetNumberOfDimensions()
            check_shape(path.name, [header.GetDimensions(i) for i in range(rank)], header.GetNumberOfComponents())
            check_geometry(path.name, [header.GetSpacing(i) for i in range(SPATIAL_RANK)])
            image = super().read(data, **kwargs)
        except RuntimeError as e:
            raise InputError(f"{path.name}: not an image, or a damaged one ({_reason(e)})") from e
        return image

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Voxels and metadata; ``stored_dtype`` is added to the latter."""
        array, meta = super().get_data(img)
        check_geometry(Path(self.filenames[0]).name, (1, 1, 1), np.asarray(meta[MetaKeys.AFFINE], dtype=float))
        meta["stored_dtype"] = str(array.dtype)
        return array, meta


class LoadVolume(Transform):
    """Load one image as ``[1, H, W, D]`` float32 MetaTensor; its world is RAS millimetres.

    Reads NIfTI and MGH, NRRD and MetaImage, the challenge's NPZ, and a DICOM series in a folder or a zip archive.

    Args:
        readers: tried in order; the first that knows the kind of file reads it.
        series: which DICOM series where there are several, counted from 1; for the default readers.
    """

    def __init__(self, readers: Sequence[ImageReader] | None = None, series: int | None = None) -> None:
        defaults = (StrictNibabelReader(), StrictITKReader(), NpzReader(), DicomReader(series))
        self.readers = defaults if readers is None else tuple(readers)
        with _quiet_monai():
            self.loader = LoadImage(image_only=True, ensure_channel_first=True, dtype=np.float32)

    def __call__(self, path: str | Path) -> MetaTensor:
        """Read ``path``.

        Raises:
            InputError: no such file, unknown format, or whatever the reader refuses.
        """
        if not isinstance(path, (str, Path)) or not str(path):
            raise InputError(f"image must be the path of a file, got {path!r}")
        file = Path(path).expanduser()
        if not file.exists():
            raise InputError(f"no such file: {path}")
        if file.is_file() and file.name.lower().endswith(FLAT_SUFFIXES):
            raise InputError(f"{file.name}: a 2-D picture format, wanted a 3-D volume such as .nii.gz")
        reader = next((r for r in self.readers if r.verify_suffix(str(file))), None)
        if reader is None:
            known = " ".join((*NIBABEL_SUFFIXES, *ITK_SUFFIXES, NPZ_SUFFIX, ZIP_SUFFIX))
            raise InputError(f"{file.name}: not an image format this reads; known endings: {known}, or a DICOM folder")
        return self.loader(str(file), reader=reader)


class LoadVolumed(MapTransform):
    """Dictionary version of ``LoadVolume``: each key's path becomes its volume.

    Args:
        keys: entries that hold a path.
        readers: see ``LoadVolume``.
        series: see ``LoadVolume``.
        allow_missing_keys: skip absent keys.
    """

    def __init__(
        self,
        keys: KeysCollection,
        readers: Sequence[ImageReader] | None = None,
        series: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = LoadVolume(readers, series)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with the volumes in place of the paths."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.transform(d[key])
        return d


def _raw_nifti_header(path: Path, header_class: type) -> Any:
    """The NIfTI header as stored, unmended; None for other formats."""
    if not issubclass(header_class, nib.Nifti1Header):
        return None
    plain = nib.Nifti2Header if issubclass(header_class, nib.Nifti2Header) else nib.Nifti1Header
    with nib.openers.ImageOpener(str(path)) as file:
        return plain.from_fileobj(file, check=False)


@contextlib.contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Silence nibabel's remarks about headers it mends: the checks here speak instead."""
    level = nib.imageglobals.logger.level
    nib.imageglobals.logger.setLevel("CRITICAL")
    try:
        yield
    finally:
        nib.imageglobals.logger.setLevel(level)


@contextlib.contextmanager
def _quiet_monai() -> Iterator[None]:
    """Silence MONAI's remark that its GPU decoder of DICOM is not installed: no reader of ours uses it."""
    plugin = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = plugin.level
    plugin.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*nvImageCodec.*")
            yield
    finally:
        plugin.setLevel(level)


def _reason(error: BaseException) -> str:
    """The informative line of a library's message: ITK puts it last, others have only one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
