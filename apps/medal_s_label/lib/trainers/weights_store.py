"""Keep the weights that training has published: one in use, all earlier ones kept, nothing ever half written.

    models/
      current.json                    what is in use: key of the inference config -> file
      versions/0001_weights/model.pt  a published file, never changed again
      versions/0001_weights/record.json

Only ``current.json`` is ever replaced, by a rename, so that a reader sees the old state or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from scripts.errors import InputError

logger = logging.getLogger(__name__)

CURRENT, VERSIONS, MODEL, RECORD = "current.json", "versions", "model.pt", "record.json"
UNFINISHED = ".unfinished_"


class WeightsStore:
    """Published weights in a folder; several processes may use it at once.

    Args:
        folder: made when something is published.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def current(self) -> dict[str, str]:
        """The files in use: key of the inference config (``weights``, ``fine_weights``) -> absolute path.

        Keys that were never published are absent: the bundle's own file counts.

        Raises:
            InputError: the list of what is in use is damaged, or names a file that is gone.
        """
        try:
            content = json.loads((self.folder / CURRENT).read_text(encoding="utf-8"))
            files = {str(key): self.folder / str(place) for key, place in content.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as e:
            raise InputError(f"weights: {CURRENT} in {self.folder} is damaged; restore a version or delete it") from e
        for key, file in files.items():
            if not file.is_file():
                raise InputError(
                    f"weights: {key} should be {file}, which is gone; restore a version or delete {CURRENT}"
                )
        return {key: str(file) for key, file in files.items()}

    def in_use(self) -> dict[str, int]:
        """Key of the inference config -> number of the version in use; keys of the bundle's own files are absent."""
        return {key: int(Path(path).parent.name.split("_")[0]) for key, path in self.current().items()}

    def stamp(self) -> tuple[int, int] | None:
        """Changes whenever other weights are in use; costs one look at the disk."""
        try:
            status = (self.folder / CURRENT).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def versions(self) -> list[dict[str, Any]]:
        """The records of all that was published, oldest first."""
        files = sorted((self.folder / VERSIONS).glob(f"[0-9]*/{RECORD}"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def publish(self, key: str, weights: str | Path, record: Mapping[str, Any]) -> int:
        """Copy weights into the store and put them into use.

        Args:
            key: of the inference config that they are for.
            weights: the file.
            record: what to remember about them, JSON.

        Returns:
            The number of the version.

        Raises:
            InputError: no such file, or the folder cannot be written to; what was in use stays so.
        """
        if not Path(weights).is_file():
            raise InputError(f"weights: no file {weights} to publish")
        try:
            with self._alone():
                used, before = self.current(), self.in_use().get(key)
                number = 1 + max([0, *(int(folder.name.split("_")[0]) for folder in self._folders())])
                place = f"{VERSIONS}/{number:04d}_{key}"
                self._add(place, Path(weights), {"version": number, "key": key, "before": before, **record})
                self._use({**self._relative(used), key: f"{place}/{MODEL}"})
        except OSError as e:
            raise InputError(f"weights: cannot write to {self.folder} ({e.strerror}); the present ones stay") from e
        logger.info("version %d of %s is in use", number, key)
        return number

    def restore(self, key: str, number: int | None) -> None:
        """Go back to an earlier version, or with None to the bundle's own weights.

        Raises:
            InputError: no such version.
        """
        place = f"{VERSIONS}/{number or 0:04d}_{key}/{MODEL}"
        if number is not None and not (self.folder / place).is_file():
            known = ", ".join(str(record["version"]) for record in self.versions() if record["key"] == key) or "none"
            raise InputError(f"weights: no version {number} of {key}; there are: {known}")
        with self._alone():
            others = {name: path for name, path in self._relative(self.current()).items() if name != key}
            self._use(others if number is None else {**others, key: place})

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(str(self.folder / ".lock")):
            yield

    def _folders(self) -> list[Path]:
        return list((self.folder / VERSIONS).glob("[0-9]*_*"))

    def _relative(self, used: Mapping[str, str]) -> dict[str, str]:
        return {key: str(Path(path).relative_to(self.folder)) for key, path in used.items()}

    def _add(self, place: str, weights: Path, record: Mapping[str, Any]) -> None:
        """A whole version appears at once, or not at all."""
        (self.folder / VERSIONS).mkdir(exist_ok=True)
        for left in (self.folder / VERSIONS).glob(f"{UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=self.folder / VERSIONS, prefix=UNFINISHED) as scratch:
            made = Path(scratch) / "version"
            made.mkdir()
            content = weights.read_bytes()
            record = {**record, "sha256": hashlib.sha256(content).hexdigest()}
            _write(made / MODEL, content)
            _write(made / RECORD, (json.dumps(record, indent=1) + "\n").encode())
            made.rename(self.folder / place)

    def _use(self, files: Mapping[str, str]) -> None:
        partial = self.folder / f".{CURRENT}.partial"
        _write(partial, (json.dumps(files, indent=1) + "\n").encode())
        partial.replace(self.folder / CURRENT)


class WeightsWatch:
    """Tell the app when other weights are in use; ``check`` before every request.

    Training runs in a process of its own, so the server learns from the disk.

    Args:
        store: see there.
        on_new_weights: called with ``store.current()``; where it fails, the next check calls again.
    """

    def __init__(self, store: WeightsStore, on_new_weights: Callable[[Mapping[str, str]], None]) -> None:
        self.store, self.on_new_weights = store, on_new_weights
        self._seen = store.stamp()

    def check(self) -> bool:
        """Whether the callback was called."""
        stamp = self.store.stamp()
        if stamp == self._seen:
            return False
        self.on_new_weights(self.store.current())
        self._seen = stamp
        return True


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
