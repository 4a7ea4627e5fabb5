"""Find the labelled cases that a training set is prepared from: a folder, a JSON list or a JSONL list."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.data.case_targets import LabelName, TargetReader
from scripts.data.npz_reader import NPZ_SUFFIX
from scripts.errors import InputError
from scripts.transforms.reading import ITK_SUFFIXES, NIBABEL_SUFFIXES, image_name

TRAINING, VALIDATION = "training", "validation"
SECTIONS = (TRAINING, VALIDATION)
IMAGE_FOLDERS, LABEL_FOLDERS = ("images", "imagesTr"), ("labels", "labelsTr")
TABLE_FILES = ("labels.json", "dataset.json")
KEYS = ("image", "data", "label", "dataset", "modality", "section", "name", "labels", "instances", "label_existance")
CHANNEL = re.compile(r"_0000$")  # nnU-Net's name of an image's first channel
UNSAFE = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True)
class SourceCase:
    """One labelled case, not yet read."""

    name: str
    """Unique within its dataset, fit for a file name."""
    image: Path
    """An NPZ file of the challenge, or an image that ``LoadVolume`` reads."""
    label: Path | None
    """Label map on the image's grid; None where the NPZ file holds it."""
    dataset: str
    section: str
    modality: str | None = None
    labels: tuple[LabelName, ...] | None = None
    instances: bool | None = None

    @property
    def key(self) -> str:
        """Folder of the prepared case, below that of all."""
        return f"{UNSAFE.sub('_', self.dataset)}/{self.name}"

    @property
    def npz(self) -> Path | None:
        """The NPZ file, where the labels are in it."""
        return self.image if self.label is None else None


@dataclass(frozen=True)
class SourceDefaults:
    """What holds for the cases that do not say otherwise."""

    dataset: str | None = None
    modality: str | None = None
    labels: Mapping[str, object] | None = None
    """Table of label names, in any form that ``TargetReader.label_names`` reads."""
    skip_unknown: bool = False


def find_cases(source: str | Path, targets: TargetReader, defaults: SourceDefaults | None = None) -> list[SourceCase]:
    """The cases of a source, in a fixed order.

    - A folder with NPZ files, however deep. The dataset is that of ``defaults``, else the one of the prompts JSON that
      the file's name begins with, else the name of the file's folder.
    - A folder with ``images`` and ``labels`` (or ``imagesTr`` and ``labelsTr``), files of the same names in both; a
      ``_0000`` after an image's name does not count. ``labels.json``, or ``dataset.json`` with ``labels``, is the table
      of label names. The dataset is the folder's name.
    - A JSON file ``{"labels": {...}, "dataset": ..., "modality": ..., "training": [{"image": ..., "label": ...}, ...],
      "validation": [...]}``.
    - A JSONL file, an object per line: ``image`` (or ``data``) and, unless it is an NPZ file, ``label``; ``dataset``,
      ``modality``, ``section``, ``name``, ``labels`` and ``instances`` where they differ from ``defaults``.

    Paths in a list are relative to it.

    Raises:
        InputError: no such source, nothing in it, an entry that cannot be understood (which), unknown label names, two
            cases of one name.
    """
    path, given = Path(source).expanduser(), defaults or SourceDefaults()
    if path.is_dir():
        rows = list(_folder_rows(path, given, targets))
    elif not path.exists():
        raise InputError(f"prepare: no such folder or list: {source}")
    elif path.suffix.lower() in (".json", ".jsonl"):
        rows = list(_list_rows(path))
    else:
        raise InputError(f"prepare: {path.name} is neither a folder nor a list (.json, .jsonl)")
    if not rows:
        raise InputError(
            f"prepare: no case in {path.name}: wanted NPZ files, or the folders images and labels, or lists of them"
        )
    reader = _RowReader(path if path.is_dir() else path.parent, targets, given)
    cases = [reader.read(place, row) for place, row in rows]
    _refuse_twins(cases)
    return cases


