"""How sure the model is of its answer for an image: the disagreement of its masked predictions.

The network is asked again with each half of its own answer as spatial prompt (Algorithm 2 of the paper). Where the two
predictions differ, the answer hangs on what it was shown rather than on the image.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore

from lib.saved_labels import modality_of, remember
from scripts.errors import find_user_error
from scripts.inferers.stage import FINE
from scripts.measurement import measure
from scripts.pipeline import Pipeline
from scripts.text import Terminology

logger = logging.getLogger(__name__)

INFO_KEY = "uncertainty"
DIGITS = 4


class Uncertainty:
    """Measure images, each once for the same weights and question, and keep the result in the datastore.

    Args:
        pipeline: the app's pipeline, this caller's alone while in the context.
        structures: what to ask for in images of a modality, by name.
        terminology: knows the modalities.
        modality: of images of which the datastore does not tell it.
        weights: tells which weights answer; JSON. Another value makes what was measured old.
    """

    def __init__(
        self,
        pipeline: Callable[[], AbstractContextManager[Pipeline]],
        structures: Callable[[str], Sequence[str]],
        terminology: Terminology,
        modality: str,
        weights: Callable[[], object],
    ) -> None:
        self.pipeline, self.structures, self.weights = pipeline, structures, weights
        self.terminology, self.modality = terminology, terminology.modality(modality).name

    def known(self, datastore: Datastore, image_id: str) -> dict[str, Any] | None:
        """What was measured for an image, with the present weights or earlier ones; None where nothing was."""
        return datastore.get_image_info(image_id).get(INFO_KEY)

    def is_fresh(self, datastore: Datastore, image_id: str) -> bool:
        """Whether the present weights were already asked about an image."""
        known = self.known(datastore, image_id)
        return known is not None and known.get("of") == self._question(self._modality(datastore, image_id))

    def measure(self, datastore: Datastore, image_id: str) -> dict[str, Any]:
        """Ask about an image and keep the result; what is fresh is not asked again.

        Returns:
            ``value``: mean over the structures found of the mean absolute difference over their voxels, 0 to 1, None
            where nothing was found; ``structures``: name -> difference; ``seconds``; ``of``: what the result is of;
            ``error`` where the image cannot be segmented.
        """
        if self.is_fresh(datastore, image_id):
            return self.known(datastore, image_id) or {}
        began, modality = time.perf_counter(), self._modality(datastore, image_id)
        result: dict[str, Any] = {"value": None, "structures": {}}
        try:
            with self.pipeline() as pipeline:
                found = disagreement(pipeline, datastore.get_image_uri(image_id), self.structures(modality), modality)
        except Exception as e:  # one image that cannot be read must not hide the others
            ours = find_user_error(e)
            logger.warning("an image could not be measured (%s)", type(e).__name__, exc_info=None if ours else e)
            result["error"] = "the image cannot be segmented" if ours is None else str(ours)
        else:
            result["structures"] = found
            result["value"] = round(float(np.mean(list(found.values()))), DIGITS) if found else None
        result |= {"seconds": round(time.perf_counter() - began, 2), "of": self._question(modality)}
        remember(datastore, image_id, {INFO_KEY: result})
        return result

    def _question(self, modality: str) -> dict[str, Any]:
        asked = "|".join(self.structures(modality))
        return {
            "modality": modality,
            "asked": hashlib.sha256(asked.encode()).hexdigest()[:12],
            "weights": self.weights(),
        }

    def _modality(self, datastore: Datastore, image_id: str) -> str:
        return modality_of(datastore, image_id, self.terminology, self.modality)


def disagreement(pipeline: Pipeline, image: str | Path, text: Sequence[str], modality: str) -> dict[str, float]:
    """Mean difference of the masked predictions over each structure's voxels.

    The fine stage measures it as it works. A coarse stage alone refines nothing, so it is given one refinement.

    Args:
        pipeline: left as it is.
        image: the file.
        text: structures to ask for.
        modality: of the image.

    Returns:
        Name -> 0 to 1, for the structures that were found.

    Raises:
        ValueError: an image or words that cannot be used.
    """
    asking = copy.copy(pipeline)
    asking.inferer = copy.copy(pipeline.inferer)
    asking.inferer.keep_disagreement = True
    if FINE not in asking.inferer.stages:
        asking.inferer.refinements = max(1, _number(asking.inferer.refinements))
    case = asking.prepare(list(text), modality, asking.read(image))
    found = asking.ask(case)
    labels, probability = asking.clean(case, found)
    ids = {target.id: target.name for target in case.request.targets}
    measured = measure(labels, probability, case.affine, list(ids), found["disagreement"][0])
    values: Mapping[str, float | None] = {ids[number]: one.disagreement for number, one in measured.items()}
    return {name: value for name, value in values.items() if value is not None}


def _number(refinements: object) -> int:
    return int(str(refinements)) if str(refinements).isdigit() else 0
