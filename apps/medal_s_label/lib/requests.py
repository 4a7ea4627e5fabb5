"""What a viewer sends, as one typed question; which of several things wins is decided here.

A request names structures (what), marks voxels (where), or both. OHIF repeats keys of earlier requests after its
options were saved, until the page is loaded again; and Slicer sends every option. Hence the kind of the model decides
what a key can mean:

**What.** The first of these that is given; an empty text, an empty list and null are not given.

| model | first | then | then | else |
|---|---|---|---|---|
| `text` | `prompt` and `label_prompt` together | structures of an uploaded label | | all labels |
| `points` | `label_prompt` | `label` | `prompt` | all labels; with points an error |
| `edit` | the names that have points | `label` | `prompt` | all labels |
| `scribbles` | `selected_label_name` | `label` | `label_prompt` | an error |

**Where.** Anything else that a request brings is reported in the answer's `warnings` and changes nothing.

- `text`: OHIF's class panel sends the ticked classes in `label_prompt` and, since its options keep it, a text of long
  ago in `prompt`; its Auto panel may send both keys as well, then with stale classes. Nothing tells the two apart, so
  both count: a structure too many can be hidden, one that was asked for must not be missing.
- `text`: points never count, they can only be left over from another panel. An uploaded label is a prompt for the
  structures that its `label_info` names.
- `points`: `points` with `point_labels` (1 adds, 0 takes away; all 1 where absent) count where exactly one structure is
  asked for: OHIF's point panel always names one, its Auto panel all. A class request for one structure that repeats
  the points of another is recognised by the session, see `lib.sessions`.
- `edit`: `{name: [[i, j, k], ...]}` or `foreground` and `background`. A background click takes a voxel away from
  the structure that has it.
- `scribbles`: the uploaded label: `foreground_scribbles`, `background_scribbles`, and the segment of the structure
  as it is now. `roi` and other segments do not count.

Points are voxel indices i, j, k of the image as stored. Every request brings all points of a structure again; what is
new among them is the session's to find out. `edit` brings those of all structures: what is missing was taken back.

**Label values of the answer.** OHIF sends `restore_label_idx` false and wants the values that the model declares;
where the key is absent (Slicer, scripts) the structures found are numbered 1 to K, as Slicer maps value k to name k.
`label_names` of the answer says either way which value is what.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.configs import ModelConfig
from lib.configs.models import BACKGROUND
from scripts.errors import InputError
from scripts.request import as_flag, as_texts

Voxel = tuple[float, float, float]
EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
DTYPES = ("uint8", "uint16")
MAX_POINTS = 1000
"""Of one request: a person clicks some dozens."""


@dataclass(frozen=True)
class Click:
    """A point: a voxel that belongs to a structure, or does not.

    Attributes:
        voxel: i, j, k of the image as stored.
        target: name of the structure; None: whichever has the voxel.
        positive: it belongs to the structure.
    """

    voxel: Voxel
    target: str | None
    positive: bool


@dataclass(frozen=True)
class Upload:
    """A label map that came with a request.

    Attributes:
        path: its file.
        names: of its values, as the viewer calls them.
    """

    path: Path
    names: Mapping[int, str]


@dataclass(frozen=True)
class Form:
    """How the answer is to be written.

    Attributes:
        extension: of the file.
        dtype: of its voxels.
        compress: of NRRD; NIfTI's ending says it.
        declared: label values are the model's; else 1 to K.
    """

    extension: str = ".nii.gz"
    dtype: str = "uint8"
    compress: bool = True
    declared: bool = False


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        image: path of the image: a file or a DICOM folder.
        client: whose work on the image this is; "" where the viewer does not say.
        words: texts that name the structures.
        clicks: points, in the order given.
        complete: structures without clicks have none; else nothing is said about them.
        upload: label map, or None.
        scribbled: the upload is scribbles for the one structure asked for; else masks to start from.
        fresh: forget earlier corrections.
        form: of the answer.
        warnings: what was not taken into account.
    """

    image: str
    client: str
    words: tuple[str, ...]
    clicks: tuple[Click, ...] = ()
    complete: bool = True
    upload: Upload | None = None
    scribbled: bool = False
    fresh: bool = False
    form: Form = Form()
    warnings: tuple[str, ...] = ()


def read_question(model: ModelConfig, request: Mapping[str, Any]) -> Question:
    """Understand a request, see the module.

    Args:
        model: which is asked.
        request: MONAI Label's dictionary: the viewer's parameters, ``image`` and perhaps ``label`` as paths.

    Raises:
        InputError: values of the wrong kind, an unknown label value, or marks that belong to no structure.
    """
    reader = _Reader(model, request)
    return {"text": reader.text, "points": reader.points, "edit": reader.edit, "scribbles": reader.scribbles}[
        model.kind
    ]()


