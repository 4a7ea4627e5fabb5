"""A datastore in a folder that a crash cannot spoil: every file appears whole or not at all, one change at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag

from lib.datastore.label_volumes import read_labels
from lib.server.errors import RequestError
from scripts.data.label_files import write_nifti
from scripts.transforms.reading import LoadVolume

logger = logging.getLogger(__name__)
# What the bundle reads and a folder may hold as single files.
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mgz")
EXTENSIONS = tuple(f"*{suffix}" for suffix in VOLUME_SUFFIXES)
LABEL_SUFFIX = ".nii.gz"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ +@=-]{0,127}")


class FolderStore(LocalDatastore):
    """MONAI Label's local datastore, whose writes are atomic and whose inputs are checked.

    Labels are kept as ``.nii.gz`` exactly on the grid of their image, whatever they were uploaded as. A file that a
    killed process left behind is never listed; a damaged index is put aside and made anew from the files.

    Args:
        path: the folder, made if absent.
        auto_reload: notice files that others add or remove.
        read_only: leave the index as it is.
        extensions: of the volumes.
    """

    def __init__(
        self,
        path: str,
        auto_reload: bool = False,
        read_only: bool = False,
        extensions: tuple[str, ...] = EXTENSIONS,
    ) -> None:
        # The watcher's thread, those of requests, and training and batch processes change the same index.
        self._one_at_a_time = threading.RLock()
        self._one_process_at_a_time = FileLock(str(Path(path) / ".lock_changes"))
        self._seen: tuple[int, int] | None = None
        self._taking_over = False
        _put_damaged_index_aside(Path(path) / "datastore_v2.json")
        LocalDatastore.__init__(self, path, extensions=extensions, auto_reload=auto_reload, read_only=read_only)

    def add_image(self, image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> str:
        """Take up a volume that was uploaded.

        Raises:
            RequestError: 400, a name that is no plain file name; 507, the disk is full.
            InputError: a file that is no sound volume.
        """
        source = Path(image_filename)
        suffix = next((ending for ending in VOLUME_SUFFIXES if source.name.lower().endswith(ending)), None)
        if suffix is None:
            raise RequestError(400, f"wanted a volume ending in one of {', '.join(VOLUME_SUFFIXES)}")
        name = check_name(image_id or source.name[: -len(suffix)], "image")
        LoadVolume()(source)
        self._put_image(name, source.read_bytes(), suffix, image_info)
        return name

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any]) -> str:
        """Keep a label of an image, in place of an earlier one with the same tag.

        Args:
            image_id: the image.
            label_filename: ``.nii.gz``, ``.nii``, ``.nrrd``, or ``.bin``: raw uint8, x fastest.
            label_tag: "final", "original" or another name.
            label_info: what to remember of it; ``label_info`` in it should name its values.

        Returns:
            The id of the label, which is that of the image.

        Raises:
            RequestError: 404, no such image; 400, a tag that is no plain name; 507, the disk is full.
            InputError: a label that is not on the image's grid or holds no whole numbers.
        """
        tag = check_name(label_tag, "label tag")
        if image_id not in self._datastore.objects:
            raise RequestError(404, f"no image {image_id!r} in the datastore")
        image = self.get_image_uri(image_id)
        labels, affine = read_labels(Path(label_filename), Path(image))
        self._put_label(image_id, tag, labels, image, affine, label_info)
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels.

        Raises:
            RequestError: 404, no such image.
        """
        if image_id not in self._datastore.objects:
            raise RequestError(404, f"no image {image_id!r} in the datastore")
        with self._changing():
            super().remove_image(image_id)
            self.refresh()

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label.

        Raises:
            RequestError: 404, no such label.
        """
        with self._changing():
            path = LocalDatastore.get_label_uri(self, label_id, label_tag)
            if not path:
                raise RequestError(404, f"no label {label_tag!r} of image {label_id!r} in the datastore")
            Path(path).unlink(missing_ok=True)
            self.refresh()

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> None:
        """Add to what is remembered of an image."""
        with self._changing():
            super().update_image_info(image_id, dict(info))

    def update_label_info(self, label_id: str, label_tag: str, info: Mapping[str, Any]) -> None:
        """Add to what is remembered of a label."""
        with self._changing():
            super().update_label_info(label_id, label_tag, dict(info))

    def _put_image(self, image_id: str, content: bytes, suffix: str, info: Mapping[str, Any]) -> None:
        """Write an image's file and enter it into the index."""
        path = Path(self._datastore.image_path()) / f"{image_id}{suffix}"
        with self._changing():
            write_whole(path, content)
            self._enter_image(image_id, path.name, suffix, info)

    def _enter_image(self, image_id: str, name: str, suffix: str, info: Mapping[str, Any]) -> None:
        """Enter an image whose file is in place into the index; its labels stay."""
        with self._changing():
            known = self._datastore.objects.get(image_id)
            entry = DataModel(info={**info, "ts": int(time.time()), "name": name}, ext=suffix)
            labels = known.labels if known else {}
            self._datastore.objects[image_id] = ImageLabelModel(image=entry, labels=labels)
            self._update_datastore_file()

    def _put_label(
        self, image_id: str, tag: str, labels: Any, image: str, affine: Any, info: Mapping[str, Any]
    ) -> None:
        """Write a label map ``[H, W, D]`` and enter it into the index."""
        folder = Path(self._datastore.label_path(tag))
        name = f"{image_id}{LABEL_SUFFIX}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".unfinished_", dir=folder) as scratch:
                write_nifti(Path(scratch) / name, labels, image, affine)  # takes seconds, so nobody waits for it
                with self._changing():
                    if image_id not in self._datastore.objects:
                        raise RequestError(404, f"no image {image_id!r} in the datastore")
                    (Path(scratch) / name).replace(folder / name)
                    entry = DataModel(info={**info, "ts": int(time.time()), "name": name}, ext=LABEL_SUFFIX)
                    self._datastore.objects[image_id].labels[tag] = entry
                    self._update_datastore_file()
        except OSError as e:
            if not Path(image).is_file():
                raise RequestError(404, f"no image {image_id!r} in the datastore") from e
            raise RequestError(507, f"cannot keep the label ({e.strerror}): make room on the disk") from e
        logger.info("saved a label: tag %s", tag)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Be alone with the index among threads and processes, and start from what others wrote last."""
        with self._one_at_a_time, self._one_process_at_a_time:
            self._take_over()
            yield

    @property
    def _datastore(self) -> LocalDatastoreModel:
        """The index (MONAI Label's name for it), as whoever wrote last left it."""
        self._take_over()
        return self._index

    @_datastore.setter
    def _datastore(self, index: LocalDatastoreModel) -> None:
        self._index = index

    def _take_over(self) -> None:
        """Read the index again where another process has written it; costs one look at the disk."""
        if self._seen == _stamp(self._datastore_config_path):
            return
        with self._one_at_a_time:
            if self._taking_over or self._seen == _stamp(self._datastore_config_path):
                return
            self._config_ts = 0.0  # MONAI Label compares times, which are the same for two writes in one tick
            self._init_from_datastore_file()

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the index in one step (MONAI Label's own way leaves half of it when the process dies)."""
        text = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        with self._one_at_a_time:
            path = Path(self._datastore_config_path)
            write_whole(path, text.encode())
            self._config_ts = path.stat().st_mtime
            self._seen = _stamp(path)

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the index; the damaged one of another program is left alone."""
        with self._one_at_a_time:
            seen, self._taking_over = _stamp(self._datastore_config_path), True
            try:
                LocalDatastore._init_from_datastore_file(self, throw_exception)
            finally:
                self._seen, self._taking_over = seen, False

    def _reconcile_datastore(self) -> None:
        """Make the index agree with the files."""
        with self._changing():
            LocalDatastore._reconcile_datastore(self)


def check_name(name: str, what: str) -> str:
    """The name itself, which becomes a part of a path.

    Raises:
        RequestError: 400, it could lead elsewhere.
    """
    tag = name.value if isinstance(name, DefaultLabelTag) else name
    if not isinstance(tag, str) or not SAFE_NAME.fullmatch(tag) or ".." in tag:
        raise RequestError(
            400, f"not usable as the name of an {what}: wanted letters, digits, dots, dashes, 128 at most"
        )
    return tag


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there with all of its content, or as it was before.

    Raises:
        RequestError: 507, the disk is full or refuses.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=".unfinished_", dir=path.parent)
        scratch = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            scratch.chmod(0o644)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as e:
        raise RequestError(507, f"cannot write to the datastore ({e.strerror}): make room on the disk") from e


def _stamp(path: str | Path) -> tuple[int, int] | None:
    """Another one after every write."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino


def _put_damaged_index_aside(path: Path) -> None:
    if not path.is_file():
        return
    try:
        LocalDatastoreModel.model_validate_json(path.read_bytes())
    except ValueError:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        logger.warning("the datastore's index was damaged; put aside as %s and made anew from the files", aside.name)
