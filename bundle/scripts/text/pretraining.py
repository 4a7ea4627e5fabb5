"""Pre-train a text encoder by contrast: sentences of one concept agree, those of different concepts do not.

This is the "knowledge enhancement" of the published text encoder, cut down to a terminology: symmetric InfoNCE between
two sentences of each concept, all other concepts of the batch being the contrast, the other side above all. General
sentence encoders hardly separate sides (cosine of "left hippocampus" and "right hippocampus": 0.94), and a segmentation
loss is slow to pull them apart.

``configs/pretrain_text.json`` trains projection, modality vectors and, if asked, the language model, and writes the
published layout; ``projection_pretraining`` prepares a network's own projection on stock sentence vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import PrepareBatch
from torch import Tensor, nn

from scripts.handlers.checkpoints import write_whole

from .contrast import separation
from .published_encoder import MAX_TOKENS, NUM_MODALITIES, TOWER_PREFIX, PublishedEncoder
from .term_pairs import Term
from .text_encoder import TextEncoder, mean_pool

logger = logging.getLogger(__name__)
MODALITY_STD = 0.02  # of new modality vectors: small against a query, whose direction the words shall decide


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
