"""From label maps to prompt channels: draw the queries of a patch and the mask of each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, Transform


class SampleQueries(Randomizable, Transform):
    """Choose which targets a patch is asked for and in which words (spec "Training", sampling).

    Present targets come first; absent ones up to a share of them; slots left over take further synonyms of the
    chosen targets; what remains is padding.

    Args:
        embed: gives the vectors of sentences, ``list[str] -> [N, L]`` (an ``EmbeddingBank``'s ``lookup``); called with
            the modality as second argument where the call has one.
        max_queries: number of slots N.
        absent: most absent targets, as a share of the present ones.
        absent_if_empty: absent targets that a patch without any present one is asked for. With 0 it is asked for
            nothing and teaches nothing, which costs many steps where targets are small (lesions).
        canonical: ask for every present target once, by its first sentence, without chance (validation).
    """

    def __init__(
        self,
        embed: Callable[..., torch.Tensor],
        max_queries: int = 32,
        absent: float = 1 / 3,
        canonical: bool = False,
        absent_if_empty: int = 0,
    ) -> None:
        self.embed, self.absent_if_empty = embed, absent_if_empty
        self.max_queries, self.absent, self.canonical = max_queries, absent, canonical

    def randomize(self, data: tuple[Sequence[int], Mapping[int, Sequence[str]]]) -> None:
        """Draw label values and sentences; ``data`` is the values present and every value's sentences."""
        present, sentences = data
        if self.canonical:
            self._values = list(sentences)[: self.max_queries]
            self._sentences = [sentences[value][0] for value in self._values]
            return
        present = [value for value in sentences if value in set(present)]
        missing = [value for value in sentences if value not in set(present)]
        most = min(len(missing), int(len(present) * self.absent), self.max_queries)
        shuffled = self.R.permutation(missing)
        count = self.R.randint(most + 1) if present else min(self.absent_if_empty, self.max_queries)
        absent = list(shuffled[:count])
        chosen = list(self.R.permutation(present)[: self.max_queries - len(absent)])
        pairs = [(int(v), list(self.R.permutation(sentences[int(v)]))) for v in chosen + absent]
        asked = [(value, words[0]) for value, words in pairs]
        spare = [(value, word) for value, words in pairs for word in words[1:]]
        for index in self.R.permutation(len(spare))[: self.max_queries - len(asked)]:
            asked.append(spare[index])
        self._values = [value for value, _ in asked]
        self._sentences = [str(word) for _, word in asked]

    def __call__(  # type: ignore[override]
        self, labels: torch.Tensor, sentences: Mapping[int, Sequence[str]], modality: str | None = None
    ) -> dict[str, Any]:
        """Queries and masks of one patch.

        Args:
            labels: label map ``[1, H, W, D]``, integer.
            sentences: for every label value that may be asked for, the sentences that name it; canonical first.
            modality: of the image, for encoders whose vectors depend on it.

        Returns:
            ``masks`` uint8 ``[N, H, W, D]``, ``queries`` float32 ``[N, L]``, ``query_mask`` float32 ``[N]`` (1 real, 0
            padding) and ``query_values`` int16 ``[N]`` (0 for padding).
        """
        labels = torch.as_tensor(labels)
        self.randomize((labels.unique().tolist(), sentences))
        count, slots = len(self._values), self.max_queries
        values = torch.zeros(slots, dtype=torch.int16)
        values[:count] = torch.as_tensor(self._values, dtype=torch.int16)
        query_mask = torch.zeros(slots)
        query_mask[:count] = 1
        masks = (labels.to(torch.int16) == values.reshape(-1, 1, 1, 1)).to(torch.uint8)
        masks[count:] = 0
        asked = self._sentences or [next(iter(sentences.values()))[0]]
        vectors = self.embed(asked) if modality is None else self.embed(asked, modality)
        queries = torch.zeros(slots, vectors.shape[-1])
        queries[:count] = vectors[:count]
        return {"masks": masks, "queries": queries, "query_mask": query_mask, "query_values": values}


class SampleQueriesd(Randomizable, MapTransform):
    """Dictionary form: the label map under ``keys`` becomes the masks, and the queries join the data.

    Args:
        keys: key of the label map; replaced by the masks ``[N, H, W, D]``.
        transform: the array transform.
        sentences_key: key of the table label value -> sentences; it is dropped, a table cannot be batched.
        modality_key: key of the image's modality, if there; dropped too.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: SampleQueries,
        sentences_key: str = "sentences",
        modality_key: str = "modality",
    ) -> None:
        super().__init__(keys)
        self.transform, self.sentences_key, self.modality_key = transform, sentences_key, modality_key

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> SampleQueriesd:
        """Seed the array transform as well."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with masks and queries."""
        d = dict(data)
        sentences = {int(value): words for value, words in d.pop(self.sentences_key).items()}
        modality = d.pop(self.modality_key, None)
        for key in self.key_iterator(d):
            sampled = self.transform(d[key], sentences, modality)
            d[key] = sampled.pop("masks")
            d.update(sampled)
        return d
