"""Saved prompt vectors: one safetensors file per text encoder, looked up by sentence.

The file holds ``vectors`` [K, L] and, for encoders that have one, ``modality_embedding`` [M, L]; its metadata entry
``embedding_bank`` is a JSON object with ``format``, ``encoder`` (identity) and the K ``sentences``. A running model
needs the language model only for sentences that are not among them; those are embedded once and kept in memory.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rapidfuzz import fuzz, process
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .concepts import Target, normalise_sentence

logger = logging.getLogger(__name__)

FORMAT = 1
BUILD_COMMAND = "python -m scripts.cli embed"
# How far an encoder's vector of a banked sentence may lie from the banked one, as a share of its length: banks hold
# half precision, and a batch changes the last bits; vectors of another encoder differ by about their whole length.
SAME_ENCODER_TOLERANCE = 0.02


class EmbeddingBank:
    """Vectors of known sentences, with an encoder for the others where one is given.

    Args:
        sentences: K sentences; kept in the normalised form.
        vectors: [K, L], any floating type; returned as float32.
        encoder_identity: name of the encoder that made the vectors.
        modality_embedding: [M, L] to add by modality index, or None.
        encoder: called with a list of sentences where the bank does not know them, e.g. a ``TextEncoder``; it has to
            carry the same ``identity`` as the bank, and before its first vector is used, it has to give the bank's
            own vector for the bank's first sentence. None refuses unknown sentences.
        modalities: names in the order of ``modality_embedding``'s rows.

    Raises:
        ValueError: sizes that disagree, or an encoder of another identity.
    """

    def __init__(
        self,
        sentences: Sequence[str],
        vectors: Tensor,
        encoder_identity: str,
        modality_embedding: Tensor | None = None,
        encoder: Callable[[list[str]], Tensor] | None = None,
        modalities: Sequence[str] = ("CT", "MRI", "US", "PET", "Microscopy"),
    ) -> None:
        self.sentences = tuple(normalise_sentence(sentence) for sentence in sentences)
        if vectors.ndim != 2 or len(vectors) != len(self.sentences):
            raise ValueError(
                f"embedding bank: {len(self.sentences)} sentences need vectors [{len(self.sentences)}, L], "
                f"got {list(vectors.shape)}"
            )
        self.vectors = vectors
        self.encoder_identity = encoder_identity
        self.modality_embedding = modality_embedding
        self.modalities = tuple(modalities)
        self._place = {sentence: index for index, sentence in enumerate(self.sentences)}
        self._live: dict[str, Tensor] = {}
        self._encoder_checked = False
        self.encoder = encoder
        identity = getattr(encoder, "identity", encoder_identity)
        if identity != encoder_identity:
            raise ValueError(
                f"embedding bank: vectors are of {encoder_identity!r}, the encoder given is {identity!r}; "
                f"build a bank with that encoder ({BUILD_COMMAND})"
            )

    @property
    def width(self) -> int:
        """L, the length of a vector."""
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.sentences)

    def __contains__(self, sentence: object) -> bool:
        return isinstance(sentence, str) and normalise_sentence(sentence) in self._place

    @classmethod
    def load(
        cls,
        path: str | Path,
        encoder_identity: str | None = None,
        encoder: Callable[[list[str]], Tensor] | None = None,
    ) -> EmbeddingBank:
        """Read a bank.

        Args:
            path: file written by :meth:`save`.
            encoder_identity: refuse a bank made by any other encoder; None accepts any.
            encoder: for sentences the bank does not hold, see the class.

        Raises:
            ValueError: no such file, not a bank, or a bank of another encoder.
        """
        file = Path(path)
        if not file.is_file():
            raise ValueError(f"embedding bank: no file {file}; build it with {BUILD_COMMAND}")
        try:
            with safe_open(file, framework="pt") as content:
                header = json.loads((content.metadata() or {}).get("embedding_bank", "{}"))
                tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"embedding bank: {file} is not a readable safetensors file ({error})") from error
        if header.get("format") != FORMAT or "vectors" not in tensors:
            raise ValueError(f"embedding bank: {file} is no embedding bank of format {FORMAT}; build it anew")
        made_by = header["encoder"]
        if encoder_identity is not None and made_by != encoder_identity:
            raise ValueError(
                f"embedding bank: {file} was made by {made_by!r}, {encoder_identity!r} is wanted; "
                f"build a bank with that encoder ({BUILD_COMMAND})"
            )
        return cls(header["sentences"], tensors["vectors"], made_by, tensors.get("modality_embedding"), encoder)

    @classmethod
    def build(cls, sentences: Sequence[str], encoder: Any, dtype: torch.dtype = torch.float16) -> EmbeddingBank:
        """Embed sentences with a ``TextEncoder`` and keep the vectors as ``dtype``.

        The sentences are embedded one at a time, so that a vector does not depend on its neighbours in a batch.
        """
        unique = list(dict.fromkeys(normalise_sentence(sentence) for sentence in sentences))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the order of sums, and so the last bits, must not depend on the number of cores
        try:
            vectors = torch.cat([encoder([sentence]) for sentence in unique]).cpu()
        finally:
            torch.set_num_threads(threads)
        head = getattr(encoder, "head", None)
        table = getattr(head, "modality_embed", None)
        embedding = table.weight.detach().cpu().to(dtype) if table is not None else None
        return cls(unique, vectors.to(dtype), encoder.identity, embedding, encoder)

    def save(self, path: str | Path) -> None:
        """Write the file; it appears complete or not at all, and equal content gives equal bytes."""
        tensors = {"vectors": self.vectors.contiguous()}
        if self.modality_embedding is not None:
            tensors["modality_embedding"] = self.modality_embedding.contiguous()
        header = {"format": FORMAT, "encoder": self.encoder_identity, "sentences": list(self.sentences)}
        # a single entry, because safetensors writes several in random order
        content = save(tensors, metadata={"embedding_bank": json.dumps(header, ensure_ascii=False)})
        file = Path(path)
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(content)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def lookup(self, queries: Sequence[Target | str] | Target | str, modality: str | int | None = None) -> Tensor:
        """Vectors of targets (by their canonical sentence) or sentences.

        Args:
            queries: N targets or sentences, or a single one.
            modality: name or index added from the modality embedding; each target's own when None.

        Returns:
            float32 [N, L].

        Raises:
            ValueError: a sentence the bank does not hold, with no encoder at hand; names the nearest it does.
        """
        items: list[Any] = [queries] if isinstance(queries, str) or hasattr(queries, "concept") else list(queries)
        if not items:
            raise ValueError("embedding bank: nothing to look up, the list of queries is empty")
        texts = [normalise_sentence(item) if isinstance(item, str) else item.sentence for item in items]
        self._embed_unknown(texts)
        rows = [self._live[text] if text in self._live else self.vectors[self._place[text]].float() for text in texts]
        found = torch.stack(rows)
        if self.modality_embedding is None:
            return found
        chosen = [modality if modality is not None else getattr(item, "modality", None) for item in items]
        return found + torch.stack([self._modality_vector(name) for name in chosen])

    def prepare(self, sentences: Iterable[str]) -> None:
        """Make sure of a vector for every sentence, embedding now, in one go, those the bank does not hold.

        Called before data loaders start their workers, it spares each of them an encoder of its own.

        Raises:
            ValueError: a sentence the bank does not hold, with no encoder at hand.
        """
        self._embed_unknown([normalise_sentence(sentence) for sentence in sentences])

    def _embed_unknown(self, texts: Sequence[str]) -> None:
        unknown = list(dict.fromkeys(text for text in texts if text not in self._place and text not in self._live))
        if not unknown:
            return
        if self.encoder is None:
            near = process.extract(unknown[0], self.sentences, scorer=fuzz.WRatio, limit=5)
            more = f" (and {len(unknown) - 1} more sentences)" if len(unknown) > 1 else ""
            raise ValueError(
                f"embedding bank: no vector for {unknown[0]!r}{more} and no text encoder configured; nearest known: "
                f"{', '.join(item[0] for item in near)}; set text_encoder to embed it, or build a bank with it "
                f"({BUILD_COMMAND})"
            )
        logger.info("embedding %d sentences that the bank does not hold", len(unknown))
        first = [] if self._encoder_checked else list(self.sentences[:1])
        vectors = self.encoder([*first, *unknown]).float().cpu()
        if first:
            self._check_encoder(vectors[0])
        self._live.update(zip(unknown, vectors[len(first) :], strict=True))

    def _check_encoder(self, vector: Tensor) -> None:
        """Compare the encoder's vector of the first sentence with the bank's: an identity is only a name."""
        own = self.vectors[0].float()
        if vector.shape != own.shape or not (vector - own).norm() <= SAME_ENCODER_TOLERANCE * own.norm():
            raise ValueError(
                f"embedding bank: the text encoder's vector for {self.sentences[0]!r} is not the bank's, so it is "
                f"not the {self.encoder_identity!r} that made the bank; give that one, or build a bank with "
                f"yours ({BUILD_COMMAND})"
            )
        self._encoder_checked = True

    def _modality_vector(self, modality: str | int | None) -> Tensor:
        assert self.modality_embedding is not None
        if modality is None:
            raise ValueError("embedding bank: this encoder adds a modality; give lookup(..., modality=...)")
        index = self.modalities.index(modality) if isinstance(modality, str) else modality
        return self.modality_embedding[index].float()
