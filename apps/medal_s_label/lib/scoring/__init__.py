"""Scores of what the model answered against what was saved as final."""

from __future__ import annotations

from monailabel.interfaces.tasks.scoring import ScoringMethod

from scripts.text import Terminology

from .agreement import Agreement

__all__ = ["Agreement", "methods"]


def methods(terminology: Terminology, modality: str) -> dict[str, ScoringMethod]:
    """The app's scoring methods by name.

    Args:
        terminology: knows the names of structures.
        modality: of images of which the datastore does not tell it.
    """
    return {"agreement": Agreement(terminology, modality)}
