"""Write a case's label map, masks, report and preview: all of them, or nothing."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import ImageMetaKey, MetaKeys

from scripts.errors import InputError
from scripts.preview import draw_preview
from scripts.request import decode_request
from scripts.transforms.native_grid import MergeOnGrid, native_shape
from scripts.transforms.reading import image_name

logger = logging.getLogger(__name__)
# What places a NIfTI image in space; nothing else of a header (names, dates, remarks) is passed on.
GEOMETRY_FIELDS = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y"),
    *("qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)
SCANNER_CODE = 1


def prepare_folder(path: str | Path) -> Path:
    """Make the output folder and prove that it can be written to, before any work is done.

    Raises:
        InputError: it cannot be made or written to.
    """
    if not isinstance(path, (str, Path)) or not str(path).strip():
        raise InputError(f"output_dir must be the path of a folder, got {path!r}")
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable_"):
            pass
    except OSError as e:
        raise InputError(f"cannot write to the output folder {path} ({e.strerror})") from e
    return folder


def label_image(labels: np.ndarray, source: str | Path, affine: np.ndarray) -> Any:
    """A NIfTI image of labels on exactly the grid of the image they belong to.

    A NIfTI source lends its geometry fields bit by bit, with its qform and sform codes; others give their affine.

    Args:
        labels: ``[H, W, D]`` integers.
        source: the file that was segmented.
        affine: its 4x4 matrix, RAS mm.
    """
    reference: Any = None
    if str(source).lower().endswith((".nii", ".nii.gz")):
        reference = nib.load(source)
    second = isinstance(reference, nib.Nifti2Image)
    header = nib.Nifti2Header() if second else nib.Nifti1Header()
    header.set_data_dtype(labels.dtype)
    header.set_data_shape(labels.shape)
    if reference is not None:
        for field in GEOMETRY_FIELDS:
            header[field] = reference.header[field]
        header["pixdim"][4:] = 1
    else:
        header.set_sform(affine, SCANNER_CODE)
        header.set_qform(affine, SCANNER_CODE)
        header.set_xyzt_units("mm")
    return (nib.Nifti2Image if second else nib.Nifti1Image)(labels, None, header)


class SaveResultsd(Transform):
    """Write ``<name>_seg.nii.gz``, ``<name>_seg.json`` and ``<name>_preview.png`` into a folder.

    Everything is first written into a hidden folder beside its place and then moved, so that a failure leaves no
    file. The paths written are added to the case.

    Args:
        output_dir: folder, made if absent.
        save_masks: also write one binary mask for each structure into ``<name>_masks/``; these may overlap.
        save_preview: draw the picture.
        threshold: probability from which a voxel belongs to a mask.
        label_key: label map ``[1, H, W, D]``.
        pred_key: probabilities on the network's grid, for the masks.
        image_key: preprocessed image with the metadata of its file.
        display_key: grey values to draw, on the grid of the file; the label map alone where absent.
        report_key: the report.
        request_key: the request.
        files_key: where the paths go.
    """

    def __init__(
        self,
        output_dir: str | Path,
        save_masks: bool = False,
        save_preview: bool = True,
        threshold: float = 0.5,
        label_key: str = "label_map",
        pred_key: str = "pred",
        image_key: str = "image",
        display_key: str = "display",
        report_key: str = "report",
        request_key: str = "request",
        files_key: str = "files",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.save_masks = save_masks
        self.save_preview = save_preview
        self.merge = MergeOnGrid(threshold)
        self.label_key = label_key
        self.pred_key = pred_key
        self.image_key = image_key
        self.display_key = display_key
        self.report_key = report_key
        self.request_key = request_key
        self.files_key = files_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files and return a copy of ``data`` with their paths, ``{"label_map": ..., ...}``.

        Raises:
            InputError: the folder cannot be written to or is full.
        """
        d = dict(data)
        folder = prepare_folder(self.output_dir)
        try:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished_") as scratch:
                written = self._write(Path(scratch), d)
                for path in written.values():
                    place = folder / path.relative_to(scratch)
                    place.parent.mkdir(exist_ok=True)
                    path.replace(place)
        except OSError as e:
            raise InputError(f"cannot write the results to {folder} ({e.strerror}): nothing was kept") from e
        d[self.files_key] = {kind: str(folder / path.relative_to(scratch)) for kind, path in written.items()}
        return d

    def _write(self, folder: Path, d: Mapping[Hashable, Any]) -> dict[str, Path]:
        image = d[self.image_key]
        source = image.meta[ImageMetaKey.FILENAME_OR_OBJ]
        affine = np.asarray(image.meta[MetaKeys.ORIGINAL_AFFINE], dtype=float)
        name = image_name(source)
        labels = _array(d[self.label_key])
        labels = labels.astype(np.uint8 if labels.max(initial=0) <= np.iinfo(np.uint8).max else np.uint16)
        paths = {"label_map": folder / f"{name}_seg.nii.gz", "report": folder / f"{name}_seg.json"}
        nib.save(label_image(labels, source, affine), paths["label_map"])
        report = d[self.report_key]
        paths["report"].write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if self.save_preview:
            paths["preview"] = folder / f"{name}_preview.png"
            display = _array(d[self.display_key]) if self.display_key in d else np.zeros_like(labels)
            title = f"{report['image']['name']}  ·  {report['request']['modality']}"
            paths["preview"].write_bytes(draw_preview(display, labels, affine, report["structures"], title))
        if self.save_masks:
            paths.update(self._write_masks(folder / f"{name}_masks", name, d, source, affine))
        return paths

    def _write_masks(
        self, folder: Path, name: str, d: Mapping[Hashable, Any], source: str, affine: np.ndarray
    ) -> dict[str, Path]:
        folder.mkdir()
        image: MetaTensor = d[self.image_key]
        paths = {}
        for number, target in enumerate(decode_request(d[self.request_key]).targets):
            channel = d[self.pred_key][number : number + 1]
            mask, _ = self.merge(channel, [1], image.affine, torch.as_tensor(affine), native_shape(image))
            path = folder / f"{name}_{re.sub(r'[^a-z0-9]+', '_', target.name.lower()).strip('_')}.nii.gz"
            nib.save(label_image(_array(mask), source, affine), path)
            paths[f"mask of {target.name}"] = path
        return paths


def _array(tensor: Any) -> np.ndarray:
    return torch.as_tensor(tensor).squeeze(0).cpu().numpy()
