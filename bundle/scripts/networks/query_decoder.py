"""Query decoder: text queries read the image's tokens by cross-attention and become adapted text embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def sinusoidal_position_code(
    grid: Sequence[int], dim: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Sine/cosine code of every cell of a 3-D grid, as in the published code.

    Each axis owns ``2 * ceil(dim / 6)`` channels in which sine and cosine alternate; the three are concatenated
    and cut to ``dim``. Cells are ordered H, then W, then D (D fastest).

    Args:
        grid: number of cells along H, W and D.
        dim: width of the code.

    Returns:
        ``[H * W * D, dim]``.
    """
    channels = 2 * math.ceil(dim / 6)
    frequency = 1.0 / 10000 ** (torch.arange(0, channels, 2, device=device, dtype=torch.float32) / channels)
    codes = []
    for axis, size in enumerate(grid):
        angle = torch.arange(size, device=device, dtype=torch.float32)[:, None] * frequency
        code = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
        shape = [1, 1, 1, channels]
        shape[axis] = size
        codes.append(code.reshape(shape).expand(*grid, channels))
    return torch.cat(codes, dim=-1)[..., :dim].reshape(-1, dim).to(dtype)


class CrossAttentionLayer(nn.Module):
    """Pre-norm transformer decoder layer without self-attention: a query's answer depends on no other query.

    ``unused_norm`` belongs to the published parameter list, but the published forward pass never calls it; it is
    kept, frozen, so that published checkpoints convert in full and back, and DDP does not wait for its gradient.
    """

    def __init__(self, dim: int, num_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.unused_norm = nn.LayerNorm(dim).requires_grad_(False)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Queries ``[B, N, dim]`` read ``values`` through ``keys`` (both ``[B, tokens, dim]``); ``[B, N, dim]``."""
        read, _ = self.attention(self.attention_norm(queries), keys, values, need_weights=False)
        queries = queries + self.dropout(read)
        hidden = self.dropout(F.relu(self.linear1(self.feedforward_norm(queries))))
        return queries + self.dropout(self.linear2(hidden))


class QueryDecoder(nn.Module):
    """Transformer decoder over the pooled encoder scales (paper section 2.3, Phi_query).

    Every encoder scale is average-pooled to the coarsest grid, all are concatenated and projected to ``dim``; a
    3-D position code is added to the keys, so that any patch whose sides the backbone accepts can be read.

    Args:
        in_channels: sum of the encoder's features.
        dim: width of queries and tokens.
        num_layers: cross-attention layers.
        num_heads: attention heads.
        feedforward: hidden width of each layer's feed-forward block.
        dropout: dropout probability in training.
    """

    def __init__(
        self,
        in_channels: int = 1792,
        dim: int = 768,
        num_layers: int = 6,
        num_heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.projection = nn.Sequential(nn.Linear(in_channels, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU())
        self.layers = nn.ModuleList(
            CrossAttentionLayer(dim, num_heads, feedforward, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def tokens(self, scales: Sequence[torch.Tensor]) -> torch.Tensor:
        """Image tokens ``[B, h * w * d, dim]`` of the encoder's features (fine to coarse)."""
        height, width, depth = scales[-1].shape[2:]
        pooled = [F.adaptive_avg_pool3d(scale, (height, width, depth)) for scale in scales]
        return self.projection(torch.cat(pooled, dim=1).flatten(2).transpose(1, 2))

    def forward(self, scales: Sequence[torch.Tensor], queries: torch.Tensor) -> torch.Tensor:
        """Adapt queries to the image.

        Args:
            scales: encoder features, fine to coarse, each ``[B, c, h, w, d]``.
            queries: ``[B, N, dim]`` text embeddings.

        Returns:
            ``[B, N, dim]``.
        """
        return self.read(self.tokens(scales), scales[-1].shape[2:], queries)

    def read(self, tokens: torch.Tensor, grid: Sequence[int], queries: torch.Tensor) -> torch.Tensor:
        """Adapt queries to image tokens that were made before.

        Args:
            tokens: ``[B, h * w * d, dim]`` from ``tokens``.
            grid: (h, w, d), cells of the coarsest scale.
            queries: ``[B, N, dim]`` text embeddings.

        Returns:
            ``[B, N, dim]``.
        """
        keys = tokens + sinusoidal_position_code(grid, self.dim, device=tokens.device, dtype=tokens.dtype)
        for layer in self.layers:
            queries = layer(queries, keys, tokens)
        return self.norm(queries)
