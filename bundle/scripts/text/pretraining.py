"""Pre-train a text encoder by contrast: sentences of one concept agree, those of different concepts do not.

This is the "knowledge enhancement" of the published text encoder, cut down to a terminology: symmetric InfoNCE between
two sentences of each concept, all other concepts of the batch being the contrast, the other side above all. General
sentence encoders hardly separate sides (cosine of "left hippocampus" and "right hippocampus": 0.94), and a segmentation
loss is slow to pull them apart.

``configs/pretrain_text.json`` trains projection, modality vectors and, if asked, the language model, and writes the
published layout; ``pretrain_projection`` prepares the projection of a network on stock sentence vectors in seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.engines import PrepareBatch
from torch import Tensor, nn

from scripts.handlers.checkpoints import write_whole

from .embedding_bank import EmbeddingBank
from .published_encoder import MAX_TOKENS, NUM_MODALITIES, TOWER_PREFIX, PublishedEncoder
from .term_pairs import Term, TermBatches, collect_terms
from .terminology import Terminology
from .text_encoder import TextEncoder, mean_pool

logger = logging.getLogger(__name__)
MODALITY_STD = 0.02  # of new modality vectors: small against a query, whose direction the words shall decide


class InfoNCE(nn.Module):
    """Symmetric cross entropy of finding each first sentence's partner among all second ones, and the reverse.

    Args:
        temperature: of the softmax over cosines.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, queries: Tensor, ignore: Tensor | None = None) -> Tensor:
        """A number.

        Args:
            queries: float ``[2 B, L]``: B first sentences, then their partners.
            ignore: bool ``[B, B]``, pairs that are no contrast; the diagonal is False.
        """
        first, second = F.normalize(queries.float(), dim=-1).chunk(2)
        similarity = first @ second.T / self.temperature
        if ignore is not None:
            similarity = similarity.masked_fill(ignore, float("-inf"))
        same = torch.arange(len(first), device=queries.device)
        return (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2


def new_encoder(
    model: str | Path, head: str | Path | None = None, seed: int = 0, local_files_only: bool = False
) -> TextEncoder:
    """An encoder with the parts of the published one, loaded.

    Args:
        model: folder or hub name of a language model: with weights, or without where ``head`` is given.
        head: a ``text_encoder.pth`` to go on from; None makes a new projection and new modality vectors.
        seed: of the new parts.
        local_files_only: never reach for the network.

    Raises:
        ValueError: model or head cannot be read or do not fit each other.
    """
    if head is not None:
        if not Path(head).is_file():
            raise ValueError(f"text pre-training: no file {head}; give the path of a text_encoder.pth as text_head")
        # An object of its own: the one that a process shares is frozen, and others rely on that.
        return PublishedEncoder(model, head, local_files_only=local_files_only).load()
    encoder = TextEncoder(
        model,
        project=True,
        num_modalities=NUM_MODALITIES,
        special_tokens="written",  # as the published layout is read
        max_length=MAX_TOKENS,
        local_files_only=local_files_only,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder.load()
        assert encoder.head is not None
        assert encoder.head.modality_embed is not None
        nn.init.normal_(encoder.head.modality_embed.weight, std=MODALITY_STD)
    return encoder


class TrainableEncoder(nn.Module):
    """A text encoder that learns; dropout stays off, so that a run repeats exactly.

    Args:
        encoder: loaded, with projection and modality vectors, as of ``new_encoder``.
        train_tower: train the language model too; else its pooled states are computed once per sentence and kept.

    Raises:
        ValueError: an encoder without projection or modality vectors.
    """

    def __init__(self, encoder: TextEncoder, train_tower: bool = False) -> None:
        super().__init__()
        encoder.load()
        tower, head = encoder.text_tower, encoder.head
        if tower is None or head is None or not encoder.project or head.modality_embed is None:
            raise ValueError("text pre-training: wanted an encoder with projection and modality vectors (new_encoder)")
        # Not as a submodule: state and parameters are those of tower and head, named once.
        self.tokenize: Callable[[Sequence[str]], tuple[Tensor, Tensor]] = encoder.tokenize
        self.tower, self.head, self.train_tower = tower, head, train_tower
        self.tower.requires_grad_(train_tower)
        self.head.requires_grad_(True)
        self._pooled: dict[str, Tensor] = {}

    @property
    def trained(self) -> nn.Module:
        """What a checkpoint has to hold: everything, or only the head where the language model is frozen."""
        return self if self.train_tower else self.head

    def train(self, mode: bool = True) -> TrainableEncoder:
        """Stay in evaluation mode, without dropout."""
        return super().train(False)

    def forward(self, sentences: Sequence[str], modality: Tensor) -> Tensor:
        """Queries ``[N, L]`` of N sentences with modality indices ``[N]``."""
        pooled = self._pool(sentences) if self.train_tower else self._pool_once(sentences)
        return self.head.projection_layer(pooled) + self.head.modality_embed(modality)  # type: ignore[misc]

    def _pool(self, sentences: Sequence[str]) -> Tensor:
        device = next(self.tower.parameters()).device
        ids, mask = (tensor.to(device) for tensor in self.tokenize(sentences))
        return mean_pool(self.tower(input_ids=ids, attention_mask=mask).last_hidden_state, mask)

    @torch.no_grad()
    def _pool_once(self, sentences: Sequence[str]) -> Tensor:
        unknown = list(dict.fromkeys(text for text in sentences if text not in self._pooled))
        if unknown:
            self._pooled.update(zip(unknown, self._pool(unknown), strict=True))
        return torch.stack([self._pooled[text] for text in sentences])


class PrepareSentences(PrepareBatch):
    """Hand a batch of ``TermBatches`` to the trainer: sentences, what to ignore, and the modalities."""

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[list[str], Tensor, tuple, dict[str, Tensor]]:
        """Inputs, label, positional and keyword arguments of the network."""
        ignore, modality = (batchdata[key].to(device, non_blocking=non_blocking) for key in ("ignore", "modality"))
        return batchdata["sentences"], ignore, (), {"modality": modality}


class SeparationLogger:
    """Measure every so many steps how well concepts are told apart, see ``separation``, and keep it as metrics.

    Args:
        network: a ``TrainableEncoder``.
        terms: what to measure with.
        interval: steps between two measurements; the first is taken before training.
    """

    def __init__(self, network: TrainableEncoder, terms: Sequence[Term], interval: int = 100) -> None:
        self.network, self.terms, self.interval = network, terms, interval
        self._measured = -1

    def attach(self, engine: Engine) -> None:
        """Run at the start, every ``interval`` steps and at the end."""
        for event in (Events.STARTED, Events.ITERATION_COMPLETED(every=self.interval), Events.COMPLETED):
            engine.add_event_handler(event, self)

    def __call__(self, engine: Engine) -> None:
        """Measure and log, unless that has just been done."""
        if engine.state.iteration == self._measured:
            return
        self._measured = engine.state.iteration
        device = next(self.network.head.parameters()).device

        def embed(sentences: Sequence[str], places: Sequence[int]) -> Tensor:
            first = [self.terms[place].modalities[0] for place in places]
            return self.network(sentences, torch.tensor(first, device=device))

        found = separation(embed, self.terms)
        engine.state.metrics.update(found)
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        logger.info("text pre-training, step %d: %s", engine.state.iteration, numbers)


@torch.no_grad()
def separation(embed: Callable[[Sequence[str], Sequence[int]], Tensor], terms: Sequence[Term]) -> dict[str, float]:
    """How well sentences tell concepts apart.

    Args:
        embed: from N sentences and the places of their terms to queries ``[N, L]``.
        terms: see ``collect_terms``.

    Returns:
        ``found``: share of the synonyms and definitions that are nearest, of all names, to a name of their own;
        ``found_held_out``: the same for those not learned from, where there are any; ``twin_cosine``: mean cosine of
        the names of two sides, where there are any.
    """
    names = F.normalize(embed([term.sentences[0] for term in terms], range(len(terms))).float(), dim=-1)
    result = {}
    for key, lists in (
        ("found", [term.sentences[1:] for term in terms]),
        ("found_held_out", [term.held_out for term in terms]),
    ):
        texts = [text for own in lists for text in own]
        places = [place for place, own in enumerate(lists) for _ in own]
        if texts:
            nearest = (F.normalize(embed(texts, places).float(), dim=-1) @ names.T).argmax(dim=1).tolist()
            right = [text in (*terms[n].sentences, *terms[n].held_out) for text, n in zip(texts, nearest, strict=True)]
            result[key] = sum(right) / len(right)
    sides = [(place, term.twin) for place, term in enumerate(terms) if term.twin is not None and place < term.twin]
    if sides:
        left, right_ = (names[list(side)] for side in zip(*sides, strict=True))
        result["twin_cosine"] = float((left * right_).sum(-1).mean())
    return result


def export_encoder(network: TrainableEncoder, path: str | Path) -> Path:
    """Write an encoder in the published layout of ``text_encoder.pth``, which ``load_published_encoder`` reads.

    Args:
        network: the trained encoder.
        path: target file; replaced atomically.
    """
    entries = {f"{TOWER_PREFIX}{name}": tensor for name, tensor in network.tower.state_dict().items()}
    entries |= network.head.state_dict()
    file = Path(path)
    write_whole({"model_state_dict": {name: tensor.detach().cpu() for name, tensor in entries.items()}}, file)
    logger.info("wrote %s (%.1f MB)", file.name, file.stat().st_size / 1e6)
    return file


def pretrain_projection(
    projection: nn.Module,
    bank: EmbeddingBank,
    terminology: Terminology | None = None,
    steps: int = 400,
    lr: float = 1e-3,
    temperature: float = 0.1,
    seed: int = 0,
) -> dict[str, float]:
    """Teach a network's own text projection to tell targets apart before any image is seen; takes seconds.

    Args:
        projection: ``[N, L]`` to ``[N, dim]``; trained in place, on its own device.
        bank: vectors of the terminology's sentences, without a modality embedding; no encoder is called.
        terminology: concepts and their sentences; the bundle's own by default.
        steps: of Adam; every step sees every concept that the bank has.
        lr: first rate, with a cosine to 0.
        temperature: of the softmax over cosines.
        seed: of the choice of sentences.

    Returns:
        See ``separation``.
    """
    terms = collect_terms(terminology, known=bank.sentences)
    batches = TermBatches(terms, None, steps, seed)
    device = next(projection.parameters()).device
    texts = list(dict.fromkeys(text for term in terms for text in term.sentences))
    table, place = bank.lookup(texts).to(device), {text: number for number, text in enumerate(texts)}

    def embed(sentences: Sequence[str], _: Sequence[int] = ()) -> Tensor:
        return projection(table[[place[text] for text in sentences]])

    loss_function = InfoNCE(temperature)
    optimizer = torch.optim.Adam(projection.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch = batches[step]
        loss = loss_function(embed(batch["sentences"]), batch["ignore"].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    found = separation(embed, terms)
    logger.info("text projection: %s", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found
