"""Case lists and the seeded dataset: every sample of a run is a function of the run's seed and its number."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Compose, CropForeground, LoadImage, Orientation
from torch.utils.data import Dataset, Sampler

from scripts.data.prompt_sentences import PromptSentences
from scripts.text.terminology import Terminology

logger = logging.getLogger(__name__)


class SeededDataset(Dataset):
    """``length`` random samples of a list of cases; sample ``i`` is the same in every run, process and order.

    A run that is resumed at step k therefore goes on with exactly the samples it would have had.

    Args:
        data: cases, each a dict; drawn evenly.
        transform: a MONAI transform; seeded anew for every sample if it is random.
        length: samples in the whole run.
        seed: seed of the run.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable[[Any], Any], length: int, seed: int = 0
    ) -> None:
        if not data:
            raise ValueError("the list of cases is empty: check the data folder and the case list in the config")
        self.data, self.transform, self.length, self.seed = list(data), transform, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        """Sample ``index``; adds ``progress`` (0 to 1), the share of the run that lies behind it."""
        rng = self._generator(index)
        case = dict(self.data[self.draw_case(rng)])
        case["progress"] = index / max(self.length - 1, 1)
        if hasattr(self.transform, "set_random_state"):
            self.transform.set_random_state(seed=int(rng.integers(2**31)))
        return self.transform(case)

    def draw_case(self, rng: np.random.Generator) -> int:
        """Number of a case; all are as likely."""
        return int(rng.integers(len(self.data)))

    def case_of(self, index: int) -> tuple[int, Mapping[str, Any]]:
        """Number and entry of the case that sample ``index`` is cut from; nothing is read."""
        number = self.draw_case(self._generator(index))
        return number, self.data[number]

    def _generator(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, index])


class ResumableSampler(Sampler[int]):
    """This process's samples in order from ``start`` on; a resumed run sets ``start`` to what all have seen.

    Every process takes its part of every step's samples, so that a step is made of the same samples, however many
    processes share them.

    Args:
        length: samples in the whole run, of all processes.
        start: first sample; a multiple of ``step_size``.
        step_size: samples of one optimiser step, of all processes; a multiple of ``world_size``.
        rank: number of this process, from 0.
        world_size: number of processes.
    """

    def __init__(self, length: int, start: int = 0, step_size: int = 1, rank: int = 0, world_size: int = 1) -> None:
        if step_size % world_size or length % step_size or not 0 <= rank < world_size:
            raise ValueError(
                f"training: {length} samples in steps of {step_size} for process {rank} of {world_size} arrived; whole "
                "steps are wanted, and every process the same number of each"
            )
        self.length, self.start, self.step_size = length, start, step_size
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return max(self.length - self.start, 0) // self.world_size

    def __iter__(self) -> Iterator[int]:
        share = self.step_size // self.world_size
        for first in range(self.start + self.rank * share, self.length, self.step_size):
            yield from range(first, first + share)


def sentence_table(
    names: Sequence[str] | Mapping[str, Sequence[int]],
    modality: str,
    terminology: Terminology | None = None,
    prompts: PromptSentences | None = None,
    dataset: str | None = None,
) -> dict[int, list[str]]:
    """For each named target its label id and the sentences that ask for it, the canonical one first.

    Args:
        names: of the targets; with ``prompts`` a table name -> values in the dataset's label maps.
        modality: of the images.
        terminology: the bundle's own when None.
        prompts: sentences of a prompts JSON; None takes the terminology's names and synonyms.
        dataset: name of the label maps' dataset in that file.

    Raises:
        ValueError: if the terminology has no such target for the modality.
    """
    terms = terminology or Terminology.load()
    table: dict[int, list[str]] = {}
    for name in names:
        target = terms.target(name, modality)
        values = names[name] if isinstance(names, Mapping) else ()
        known = prompts.known(dataset, values) if prompts is not None else []
        table[target.id] = list(dict.fromkeys([target.sentence, *known])) if known else terms.sentences(target)
    return table


def target_values(
    label_values: Mapping[str, Sequence[int]], modality: str, terminology: Terminology | None = None
) -> dict[int, int]:
    """From a table target name -> values in a label map to a table value -> target id."""
    terms = terminology or Terminology.load()
    return {int(value): terms.target(name, modality).id for name, values in label_values.items() for value in values}


