"""Batch inference over a datastore: one bad image stops no other, and what is done is not done again."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from scripts.errors import find_user_error

from .uncertainty import Uncertainty

logger = logging.getLogger(__name__)

INFO_KEY = "batch"
# What says how, where or for whom to work, not what to ask.
NOT_THE_QUESTION = (
    *("images", "device", "multi_gpu", "gpus", "logging", "max_workers", "max_batch_size", "save_label", "bundle_path"),
    *("client_id", "user", "uncertainty", "again"),
)


class BatchInference(BatchInferTask):
    """Ask the same question about every image, one after the other, and save the answers.

    The network is one, so workers would only wait for each other. The label's entry in the datastore remembers the
    question and the weights; a batch that was stopped goes on where it was when it is started again.

    Args:
        weights: tells which weights answer; JSON.
        uncertainty: measures each image as well where the request has ``uncertainty``; None for never.
    """

    def __init__(self, weights: Callable[[], object], uncertainty: Uncertainty | None = None) -> None:
        self.weights, self.uncertainty = weights, uncertainty

    def __call__(
        self, request: Mapping[str, Any], datastore: Datastore, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        """Run the batch.

        Args:
            request: ``model``, ``images`` ("all", "labeled", "unlabeled" or ids), ``label_tag`` ("original"),
                ``max_batch_size`` (images to work on at most, 0 for all), ``uncertainty`` (false), ``again`` (false:
                skip what is done), and whatever the model takes.
            datastore: images and answers.
            infer: the app's ``infer``.

        Returns:
            Image id -> ``status`` ("done", "skipped" or "failed"), with ``label`` and ``seconds``, or ``error``.

        Raises:
            MONAILabelException: no such model.
        """
        tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL.value
        tag = tag.value if isinstance(tag, DefaultLabelTag) else str(tag)
        question = self._question(request)
        ids = sorted(self.get_images(request, datastore))
        done = [] if request.get("again") else [one for one in ids if self._is_done(datastore, one, tag, question)]
        todo = [one for one in ids if one not in set(done)]
        most = int(request.get("max_batch_size") or 0)
        todo = todo[:most] if most > 0 else todo
        logger.info("batch of %d images: %d are done, %d to do", len(ids), len(done), len(todo))
        result: dict[str, Any] = {one: {"status": "skipped"} for one in done}
        for number, image_id in enumerate(todo, start=1):
            result[image_id] = self._one(request, datastore, infer, image_id, tag, question)
            logger.info("image %d of %d: %s", number, len(todo), result[image_id]["status"])
        if request.get("uncertainty") and self.uncertainty is not None:
            for image_id in ids:
                self.uncertainty.measure(datastore, image_id)
        return result

    def _one(
        self,
        request: Mapping[str, Any],
        datastore: Datastore,
        infer: Callable[..., dict[str, Any]],
        image_id: str,
        tag: str,
        question: Mapping[str, Any],
    ) -> dict[str, Any]:
        began = time.perf_counter()
        try:
            asked = {**request, "image": image_id, "save_label": True, "label_tag": tag}
            answer = infer(asked, datastore)
            if answer.get("file"):
                Path(answer["file"]).unlink(missing_ok=True)
            if not answer.get("label"):
                raise RuntimeError("the model gave no label")
            datastore.update_label_info(answer["label"], tag, {INFO_KEY: dict(question)})
        except MONAILabelException:  # the model itself is not there
            raise
        except Exception as e:  # whatever is wrong with one image, the others have their turn
            ours = find_user_error(e)
            logger.warning("an image of the batch failed (%s)", type(e).__name__, exc_info=None if ours else e)
            return {"status": "failed", "error": str(ours or type(e).__name__)}
        return {"status": "done", "label": answer["label"], "seconds": round(time.perf_counter() - began, 2)}

    def _question(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked and who answers, without the words themselves."""
        asked = {key: value for key, value in request.items() if key not in NOT_THE_QUESTION}
        text = json.dumps(asked, sort_keys=True, default=str)
        return {"asked": hashlib.sha256(text.encode()).hexdigest()[:12], "weights": self.weights()}

    def _is_done(self, datastore: Datastore, image_id: str, tag: str, question: Mapping[str, Any]) -> bool:
        label_id = datastore.get_label_by_image_id(image_id, tag)
        return bool(label_id) and datastore.get_label_info(label_id, tag).get(INFO_KEY) == dict(question)
