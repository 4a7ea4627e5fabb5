"""Tell the user at the end of a case what was found, how long it took and where the files are."""

from __future__ import annotations

import logging
import time
from typing import Any

from ignite.engine import Engine, Events

from scripts.report import format_table

logger = logging.getLogger(__name__)


class SummaryHandler:
    """Ignite handler that logs a table after every case.

    Args:
        report_key: entry of the engine's output with the report.
        files_key: entry with the paths written, if any.
    """

    def __init__(self, report_key: str = "report", files_key: str = "files") -> None:
        self.report_key = report_key
        self.files_key = files_key
        self.since = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with an engine."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _start(self, _: Engine) -> None:
        self.since = time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        """Log the cases of this iteration; the time includes reading, inference and writing."""
        took, self.since = time.perf_counter() - self.since, time.perf_counter()
        output: Any = engine.state.output
        for case in output if isinstance(output, list) else [output]:
            report = case[self.report_key]
            logger.info("%s: %.1f s\n%s", report["image"]["name"], took, format_table(report))
            files = case.get(self.files_key, {})
            for kind in ("label_map", "report", "preview"):
                if kind in files:
                    logger.info("%s: %s", kind.replace("_", " "), files[kind])
            masks = [path for kind, path in files.items() if kind.startswith("mask of ")]
            if masks:
                logger.info("%d masks beside %s", len(masks), masks[0])
