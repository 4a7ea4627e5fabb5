"""Read what a batch is to do: the images of a folder, or a list of cases with prompts for each.

A case is a dictionary with ``image`` and ``name`` (of its results), and ``text``, ``modality``, ``prompt_mask`` and
``prompt_mask_names`` where given: the entries that the inference config reads.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.data.dicom import ZIP_SUFFIX, is_dicom_source
from scripts.data.npz_reader import NPZ_SUFFIX
from scripts.errors import InputError
from scripts.transforms.reading import ITK_SUFFIXES, NIBABEL_SUFFIXES, image_name

logger = logging.getLogger(__name__)
Case = dict[str, Any]
COLUMNS = ("image", "prompts", "modality", "prompt_mask", "prompt_mask_names", "name")
LIST_SUFFIXES = (".csv", ".json", ".jsonl")
IMAGE_SUFFIXES = (*NIBABEL_SUFFIXES, *ITK_SUFFIXES, NPZ_SUFFIX, ZIP_SUFFIX)
DICOM_INDEX = "DICOMDIR"
SEPARATOR = ";"  # of several prompts or masks in one field of a CSV list


def read_jobs(
    source: str | Path,
    prompts: str | Sequence[str] | None = None,
    modality: str | None = None,
    output_dir: str | Path | None = None,
) -> list[Case]:
    """The cases of a folder or a list, each with a name of its own.

    A folder is searched with its sub-folders: every image is a case, and so is every folder that holds DICOM slices.
    Results are named after the image; where that is not unique, after its folders too.

    A list is a CSV file with a heading, a JSON array of objects (or ``{"cases": [...]}``), or JSON lines. Its columns
    are ``image`` and, as far as needed, ``prompts``, ``modality``, ``prompt_mask``, ``prompt_mask_names`` and ``name``
    (of the results). Several prompts or masks are a JSON array, or separated by ";" in CSV. Paths are relative to the
    list's own folder.

    Args:
        source: a folder or a list.
        prompts: what to segment where a case does not say.
        modality: of the study where a case does not say.
        output_dir: folder of the results: not searched, and not allowed to be the images' own.

    Raises:
        InputError: no such folder or list, nothing in it, a line that cannot be understood (which), a case without
            prompts (unless it is an NPZ file, which may hold its own), or two cases of one name.
    """
    if not isinstance(source, (str, Path)) or not str(source).strip():
        raise InputError(f"jobs: wanted a folder of images or a job list ({', '.join(LIST_SUFFIXES)}), got {source!r}")
    path = Path(source).expanduser()
    if path.is_dir():
        cases = _from_folder(path, None if output_dir is None else Path(output_dir).expanduser().resolve())
    elif not path.exists():
        raise InputError(f"jobs: no such folder or list: {source}")
    elif path.suffix.lower() in LIST_SUFFIXES:
        cases = _from_list(path)
    else:
        raise InputError(f"jobs: {path.name} is neither a folder nor a list ({', '.join(LIST_SUFFIXES)})")
    common = {key: value for key, value in (("text", prompts), ("modality", modality)) if value is not None}
    cases = [{**common, **case} for case in cases]
    silent = [case for case in cases if "text" not in case and not case["image"].lower().endswith(NPZ_SUFFIX)]
    if silent:
        raise InputError(f"jobs: no prompts for {Path(silent[0]['image']).name}: give some to the case, or to all")
    return cases


def holds_dicom(folder: Path) -> bool:
    """Whether a folder itself, not a sub-folder, holds DICOM files."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name.upper() != DICOM_INDEX)
    return any(is_dicom_source(path) for path in files if path.suffix.lower() != ZIP_SUFFIX)


def _from_folder(folder: Path, output: Path | None) -> list[Case]:
    if output == folder.resolve():
        raise InputError(f"jobs: the results would lie among the images in {folder}: choose another output_dir")
    images = list(_images(folder, output))
    if not images:
        raise InputError(f"jobs: no image in {folder}; known: {' '.join(IMAGE_SUFFIXES)} and folders of DICOM slices")
    names = {path: image_name(path) for path in images}
    counts = Counter(name.casefold() for name in names.values())
    for path, name in names.items():
        if counts[name.casefold()] > 1:
            names[path] = "_".join((*path.relative_to(folder).parent.parts, name))
    _refuse_twins([(path.relative_to(folder).as_posix(), name) for path, name in names.items()])
    return [{"image": str(path), "name": name} for path, name in names.items()]


def _images(folder: Path, output: Path | None) -> Iterator[Path]:
    """Images of a folder and below it, in order of name; hidden ones and the folder of the results are left out."""
    if holds_dicom(folder):
        yield folder
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.resolve() != output:
                yield from _images(path, output)
        elif path.name.lower().endswith(IMAGE_SUFFIXES):
            yield path


