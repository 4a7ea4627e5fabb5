"""The answer as a viewer takes it: a label map on the image's own grid, and what is to be said about it, as JSON."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib.configs import ModelConfig
from lib.requests import Form
from lib.work import Found
from scripts.data.label_files import relabel, write_nifti, write_nrrd
from scripts.errors import InputError
from scripts.request import Request

# Of an entry of the bundle's report, what a viewer or a script needs to know.
MEASURED = ("voxels", "volume_ml", "mean_probability", "disagreement", "centroid_mm", "bounding_box", "touches_border")


class Stopwatch:
    """Seconds from one step to the next."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last step under a name."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now

    def total(self) -> dict[str, float]:
        """All steps, and the time since the beginning."""
        return {**self.seconds, "total": round(time.perf_counter() - self._began, 3)}


def warm_up() -> None:
    """Write a tiny file: ITK loads its modules when it is first used, which takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        write_nrrd(Path(folder) / "tiny.nrrd", np.zeros((1, 1, 1), np.uint8), "tiny", np.eye(4))


def label_values(model: ModelConfig, found: Found, form: Form) -> dict[str, int]:
    """Value of each structure in the answer, by name.

    Args:
        model: its labels are used where the form wants declared values; then structures without voxels have one, too.
        found: the answer; without declared values its structures that have voxels are numbered 1 to K.
        form: of the answer.
    """
    if form.declared:
        return {name: model.labels[name] for name in found.targets}
    ids = {target.name: target.id for target in found.result.request.targets}
    present = set(np.unique(found.result.label_map).tolist())
    return {name: value for value, name in enumerate((n for n in found.targets if ids[n] in present), start=1)}


def write_answer(found: Found, values: Mapping[str, int], form: Form, image: str) -> str:
    """Write the label map into a new temporary file, which the caller removes.

    Args:
        found: the answer.
        values: see ``label_values``.
        form: of the file.
        image: path of the image, whose geometry is taken over.

    Returns:
        The path.

    Raises:
        InputError: more structures than the type of the voxels can number, or a grid that the format cannot hold.
    """
    dtype = np.dtype(form.dtype)
    if max(values.values(), default=0) > np.iinfo(dtype).max:
        raise InputError(f"result_dtype {form.dtype} holds {np.iinfo(dtype).max} labels, the answer has {len(values)}")
    labels = found.result.label_map
    table = np.zeros(max(int(labels.max(initial=0)), *(t.id for t in found.result.request.targets)) + 1, dtype)
    for target in found.result.request.targets:
        table[target.id] = values.get(target.name, 0)
    with tempfile.NamedTemporaryFile(prefix="answer_", suffix=form.extension, delete=False) as file:
        path = Path(file.name)
    try:
        drawn = relabel(labels, table)
        if form.extension == ".nrrd":
            write_nrrd(path, drawn, image, found.result.affine, form.compress)
        else:
            write_nifti(path, drawn, image, found.result.affine)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return str(path)


def describe(
    model: ModelConfig,
    meant: Request,
    found: Found,
    values: Mapping[str, int],
    latencies: Mapping[str, float],
) -> dict[str, Any]:
    """What is said about an answer.

    Returns:
        ``label_names`` (value by name), ``understood`` (what each structure was read from), ``structures`` (volume,
        mean probability, centre, ... by name; None where nothing was found), ``centroids`` (voxel indices, for the
        viewers), ``latencies`` (seconds by step), ``warnings``, ``modality`` and ``version``.
    """
    report = found.result.report
    entries = {row["name"]: row for row in report.get("structures", ()) if row["name"] in found.targets}
    to_voxel = np.linalg.inv(found.result.affine)
    centroids = {
        name: [round(float(v), 1) for v in to_voxel[:3, :3] @ np.asarray(row["centroid_mm"]) + to_voxel[:3, 3]]
        for name, row in entries.items()
        if row["centroid_mm"] is not None
    }
    return {
        "label_names": dict(values),
        "modality": meant.modality,
        "understood": [
            {"name": target.name, "from": target.matched, "how": target.how, "score": target.score}
            for target in meant.targets
        ],
        "structures": {name: {key: row[key] for key in MEASURED} for name, row in entries.items()},
        # MONAI Label's viewers want a number first and all as text.
        "centroids": {
            name: [str(number) for number in (values.get(name, 0), *centre)] for name, centre in centroids.items()
        },
        "latencies": dict(latencies),
        "warnings": list(found.warnings),
        "model": model.name,
        "version": report.get("bundle", {}).get("version"),
    }