class _Reader:
    """One request to one model."""

    def __init__(self, model: ModelConfig, request: Mapping[str, Any]) -> None:
        self.model, self.request = model, request
        self.warnings: list[str] = []

    def text(self) -> Question:
        """Words and classes, else what an upload holds, else everything."""
        self._pass_over("points", "foreground", "background")
        upload = self._upload()
        held = () if upload is None else tuple(name for name in upload.names.values() if name != BACKGROUND)
        words = tuple(dict.fromkeys([*self._prompt(), *self._classes()]))
        return self._question(words or held or tuple(self.model.labels), upload=upload)

    def points(self) -> Question:
        """One structure and points, or classes."""
        words = self._classes() or self._named("label") or self._prompt()
        clicks: tuple[Click, ...] = ()
        if len(words) == 1:
            clicks = self._labelled_points(words[0])
        elif not words and self.request.get("points") and self.request.get("label_prompt"):
            # OHIF's row "background" is no structure of the model: it sends [null] with its points.
            raise InputError(
                f"{self.model.name}: the points belong to no structure; choose the structure's name in the list "
                "before running, points of the background are sent along"
            )
        elif not words and self.request.get("points"):
            raise InputError(f"{self.model.name}: points came without a structure: name one in label_prompt")
        else:
            self._pass_over("points")
        return self._question(words or tuple(self.model.labels), clicks, complete=not clicks)

    def edit(self) -> Question:
        """Points by name of the structure."""
        names = {name.lower(): name for name in self.model.labels}
        current = self._named("label")
        clicks = []
        for key, value in self.request.items():
            name = names.get(str(key).lower())
            if name is not None:
                clicks += [Click(voxel, name, True) for voxel in _voxels(key, value)]
        if self.request.get("foreground") and not current:
            raise InputError(f"{self.model.name}: foreground points came without a structure: name it in label")
        clicks += [Click(voxel, current[0], True) for voxel in _voxels("foreground", self.request.get("foreground"))]
        asked = tuple(dict.fromkeys(click.target for click in clicks if click.target))
        only = current[0] if current and "foreground" in self.request else None
        clicks += [Click(voxel, only, False) for voxel in _voxels(BACKGROUND, self.request.get(BACKGROUND))]
        words = asked or current or self._prompt() or tuple(self.model.labels)
        if current and current[0] not in words:
            words = (*words, current[0])
        return self._question(words, tuple(clicks), fresh=_flag(self.request, "reset_state"))

    def scribbles(self) -> Question:
        """A structure, and scribbles in an uploaded label map."""
        words = self._named("selected_label_name") or self._named("label") or self._classes()
        if len(words) != 1:
            raise InputError(f"{self.model.name}: wanted one structure in selected_label_name, got {len(words)}")
        upload = self._upload()
        if upload is None:
            raise InputError(f"{self.model.name}: wanted a label map with scribbles as the file label and label_info")
        return self._question(words, upload=upload, scribbled=True, complete=False)

    def _question(
        self,
        words: tuple[str, ...],
        clicks: tuple[Click, ...] = (),
        complete: bool = True,
        upload: Upload | None = None,
        scribbled: bool = False,
        fresh: bool = False,
    ) -> Question:
        if len(clicks) > MAX_POINTS:
            raise InputError(f"{len(clicks)} points came in one request, at most {MAX_POINTS} are taken")
        image = self.request.get("image")
        if not isinstance(image, str) or not image:
            raise InputError(f"image must be the id of an image, got {type(image).__name__}")
        client = str(self.request.get("client_id") or "")
        form = _form(self.request)
        return Question(image, client, words, clicks, complete, upload, scribbled, fresh, form, tuple(self.warnings))

    def _prompt(self) -> tuple[str, ...]:
        """Free text; () where empty."""
        given = self.request.get("prompt")
        items = [given] if isinstance(given, str) else given
        if not items or (isinstance(items, (list, tuple)) and not any(str(item).strip() for item in items)):
            return ()
        return as_texts(given)

    def _classes(self) -> tuple[str, ...]:
        """Names of the structures in ``label_prompt``, which holds label values, as numbers or text, or names."""
        given = self.request.get("label_prompt")
        items = [given] if isinstance(given, (str, int)) else given
        if items is None:
            return ()
        if not isinstance(items, (list, tuple)):
            raise InputError(f"label_prompt is a list of label values or names, got {type(given).__name__}")
        names = []
        for item in items:
            if item is None or (isinstance(item, str) and not item.strip()):
                continue
            if isinstance(item, bool) or not isinstance(item, (int, str)):
                raise InputError(f"label_prompt holds label values or names, got {item!r}")
            if isinstance(item, int) or item.strip().isdigit():
                names.append(self.model.name_of(int(item)))
            else:
                names.append(item.strip())
        return tuple(dict.fromkeys(names))

    def _named(self, key: str) -> tuple[str, ...]:
        """The structure that a key names; () where it names none. A label file's path in ``label`` is none."""
        value = self.request.get(key)
        if not isinstance(value, str) or not value.strip() or self._is_file(key, value):
            return ()
        name = value.strip()
        if name.lower() == BACKGROUND:
            return ()
        own = {known.lower(): known for known in self.model.labels}
        return (own.get(name.lower(), name),)

    def _is_file(self, key: str, value: str) -> bool:
        return key == "label" and value.lower().endswith(EXTENSIONS) and Path(value).is_file()

    def _labelled_points(self, target: str) -> tuple[Click, ...]:
        voxels = _voxels("points", self.request.get("points"))
        given = self.request.get("point_labels")
        values = [1] * len(voxels) if given is None else given
        if not isinstance(values, (list, tuple)) or len(values) != len(voxels):
            count = len(values) if isinstance(values, (list, tuple)) else type(values).__name__
            raise InputError(f"point_labels gives each point 1 or 0: {len(voxels)} points came with {count} labels")
        if any(value not in (0, 1) for value in values):
            raise InputError("point_labels gives each point 1 (belongs to the structure) or 0 (does not)")
        return tuple(Click(voxel, target, value == 1) for voxel, value in zip(voxels, values, strict=True))

    def _upload(self) -> Upload | None:
        path = self.request.get("label")
        if not isinstance(path, str) or not self._is_file("label", path):
            return None
        return Upload(Path(path), _value_names(self.request.get("label_info")))

    def _pass_over(self, *keys: str) -> None:
        """Say that keys do not count."""
        self.warnings += [
            f"{key} did not count: {self.model.kind} models take none here" for key in keys if self.request.get(key)
        ]


