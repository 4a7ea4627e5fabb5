"""Draw batches of sentence pairs for contrastive learning: two sentences of each of many concepts, twins together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .concepts import Concept, normalise_sentence
from .terminology import Terminology


@dataclass(frozen=True)
class Term:
    """A concept and everything that it is called."""

    concept: Concept
    modalities: tuple[int, ...]
    """Indices of the modalities that it is seen in."""
    sentences: tuple[str, ...]
    """To learn from: the canonical name first, then synonyms and definitions; normalised."""
    held_out: tuple[str, ...] = ()
    """Not learned from, to measure with."""
    twin: int | None = None
    """Place of the other side's concept in the list of terms."""


def collect_terms(
    terminology: Terminology | None = None,
    definitions: Mapping[str, Sequence[str]] | None = None,
    describe: bool = True,
    held_out: float = 0.0,
    seed: int = 0,
    known: Iterable[str] | None = None,
) -> list[Term]:
    """Every concept of the terminology with its sentences.

    Args:
        terminology: the bundle's own when None.
        definitions: canonical name -> sentences that say what the concept is.
        describe: add a sentence made of the concept's codes, side and region, where it belongs to no other concept.
        held_out: share of the sentences besides the names to keep from learning.
        seed: chooses these.
        known: take only these sentences, such as those of an embedding bank, and concepts whose name is among them;
            None: any.

    Raises:
        ValueError: a definition of a name that the terminology lacks, or a share outside 0..1.
    """
    terms = terminology or Terminology.load()
    if not 0 <= held_out < 1:
        raise ValueError(f"text pre-training: held_out is a share from 0 to below 1, got {held_out}")
    given = {normalise_sentence(name): list(texts) for name, texts in (definitions or {}).items()}
    if unknown := sorted(set(given) - {normalise_sentence(concept.name) for concept in terms.concepts}):
        raise ValueError(f"text pre-training: definitions of {', '.join(unknown[:5])}: not in the terminology")
    made = {concept.id: _description(concept) for concept in terms.concepts} if describe else {}
    shared = {text for text, count in Counter(made.values()).items() if count > 1}
    allowed = None if known is None else {normalise_sentence(text) for text in known}
    concepts = [item for item in terms.concepts if allowed is None or normalise_sentence(item.name) in allowed]
    places = {(concept.kind, concept.name): place for place, concept in enumerate(concepts)}
    rng = np.random.default_rng(seed)
    found = []
    for concept in concepts:
        own = [made[concept.id]] if made.get(concept.id, "") not in ("", *shared) else []
        more = [*terms.sentences(concept)[1:], *given.get(normalise_sentence(concept.name), []), *own]
        name = normalise_sentence(concept.name)
        others = [text for text in dict.fromkeys(map(normalise_sentence, more)) if text != name]
        others = [text for text in others if allowed is None or text in allowed]
        kept_out = rng.random(len(others)) < held_out
        found.append(
            Term(
                concept,
                tuple(terms.modalities[modality].index for modality in concept.modalities),
                (name, *(text for text, out in zip(others, kept_out, strict=True) if not out)),
                tuple(text for text, out in zip(others, kept_out, strict=True) if out),
                places.get((concept.kind, concept.pair)) if concept.pair else None,
            )
        )
    return found


class TermBatches(Dataset):
    """Batches of concepts with two sentences of each; batch ``i`` is the same in every run and process.

    A concept and its twin of the other side come together, so that what distinguishes them is asked for in every batch.

    Args:
        terms: see ``collect_terms``.
        batch_size: concepts in a batch, of which there may be one more or less for the sake of twins; None: all.
        length: batches in the whole run.
        seed: of the run.

    Raises:
        ValueError: fewer than two concepts in a batch: nothing to contrast.
    """

    def __init__(self, terms: Sequence[Term], batch_size: int | None = 128, length: int = 1000, seed: int = 0) -> None:
        size = len(terms) if batch_size is None else min(batch_size, len(terms))
        if size < 2:
            raise ValueError(f"text pre-training: a batch of {size} concepts has nothing to contrast; give 2 or more")
        self.terms, self.batch_size, self.length, self.seed = tuple(terms), size, length, seed
        owners: dict[str, set[int]] = {}
        for place, term in enumerate(self.terms):
            for text in term.sentences:
                owners.setdefault(text, set()).add(place)
        self._shared = {text: found for text, found in owners.items() if len(found) > 1}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Batch ``index``.

        Returns:
            ``sentences``, the B first ones, then the B second ones; ``modality`` int64 ``[2 B]``, that of a concept
            twice; ``ignore`` bool ``[B, B]``, True where first sentence i may also mean concept j, or second j concept
            i: such a pair is no contrast.
        """
        rng = np.random.default_rng([self.seed, index])
        chosen = self._concepts(rng)
        pairs = [self._pair(self.terms[place].sentences, rng) for place in chosen]
        modality = [int(rng.choice(self.terms[place].modalities)) for place in chosen]
        ignore = torch.zeros(len(chosen), len(chosen), dtype=torch.bool)
        columns = {place: column for column, place in enumerate(chosen)}
        for here, (first, second) in enumerate(pairs):
            ignore[here, [columns[other] for other in self._shared.get(first, ()) if other in columns]] = True
            ignore[[columns[other] for other in self._shared.get(second, ()) if other in columns], here] = True
        ignore.fill_diagonal_(False)
        sentences = [first for first, _ in pairs] + [second for _, second in pairs]
        return {"sentences": sentences, "modality": torch.tensor(modality).repeat(2), "ignore": ignore}

    def _concepts(self, rng: np.random.Generator) -> list[int]:
        """Places of the batch's concepts, each once."""
        chosen: dict[int, None] = {}
        for place in rng.permutation(len(self.terms)).tolist():
            if len(chosen) >= self.batch_size:
                break
            twin = self.terms[place].twin
            chosen.update(dict.fromkeys([place] if twin is None else [place, twin]))
        return list(chosen)

    @staticmethod
    def _pair(sentences: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
        """Two different sentences where there are two."""
        first, second = rng.permutation(len(sentences))[[0, -1]]
        return sentences[first], sentences[second]


def _description(concept: Concept) -> str:
    """What the codes say of a concept, as a sentence; empty without codes."""
    if concept.codes is None:
        return ""
    region = f" of the {concept.codes.region.meaning}" if concept.codes.region else ""
    side = f" on the {concept.laterality} side" if concept.laterality else ""
    return normalise_sentence(f"{concept.codes.type.meaning}{region}{side}, {concept.group}")