class _RowReader:
    """Turns rows into cases; each table of label names is resolved once.

    Args:
        folder: that relative paths start from.
        targets, defaults: as in ``find_cases``.
    """

    def __init__(self, folder: Path, targets: TargetReader, defaults: SourceDefaults) -> None:
        self.folder, self.targets, self.defaults = folder, targets, defaults
        self._tables: dict[str, tuple[LabelName, ...]] = {}

    def read(self, place: str, row: Any) -> SourceCase:
        """The case of a row; ``place`` begins what is said about it."""
        if not isinstance(row, Mapping):
            raise InputError(f"prepare: {place}: wanted an object with image and label, got {str(row)[:60]!r}")
        unknown = sorted(set(row) - set(KEYS))
        if unknown:
            raise InputError(f"prepare: {place}: unknown {', '.join(unknown)}; known: {', '.join(KEYS)}")
        image = self._path(row.get("image") or row.get("data"), "image", place)
        if image is None:
            raise InputError(f"prepare: {place}: no image")
        label = self._path(row.get("label"), "label", place)
        if (label is None) != (image.suffix.lower() == NPZ_SUFFIX):
            raise InputError(f"prepare: {place}: wanted an NPZ file with its labels, or an image and a label map")
        section = row.get("section") or TRAINING
        if section not in SECTIONS:
            raise InputError(f"prepare: {place}: section {section!r}, wanted {' or '.join(SECTIONS)}")
        instances = row.get("instances")
        dataset = str(row.get("dataset") or self.defaults.dataset or self._dataset(image))
        modality = row.get("modality") or self.defaults.modality
        return SourceCase(
            name=UNSAFE.sub("_", str(row.get("name") or image_name(image))).lstrip("."),
            image=image,
            label=label,
            dataset=dataset,
            section=section,
            modality=modality,
            labels=self._labels(row.get("labels") or self.defaults.labels, dataset, modality, place),
            instances=None if instances is None else bool(instances),
        )

    def _path(self, value: Any, key: str, place: str) -> Path | None:
        if value is not None and not isinstance(value, (str, Path)):
            raise InputError(f"prepare: {place}: {key} must be the path of a file, got {value!r}")
        return self.folder / Path(value).expanduser() if value else None

    def _dataset(self, image: Path) -> str:
        """The known dataset that a file's name begins with, else the name of its folder."""
        known = [name for name in self.targets.prompts.datasets if image.name.startswith(name)]
        return max(known, key=len, default=image.resolve().parent.name)

    def _labels(self, table: Any, dataset: str, modality: str | None, place: str) -> tuple[LabelName, ...] | None:
        if not table:
            return None
        if not isinstance(table, Mapping):
            raise InputError(f"prepare: {place}: labels must be a table of names and values, got {str(table)[:60]!r}")
        own = self.targets.prompts.modality(dataset, modality)
        key = json.dumps([own, table], sort_keys=True)
        if key not in self._tables:
            self._tables[key] = self.targets.label_names(table, own, "prepare: labels", self.defaults.skip_unknown)
        return self._tables[key]


def read_label_table(path: Path) -> Mapping[str, object]:
    """A table of label names from a JSON file: the whole of it, or what is under its key ``labels``.

    Raises:
        InputError: missing, no JSON, or no table.
    """
    content = _parse(_text(path), path.name)
    table = content.get("labels", content) if isinstance(content, Mapping) else None
    if not isinstance(table, Mapping) or not table:
        raise InputError(f'prepare: {path.name}: wanted a table of label names such as {{"1": "liver"}}')
    return table


def _folder_rows(folder: Path, defaults: SourceDefaults, targets: TargetReader) -> Iterator[tuple[str, dict]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix.lower() == NPZ_SUFFIX]
    for file in files:
        relative = file.relative_to(folder)
        yield str(relative), {"image": str(relative)}
    if files:
        return
    images = next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), None)
    labels = next((folder / name for name in LABEL_FOLDERS if (folder / name).is_dir()), None)
    if images is None or labels is None:
        return
    names = {image_name(path): path for path in _volumes(labels)}
    table = next((folder / name for name in TABLE_FILES if (folder / name).is_file()), None)
    common: dict[str, Any] = {"dataset": defaults.dataset or folder.resolve().name}
    if defaults.labels is None and table is not None:
        common["labels"] = read_label_table(table)
    for image in _volumes(images):
        name = CHANNEL.sub("", image_name(image))
        if name not in names:
            raise InputError(f"prepare: {image.name} has no label map in {labels.name}")
        pair = {"image": f"{images.name}/{image.name}", "label": f"{labels.name}/{names[name].name}", "name": name}
        yield image.name, {**common, **pair}


def _volumes(folder: Path) -> list[Path]:
    suffixes = (*NIBABEL_SUFFIXES, *ITK_SUFFIXES)
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.lower().endswith(suffixes)]


def _list_rows(path: Path) -> Iterator[tuple[str, Any]]:
    text = _text(path)
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield f"{path.name}, line {number}", _parse(line, f"{path.name}, line {number}")
        return
    content = _parse(text, path.name)
    if not isinstance(content, Mapping):
        raise InputError(f"prepare: {path.name}: wanted an object with training, validation and labels")
    common = {key: content[key] for key in ("labels", "dataset", "modality", "instances") if key in content}
    for section in SECTIONS:
        for number, row in enumerate(content.get(section) or [], start=1):
            place = f"{path.name}, {section} {number}"
            yield place, {**common, "section": section, **row} if isinstance(row, Mapping) else row


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"prepare: {path.name} cannot be read as UTF-8 text ({e})") from e


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise InputError(f"prepare: {place}: not JSON ({e.msg}, column {e.colno})") from e


def _refuse_twins(cases: list[SourceCase]) -> None:
    seen: dict[str, SourceCase] = {}
    for case in cases:
        other = seen.setdefault(case.key.casefold(), case)
        if other is not case:
            raise InputError(
                f"prepare: {other.image} and {case.image} would both be stored as {case.key}: rename one, or use a "
                "list with a name for each"
            )
