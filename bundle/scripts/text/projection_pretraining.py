"""Prepare a network's own text projection on stock sentence vectors, in seconds and before any image is seen."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .contrast import InfoNCE, separation
from .embedding_bank import EmbeddingBank
from .term_pairs import TermBatches, collect_terms
from .terminology import Terminology

logger = logging.getLogger(__name__)


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
