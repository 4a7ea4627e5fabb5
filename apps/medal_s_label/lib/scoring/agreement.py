"""DSC and NSD of a saved label against the model's own answer: how much a reader had to change."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.scoring import ScoringMethod

from lib.saved_labels import LabelReader, SavedLabel, remember
from scripts.data.label_files import relabel
from scripts.errors import InputError
from scripts.evaluation.label_maps import check_same_grid
from scripts.metrics import class_scores
from scripts.text import Terminology

logger = logging.getLogger(__name__)

INFO_KEY = "agreement"
DIGITS = 4
MISSED = {"dsc": 0.0, "nsd": 0.0}


class Agreement(ScoringMethod):
    """Score final labels against original ones, structure by structure, and keep the scores with the images.

    Only structures that both labels were asked for count. One that only one of them has scores 0, whichever it is; one
    that neither has is left out. A pair that was scored before and has not changed is not read again.

    Args:
        terminology: knows the names.
        modality: of images of which the datastore does not tell it.
    """

    def __init__(self, terminology: Terminology, modality: str) -> None:
        super().__init__("DSC and NSD of the saved label against the model's answer, for each structure and on average")
        self.reader = LabelReader(terminology, modality)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score every image that has both labels.

        Args:
            request: ``y`` (tag of the truth, "final"), ``y_pred`` ("original"), ``tolerance_mm`` of the NSD (2).
            datastore: keeps the scores under ``agreement`` in each image's info.

        Returns:
            Image id -> ``dsc``, ``nsd`` (means, None where nothing could be scored), ``structures``; for a pair that
            cannot be scored ``error``, which says why.
        """
        truth_tag = str(request.get("y") or DefaultLabelTag.FINAL.value)
        answer_tag = str(request.get("y_pred") or DefaultLabelTag.ORIGINAL.value)
        tolerance = float(request.get("tolerance_mm") or 2.0)
        result: dict[str, Any] = {}
        for image_id in datastore.list_images():
            stamp = [*(_stamp(datastore, image_id, tag) for tag in (truth_tag, answer_tag)), tolerance]
            if None in stamp:
                continue
            known = datastore.get_image_info(image_id).get(INFO_KEY) or {}
            if known.get("of") == stamp:
                result[image_id] = known
                continue
            scores = self._scores(datastore, image_id, truth_tag, answer_tag, tolerance)
            result[image_id] = {**scores, "of": stamp}
            remember(datastore, image_id, {INFO_KEY: result[image_id]})
        scored = [one["dsc"] for one in result.values() if one.get("dsc") is not None]
        mean = f"{np.mean(scored):.4f}" if scored else "none"
        logger.info("%d label pairs, %d scored, mean DSC %s", len(result), len(scored), mean)
        return result

    def _scores(self, datastore: Datastore, image_id: str, y: str, y_pred: str, tolerance: float) -> dict[str, Any]:
        try:
            truth = self.reader.read(datastore, image_id, y)
            answer = self.reader.read(datastore, image_id, y_pred)
            if truth is None or answer is None:
                raise InputError("a label's file is not at hand")
            structures = compare(truth, answer, tolerance)
        except InputError as e:
            return {"dsc": None, "nsd": None, "structures": {}, "error": str(e)}
        means = {
            key: round(float(np.mean([one[key] for one in structures.values()])), DIGITS) if structures else None
            for key in MISSED
        }
        return {**means, "structures": structures}


def compare(truth: SavedLabel, answer: SavedLabel, tolerance_mm: float) -> dict[str, dict[str, float]]:
    """Scores of the structures that both labels name and at least one has.

    Args:
        truth: the saved label.
        answer: the model's.
        tolerance_mm: of the NSD.

    Returns:
        Name -> ``{"dsc": ..., "nsd": ...}``.

    Raises:
        InputError: the two lie on different grids.
    """
    check_same_grid(answer.volume, truth.volume)
    names = [name for name in truth.structures if name in answer.structures]
    here, there = (_numbered(label, names) for label in (answer, truth))
    spacing = truth.volume.spacing or answer.volume.spacing
    if spacing is None:
        raise InputError("scoring: neither label file says how large its voxels are")
    numbers = range(1, len(names) + 1)
    found = class_scores(here, there, numbers, spacing, tolerance_mm)
    added = {number for number in numbers if number not in found and (here == number).any()}
    return {
        name: {key: round(value, DIGITS) for key, value in found.get(number, MISSED).items()}
        for number, name in enumerate(names, start=1)
        if number in found or number in added
    }


def _numbered(label: SavedLabel, names: list[str]) -> np.ndarray:
    """The label map with 1, 2, ... for the names and 0 elsewhere."""
    table = np.zeros(int(label.volume.values.max(initial=0)) + 1, dtype=np.uint16)
    for number, name in enumerate(names, start=1):
        if 0 < label.structures[name] < len(table):
            table[label.structures[name]] = number
    return relabel(label.volume.values, table)


def _stamp(datastore: Datastore, image_id: str, tag: str) -> Any:
    """Changes when a label is saved again; None where there is none."""
    label_id = datastore.get_label_by_image_id(image_id, tag)
    return datastore.get_label_info(label_id, tag).get("ts", 0) if label_id else None
