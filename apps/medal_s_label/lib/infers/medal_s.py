"""A model of the app as MONAI Label's infer task: understand the request, ask the shared network, write the answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from monailabel.tasks.infer.bundle import BundleConstants, BundleInferTask

from lib.answers import Stopwatch, describe, label_values, write_answer
from lib.configs import ModelConfig
from lib.engine import Engine
from lib.requests import Question, read_question
from lib.sessions import WorkStore, work_key
from lib.work import Found, Work
from scripts.errors import InputError
from scripts.request import Request

logger = logging.getLogger(__name__)
# It logs every label of every model at start.
logging.getLogger("monailabel.tasks.infer.bundle").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Service:
    """What all tasks share.

    Attributes:
        engine: the network.
        store: work on recent images.
        refresh: called before each request, takes up newly published weights.
    """

    engine: Engine
    store: WorkStore
    refresh: Callable[[], object] = lambda: None

    def ask(self, model: ModelConfig, question: Question, watch: Stopwatch) -> tuple[Request, Found]:
        """The answer to a question, and how its words were understood.

        Args:
            model: decides the modality, and which structures there are.
            question: what is asked.
            watch: gets the time of waiting and of the answer.

        Raises:
            ValueError: words that are not understood or that the model does not know, an image or marks that cannot be
                used.
        """
        meant = self.understand(model, question.words)
        key = work_key(question.image, question.client, model.modality)
        with self.engine.turn() as pipeline:
            watch.lap("wait")
            generation = self.engine.generation
            with self.store.borrow(key, generation, lambda: Work(pipeline, generation, model.modality)) as work:
                found = work.answer(question, meant)
        watch.lap("infer")
        return meant, found

    def understand(self, model: ModelConfig, words: tuple[str, ...]) -> Request:
        """What words mean to a model, without the network.

        Raises:
            ValueError: words that are not understood, or structures that the model does not have.
        """
        meant = self.engine.pipeline.understand(list(words), model.modality)
        foreign = [target.name for target in meant.targets if target.name not in model.labels]
        if meant.modality != model.modality or foreign:
            raise InputError(
                f"{model.name} is for {model.modality}, but {', '.join(foreign) or 'the text'} was asked for in "
                f"{meant.modality}: choose the model of that modality, or leave it out of the text"
            )
        return meant


class MedalSInfer(BundleInferTask):
    """One entry of the viewers' list of models.

    The base class tells the viewers about the bundle. Its own way of inference, which builds a network for every task
    and every step for every request, is not taken: the network is the service's.

    Args:
        bundle: the bundle's folder.
        model: what is listed.
        service: answers.
    """

    def __init__(self, bundle: str, model: ModelConfig, service: Service) -> None:
        super().__init__(bundle, {}, const=_NoNetwork(), type=model.type, load_strict=True)
        if not self.valid:
            raise InputError(f"{model.name}: the bundle has no models/model.pt: see docs/README.md of the bundle")
        self.model, self.service = model, service
        self.labels = model.listed_labels
        self.description = model.description
        self._config = dict(model.options)

    def is_valid(self) -> bool:
        """True: an app whose network cannot be built does not start."""
        return True

    def info(self) -> dict[str, Any]:
        """What `/info/` says about the model."""
        return {**super().info(), "modality": self.model.modality}

    def __call__(self, request: Mapping[str, Any], callbacks: object = None) -> tuple[str, dict[str, Any]]:
        """Answer a request.

        Args:
            request: see ``lib.requests``.
            callbacks: MONAI Label's hooks between its own steps, of which there are none here.

        Returns:
            Path of a new temporary file with the label map, and the JSON of ``lib.answers.describe``.

        Raises:
            ValueError: a request that cannot be answered, with one line for the user.
        """
        if callbacks:
            raise InputError(f"{self.model.name}: callbacks are not supported")
        watch = Stopwatch()
        self.service.refresh()
        question = read_question(self.model, request)
        watch.lap("read")
        meant, found = self.service.ask(self.model, question, watch)
        values = label_values(self.model, found, question.form)
        path = write_answer(found, values, question.form, question.image)
        watch.lap("write")
        latencies = watch.total()
        logger.info(
            "%s: %d structures, %d points, seconds %s",
            self.model.name,
            len(found.targets),
            len(question.clicks),
            latencies,
        )
        return path, describe(self.model, meant, found, values, latencies)


class _NoNetwork(BundleConstants):
    """Keys of the bundle's config; for the network one that is null, as the service has it."""

    def key_network_def(self) -> str:
        return "image"