def label_map_cases(
    folder: str | Path,
    pattern: str,
    sentences: Mapping[int, Sequence[str]],
    only: Sequence[str] | None = None,
    leave_out: Sequence[str] = (),
    modality: str | None = None,
) -> list[dict[str, Any]]:
    """Cases of a folder that holds label maps alone, read into memory once: every sample cuts a patch out of one.

    Args:
        folder: folder of the label maps.
        pattern: file pattern, such as ``brain_*.nii.gz``.
        sentences: label id -> sentences, the same for every case.
        only: file names without suffixes to take (validation); None takes all.
        leave_out: file names without suffixes to leave out (training).
        modality: of the images made from them, for text encoders whose vectors depend on it.

    Returns:
        For each case ``label``, an int16 tensor ``[1, X, Y, Z]`` in RAS orientation cut to its non-zero box,
        ``sentences`` and, where given, ``modality``.

    Raises:
        ValueError: if nothing is found, or a file of ``only`` is missing.
    """
    files = {file.name.split(".")[0]: file for file in sorted(Path(folder).glob(pattern))}
    missing = set(only or ()) - files.keys()
    chosen = [file for name, file in files.items() if name not in leave_out and (only is None or name in only)]
    if missing or not chosen:
        raise ValueError(
            f"'{folder}' holds {len(files)} files like '{pattern}', lacks {sorted(missing) or 'any to use'}: "
            "set data_dir to the folder of the label maps"
        )
    read = Compose(
        [LoadImage(ensure_channel_first=True, dtype=np.int16), Orientation("RAS", labels=None), CropForeground()]
    )
    facts = {"sentences": dict(sentences)} | ({} if modality is None else {"modality": modality})
    return [{"label": read(file).as_tensor().contiguous(), **facts} for file in chosen]


def image_label_cases(
    case_list: str | Path,
    modality: str,
    section: str = "training",
    prompts: PromptSentences | None = None,
    dataset: str | None = None,
) -> list[dict[str, Any]]:
    """Cases of a JSON list of image and label pairs (NIfTI or whatever ``LoadImaged`` reads).

    The file has the form ``{"labels": {"Liver": 1, ...}, "training": [{"image": ..., "label": ...}, ...],
    "validation": [...]}``; paths are relative to the file, names are the terminology's. A ``dataset``, in the file or
    in a case, names the dataset in the prompts JSON; where that knows it, ``labels`` may be left out.

    Args:
        case_list: the file.
        modality: of images whose dataset does not tell it by its name.
        section: ``training`` or ``validation``.
        prompts: sentences of a prompts JSON; None takes the terminology's names and synonyms.
        dataset: name of the dataset where neither file nor case has one.

    Returns:
        For each case ``image`` and ``label`` (paths), ``modality`` (a name) and ``sentences`` (label value ->
        sentences, the canonical one first).

    Raises:
        ValueError: if the file or the section is missing, or a name is unknown.
    """
    path = Path(case_list)
    if not path.is_file():
        raise ValueError(f"no case list '{case_list}': it is a JSON file with 'labels', 'training' and 'validation'")
    content = json.loads(path.read_text())
    prompts = prompts or PromptSentences.load()
    cases = content.get(section) or []
    sources = [case.get("dataset") or content.get("dataset") or dataset for case in cases]
    labels = content.get("labels")
    if not cases or not (labels or prompts.datasets.keys() >= set(sources)):
        raise ValueError(f"case list '{case_list}' needs a non-empty '{section}' and 'labels', it has {list(content)}")
    tables = {source: prompts.table(source, labels, modality) for source in set(sources)}
    return [
        {key: str(path.parent / case[key]) for key in ("image", "label")}
        | {"modality": prompts.modality(source, modality), "sentences": tables[source]}
        for case, source in zip(cases, sources, strict=True)
    ]


def all_case_sentences(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every sentence that any of the cases may be asked with, once each, to hand to ``EmbeddingBank.prepare``."""
    tables = {id(case["sentences"]): case["sentences"] for case in cases}  # cases of a dataset share one
    return list(dict.fromkeys(text for table in tables.values() for words in table.values() for text in words))
