"""What the label values of a training case mean: sentences, terminology targets, modality, instances or classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.data.npz_reader import npz_prompts
from scripts.data.prompt_sentences import PromptSentences
from scripts.errors import InputError
from scripts.text.concepts import Target, normalise_sentence
from scripts.text.prompt_parser import PromptParser, UnknownPromptError

LARGEST_VALUE = 2**15 - 1
"""Largest label value of a class: training compares label maps as int16. Instances may be numbered to 65535."""

EXACT = ("name", "synonym")


@dataclass(frozen=True)
class LabelName:
    """One row of a label-name table."""

    name: str
    """Of the target, as the terminology has it."""
    values: tuple[int, ...]
    """In the label maps; where there are several, they become the first."""


@dataclass(frozen=True)
class CaseTargets:
    """What a case can be asked for."""

    modality: str
    instances: bool
    """True: every value but 0 is one object of class 1 (lesions); False: values are classes."""
    sentences: Mapping[int, tuple[str, ...]]
    """Label value -> sentences that ask for it, the canonical one first; values without one are dropped."""
    names: Mapping[int, str | None]
    """Label value -> the target's name in the terminology; None for a sentence that names none of its targets."""
    merged: Mapping[int, int]
    """Label value -> the value it is stored as, where that is another."""


class TargetReader:
    """Looks up what label values mean, in a table of names, a prompts JSON or an NPZ file itself.

    Args:
        prompts: sentences by dataset; one without a file takes all from the terminology.
    """

    def __init__(self, prompts: PromptSentences | None = None) -> None:
        self.prompts = prompts or PromptSentences.load()
        self.parser = PromptParser(self.prompts.terminology)

    def label_names(
        self, table: Mapping[str, object], modality: str, place: str, skip_unknown: bool = False
    ) -> tuple[LabelName, ...]:
        """Read a table name -> value, name -> [values] or value -> name.

        Names are the terminology's, or such that the parser understands ("kidney_right"). A row for value 0, the
        background, is left out.

        Args:
            table: as parsed from JSON.
            modality: of the images.
            place: where it comes from, for messages.
            skip_unknown: leave out the names that are no target instead of refusing them.

        Raises:
            InputError: no table of that form, names that are no target, or a value named twice.
        """
        rows = [_row(key, value, place) for key, value in table.items()]
        found = {name: self._target(name, modality) for name, values in rows if values != (0,)}
        unknown = [name for name, target in found.items() if target is None]
        if unknown and not skip_unknown:
            raise InputError(
                f"{place}: {len(unknown)} names are no {modality} target: {', '.join(unknown[:8])}; correct them, add "
                "them to the terminology, or leave them out with --skip-unknown"
            )
        known = ((target.name, values) for name, values in rows if (target := found.get(name)) is not None)
        names = tuple(LabelName(name, values) for name, values in known)
        values = [value for row in names for value in row.values]
        if not names or len(set(values)) < len(values) or len({row.name for row in names}) < len(names):
            raise InputError(
                f"{place}: wanted at least one target, and each target and value once, got "
                f"{', '.join(f'{row.name}: {list(row.values)}' for row in names)[:200] or 'none'}"
            )
        return names

    def describe(
        self,
        dataset: str,
        modality: str | None,
        labels: Sequence[LabelName] | None,
        instances: bool | None = None,
        npz: Path | None = None,
    ) -> CaseTargets:
        """What the label values of a case mean.

        Sentences come from the table of names and the prompts JSON, else from the prompts JSON alone, else from the
        sentences in the NPZ file.

        Args:
            dataset: the case's.
            modality: where the dataset's name does not tell it.
            labels: table of names, or None.
            instances: whether a label map numbers instances; None: as the prompts JSON or the NPZ file says, else not.
            npz: the file, if the case is one.

        Raises:
            ValueError: nothing is known of the values, no modality is, or an instance map has several classes.
        """
        own_modality = self.prompts.modality(dataset, modality)
        entry = self.prompts.datasets.get(dataset)
        flag = entry.instances if entry else False
        if labels:
            table = {row.values[0]: self._sentences(dataset, row, own_modality) for row in labels}
            names: dict[int, str | None] = {row.values[0]: row.name for row in labels}
        elif entry:
            table, names = self._from_sentences(entry.sentences, own_modality)
        elif npz is not None:
            texts, flag = npz_prompts(npz)
            table, names = self._from_sentences({value: (text,) for value, text in texts.items()}, own_modality)
        else:
            raise InputError(
                f"dataset {dataset!r}: give a table of label names, or a prompts JSON that has the dataset"
            )
        flag = flag if instances is None else instances
        if flag and set(table) != {1}:
            raise InputError(f"dataset {dataset!r}: an instance map has the one class 1, got values {sorted(table)}")
        if max(table) > LARGEST_VALUE:
            raise InputError(f"dataset {dataset!r}: label value {max(table)}; at most {LARGEST_VALUE} can name a class")
        merged = {value: row.values[0] for row in labels or () for value in row.values[1:]}
        return CaseTargets(own_modality, flag, table, names, {} if flag else merged)

    def _sentences(self, dataset: str, row: LabelName, modality: str) -> tuple[str, ...]:
        known = [text for value in row.values for text in self.prompts.sentences(dataset, value, row.name, modality)]
        return tuple(dict.fromkeys(known))

    def _from_sentences(
        self, given: Mapping[int, Sequence[str]], modality: str
    ) -> tuple[dict[int, tuple[str, ...]], dict[int, str | None]]:
        """Sentences with the canonical one before them, and names, where the first sentence names one target."""
        table, names = {}, {}
        for value, texts in given.items():
            target = self._target(texts[0], modality)
            canonical = [] if target is None else [target.sentence]
            table[value] = tuple(dict.fromkeys([*canonical, *(normalise_sentence(text) for text in texts)]))
            names[value] = None if target is None else target.name
        return table, names

    def _target(self, text: str, modality: str) -> Target | None:
        """The one target that a name or a sentence means, or None; a word that is only like a name means nothing."""
        try:
            return self.prompts.terminology.target(text, modality)
        except ValueError:
            pass
        try:
            found = self.parser.parse(text.replace("_", " "), modality)
        except UnknownPromptError:
            return None
        exact = len(found) == 1 and found[0].modality == modality and found[0].how in EXACT
        return found[0] if exact else None


def _row(key: object, value: object, place: str) -> tuple[str, tuple[int, ...]]:
    """Name and values of one row, whichever way round it is written."""
    turned = isinstance(key, str) and key.strip().isdecimal() and isinstance(value, str)
    name, given = (value, key) if turned else (key, value)
    values = given if isinstance(given, (list, tuple)) else [given]
    try:
        whole = tuple(int(str(item)) for item in values)
    except ValueError:
        whole = ()
    if not isinstance(name, str) or not whole or min(whole) < 0:
        raise InputError(f'{place}: wanted rows such as "Liver": 1 or "1": "Liver", got {key!r}: {value!r}')
    return name, whole
