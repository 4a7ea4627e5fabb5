"""Mask head: adapted queries meet per-voxel features, after the spatial prompts were fused into them."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from scripts.networks.unet import conv_block


class MaskEmbedding(nn.Sequential):
    """Two linear layers with GELU that bring a query ``[B, N, query_dim]`` to the voxel features' width.

    Args:
        query_dim: width of the queries.
        hidden: width between the layers.
        channels: width of the voxel features.
        final_activation: GELU after the second layer too, as published. A head of few channels separates many
            classes more easily without it, because its embeddings may then be negative.
    """

    def __init__(self, query_dim: int = 768, hidden: int = 256, channels: int = 64, final_activation: bool = True):
        super().__init__(
            nn.Linear(query_dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, channels),
            nn.GELU() if final_activation else nn.Identity(),
        )


def correlate(embedding: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Logits ``[B, N, H, W, D]`` of embeddings ``[B, N, C]`` against features ``[B, C, H, W, D]``."""
    return torch.bmm(embedding, features.flatten(2)).unflatten(2, features.shape[2:])


class MaskHead(nn.Module):
    """Spatial prompt fusion and voxel-wise correlation (paper section 2.3).

    F_a = T^T S_p is concatenated with F, one convolution block gives F_r, and the logits are T F_r.

    Args:
        query_dim: width of the decoded queries.
        hidden: hidden width of the embedding.
        channels: width C of the full-resolution features.
        final_activation: see ``MaskEmbedding``.
    """

    def __init__(self, query_dim: int = 768, hidden: int = 256, channels: int = 64, final_activation: bool = True):
        super().__init__()
        self.embedding = MaskEmbedding(query_dim, hidden, channels, final_activation)
        self.fusion = conv_block(2 * channels, channels)

    def fuse(self, features: torch.Tensor, embedding: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Features F_r ``[B, C, H, W, D]`` after the prompts ``[B, N, H, W, D]`` were read.

        All-zero prompts still pass the convolution: that is what text-only inference does.
        """
        spread = torch.bmm(embedding.transpose(1, 2), prompts.to(embedding.dtype).flatten(2))
        return self.fusion(torch.cat([features, spread.unflatten(2, features.shape[2:]).to(features.dtype)], dim=1))

    def fuse_empty(self, features: torch.Tensor) -> torch.Tensor:
        """What ``fuse`` gives for all-zero prompts, whatever the queries are: F_a = T^T 0 = 0.

        The convolution leaves out the channels that are zero, at half the cost: adding zeros changes no sum.
        """
        convolution = cast(nn.Conv3d, self.fusion.conv)
        own = convolution.weight[:, : features.shape[1]]
        return cast(nn.Module, self.fusion.adn)(F.conv3d(features, own, convolution.bias, padding=convolution.padding))

    def forward(self, features: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor | None) -> torch.Tensor:
        """Logits of decoded queries.

        Args:
            features: F, ``[B, C, H, W, D]``.
            queries: ``[B, N, query_dim]``.
            prompts: S_p, ``[B, N, H, W, D]``, or None to use F as it is.

        Returns:
            ``[B, N, H, W, D]``.
        """
        embedding = self.embedding(queries)
        if prompts is not None:
            features = self.fuse(features, embedding, prompts)
        return correlate(embedding, features)
