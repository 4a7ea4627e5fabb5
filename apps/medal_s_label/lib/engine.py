"""The one network that all tasks share: built once, asked by one request at a time, replaced by new weights."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.pipeline import Pipeline

logger = logging.getLogger(__name__)


class Engine:
    """The bundle's pipeline and the queue in front of it.

    The network is built when it is first needed: MONAI Label also makes an app for training, which needs none.

    Args:
        bundle: the bundle's folder.
        overrides: keys of its ``configs/inference.json`` to replace, such as ``device``.
        weights: see ``reload``.
    """

    def __init__(
        self, bundle: Path, overrides: Mapping[str, Any] | None = None, weights: Mapping[str, str] | None = None
    ) -> None:
        self.bundle = bundle
        self.overrides = dict(overrides or {})
        self.weights = dict(weights or {})
        self.generation = 0
        """Counts the weights: what was computed with earlier ones is out of date."""
        self._turn = threading.RLock()
        self._pipeline: Pipeline | None = None

    @property
    def pipeline(self) -> Pipeline:
        """The steps of inference with the present weights; ask its network only within ``turn``.

        Raises:
            InputError: weights that are absent or do not fit.
        """
        pipeline = self._pipeline
        if pipeline is None:
            with self._turn:
                if self._pipeline is None:
                    self._pipeline = self._build(self.weights)
                pipeline = self._pipeline
        return pipeline

    @contextmanager
    def turn(self) -> Iterator[Pipeline]:
        """Wait until no other request uses the network, and have it for the time of the block.

        Raises:
            InputError: weights that are absent or do not fit.
        """
        with self._turn:
            yield self.pipeline

    def reload(self, weights: Mapping[str, str]) -> None:
        """Take up published weights; requests wait only for the exchange, those under way end with the old ones.

        Args:
            weights: files by key of the inference config, such as ``{"weights": path}``; the bundle's own for keys that
                are absent.

        Raises:
            InputError: weights that are absent or do not fit; the old ones stay in use.
        """
        pipeline = self._build(weights)
        with self._turn:
            self._pipeline, self.weights = pipeline, dict(weights)
            self.generation += 1
        logger.info("weights exchanged, generation %d", self.generation)

    def _build(self, weights: Mapping[str, str]) -> Pipeline:
        began = time.perf_counter()
        pipeline = Pipeline.from_bundle(self.bundle, **{**self.overrides, **weights})
        logger.info("network ready on %s in %.1f s", pipeline.device, time.perf_counter() - began)
        return pipeline
