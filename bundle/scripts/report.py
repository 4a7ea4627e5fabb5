"""Say what was understood and what was measured: the content of the JSON report."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.transforms import Transform
from monai.utils import ImageMetaKey, MetaKeys

from scripts.measurement import Measurement, measure
from scripts.request import Request, RequestedTarget, decode_request

CONVENTIONS = {
    "world": "RAS millimetres: x to the patient's right, y to the front, z upwards grow positive",
    "bounding_box": "first and last voxel index on each axis of the image as stored, both inclusive",
    "mean_probability": "mean probability of the structure's voxels on the image's grid",
    "disagreement": "mean difference of repeated predictions over the structure's voxels; null if not measured",
    "instances": "single lesions, largest first, id: value in the instance map; null if not looked for",
    "longest_diameter_mm": "greatest distance between two points of the surface, between centres of voxel faces",
    "null": "the structure was not found",
}


def build_report(
    request: Request,
    found: Mapping[int, Measurement],
    image: Mapping[str, Any],
    bundle: Mapping[str, Any],
    instances: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Assemble the report: no times, no paths, no dates, so that the same input gives the same bytes.

    Args:
        request: what was asked.
        found: measurements by label value.
        image: facts about the image, see ``describe_image``.
        bundle: name and version of the program.
        instances: single lesions, see ``InstanceMeasurement.as_row``; None where they were not looked for.

    Returns:
        Plain dictionaries, lists, strings and numbers.
    """
    return {
        "bundle": dict(bundle),
        "image": dict(image),
        "request": {"text": list(request.text), "modality": request.modality},
        "structures": [_entry(target, found[target.id], instances) for target in request.targets],
        "conventions": dict(CONVENTIONS),
    }


def describe_image(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Name and geometry of an image from its metadata as loaded; of the path only the file's name."""
    affine = np.asarray(meta[MetaKeys.ORIGINAL_AFFINE], dtype=float)
    facts: dict[str, Any] = {
        "name": Path(str(meta[ImageMetaKey.FILENAME_OR_OBJ])).name,
        "shape": [int(side) for side in meta[MetaKeys.SPATIAL_SHAPE][:3]],
        "spacing_mm": [round(float(value), 6) for value in nib.affines.voxel_sizes(affine)],
        "orientation": "".join(nib.aff2axcodes(affine)),
        "affine": [[round(float(value), 6) for value in row] for row in affine],
    }
    if meta.get("filled_voxels"):
        facts["filled_voxels"] = int(meta["filled_voxels"])
    return facts


class ReportStructuresd(Transform):
    """Add the report to a postprocessed case.

    Args:
        bundle: name and version of the program.
        label_key: label map ``[1, H, W, D]``.
        probability_key: best probability ``[1, H, W, D]``.
        image_key: preprocessed image with the metadata of its file.
        request_key: the request.
        report_key: where the report goes.
        disagreement_key: difference of repeated predictions of each voxel's label, ``[1, H, W, D]``; may be absent.
        instance_table_key: measurements of the single lesions; may be absent.
    """

    def __init__(
        self,
        bundle: Mapping[str, Any],
        label_key: str = "label_map",
        probability_key: str = "probability",
        image_key: str = "image",
        request_key: str = "request",
        report_key: str = "report",
        disagreement_key: str = "disagreement",
        instance_table_key: str = "instance_table",
    ) -> None:
        self.bundle = dict(bundle)
        self.label_key = label_key
        self.probability_key = probability_key
        self.image_key = image_key
        self.request_key = request_key
        self.report_key = report_key
        self.disagreement_key = disagreement_key
        self.instance_table_key = instance_table_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with the report added."""
        d = dict(data)
        request = decode_request(d[self.request_key])
        meta = d[self.image_key].meta
        found = measure(
            _volume(d[self.label_key]),
            _volume(d[self.probability_key]),
            np.asarray(meta[MetaKeys.ORIGINAL_AFFINE], dtype=float),
            [target.id for target in request.targets],
            _volume(d[self.disagreement_key]) if self.disagreement_key in d else None,
        )
        instances = d.get(self.instance_table_key)
        d[self.report_key] = build_report(request, found, describe_image(meta), self.bundle, instances)
        return d


def format_table(report: Mapping[str, Any]) -> str:
    """The structures of a report as lines of text: name, volume in ml, mean probability."""
    rows = report["structures"]
    width = max([len("structure"), *(len(row["name"]) for row in rows)])
    lines = [f"{'structure':<{width}}  {'volume ml':>10}  {'mean prob.':>10}"]
    for row in rows:
        if row["voxels"] is None:
            lines.append(f"{row['name']:<{width}}  {'not found':>10}  {'-':>10}")
        else:
            remarks = "  touches the border" if row["touches_border"] else ""
            if row["instances"]:
                longest = max(instance["longest_diameter_mm"] for instance in row["instances"])
                remarks = f"  {row['instance_count']} found, longest diameter {longest:.1f} mm{remarks}"
            if not row["trained"]:
                remarks = f"  never trained{remarks}"
            lines.append(
                f"{row['name']:<{width}}  {row['volume_ml']:>10.2f}  {row['mean_probability']:>10.2f}{remarks}"
            )
    return "\n".join(lines)


def _entry(
    target: RequestedTarget, found: Measurement, instances: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    single = None
    if instances is not None and target.kind == "lesion":
        single = [
            {key: value for key, value in row.items() if key not in ("name", "label")}
            for row in instances
            if row["label"] == target.id
        ]
    return {
        "name": target.name,
        "label": target.id,
        "modality": target.modality,
        "kind": target.kind,
        "understood_from": target.matched,
        "how": target.how,
        "asked_with": target.sentence,
        "trained": target.trained,
        "score": target.score,
        **found.as_entry(),
        "instance_count": None if single is None else len(single),
        "instances": single,
        "color": list(target.color),
    }


def _volume(tensor: torch.Tensor) -> np.ndarray:
    return torch.as_tensor(tensor).squeeze(0).cpu().numpy()
