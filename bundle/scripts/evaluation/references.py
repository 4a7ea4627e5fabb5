"""Find what is to be scored: the labelled cases, what their label values mean, and the prediction for each."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts.data.case_sources import SourceCase, SourceDefaults, find_cases
from scripts.data.case_targets import LabelName, TargetReader
from scripts.data.npz_reader import NPZ_SUFFIX
from scripts.data.prompt_sentences import PromptSentences, modality_of
from scripts.errors import InputError
from scripts.text.terminology import Terminology
from scripts.transforms.reading import ITK_SUFFIXES, NIBABEL_SUFFIXES, image_name

logger = logging.getLogger(__name__)
Values = tuple[int, ...]
VOLUMES = (*NIBABEL_SUFFIXES, *ITK_SUFFIXES)
ENDINGS = ("_seg", "_pred", "_segmentation", "_prediction", "_label", "_labels", "_mask", "_gt", "_0000")
"""What tools put after a case's name."""
INSTANCES_ENDING = "_instances"
UNKNOWN = "-"
"""Stands for a modality that nobody named."""


@dataclass(frozen=True)
class Reference:
    """One labelled case."""

    name: str
    truth: Path
    """Label map, or NPZ file with ``gts``."""
    image: Path | None = None
    """What a model segments; None where only label maps are compared."""
    dataset: str = ""
    modality: str = UNKNOWN
    structures: Mapping[str, Values] = field(default_factory=dict)
    """Name -> its values in the truth; empty: every value is a structure, named after itself."""
    instances: bool = False
    """Whether the label map numbers the objects of one class."""
    error: str | None = None
    """Why the case cannot be scored."""


@dataclass(frozen=True)
class ScorePair:
    """A labelled case and its prediction."""

    reference: Reference
    prediction: Path | None
    structures: Mapping[str, Values]
    """Name -> its values in the prediction; empty as in ``Reference``."""
    error: str | None = None
    """Why the pair cannot be scored."""


def read_references(
    truth: str | Path,
    names: Mapping[str, object] | None = None,
    modality: str | None = None,
    dataset: str | None = None,
    instances: bool | None = None,
    prompts_json: str | Path | None = None,
    section: str | None = None,
    skip_unknown: bool = False,
) -> list[Reference]:
    """The labelled cases of a folder or a list.

    Args:
        truth: a folder of label maps; or any source of ``prepare`` (see ``find_cases``): a JSON or JSONL list, a folder
            with images and labels, a folder of the challenge's NPZ files.
        names: table of label names (``{"1": "liver"}`` or ``{"Liver": 1}``) of cases that have none of their own.
        modality: of cases that do not say; needed with ``names``.
        dataset: likewise.
        instances: whether label maps number the objects of one class; None: as the source says.
        prompts_json: sentences of the challenge's datasets.
        section: only the cases of this section of a list.
        skip_unknown: leave out label names that the terminology lacks, instead of refusing them.

    Raises:
        InputError: no such source, nothing in it, or a table of names that cannot be understood. What is wrong with one
            case alone is kept in its ``error``.
    """
    reader = TargetReader(PromptSentences.load(prompts_json))
    folder = Path(truth).expanduser()
    maps = _volumes(folder) if folder.is_dir() else []
    if not maps:
        cases = find_cases(folder, reader, SourceDefaults(dataset, modality, names, skip_unknown))
        kept = [case for case in cases if section in (None, case.section)]
        if not kept:
            raise InputError(f"evaluate: {folder.name} has no case in section {section!r}")
        return _distinct([_reference(case, reader, instances) for case in kept])
    rows = None
    if names is not None:
        rows = reader.label_names(names, _modality(modality, dataset), "evaluate: label names", skip_unknown)
    made = [
        SourceCase(image_name(path), path, path, dataset or folder.resolve().name, "validation", modality, rows)
        for path in maps
    ]
    return _distinct([replace(_reference(case, reader, instances), image=None) for case in made])


