"""Write an exported network to a file, and read one back without running anything that is in it."""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path

import torch
from torch.export import ExportedProgram

from scripts.errors import InputError
from scripts.export.archive_check import FACTS_FILE, checked_copy
from scripts.export.facts import ProgramFacts

PROGRAM_SUFFIX = ".pt2"


def write_archive(program: ExportedProgram, facts: ProgramFacts, path: str | Path) -> Path:
    """Save a program with its facts; the file appears complete or not at all.

    Args:
        program: of ``export_program``.
        facts: travel in the file.
        path: ends in ``.pt2``.

    Raises:
        InputError: another ending, or a folder that cannot be written to.
    """
    goal = Path(path).expanduser()
    if goal.suffix != PROGRAM_SUFFIX:
        raise InputError(f"exported network: cannot write {goal.name}: end its name in {PROGRAM_SUFFIX}")
    try:
        with tempfile.TemporaryDirectory(dir=goal.parent, prefix=".unfinished_") as scratch:
            # torch names the archive's folder after the file, so a fixed name keeps the bytes the same.
            unfinished = Path(scratch) / f"network{PROGRAM_SUFFIX}"
            torch.export.save(program, unfinished, extra_files={FACTS_FILE: facts.to_json()})
            unfinished.replace(goal)
    except OSError as e:
        raise InputError(f"exported network: cannot write to {goal.parent} ({e.strerror}): nothing was saved") from e
    return goal


def read_archive(path: str | Path) -> tuple[ExportedProgram, ProgramFacts]:
    """Load a program that ``write_archive`` saved.

    ``torch.export.load`` alone would run what a hostile file holds: it unpickles, and evaluates texts. So the file is
    checked first, see ``archive_check``, and only a copy of what was checked is handed to torch.

    Args:
        path: the file.

    Returns:
        The program, on the CPU, and its facts.

    Raises:
        InputError: no such file, anything in it that a plain program does not have, or another version of torch's
            format.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"no exported network at {path}: make one with python -m scripts.cli export")
    try:
        content = file.read_bytes()
    except OSError as e:
        raise InputError(f"exported network: cannot read {file} ({e.strerror})") from e
    copy, facts = checked_copy(content, file.name)
    del content
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said by torch of its own machinery
            program = torch.export.load(io.BytesIO(copy))
    except Exception as e:  # whatever torch's reader makes of it: key, type, assertion and schema errors
        raise InputError(
            f"{file.name}: torch {torch.__version__} cannot read this exported network, which torch {facts.torch} "
            f"wrote ({' '.join(str(e).split())[:160]}): export it again with this torch"
        ) from e
    return program, facts