def _value_names(info: object) -> dict[int, str]:
    """Value -> name of an uploaded label map, from ``label_info``: ``[{"name": ..., "id" or "idx": ...}, ...]``."""
    if not isinstance(info, (list, tuple)) or not info:
        raise InputError("a label map came without label_info: wanted a list such as [{'name': ..., 'idx': 1}, ...]")
    names = {}
    for place, item in enumerate(info, start=1):
        value = item.get("id", item.get("idx", place)) if isinstance(item, Mapping) else None
        name = item.get("name") if isinstance(item, Mapping) else None
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"label_info: entry {place} has no name, or an idx that is no whole number")
        names[value] = name
    return names


def _voxels(key: str, given: object) -> list[Voxel]:
    """Points ``[[i, j, k], ...]``, or one alone, as OHIF and Slicer send them."""
    if given is None or given == "":
        return []
    items: Sequence[Any] = given if isinstance(given, (list, tuple)) else [given]
    if len(items) == 3 and all(isinstance(item, (int, float)) for item in items):
        items = [items]
    voxels = []
    for item in items:
        numbers = item if isinstance(item, (list, tuple)) else ()
        if len(numbers) != 3 or not all(
            isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers
        ):
            raise InputError(f"{key}: a point is three voxel indices [i, j, k], got {item!r}")
        voxels.append((float(numbers[0]), float(numbers[1]), float(numbers[2])))
    return voxels


def _form(request: Mapping[str, Any]) -> Form:
    extension = request.get("result_extension") or Form.extension
    if extension not in EXTENSIONS:
        raise InputError(f"result_extension is one of {', '.join(EXTENSIONS)}, got {str(extension)[:20]!r}")
    dtype = request.get("result_dtype") or Form.dtype
    if dtype not in DTYPES:
        raise InputError(f"result_dtype is one of {', '.join(DTYPES)}, got {str(dtype)[:20]!r}")
    compress = True if request.get("result_compress") is None else as_flag(request["result_compress"])
    declared = "restore_label_idx" in request and not _flag(request, "restore_label_idx")
    return Form(extension, dtype, compress, declared)


def _flag(request: Mapping[str, Any], key: str) -> bool:
    return False if request.get(key) in (None, "") else as_flag(request[key])
