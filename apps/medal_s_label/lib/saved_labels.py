"""Read labels of a datastore: which value is which structure, and of which modality the image is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore

from lib.datastore.label_names import name_values
from scripts.evaluation.label_maps import LabelMap, read_label_map
from scripts.text import PromptParser, Terminology

logger = logging.getLogger(__name__)

BACKGROUND = ("background", "background_scribbles", "foreground_scribbles")
"""Names of segments that stand for no structure."""


@dataclass(frozen=True)
class SavedLabel:
    """A label map and the structures that it was drawn for.

    Attributes:
        path: the file.
        volume: values ``[H, W, D]`` with the file's grid.
        structures: canonical name -> value; also those that were looked for and have no voxel, 0 where no value was
            kept for them.
        modality: of the image, as the terminology names it.
        unknown: how many names of the file the terminology does not have; their voxels belong to no structure.
    """

    path: Path
    volume: LabelMap
    structures: Mapping[str, int]
    modality: str
    unknown: int = 0


class LabelReader:
    """Labels of a datastore with the terminology's names.

    Args:
        terminology: knows the names.
        modality: of images of which the datastore does not tell it.
    """

    def __init__(self, terminology: Terminology, modality: str) -> None:
        self.terminology = terminology
        self.modality = terminology.modality(modality).name
        self.parser = PromptParser(terminology)

    def read(self, datastore: Datastore, image_id: str, tag: str) -> SavedLabel | None:
        """The label of an image and tag; None where there is none.

        Raises:
            InputError: a file that cannot be read, or values without names.
        """
        label_id = datastore.get_label_by_image_id(image_id, tag)
        uri = datastore.get_label_uri(label_id, tag) if label_id else ""
        if not uri or not Path(uri).is_file():
            return None
        info = datastore.get_label_info(label_id, tag)
        volume = read_label_map(Path(uri))
        named = named_values(info, [int(value) for value in np.unique(volume.values) if value])
        modality = modality_of(datastore, image_id, self.terminology, self.modality)
        structures: dict[str, int] = {}
        unknown = 0
        for name, value in named.items():
            canonical = self._canonical(name, modality)
            if canonical is None or canonical in structures:
                unknown += 1
            else:
                structures[canonical] = value
        if unknown:
            logger.warning("a label has %d names that the terminology does not know for %s", unknown, modality)
        return SavedLabel(Path(uri), volume, structures, modality, unknown)

    def _canonical(self, name: str, modality: str) -> str | None:
        try:
            return self.terminology.target(name, modality).name
        except ValueError:
            pass
        try:
            meant = [target.name for target in self.parser.parse(name, modality)]
        except ValueError:
            return None
        return meant[0] if len(meant) == 1 else None


def modality_of(datastore: Datastore, image_id: str, terminology: Terminology, default: str) -> str:
    """The modality that the archive or the upload gave for an image, as the terminology names it, else the default."""
    info = datastore.get_image_info(image_id)
    for key in ("Modality", "modality"):
        try:
            return terminology.modality(str(info[key])).name
        except (KeyError, ValueError):
            continue
    return default


def named_values(info: Mapping[str, Any], present: Sequence[int]) -> dict[str, int]:
    """Name -> value of a saved label, with the structures that were looked for and have no voxel.

    Args:
        info: of the label, from the datastore.
        present: values in the label map other than 0.

    Returns:
        Values; 0 for a structure that an answer of this app was asked for and did not find.

    Raises:
        InputError: a value without a name.
    """
    inner = info.get("params") or {}
    tables = [info.get("label_names"), inner.get("label_names")]
    declared = [entry.get("idx") for entry in info.get("label_info") or ()]
    declared += [value for table in tables if isinstance(table, Mapping) for value in table.values()]
    wanted = {*present, *(int(value) for value in declared if str(value).isdigit() and int(value))}
    named = name_values(sorted(wanted), info)
    names = {str(entry["name"]): value for value, entry in named.items()}
    if not info.get("label_info"):
        names = {**dict.fromkeys((str(row["name"]) for row in inner.get("understood") or ()), 0), **names}
    return {name: value for name, value in names.items() if name.strip().lower() not in BACKGROUND}


def remember(datastore: Datastore, image_id: str, info: Mapping[str, Any]) -> None:
    """Add to what the datastore knows of an image, after a look at what other processes have written there."""
    datastore.refresh()
    datastore.update_image_info(image_id, dict(info))
