"""Trainable projection from a frozen sentence encoder's vectors to the network's queries."""

from __future__ import annotations

import torch
from torch import nn


class TextProjection(nn.Sequential):
    """Two-layer projection that learns what a general sentence encoder hardly separates, such as left and right.

    The published model trains this projection with its text encoder, so its queries arrive projected and it has
    none; a network trained on raw sentence vectors carries its own. The first normalisation removes the mean that
    all medical terms share, so that small differences between terms weigh more.

    Args:
        text_dim: width L of the sentence vectors.
        dim: width of the queries.
    """

    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__(nn.LayerNorm(text_dim), nn.Linear(text_dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        """``[B, N, text_dim]`` to ``[B, N, dim]``."""
        return super().forward(queries)
