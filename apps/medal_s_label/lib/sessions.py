"""Keep the work on recent images within a byte budget; what was used longest ago goes first.

Work belongs to an image and a client. An image is known by its path, and by times and sizes of its files: where a
file was changed, the work on it is out of date and gone. Work is also gone when other weights are in use, and when a
request failed in the middle of it: the next request starts from the file.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lib.work import Work
from scripts.errors import InputError, find_user_error

logger = logging.getLogger(__name__)
GIB = 2**30


@dataclass(frozen=True)
class WorkKey:
    """Whose work on what.

    Attributes:
        path: of the image.
        stamp: names, times (ns) and sizes of its files.
        client: "" where unknown.
        modality: of the model asked.
    """

    path: str
    stamp: tuple[tuple[str, int, int], ...]
    client: str
    modality: str


def work_key(image: str, client: str, modality: str) -> WorkKey:
    """The key of an image as it lies on the disk now.

    Raises:
        InputError: there is no such file.
    """
    path = Path(image)
    try:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        stamp = tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file())
    except OSError as e:
        raise InputError(f"the image cannot be read ({e.strerror})") from e
    if not stamp:
        raise InputError("the image is not there (any more): refresh the list of studies")
    return WorkKey(str(path.resolve()), stamp, client, modality)


class WorkStore:
    """Work by key, its bytes counted after every request.

    Args:
        max_gb: budget in GiB. Work that is being used is kept whatever it takes; the one used last stays if it alone
            fits.

    Raises:
        InputError: a negative budget.
    """

    def __init__(self, max_gb: float) -> None:
        if not max_gb >= 0:
            raise InputError(f"conf cache_gb: wanted a number of GiB from 0 on, got {max_gb}")
        self.max_bytes = int(max_gb * GIB)
        self._entries: OrderedDict[WorkKey, Work] = OrderedDict()
        self._sizes: dict[WorkKey, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, not of what is being used."""
        with self._lock:
            return sum(self._sizes.values())

    @contextmanager
    def borrow(self, key: WorkKey, generation: int, make: Callable[[], Work]) -> Iterator[Work]:
        """Take work out of the store for one request, and put it back afterwards.

        Nobody else can have it meanwhile; a second request for the same key makes its own, and the later one stays.

        Args:
            key: see ``work_key``.
            generation: of the weights in use; work of another one is dropped.
            make: new work, where there is none.
        """
        with self._lock:
            work = self._take(key, generation)
        if work is None:
            work = make()
        try:
            yield work
        except BaseException as e:
            # A refused request leaves a session of the bundle as it was; after anything else it may be half changed.
            if find_user_error(e) is None:
                logger.warning("a request failed: its session is dropped")
                raise
            self._put(key, work)
            raise
        self._put(key, work)

    def clear(self) -> None:
        """Forget everything that is not being used."""
        with self._lock:
            self._entries.clear()
            self._sizes.clear()

    def _take(self, key: WorkKey, generation: int) -> Work | None:
        outdated = [k for k in self._entries if k.path == key.path and k.stamp != key.stamp]
        outdated += [k for k, work in self._entries.items() if work.generation != generation]
        for old in dict.fromkeys(outdated):
            self._drop(old)
        self._sizes.pop(key, None)
        return self._entries.pop(key, None)

    def _put(self, key: WorkKey, work: Work) -> None:
        size = work.nbytes
        with self._lock:
            self._entries[key], self._sizes[key] = work, size
            self._entries.move_to_end(key)
            while self._entries and sum(self._sizes.values()) > self.max_bytes:
                self._drop(next(iter(self._entries)))
                logger.info("the session cache is full: the one used longest ago was dropped")

    def _drop(self, key: WorkKey) -> None:
        self._entries.pop(key, None)
        self._sizes.pop(key, None)
