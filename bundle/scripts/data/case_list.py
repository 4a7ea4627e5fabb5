"""The list of a prepared training set, ``cases.jsonl`` with ``sentences.json``: written once, read by training.

One line per case holds what training has to know before it opens a file: dataset, modality, section, shape, where the
case lies, which label values it has and how large its labelled region is. Cases of one dataset mostly share a table
label value -> sentences; each table stands once, in ``sentences.json``, under the key that its lines name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.data.blosc2_cache import write_text
from scripts.errors import InputError

LIST_NAME, SENTENCES_NAME = "cases.jsonl", "sentences.json"
LISTED = (
    *("name", "dataset", "section", "modality", "instances"),
    *("orientation", "shape", "spacing", "affine", "region", "voxels"),
)


def write_case_list(folder: Path, cases: Iterable[tuple[str, Mapping[str, Any]]]) -> Path:
    """Write the list of all cases that are done, each file complete or not at all.

    Args:
        folder: of the training set.
        cases: for each its folder, relative to that of the set, and its metadata.

    Returns:
        The list's path.
    """
    tables: dict[str, Any] = {}
    lines = []
    for place, facts in cases:
        table = {"sentences": facts["sentences"], "names": facts["names"]}
        content = json.dumps(table, sort_keys=True)
        key = f"{facts['dataset']}:{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        tables[key] = table
        lines.append(json.dumps({"folder": place, **{name: facts[name] for name in LISTED}, "sentences": key}))
    # The tables first: a list that can be read never names a table that is not there.
    write_text(folder / SENTENCES_NAME, json.dumps(tables, indent=1, sort_keys=True) + "\n")
    write_text(folder / LIST_NAME, "".join(f"{line}\n" for line in lines))
    return folder / LIST_NAME


def prepared_cases(
    folder: str | Path,
    section: str | None = "training",
    datasets: Sequence[str] | None = None,
    leave_out: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Cases of a prepared training set, for ``PatchDataset``; no volume is opened.

    Args:
        folder: what ``prepare`` wrote to.
        section: ``training`` or ``validation``; None for both.
        datasets: only these; None for all.
        leave_out: names of cases to leave out.

    Returns:
        For each case ``folder`` (absolute path), ``sentences`` (label value -> sentences, one table for all cases that
        share it), ``names`` (label value -> target name or None), ``voxels`` (label value -> voxels, those present) and
        the other entries of its line.

    Raises:
        InputError: no list there, a damaged one, or no case left.
    """
    root = Path(folder).expanduser().resolve()
    try:
        tables = {key: _table(value) for key, value in _read(root / SENTENCES_NAME).items()}
        lines = (root / LIST_NAME).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        cases = [
            {**row, **tables[row["sentences"]], "folder": str(root / row["folder"]), "voxels": _by_value(row["voxels"])}
            for row in rows
            if section in (None, row["section"])
            and (datasets is None or row["dataset"] in datasets)
            and row["name"] not in leave_out
        ]
    except OSError as e:
        raise InputError(
            f"cases: no prepared cases in {folder} ({e.strerror}): run prepare, or correct the path"
        ) from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"cases: the list in {folder} is damaged ({e}): run prepare again") from e
    if not cases:
        raise InputError(f"cases: none of the {len(rows)} cases in {folder} is left: look at section and datasets")
    return cases


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _table(content: Mapping[str, Any]) -> dict[str, Any]:
    return {"sentences": _by_value(content["sentences"]), "names": _by_value(content["names"])}


def _by_value(table: Mapping[str, Any]) -> dict[int, Any]:
    """JSON's keys are text, label values are numbers."""
    return {int(value): item for value, item in table.items()}
