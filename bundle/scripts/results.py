"""Write a case's label map, masks, maps, report and preview: all of them, or nothing."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, SaveImaged, Transform
from monai.utils import ImageMetaKey, MetaKeys

from scripts.data.dicom import is_dicom_source, source_slices
from scripts.data.dicom_seg import Segment, write_dicom_seg
from scripts.data.label_files import relabel, write_nifti, write_nrrd
from scripts.data.npz_reader import NPZ_SUFFIX, npz_prompts, write_segs
from scripts.errors import InputError
from scripts.preview import draw_preview
from scripts.request import Request, decode_request
from scripts.transforms.grid_merger import unpack_mask
from scripts.transforms.reading import image_name

logger = logging.getLogger(__name__)
# Ending and writer of maps; the formats that hold one label map only have their masks and other maps as NIfTI.
VOLUMES: Mapping[str, tuple[str, Callable[..., None]]] = {
    "nifti": (".nii.gz", write_nifti),
    "nrrd": (".nrrd", write_nrrd),
    "npz": (".nii.gz", write_nifti),
    "dicom_seg": (".nii.gz", write_nifti),
}


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


def check_format(output_format: str, image: str | Path, output_dir: str | Path) -> None:
    """Refuse, before any work is done, a format that cannot hold the answer for an image.

    Args:
        output_format: "nifti", "nrrd", "npz" or "dicom_seg".
        image: path of the image.
        output_dir: folder of the results.

    Raises:
        InputError: an unknown format, DICOM SEG of an image that is no DICOM series, or NPZ of anything but NPZ or
            where it would overwrite the image.
    """
    if output_format not in VOLUMES:
        raise InputError(f"output_format must be one of {', '.join(VOLUMES)}, got {output_format!r}")
    source = Path(image)
    if output_format == "dicom_seg" and not is_dicom_source(source):
        raise InputError(
            f"{source.name} is no DICOM series, and a DICOM SEG refers to one: choose another output_format"
        )
    if output_format == "npz":
        if source.suffix.lower() != NPZ_SUFFIX:
            raise InputError(f"{source.name} is no {NPZ_SUFFIX} file of the challenge: choose another output_format")
        if source.resolve().parent == Path(output_dir).expanduser().resolve():
            raise InputError(f"the results would overwrite {source.name}: choose another output_dir")


class CheckFormatd(Transform):
    """First step of a pipeline: ``check_format`` before the image is read; the case passes unchanged.

    Args:
        output_format: see ``check_format``.
        output_dir: see ``check_format``.
        image_key: path of the image; anything else, or no such file, is left to what reads it.
    """

    def __init__(self, output_format: str, output_dir: str | Path, image_key: str = "image") -> None:
        self.output_format = output_format
        self.output_dir = output_dir
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        """Return ``data`` itself.

        Raises:
            InputError: see ``check_format``.
        """
        image = data.get(self.image_key)
        if isinstance(image, (str, Path)) and Path(image).expanduser().exists():
            check_format(self.output_format, Path(image).expanduser(), self.output_dir)
        return data


class SaveResultsd(SaveImaged):
    """Write ``<name>_seg.*`` (the label map), ``<name>_seg.json`` and ``<name>_preview.png`` into a folder.

    The name is that of the image, or the case's own. An instance map becomes ``<name>_instances.*``. Everything is
    first written into a hidden folder beside its place and then moved, so that a failure leaves no file. The paths
    written are added to the case.

    It is a ``SaveImaged`` by name only: programs that write the answer themselves, as MONAI Label does, leave out of a
    bundle's postprocessing whatever is one.

    Args:
        output_dir: folder, made if absent.
        save_masks: also write one binary mask for each structure into ``<name>_masks/``; these may overlap.
        save_preview: draw the picture.
        save_report: write the report.
        save_disagreement: write the map of the disagreement between predictions, where there is one.
        output_format: "nifti", "nrrd", "npz" (the challenge: ``segs`` in a file of the image's name) or "dicom_seg".
        terminology: gives the codes of a DICOM SEG (``by_id(id).codes``); generic ones without it.
        label_key: label map ``[1, H, W, D]`` on the file's grid.
        bits_key: every structure's mask on the file's grid, packed as by ``pack_masks``; needed for ``save_masks``.
        instances_key: instance map ``[1, H, W, D]``.
        disagreement_key: ``[1, H, W, D]`` in 0..1.
        image_key: preprocessed image with the metadata of its file.
        display_key: grey values to draw, on the grid of the file; the label map alone where absent.
        report_key: the report.
        request_key: the request.
        name_key: name of the results, where they are not named after the image.
        npz_labels_key: JSON text, target id -> label value in ``segs``; where absent, the file's prompts are taken to
            stand for the targets in the order asked.
        files_key: where the paths go.
    """

    def __init__(
        self,
        output_dir: str | Path,
        save_masks: bool = False,
        save_preview: bool = True,
        save_report: bool = True,
        save_disagreement: bool = False,
        output_format: str = "nifti",
        terminology: Any = None,
        label_key: str = "label_map",
        bits_key: str = "mask_bits",
        instances_key: str = "instances",
        disagreement_key: str = "disagreement",
        image_key: str = "image",
        display_key: str = "display",
        report_key: str = "report",
        request_key: str = "request",
        name_key: str = "name",
        npz_labels_key: str = "npz_labels",
        files_key: str = "files",
    ) -> None:
        MapTransform.__init__(self, label_key)
        if output_format not in VOLUMES:
            raise InputError(f"output_format must be one of {', '.join(VOLUMES)}, got {output_format!r}")
        self.output_dir = Path(output_dir)
        self.save_masks = save_masks
        self.save_preview = save_preview
        self.save_report = save_report
        self.save_disagreement = save_disagreement
        self.output_format = output_format
        self.terminology = terminology
        self.suffix, self.write_volume = VOLUMES[output_format]
        self.label_key = label_key
        self.bits_key = bits_key
        self.instances_key = instances_key
        self.disagreement_key = disagreement_key
        self.image_key = image_key
        self.display_key = display_key
        self.report_key = report_key
        self.request_key = request_key
        self.name_key = name_key
        self.npz_labels_key = npz_labels_key
        self.files_key = files_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files and return a copy of ``data`` with their paths, ``{"label_map": ..., ...}``.

        Raises:
            InputError: the folder cannot be written to or is full, or the format does not fit the image.
        """
        d = dict(data)
        folder = prepare_folder(self.output_dir)
        check_format(self.output_format, d[self.image_key].meta[ImageMetaKey.FILENAME_OR_OBJ], folder)
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
        meta = d[self.image_key].meta
        source = meta[ImageMetaKey.FILENAME_OR_OBJ]
        affine = np.asarray(meta[MetaKeys.ORIGINAL_AFFINE], dtype=float)
        name = self._name(d)
        labels = _smallest(_array(d[self.label_key]))
        paths = self._write_labels(folder, labels, d)
        volumes = {}
        if self.instances_key in d and self.output_format != "npz":
            volumes["instances"] = _smallest(_array(d[self.instances_key]))
        if self.save_disagreement and self.disagreement_key in d:
            volumes["disagreement"] = _array(d[self.disagreement_key]).astype(np.float32)
        for kind, values in volumes.items():
            paths[kind] = folder / f"{name}_{kind}{self.suffix}"
            self.write_volume(paths[kind], values, source, affine)
        report = d[self.report_key]
        if self.save_report:
            paths["report"] = folder / f"{name}_seg.json"
            text = json.dumps(report, indent=1, allow_nan=False)
            paths["report"].write_text(text + "\n", encoding="utf-8")
        if self.save_preview:
            paths["preview"] = folder / f"{name}_preview.png"
            display = _array(d[self.display_key]) if self.display_key in d else np.zeros_like(labels)
            title = f"{report['image']['name']}  ·  {report['request']['modality']}"
            paths["preview"].write_bytes(draw_preview(display, labels, affine, report["structures"], title))
        if self.save_masks:
            paths.update(self._write_masks(folder / f"{name}_masks", name, d, source, affine))
        return paths

    def _write_labels(self, folder: Path, labels: np.ndarray, d: Mapping[Hashable, Any]) -> dict[str, Path]:
        """The label map in the format asked for."""
        meta = d[self.image_key].meta
        source = meta[ImageMetaKey.FILENAME_OR_OBJ]
        name = self._name(d)
        if self.output_format == "npz":
            path = folder / f"{name}{NPZ_SUFFIX}"
            write_segs(path, self._challenge_labels(Path(source), labels, d))
        elif self.output_format == "dicom_seg":
            path = folder / f"{name}_seg.dcm"
            segments = [self._segment(target) for target in decode_request(d[self.request_key]).targets]
            with source_slices(source, meta) as files:
                if not write_dicom_seg(path, labels, segments, files, d[self.report_key]["bundle"]):
                    return {}
        else:
            path = folder / f"{name}_seg{self.suffix}"
            self.write_volume(path, labels, source, np.asarray(meta[MetaKeys.ORIGINAL_AFFINE], dtype=float))
        return {"label_map": path}

    def _name(self, d: Mapping[Hashable, Any]) -> str:
        name = d.get(self.name_key) or image_name(d[self.image_key].meta[ImageMetaKey.FILENAME_OR_OBJ])
        if Path(name).name != name:
            raise InputError(f"the name of a case must be a file name without folders, got {name!r}")
        return name

    def _segment(self, target: Any) -> Segment:
        concept = None if self.terminology is None else self.terminology.by_id(target.id)
        return Segment(target.id, target.name, target.kind, target.color, getattr(concept, "codes", None))

    def _challenge_labels(self, source: Path, labels: np.ndarray, d: Mapping[Hashable, Any]) -> np.ndarray:
        """The label map with the values that the challenge's file asks for."""
        try:
            prompts, wants_instances = npz_prompts(source)
        except InputError:
            prompts, wants_instances = {}, False  # the prompts came from elsewhere: labels stay the targets' own
        if wants_instances and self.instances_key in d:
            return _array(d[self.instances_key])
        request = decode_request(d[self.request_key])
        if self.npz_labels_key in d:
            values = {int(target): int(value) for target, value in json.loads(d[self.npz_labels_key]).items()}
        elif prompts:
            values = _in_order(request, list(prompts), source.name)
        else:
            return labels
        table = np.zeros(max(target.id for target in request.targets) + 1, np.int64)
        for target, value in values.items():
            table[target] = value
        return relabel(labels, table)

    def _write_masks(
        self, folder: Path, name: str, d: Mapping[Hashable, Any], source: str, affine: np.ndarray
    ) -> dict[str, Path]:
        folder.mkdir()
        paths = {}
        for number, target in enumerate(decode_request(d[self.request_key]).targets):
            path = folder / f"{name}_{re.sub(r'[^a-z0-9]+', '_', target.name.lower()).strip('_')}{self.suffix}"
            mask = unpack_mask(torch.as_tensor(d[self.bits_key]).cpu(), number)
            self.write_volume(path, mask.numpy().astype(np.uint8), source, affine)
            paths[f"mask of {target.name}"] = path
        return paths


def _in_order(request: Request, values: Sequence[int], name: str) -> dict[int, int]:
    """Target id -> label value, where each prompt stands for one target."""
    if len(values) != len(request.targets):
        raise InputError(
            f"{name}: {len(values)} prompts were understood as {len(request.targets)} targets, which label each gets "
            "is not known: give npz_labels"
        )
    return {target.id: value for target, value in zip(request.targets, values, strict=True)}


def _smallest(labels: np.ndarray) -> np.ndarray:
    """Labels as uint8, or uint16 where they need it."""
    return labels.astype(np.uint8 if labels.max(initial=0) <= np.iinfo(np.uint8).max else np.uint16)


def _array(tensor: Any) -> np.ndarray:
    return torch.as_tensor(tensor).squeeze(0).cpu().numpy()