def _from_list(path: Path) -> list[Case]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"jobs: {path.name} cannot be read as UTF-8 text ({e})") from e
    read = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _json_lines}[path.suffix.lower()]
    places, cases = [], []
    for place, row in read(text, path.name):
        places.append(place)
        cases.append(_case(row, path.parent, f"jobs: {path.name}, {place}"))
    if not cases:
        raise InputError(f"jobs: no case in {path.name}")
    _refuse_twins([(place, case["name"]) for place, case in zip(places, cases, strict=True)])
    return cases


def _csv_rows(text: str, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(text.splitlines(keepends=True), skipinitialspace=True, strict=True)
    reader.fieldnames = [field.strip().lower() for field in reader.fieldnames or ()]
    if "image" not in reader.fieldnames:
        raise InputError(f"jobs: {name}, line 1: wanted a heading with image and any of {', '.join(COLUMNS[1:])}")
    while True:
        try:
            row = next(reader, None)
        except csv.Error as e:
            raise InputError(f"jobs: {name}, line {reader.line_num}: not CSV ({e})") from e
        if row is None:
            return
        place = f"line {reader.line_num}"
        if None in row:
            raise InputError(f"jobs: {name}, {place}: more fields than columns: put quotes around a text with commas")
        filled: dict[str, Any] = {key: value.strip() for key, value in row.items() if value and value.strip()}
        for key in ("prompts", "prompt_mask"):
            if SEPARATOR in filled.get(key, ""):
                filled[key] = [part.strip() for part in filled[key].split(SEPARATOR) if part.strip()]
        yield place, filled


def _json_rows(text: str, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    content = _parse_json(text, f"jobs: {name}")
    rows = content.get("cases") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise InputError(f"jobs: {name}: wanted an array of objects, or such an array under the key cases")
    for number, row in enumerate(rows, start=1):
        yield f"entry {number}", row


def _json_lines(text: str, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"line {number}", _parse_json(line, f"jobs: {name}, line {number}", shows_line=False)


def _parse_json(text: str, place: str, shows_line: bool = True) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        where = f"line {e.lineno}, " if shows_line else ""
        raise InputError(f"{place}: not JSON ({e.msg}, {where}column {e.colno})") from e


def _case(row: Any, folder: Path, place: str) -> Case:
    """One entry of a list as a case; ``place`` begins what is said about it."""
    if not isinstance(row, Mapping):
        raise InputError(f"{place}: wanted an object with image and prompts, got {str(row)[:60]!r}")
    given = {key: value for key, value in row.items() if value is not None}
    unknown = sorted(set(given) - set(COLUMNS))
    if unknown:
        raise InputError(f"{place}: unknown {', '.join(unknown)}; known: {', '.join(COLUMNS)}")
    for key in ("image", "modality", "name"):
        if not isinstance(given.get(key, ""), str):
            raise InputError(f"{place}: {key} must be a text, got {given[key]!r}")
    for key in ("prompts", "prompt_mask"):
        if not _is_text_or_texts(given.get(key, "")):
            raise InputError(f"{place}: {key} must be a text or an array of texts, got {given[key]!r}")
    if not given.get("image", "").strip():
        raise InputError(f"{place}: no image")
    case: Case = {"image": _resolved(given["image"], folder)}
    case["name"] = _checked_name(given["name"], place) if given.get("name") else image_name(case["image"])
    if given.get("prompts"):
        case["text"] = given["prompts"]
    if given.get("modality"):
        case["modality"] = given["modality"]
    if given.get("prompt_mask"):
        case["prompt_mask"] = _resolved(given["prompt_mask"], folder)
    names = given.get("prompt_mask_names")
    if names:
        case["prompt_mask_names"] = _resolved(names, folder) if isinstance(names, str) else names
    return case


def _is_text_or_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _resolved(path: Any, folder: Path) -> Any:
    """A path, or a list of them, relative to ``folder``."""
    if isinstance(path, list):
        return [_resolved(item, folder) for item in path]
    return str(folder / Path(path).expanduser())


def _checked_name(name: str, place: str) -> str:
    if not re.fullmatch(r"[\w+-][\w.+ -]*", name):
        raise InputError(f"{place}: the name {name!r} must be made of letters, digits and . _ + - to name files")
    return name


def _refuse_twins(named: Sequence[tuple[str, str]]) -> None:
    """Refuse two cases whose results would overwrite each other; each is given as (where it stands, its name)."""
    seen: dict[str, str] = {}
    for place, name in named:
        other = seen.setdefault(name.casefold(), place)
        if other is not place:
            raise InputError(
                f"jobs: the results of {other} and {place} would both be named {name!r}: rename one, or use a list "
                "with a name for each"
            )
