"""Score all cases, shared among the processes of a run, and write tables, summary and plot once.

Every case is scored by exactly one process, and the first one sums up what all of them found: the answer is the same
however many there are.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ignite.engine import Events

from scripts.batch import BatchRunner, WorkQueue
from scripts.batch.tables import FAILURE_COLUMNS, format_csv
from scripts.errors import InputError, find_user_error
from scripts.evaluation.case_scores import COLUMNS, Row, score_pair
from scripts.evaluation.plot import draw_scores
from scripts.evaluation.references import Reference, ScorePair, match_predictions
from scripts.evaluation.summary import SUMMARY_COLUMNS, Summary, as_tables, summarise
from scripts.results import prepare_folder

logger = logging.getLogger(__name__)
Answer = dict[str, Any]
"""``rows`` of a case, or its ``error``."""


@dataclass(frozen=True)
class Evaluation:
    """What came out."""

    rows: list[Row]
    """See ``score_pair``."""
    summaries: list[Summary]
    failed: dict[str, str]
    """Case -> why it was not scored."""


class EvaluationRunner:
    """Scores the predictions of a folder.

    Writes ``scores.csv`` (a row for each case and structure), ``summary.csv`` and ``summary.json`` (means with
    confidence intervals), ``scores.png`` and, where there are any, ``not_scored.csv``.

    Args:
        references: the labelled cases.
        predictions: folder of the label maps.
        output_dir: folder of the tables.
        names: of the predictions' values, see ``match_predictions``.
        tolerance_mm: of the NSD.
        iou_threshold: least overlap of a matched pair of objects.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        workers: processes that score at a time where this process is alone.
        title: of the plot.
        advance: called after each case that this process has seen to, with its name and its error or None.
    """

    def __init__(
        self,
        references: Sequence[Reference],
        predictions: str | Path,
        output_dir: str | Path,
        names: Mapping[str, object] | str | None = None,
        tolerance_mm: float = 2.0,
        iou_threshold: float = 0.5,
        resamples: int = 1000,
        seed: int = 0,
        workers: int = 1,
        title: str = "",
        advance: Callable[[str, str | None], None] | None = None,
    ) -> None:
        self.references, self.predictions, self.names = tuple(references), Path(predictions), names
        self.output_dir = Path(output_dir).expanduser()
        self.tolerance_mm, self.iou_threshold = float(tolerance_mm), float(iou_threshold)
        self.bootstrap = {"resamples": int(resamples), "seed": int(seed)}
        self.workers, self.title, self.advance = workers, title, advance

    def run(self, queue: WorkQueue | None = None) -> Evaluation | None:
        """Do this process's share of the cases; the first process then writes the tables.

        Args:
            queue: shares the cases among processes; from torchrun's environment when None.

        Returns:
            In the first process what was found, else None.

        Raises:
            InputError: nothing could be scored, a table of names cannot be understood, or the folder cannot be written.
        """
        queue = queue or WorkQueue.from_environment()
        pairs = match_predictions(self.references, self.predictions, self.names)
        if queue.is_first:
            prepare_folder(self.output_dir)
        score = partial(_answer, tolerance_mm=self.tolerance_mm, iou_threshold=self.iou_threshold)
        if queue.world_size == 1:
            answers = list(self._told(pairs, _mapped(score, pairs, self.workers)))
        else:
            while (number := queue.claim(len(pairs))) is not None:
                queue.publish(number, next(self._told([pairs[number]], [score(pairs[number])])))
            if not queue.is_first:
                return None
            answers = queue.collect(len(pairs))
        return self._finish(pairs, answers)

    def _told(self, pairs: Sequence[ScorePair], answers: Any) -> Iterator[Answer]:
        for pair, answer in zip(pairs, answers, strict=True):
            if self.advance is not None:
                self.advance(pair.reference.name, answer.get("error"))
            elif "error" in answer:
                logger.error("not scored: %s: %s", pair.reference.name, answer["error"])
            yield answer

    def _finish(self, pairs: Sequence[ScorePair], answers: Sequence[Answer]) -> Evaluation:
        rows = [row for answer in answers for row in answer.get("rows", ())]
        failed = {
            pair.reference.name: answer["error"]
            for pair, answer in zip(pairs, answers, strict=True)
            if "error" in answer
        }
        if not rows:
            reason = next(iter(failed.values()), "no case has any of its structures")
            raise InputError(f"evaluate: none of {len(pairs)} cases could be scored; the first: {reason}")
        summaries = summarise(rows, **self.bootstrap)
        self._write(rows, summaries, failed, pairs)
        means = [item for item in summaries if item.structure is None]
        for item in means:
            logger.info("%s %s, %s: %.4f", item.modality, item.score, item.over, item.mean)
        return Evaluation(rows, summaries, failed)

    def _write(
        self, rows: list[Row], summaries: Sequence[Summary], failed: Mapping[str, str], pairs: Sequence[ScorePair]
    ) -> None:
        content = {
            "cases": len(pairs) - len(failed),
            "not_scored": dict(failed),
            "settings": {
                "tolerance_mm": self.tolerance_mm,
                "iou_threshold": self.iou_threshold,
                **self.bootstrap,
                "confidence": 0.95,
            },
            "scores": as_tables(summaries),
        }
        lost = [
            {"case": pair.reference.name, "image": pair.reference.truth.name, "reason": failed[pair.reference.name]}
            for pair in pairs
            if pair.reference.name in failed
        ]
        files: dict[str, str | bytes] = {
            "scores.csv": format_csv(COLUMNS, rows),
            "summary.csv": format_csv(SUMMARY_COLUMNS, [vars(item) for item in summaries]),
            "summary.json": json.dumps(content, indent=1, allow_nan=False) + "\n",
            "scores.png": draw_scores(rows, self.title),
        }
        if lost:
            files["not_scored.csv"] = format_csv(FAILURE_COLUMNS, lost)
        else:
            (self.output_dir / "not_scored.csv").unlink(missing_ok=True)
        try:
            with tempfile.TemporaryDirectory(dir=self.output_dir, prefix=".unfinished_") as scratch:
                for name, text in files.items():
                    part = Path(scratch) / name
                    part.write_bytes(text if isinstance(text, bytes) else text.encode())
                    part.replace(self.output_dir / name)
        except OSError as error:
            raise InputError(f"evaluate: cannot write to {self.output_dir} ({error.strerror})") from error


def segment_and_score(batch: BatchRunner, scores: EvaluationRunner) -> Evaluation | None:
    """Segment all cases, then score them; cases that fail are left out of the scores and told at the end.

    Raises:
        InputError: nothing can be segmented or scored (no weights, no folder), or, after everything is written, some
            cases failed.
    """
    # What is wrong with all cases is raised here, before the batch: what the batch raises then is about single ones.
    prepare_folder(batch.output_dir)
    batch.evaluator.fire_event(Events.STARTED)
    failure: InputError | None = None
    try:
        batch.run()
    except InputError as error:
        failure = error
    assert batch.queue is not None
    first = batch.queue
    queue = WorkQueue(dist.PrefixStore("scores", first.store), first.rank, first.world_size)
    queue.once("segmented", lambda: None)  # the first process gets here when every case is done
    evaluation = scores.run(queue)
    if failure is not None:
        raise failure
    return evaluation


def _answer(pair: ScorePair, tolerance_mm: float, iou_threshold: float) -> Answer:
    """The rows of a pair; whatever goes wrong with it becomes its error."""
    try:
        return {"rows": score_pair(pair, tolerance_mm, iou_threshold)}
    except Exception as error:  # of any kind: the other cases are none the worse for it
        ours = find_user_error(error)
        if ours is None:
            logger.error("unexpected error", exc_info=error)
        text = " ".join(str(ours or error).split())
        return {"error": text if ours else f"{type(error).__name__}: {text}"}


def _mapped(score: Callable[[ScorePair], Answer], pairs: Sequence[ScorePair], workers: int) -> Iterator[Answer]:
    """The answers in order of the pairs."""
    if workers <= 1 or len(pairs) <= 1:
        yield from map(score, pairs)
        return
    context = multiprocessing.get_context("spawn")  # forking a process that runs torch's threads may hang
    with ProcessPoolExecutor(min(workers, len(pairs)), mp_context=context) as pool:
        yield from pool.map(score, pairs)
