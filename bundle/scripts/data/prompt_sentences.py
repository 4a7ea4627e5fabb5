"""Sentences that training asks with: from the challenge's prompts JSON, else the terminology's names and synonyms.

The file, which comes with the challenge's data set, has the form::

    {"CT_Abdomen1K": {"1": ["Liver in abdominal CT", ...], "2": [...], "instance_label": 0}, ...}

A dataset's name begins with its modality (``CT_``, ``MR_``, ``US_``, ``Microscopy_``, ``autoPET``); the numbers are
values of its label maps; ``instance_label`` is 1 where a label map numbers instances of one class. An embedding bank
that is to hold the file's sentences is built from the terminology's and ``PromptSentences.all_sentences()``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.text.concepts import Target, normalise_sentence
from scripts.text.terminology import Terminology

INSTANCE_KEY = "instance_label"
# How the challenge's datasets name their modality, before the first "_" or "-" and whatever the case.
MODALITY_PREFIXES = {
    "ct": "CT",
    "mr": "MRI",
    "mri": "MRI",
    "us": "US",
    "pet": "PET",
    "autopet": "PET",
    "microscopy": "Microscopy",
}


@dataclass(frozen=True)
class DatasetSentences:
    """What the file says of one dataset."""

    modality: str
    """Name as in the terminology, such as ``MRI``."""
    instances: bool
    """Whether a label map numbers instances of one class (lesions) instead of naming classes."""
    sentences: Mapping[int, tuple[str, ...]]
    """Label value -> sentences, normalised and without repeats."""


class PromptSentences:
    """Sentences by dataset and label value; make one with :meth:`load`.

    Args:
        datasets: name -> its sentences; empty where there is no file.
        terminology: names and synonyms for what the file does not hold; the bundle's own when None.
    """

    def __init__(self, datasets: Mapping[str, DatasetSentences], terminology: Terminology | None = None) -> None:
        self.datasets = dict(datasets)
        self.terminology = terminology or Terminology.load()

    @classmethod
    def load(cls, path: str | Path | None = None, terminology: Terminology | None = None) -> PromptSentences:
        """Read and check a prompts JSON.

        Args:
            path: the file; None for none, so that every sentence comes from the terminology.
            terminology: see the class.

        Raises:
            ValueError: the file is missing, is not JSON or is not of the form above (where, and what was found).
        """
        if path is None:
            return cls({}, terminology)
        file = Path(path)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"prompt sentences: cannot read {file} ({error.strerror}); give prompts_json") from error
        except ValueError as error:  # not JSON, or not UTF-8
            raise ValueError(f"prompt sentences: {file.name} is not JSON: {error}") from error
        if not isinstance(content, dict) or not content:
            raise ValueError(
                f"prompt sentences: {file.name} has to hold an object dataset -> label -> sentences, "
                f"got {type(content).__name__} of length {len(content) if hasattr(content, '__len__') else 0}"
            )
        return cls({name: _read_dataset(name, entry) for name, entry in content.items()}, terminology)

    def all_sentences(self) -> list[str]:
        """Every sentence of the file in its order, normalised, without repeats; empty without a file."""
        found = (
            sentence
            for dataset in self.datasets.values()
            for sentences in dataset.sentences.values()
            for sentence in sentences
        )
        return list(dict.fromkeys(found))

    def modality(self, dataset: str | None, default: str | None = None) -> str:
        """Modality of a dataset by the beginning of its name; ``default`` where there is no dataset or no such name.

        Raises:
            ValueError: the name tells no modality and there is no default.
        """
        found = modality_of(dataset) if dataset is not None else None
        if found is None and default is None:
            raise ValueError(_no_modality(dataset))
        return found or self.terminology.modality(str(default)).name

    def known(self, dataset: str | None, values: Iterable[int]) -> list[str]:
        """The file's sentences of any of the label values; empty where it does not have the dataset or the values."""
        entry = self.datasets.get(dataset) if dataset is not None else None
        found = (sentence for value in values for sentence in (entry.sentences.get(value, ()) if entry else ()))
        return list(dict.fromkeys(found))

    def sentences(
        self, dataset: str | None, value: int, name: str | None = None, modality: str | None = None
    ) -> list[str]:
        """Sentences that ask for one label value of a dataset.

        Args:
            dataset: name in the file; None for data of no known dataset.
            value: value in the dataset's label maps.
            name: the target's name in the terminology. With it, the canonical name comes first, since inference asks
                by it; without it, the file has to know the dataset and the value.
            modality: where the dataset's name tells none.

        Returns:
            At least one sentence, normalised, without repeats: the file's, else the names and synonyms.

        Raises:
            ValueError: neither the file nor the terminology knows what this value is.
        """
        own = self.known(dataset, [value])
        if name is None:
            if own:
                return own
            raise ValueError(
                f"prompt sentences: no sentence for label {value} of dataset {dataset!r}; give the label a name of the "
                "terminology in the case list, or name it in the prompts JSON"
            )
        target = self._target(name, self.modality(dataset, modality), dataset)
        return list(dict.fromkeys([target.sentence, *own])) if own else self.terminology.sentences(target)

    def table(
        self, dataset: str | None, labels: Mapping[str, int] | None = None, modality: str | None = None
    ) -> dict[int, list[str]]:
        """Sentences of every label value of a dataset.

        Args:
            dataset: see ``sentences``.
            labels: target name -> label value; None takes the values that the file names.
            modality: see ``sentences``.

        Raises:
            ValueError: see ``sentences``; also without ``labels`` where the file does not know the dataset.
        """
        if labels:
            return {int(value): self.sentences(dataset, int(value), name, modality) for name, value in labels.items()}
        if dataset not in self.datasets:
            raise ValueError(
                f"prompt sentences: nothing is known of dataset {dataset!r}; give its labels by name in the case list, "
                f"or a prompts JSON that has it (this one has {len(self.datasets)} datasets)"
            )
        return {value: list(sentences) for value, sentences in self.datasets[dataset].sentences.items()}

    def draw(
        self,
        dataset: str | None,
        value: int,
        generator: np.random.Generator,
        name: str | None = None,
        modality: str | None = None,
    ) -> str:
        """One of ``sentences(dataset, value, name, modality)``, each as likely, by ``generator`` alone."""
        sentences = self.sentences(dataset, value, name, modality)
        return sentences[int(generator.integers(len(sentences)))]

    def _target(self, name: str, modality: str, dataset: str | None) -> Target:
        """The target of a name; where it exists as anatomy and as lesion, the dataset's kind of label map decides."""
        if dataset in self.datasets:
            kind = "lesion" if self.datasets[dataset].instances else "anatomy"
            for target in self.terminology.targets(modality, kind):
                if target.sentence == normalise_sentence(name):
                    return target
        return self.terminology.target(name, modality)


