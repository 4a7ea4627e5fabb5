"""Tables of what was found, one row for each structure, and of the cases that failed, as CSV files."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.errors import InputError

STRUCTURE_COLUMNS = (
    *("case", "image", "structure", "label", "modality", "kind", "voxels", "volume_ml", "mean_probability"),
    *("disagreement", "instance_count", "touches_border"),
)
FAILURE_COLUMNS = ("case", "image", "reason")


def structure_rows(case: str, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each structure of a report; what was not found or not measured is None."""
    image = report["image"]["name"]
    return [
        {"case": case, "image": image, "structure": entry["name"]}
        | {column: entry.get(column) for column in STRUCTURE_COLUMNS[3:]}
        for entry in report["structures"]
    ]


def format_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV text with a heading; None is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_csv(path: str | Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file, complete or not at all.

    Raises:
        InputError: it cannot be written.
    """
    place = Path(path).expanduser()
    try:
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".unfinished_") as scratch:
            temporary = Path(scratch) / place.name
            temporary.write_text(format_csv(columns, rows), encoding="utf-8")
            temporary.replace(place)
    except OSError as e:
        raise InputError(f"tables: cannot write {path} ({e.strerror})") from e
