"""Remember which cases of an output folder are done, so that a batch that was stopped goes on where it was.

A record is written, at once and whole, after all files of its case. It holds a fingerprint of everything that the
answer depends on: a case whose fingerprint differs, or a file of which is gone, is done again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
FOLDER = ".batch"
LEFT_BEHIND = (".unfinished_*", ".writable_*")


class Records:
    """The records of one output folder.

    Args:
        output_dir: folder of the results.
        settings: everything besides the case that the answer depends on; files (weights) count by size and date.
    """

    def __init__(self, output_dir: str | Path, settings: Mapping[str, Any] | None = None) -> None:
        self.output_dir = Path(output_dir).expanduser()
        self.settings = {key: _identity(value) for key, value in (settings or {}).items()}

    def tidy(self) -> None:
        """Make the folder and remove what a killed process left in it half written.

        Only one batch at a time may work in a folder: the files of another would be taken for such a rest.
        """
        (self.output_dir / FOLDER).mkdir(parents=True, exist_ok=True)
        for pattern in LEFT_BEHIND:
            for path in self.output_dir.glob(pattern):
                logger.info("removing %s, left by a process that was stopped", path.name)
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def fingerprint(self, case: Mapping[str, Any]) -> str:
        """Hash of a case and the settings; images and masks count by name, size and date, wherever they lie."""
        facts = {key: _identity(value) for key, value in case.items()}
        text = json.dumps([facts, self.settings], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def find(self, name: str, fingerprint: str) -> list[dict[str, Any]] | None:
        """The rows kept for a case if it is done, and done as wanted now; else None."""
        try:
            record = json.loads(self._path(name).read_text(encoding="utf-8"))
            complete = all((self.output_dir / file).is_file() for file in record["files"])
            return record["rows"] if complete and record["fingerprint"] == fingerprint else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # no record, or none of ours: the case is done again

    def forget(self, name: str) -> None:
        """Take back a record, before its case is done again."""
        self._path(name).unlink(missing_ok=True)

    def keep(self, name: str, fingerprint: str, files: Sequence[str | Path], rows: Sequence[Mapping[str, Any]]) -> None:
        """Record a case as done.

        Args:
            name: of the case.
            fingerprint: see ``fingerprint``; taken before the work, so that a file changed meanwhile counts as changed.
            files: all files of its results, below the output folder.
            rows: what the summary says about it.
        """
        inside = [Path(file).resolve().relative_to(self.output_dir.resolve()).as_posix() for file in files]
        record = {"fingerprint": fingerprint, "files": inside, "rows": [dict(row) for row in rows]}
        temporary = self._path(name).with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
        temporary.replace(self._path(name))

    def _path(self, name: str) -> Path:
        return self.output_dir / FOLDER / f"{name}.json"


def _identity(value: Any) -> Any:
    """A value as it counts for a fingerprint: the paths in it become facts about the files there."""
    if isinstance(value, (list, tuple)):
        return [_identity(item) for item in value]
    if not isinstance(value, (str, Path)):
        return value
    path = Path(value)
    try:
        if path.is_dir():
            return [path.name, sorted(_facts(file) for file in path.iterdir() if file.is_file())]
        return _facts(path) if path.is_file() else str(value)
    except (OSError, ValueError):  # a text that can be no path
        return str(value)


def _facts(path: Path) -> list[Any]:
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]
