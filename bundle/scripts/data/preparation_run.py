"""Prepare all cases of a source in several processes; what cannot be used is reported, the rest goes on."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.data.blosc2_cache import FACTS_FILE, read_facts, verify_case
from scripts.data.case_list import write_case_list
from scripts.data.case_sources import SourceCase
from scripts.data.preparation import CasePreparer, PrepareSettings
from scripts.errors import InputError, find_user_error

logger = logging.getLogger(__name__)
DIED = "its process died, most likely for want of memory: use fewer --workers, or crop the volume"


@dataclass(frozen=True)
class Outcome:
    """What became of one case."""

    key: str
    made: bool = False
    """Whether volumes were made; False too where they were there already."""
    error: str | None = None
    """Why the case was skipped."""


def prepare_all(
    cases: Sequence[SourceCase],
    folder: Path,
    settings: PrepareSettings,
    prompts_json: str | None = None,
    workers: int = 1,
    verify: bool = False,
    on_done: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Prepare cases and write the list of all that lie in the folder.

    Args:
        cases: from ``find_cases``.
        folder: of the training set, made if absent.
        settings: see there.
        prompts_json: file with the datasets' sentences, or None.
        workers: processes; a case of 512 x 512 x 500 voxels takes one about 6 GB.
        verify: compare what is already there with its checksums; what is damaged is made again.
        on_done: called here after each case.

    Returns:
        One outcome per case, in the order of ``cases``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = (folder, settings, prompts_json, verify)
    found: dict[str, Outcome] = {}
    for outcome in _run(cases, arguments, workers):
        found[outcome.key] = outcome
        if on_done is not None:
            on_done(outcome)
    _list_all(folder, leave_out={key for key, outcome in found.items() if outcome.error is not None})
    return [found[case.key] for case in cases]


def verify_all(folder: Path, on_done: Callable[[Outcome], None] | None = None) -> list[Outcome]:
    """Compare every prepared case of a folder with its checksums; none where there is no case."""
    outcomes = []
    for place in case_folders(folder):
        try:
            verify_case(place)
            error = None
        except InputError as e:
            error = str(e)
        outcomes.append(Outcome(place.relative_to(folder).as_posix(), error=error))
        if on_done is not None:
            on_done(outcomes[-1])
    return outcomes


def case_folders(folder: Path) -> list[Path]:
    """Folders of the prepared cases below a folder, in order of name; unfinished ones are not among them."""
    places = (file.parent for file in folder.glob(f"*/*/{FACTS_FILE}"))
    return sorted(place for place in places if not place.name.startswith("."))


def _list_all(folder: Path, leave_out: set[str]) -> None:
    """Write the list of what lies in the folder: this source's cases and those of earlier ones."""
    listed = []
    for place in case_folders(folder):
        key = place.relative_to(folder).as_posix()
        if key in leave_out:
            continue
        try:
            listed.append((key, read_facts(place)))
        except InputError as e:  # of an earlier source: those of this one were just made
            logger.warning("%s; it is not listed", e)
    write_case_list(folder, listed)


def _run(cases: Sequence[SourceCase], arguments: tuple, workers: int) -> Iterator[Outcome]:
    if workers < 2 or len(cases) < 2:
        preparer = CasePreparer(*arguments)
        yield from (_attempt(preparer, case) for case in cases)
        return
    waiting = {case.key: case for case in cases}
    for outcome in _in_pool(cases, arguments, min(workers, len(cases))):
        del waiting[outcome.key]
        yield outcome
    # A process that dies takes the pool with it, and which case it was is not known. Of one process it is: the first
    # case without an answer.
    while waiting:
        for outcome in _in_pool(list(waiting.values()), arguments, 1):
            del waiting[outcome.key]
            yield outcome
        if waiting:
            yield Outcome(waiting.pop(next(iter(waiting))).key, error=DIED)


def _in_pool(cases: Sequence[SourceCase], arguments: tuple, workers: int) -> Iterator[Outcome]:
    """Outcomes as they come; without those that were lost because a process died."""
    # Not forked: torch's threads do not survive it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, arguments) as pool:
        futures: list[Future[Outcome]] = [pool.submit(_work, case) for case in cases]
        try:
            for future in as_completed(futures):
                if not isinstance(future.exception(), BrokenProcessPool):
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


_worker: CasePreparer | None = None


def _start_worker(*arguments: object) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = CasePreparer(*arguments)  # type: ignore[arg-type]


def _work(case: SourceCase) -> Outcome:
    if _worker is None:
        raise RuntimeError("prepare: the worker was not started")
    return _attempt(_worker, case)


def _attempt(preparer: CasePreparer, case: SourceCase) -> Outcome:
    try:
        return Outcome(case.key, made=preparer(case))
    except Exception as e:  # one bad file among thousands must not end the run, whatever a reader raises about it
        ours = find_user_error(e)
        logger.debug("%s", case.key, exc_info=e)
        return Outcome(case.key, error=str(ours) if ours is not None else f"{type(e).__name__}: {e}")
