"""Run many cases through one evaluator, each for itself: what fails is told at the end and stops nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.data import Dataset
from monai.engines import Evaluator

from scripts.batch.records import Records
from scripts.batch.tables import FAILURE_COLUMNS, STRUCTURE_COLUMNS, structure_rows, write_csv
from scripts.batch.work_queue import WorkQueue
from scripts.errors import InputError, find_user_error
from scripts.results import prepare_folder

logger = logging.getLogger(__name__)
DONE, SKIPPED, FAILED = "done", "skipped", "failed"
FAILURES = "failures.csv"


@dataclass(frozen=True)
class Outcome:
    """What became of one case."""

    name: str
    image: str
    state: str
    """``done``, ``skipped`` (was done before) or ``failed``."""
    reason: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One for each structure, see ``tables.structure_rows``."""


class BatchRunner:
    """Run cases one after another, on one process or shared among those that torchrun started.

    The networks are built, and their weights loaded, once in each process. A case that is done already, with the same
    request, settings, image and weights, is skipped, so that a batch that was stopped in whatever way goes on when it
    is started again.

    Args:
        evaluator: runs one case, that of ``dataset``; its output has a report and the paths of the files written.
        dataset: what the evaluator's data loader reads; its case is exchanged.
        cases: see ``scripts.data.jobs.read_jobs``.
        output_dir: folder of the results.
        settings: what the results depend on besides the case, see ``Records``.
        prepare: completes a case, such as by the prompts that its image brings; may raise ``InputError``.
        overwrite: do cases again that are done already.
        summary: CSV file to write, one row for each structure; ``summary.csv`` in ``output_dir`` when None.
        queue: shares the cases among processes; from torchrun's environment when None.
        report_key: entry of the evaluator's output.
        files_key: likewise.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        dataset: Dataset,
        cases: Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        settings: Mapping[str, Any] | None = None,
        prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        overwrite: bool = False,
        summary: str | Path | None = None,
        queue: WorkQueue | None = None,
        report_key: str = "report",
        files_key: str = "files",
    ) -> None:
        self.evaluator = evaluator
        # With interrupt/resume, ignite's default, the run after one that failed does nothing at all and says nothing.
        self.evaluator.interrupt_resume_enabled = False
        self.dataset = dataset
        self.cases = [dict(case) for case in cases]
        self.output_dir = Path(output_dir).expanduser()
        self.records = Records(self.output_dir, settings)
        self.prepare = prepare
        self.overwrite = overwrite
        self.summary = self.output_dir / "summary.csv" if summary is None else Path(summary).expanduser()
        self.queue = queue
        self.report_key = report_key
        self.files_key = files_key

    def run(self) -> list[Outcome]:
        """Do this process's share of the cases; the first process then writes and logs the summary of all.

        Returns:
            In the first process the outcomes of all cases in their order, else nothing.

        Raises:
            InputError: some case failed (in the first process, after everything else is done), or none can be done: no
                weights, or an output folder that cannot be written to.
        """
        queue = self.queue = self.queue or WorkQueue.from_environment()
        queue.once("tidy", self._tidy)
        # Weights that cannot be loaded are no fault of a case: handlers load them now, and not again with each run.
        self.evaluator.fire_event(Events.STARTED)
        while (number := queue.claim(len(self.cases))) is not None:
            queue.publish(number, asdict(self._work(number)))
        if not queue.is_first:
            return []
        outcomes = [Outcome(**answer) for answer in queue.collect(len(self.cases))]
        self._finish(outcomes)
        return outcomes

    def _tidy(self) -> None:
        prepare_folder(self.output_dir)
        self.records.tidy()

    def _work(self, number: int) -> Outcome:
        """One case; whatever goes wrong with it becomes its outcome."""
        case, since = self.cases[number], time.perf_counter()
        name, image = str(case["name"]), Path(case["image"]).name
        place = f"case {number + 1} of {len(self.cases)}, {name}"
        try:
            prepared = dict(case if self.prepare is None else self.prepare(case))
            fingerprint = self.records.fingerprint(prepared)
            kept = None if self.overwrite else self.records.find(name, fingerprint)
            if kept is not None:
                logger.info("%s: skipped, it is done already", place)
                return Outcome(name, image, SKIPPED, rows=kept)
            logger.info("%s: started", place)
            rows = self._evaluate(name, prepared, fingerprint)
        except Exception as error:  # of any kind: the other cases are none the worse for it
            reason = self._reason(error)
            logger.error("%s: failed: %s", place, reason)
            return Outcome(name, image, FAILED, reason)
        finally:
            self._let_go()
        logger.info("%s: done in %.1f s", place, time.perf_counter() - since)
        return Outcome(name, image, DONE, rows=rows)

    def _evaluate(self, name: str, case: Mapping[str, Any], fingerprint: str) -> list[dict[str, Any]]:
        self.records.forget(name)
        self.dataset.data = [dict(case)]
        self.evaluator.run()
        output: Any = self.evaluator.state.output
        result = output[0] if isinstance(output, list) else output
        rows = structure_rows(name, result[self.report_key])
        self.records.keep(name, fingerprint, list(result[self.files_key].values()), rows)
        return rows

    def _let_go(self) -> None:
        """Free the volumes of the last case before the next one is read."""
        state: Any = self.evaluator.state
        state.output, state.batch = None, None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @staticmethod
    def _reason(error: Exception) -> str:
        """One line; what is no error of ours is a fault in the program, of which the log gets the whole story."""
        ours = find_user_error(error)
        if ours is None:
            logger.error("unexpected error", exc_info=error)
        text = " ".join(str(ours or error).split())
        return text if ours else f"{type(error).__name__}: {text}"

    def _finish(self, outcomes: Sequence[Outcome]) -> None:
        write_csv(self.summary, STRUCTURE_COLUMNS, [row for outcome in outcomes for row in outcome.rows])
        failed = [outcome for outcome in outcomes if outcome.state == FAILED]
        failures = self.output_dir / FAILURES
        if failed:
            rows = [{"case": item.name, "image": item.image, "reason": item.reason} for item in failed]
            write_csv(failures, FAILURE_COLUMNS, rows)
        else:
            failures.unlink(missing_ok=True)
        counts = [f"{sum(item.state == state for item in outcomes)} {state}" for state in (DONE, SKIPPED, FAILED)]
        logger.info("%d cases: %s; summary: %s", len(outcomes), ", ".join(counts), self.summary)
        if failed:
            for item in failed:
                logger.error("failed: %s: %s", item.name, item.reason)
            raise InputError(f"{len(failed)} of {len(outcomes)} cases failed, the reasons are in {failures}")
