"""Evaluation: label maps of any tool against the truth, in tables with confidence intervals and a plot."""

from .challenge_metrics import ClassScore, InstanceScore
from .engine_scores import write_scores
from .references import Reference, jobs_of, match_predictions, read_references
from .runner import EvaluationRunner, segment_and_score

__all__ = [
    "ClassScore",
    "EvaluationRunner",
    "InstanceScore",
    "Reference",
    "jobs_of",
    "match_predictions",
    "read_references",
    "segment_and_score",
    "write_scores",
]
