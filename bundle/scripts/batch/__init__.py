"""Many cases in one run: shared among processes, resumed after a stop, summed up in tables."""

from scripts.batch.challenge import ChallengePrompts
from scripts.batch.runner import BatchRunner, Outcome
from scripts.batch.work_queue import WorkQueue, local_device

__all__ = ["BatchRunner", "ChallengePrompts", "Outcome", "WorkQueue", "local_device"]
