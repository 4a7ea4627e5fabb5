"""Fixtures that every test may use: where things lie, and the same random numbers on every run."""

from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]
SEED = 0

# MONAI Label is an extra, for Python 3.10 to 3.12.
LABEL_MISSING = importlib.util.find_spec("monailabel") is None
collect_ignore = ["app", "e2e"] if LABEL_MISSING else []

# Examples are drawn the same way each time, and a slow machine is no failure.
settings.register_profile("repository", derandomize=True, deadline=None)
settings.load_profile("repository")


def pytest_report_header() -> list[str]:
    """Say what is left out."""
    return ["SKIPPED: tests/app and tests/e2e, MONAI Label is not installed: make setup-label"] if LABEL_MISSING else []


@pytest.fixture(scope="session")
def bundle_dir() -> Path:
    """The bundle's root, from which its configs resolve their relative paths."""
    return REPOSITORY / "bundle"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Golden values and public sample data, kept outside the repository; the test is skipped where they are absent."""
    folder = Path(os.environ.get("MEDAL_S_SHARED", REPOSITORY.parent / "shared")).expanduser()
    if not (folder / "golden").is_dir():
        pytest.skip("no shared data: set MEDAL_S_SHARED to the folder that holds golden/ and data/")
    return folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same global random states, whatever ran before it."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  (MONAI and SciPy still read this state)
    torch.manual_seed(SEED)
