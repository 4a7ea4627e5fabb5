"""Turn the final labels of a datastore into the case list and prompts that the bundle's training reads.

Each case is asked for the structures that its own label names, and for no other: what a reader left undrawn is not
taught to be absent. Files go by numbers, so that the run's logs name no patient.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from lib.saved_labels import LabelReader, SavedLabel
from scripts.data.label_files import relabel, write_nifti
from scripts.data.prompt_sentences import INSTANCE_KEY, MODALITY_PREFIXES
from scripts.errors import InputError
from scripts.evaluation.label_maps import LabelMap, check_same_grid
from scripts.transforms.reading import LoadVolume

logger = logging.getLogger(__name__)

CASES, PROMPTS = "cases.json", "prompts.json"
PREFIXES = {modality: prefix for prefix, modality in reversed(MODALITY_PREFIXES.items())}
"""How the name of a dataset tells its modality."""


@dataclass(frozen=True)
class CaseList:
    """What was written.

    Attributes:
        cases: the case list.
        prompts: the sentences.
        training: number of cases.
        validation: number of cases; the training cases again where there is one case only.
        structures: canonical name -> number of cases that name it.
        skipped: number of final labels that could not be used.
        most: structures of the case with most of them.
    """

    cases: Path
    prompts: Path
    training: int
    validation: int
    structures: Mapping[str, int]
    skipped: int
    most: int


def write_case_list(datastore: Datastore, reader: LabelReader, folder: Path, val_split: float = 0.2) -> CaseList:
    """Write list, prompts and label maps with the terminology's ids; images are linked.

    Args:
        datastore: its images with a final label are the cases.
        reader: understands the labels.
        folder: made if absent.
        val_split: share of the cases that validate, 0 to below 1; at least one where there are two. Which ones depends
            on their ids alone, so that a case that validated one run teaches none of the next.

    Raises:
        InputError: a share out of range, or no usable final label.
    """
    if not 0 <= val_split < 1:
        raise InputError(f"training: val_split is a share from 0 to below 1, got {val_split}")
    ids = sorted(datastore.get_labeled_images(), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    datasets: dict[str, dict[str, Any]] = {}
    structures: dict[str, int] = {}
    skipped = 0
    for number, image_id in enumerate(ids, start=1):
        try:
            label = _usable(reader, datastore, image_id)
            image = Path(datastore.get_image_uri(image_id))
            row = _write_case(folder, f"{number:05d}", image, label, reader)
        except (InputError, OSError, RuntimeError) as e:
            skipped += 1
            logger.warning("final label %d of %d is left out: %s", number, len(ids), _without_names(e, image_id))
            continue
        key, entry = _dataset(label, reader)
        datasets[key] = entry
        rows.append({**row, "dataset": key})
        for name in label.structures:
            structures[name] = structures.get(name, 0) + 1
    if not rows:
        raise InputError(
            f"training: none of the {len(ids)} final labels can be used; save corrected labels with their names first"
        )
    held_out = min(len(rows) - 1, max(1, round(val_split * len(rows)))) if val_split else 0
    training, validation = rows[held_out:], rows[:held_out] or rows
    content = {"training": training, "validation": validation}
    (folder / CASES).write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / PROMPTS).write_text(json.dumps(datasets, indent=1), encoding="utf-8")
    most = max(len(entry) - 1 for entry in datasets.values())
    return CaseList(folder / CASES, folder / PROMPTS, len(training), len(validation), structures, skipped, most)


def _usable(reader: LabelReader, datastore: Datastore, image_id: str) -> SavedLabel:
    label = reader.read(datastore, image_id, DefaultLabelTag.FINAL)
    if label is None:
        raise InputError("its file is not at hand")
    if not label.structures:
        raise InputError("the terminology knows none of its names")
    return label


def _write_case(folder: Path, name: str, image: Path, label: SavedLabel, reader: LabelReader) -> dict[str, str]:
    """Link the image and write the label map with the ids of the terminology."""
    volume: Any = LoadVolume()(image)
    spacing = tuple(float(value) for value in volume.pixdim[:3])
    grid = LabelMap("image", np.asarray(volume[0]), spacing, volume.affine.double().numpy())  # type: ignore[arg-type]
    check_same_grid(label.volume, grid)
    table = np.zeros(int(label.volume.values.max(initial=0)) + 1, dtype=np.uint16)
    for structure, value in label.structures.items():
        if 0 < value < len(table):
            table[value] = reader.terminology.target(structure, label.modality).id
    ending = "".join(part for part in image.suffixes[-2:] if part in (".nii", ".gz")) or image.suffix
    (folder / "images" / f"{name}{ending}").symlink_to(image.resolve())
    values = relabel(label.volume.values, table)
    write_nifti(folder / "labels" / f"{name}.nii.gz", values, image, volume.affine.double().numpy())
    return {"image": f"images/{name}{ending}", "label": f"labels/{name}.nii.gz"}


def _dataset(label: SavedLabel, reader: LabelReader) -> tuple[str, dict[str, Any]]:
    """Cases with the same structures form a dataset, with an entry in the prompts."""
    targets = [reader.terminology.target(name, label.modality) for name in sorted(label.structures)]
    group = hashlib.sha256("|".join(target.name for target in targets).encode()).hexdigest()[:8]
    sentences = {str(target.id): reader.terminology.sentences(target) for target in targets}
    return f"{PREFIXES[label.modality]}_{group}", {**sentences, INSTANCE_KEY: 0}


def _without_names(error: Exception, image_id: str) -> str:
    """The first line of a message, with the image's id, which may be a patient's, taken out."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace(image_id, "...")[:200]