def modality_of(dataset: str) -> str | None:
    """Modality that a dataset's name begins with, such as MRI for ``MR_AMOS``; None where it tells none."""
    return MODALITY_PREFIXES.get(re.split(r"[_-]", dataset, maxsplit=1)[0].lower())


def _no_modality(dataset: str | None) -> str:
    return (
        f"prompt sentences: the name of dataset {dataset!r} tells no modality; it has to begin with one of "
        "CT_, MR_, US_, PET_, Microscopy_ or autoPET"
    )


def _read_dataset(name: str, entry: Any) -> DatasetSentences:
    place = f"prompt sentences: dataset {name!r}"
    modality = modality_of(name)
    if modality is None:
        raise ValueError(_no_modality(name))
    if not isinstance(entry, dict):
        raise ValueError(f"{place} has to hold an object label -> sentences, got {type(entry).__name__}")
    flag = entry.get(INSTANCE_KEY)
    if isinstance(flag, bool) or flag not in (0, 1):
        raise ValueError(f"{place}: {INSTANCE_KEY!r} has to be 0 or 1, got {flag!r}")
    labels = {key: texts for key, texts in entry.items() if key != INSTANCE_KEY}
    if not labels:
        raise ValueError(f'{place} names no label; wanted entries such as "1": [sentence, ...]')
    for key, texts in labels.items():
        if not re.fullmatch(r"[1-9][0-9]*", key):
            raise ValueError(f"{place}: labels are whole numbers from 1 on, got {key!r}")
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise ValueError(f"{place}, label {key}: wanted a list of at least one sentence, got {str(texts)[:60]!r}")
    sentences = {
        int(key): tuple(dict.fromkeys(normalise_sentence(text) for text in texts)) for key, texts in labels.items()
    }
    return DatasetSentences(modality, flag == 1, sentences)