def match_predictions(
    references: Sequence[Reference],
    folder: str | Path,
    names: Mapping[str, object] | str | None = None,
    skip_unknown: bool = True,
) -> list[ScorePair]:
    """The prediction of each case, by name: equal, or equal but for an ending such as ``_seg`` or ``_gt``.

    Args:
        references: the labelled cases.
        folder: of the predictions: label maps, or NPZ files with ``segs``.
        names: table of label names of the predictions; ``ids`` where their values are the terminology's ids, as this
            bundle writes them; None where they have the values of the truth. Structures that a table lacks are left
            out: that tool does not segment them.
        skip_unknown: leave out names that the terminology lacks.

    Raises:
        InputError: no such folder, or a table that cannot be understood. A case without a prediction, or with two, has
            an ``error``.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise InputError(f"evaluate: no folder of predictions {folder}")
    files = {path: image_name(path) for path in [*_volumes(place), *sorted(place.glob(f"*{NPZ_SUFFIX}"))]}
    tables = _Tables(names, skip_unknown)
    pairs = []
    for reference in references:
        found = _best(files, reference)
        error = reference.error
        if error is None and not found:
            error = f"no prediction for {reference.name} in {place.name}"
        elif error is None and len(found) > 1:
            error = f"several predictions for {reference.name}: {', '.join(path.name for path in found)}"
        structures = {} if error else tables.structures(reference)
        pairs.append(ScorePair(reference, found[0] if found and not error else None, structures, error))
    used = {pair.prediction for pair in pairs}
    ignored = sum(path not in used for path in files)
    if ignored:
        logger.info("evaluate: %d files in %s belong to no labelled case", ignored, place.name)
    return pairs


def jobs_of(references: Sequence[Reference]) -> list[dict[str, Any]]:
    """The cases as a batch run takes them, asked for every structure that the terminology has.

    Raises:
        InputError: cases without an image, of which nothing can be predicted.
    """
    bare = [reference.name for reference in references if reference.image is None]
    if bare:
        raise InputError(f"evaluate: no image for {', '.join(bare[:3])}: give a list or folder with images and labels")
    terminology = Terminology.load()
    known = {name: {target.name for target in terminology.targets(name)} for name in terminology.modalities}
    return [
        {
            "image": str(reference.image),
            "name": reference.name,
            "text": [name for name in reference.structures if name in known.get(reference.modality, ())],
            "modality": reference.modality,
        }
        for reference in references
        if reference.error is None
    ]


def _reference(case: SourceCase, reader: TargetReader, instances: bool | None) -> Reference:
    """A case with the meaning of its values; what cannot be understood becomes its error."""
    truth = case.image if case.label is None else case.label
    bare = Reference(case.name, truth, case.image, case.dataset, case.modality or UNKNOWN, instances=bool(instances))
    nameless = not case.labels and case.npz is None and case.dataset not in reader.prompts.datasets
    if nameless:
        return bare
    flag = case.instances if instances is None else instances
    try:
        targets = reader.describe(case.dataset, case.modality, case.labels, flag, case.npz)
    except ValueError as error:
        return replace(bare, error=str(error))
    structures: dict[str, Values] = {}
    for value, sentences in targets.sentences.items():
        others = [merged for merged, into in targets.merged.items() if into == value]
        name = targets.names[value] or sentences[0]
        structures[name] = (*structures.get(name, ()), value, *others)
    return replace(bare, modality=targets.modality, structures=structures, instances=targets.instances)


def _distinct(references: list[Reference]) -> list[Reference]:
    twins = [name for name, count in Counter(reference.name for reference in references).items() if count > 1]
    if twins:
        raise InputError(f"evaluate: several cases are called {', '.join(twins[:3])}: predictions are found by name")
    return references


class _Tables:
    """What the values of predictions mean; each modality's table is read once."""

    def __init__(self, names: Mapping[str, object] | str | None, skip_unknown: bool) -> None:
        if isinstance(names, str) and names != "ids":
            raise InputError(f"evaluate: names of the predictions are a table or 'ids', got {names!r}")
        self.names, self.skip_unknown = names, skip_unknown
        self.reader = None if names is None else TargetReader()
        self._rows: dict[str, tuple[LabelName, ...]] = {}

    def structures(self, reference: Reference) -> dict[str, Values]:
        """Name -> values in the prediction of this case, for the structures of the case."""
        if self.reader is None:
            return dict(reference.structures)
        if not reference.structures:
            raise InputError("evaluate: the truth needs a table of label names where the predictions have one")
        if reference.instances:  # an instance map numbers objects, whoever wrote it
            return dict(reference.structures)
        if self.names == "ids":
            ids = {name: _ids(self.reader.prompts.terminology, name, reference) for name in reference.structures}
            return {name: values for name, values in ids.items() if values}
        assert isinstance(self.names, Mapping)
        if reference.modality not in self._rows:
            self._rows[reference.modality] = self.reader.label_names(
                self.names, reference.modality, "evaluate: names of the predictions", self.skip_unknown
            )
        known = {row.name: row.values for row in self._rows[reference.modality]}
        return {name: known[name] for name in reference.structures if name in known}


def _ids(terminology: Terminology, name: str, reference: Reference) -> Values:
    """Ids of every kind of target of a name: a run that was asked for it by name chose one of them."""
    found = [target.id for target in terminology.targets(reference.modality) if target.name == name]
    return tuple(dict.fromkeys(found))


def _best(files: Mapping[Path, str], reference: Reference) -> list[Path]:
    """The files that fit a case's name best."""
    wanted = reference.name
    bare = _without_ending(wanted)
    rules = (
        lambda name: reference.instances and name == f"{bare}{INSTANCES_ENDING}",
        lambda name: name == wanted,
        lambda name: _without_ending(name) == wanted,
        lambda name: _without_ending(name) == bare,
    )
    for rule in rules:
        found = [path for path, name in files.items() if rule(name)]
        if found:
            return found
    return []


def _without_ending(name: str) -> str:
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
    return name[: -len(ending)] if ending and len(name) > len(ending) else name


def _modality(modality: str | None, dataset: str | None) -> str:
    known = modality or (modality_of(dataset) if dataset else None)
    if known is None:
        raise InputError("evaluate: label names mean something in a modality only; give it with --modality, such as CT")
    return known


def _volumes(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.lower().endswith(VOLUMES)]
