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
        fusion: False leaves the fusion out, for weights that know no spatial prompts (SAT): they are not read then.
    """

    def __init__(
        self,
        query_dim: int = 768,
        hidden: int = 256,
        channels: int = 64,
        final_activation: bool = True,
        fusion: bool = True,
    ):
        super().__init__()
        self.embedding = MaskEmbedding(query_dim, hidden, channels, final_activation)
        self.fusion = conv_block(2 * channels, channels) if fusion else None

    def fuse(self, features: torch.Tensor, embedding: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Features F_r ``[B, C, H, W, D]`` after the prompts ``[B, N, H, W, D]`` were read.

        All-zero prompts still pass the convolution: that is what text-only inference does.
        """
        if self.fusion is None:
            return features
        spread = torch.bmm(embedding.transpose(1, 2), prompts.to(embedding.dtype).flatten(2))
        return self.fusion(torch.cat([features, spread.unflatten(2, features.shape[2:]).to(features.dtype)], dim=1))

    def fuse_empty(self, features: torch.Tensor) -> torch.Tensor:
        """What ``fuse`` gives for all-zero prompts, whatever the queries are: F_a = T^T 0 = 0.

        The convolution leaves out the channels that are zero, at half the cost: adding zeros changes no sum.
        """
        return self.activate(self.convolve(features))

    def convolve(self, features: torch.Tensor) -> torch.Tensor:
        """The features' share of the fusion's convolution ``[B, C, H, W, D]``: no prompt or query is in it."""
        if self.fusion is None:
            return features
        convolution = cast(nn.Conv3d, self.fusion.conv)
        own = convolution.weight[:, : features.shape[1]]
        return F.conv3d(features, own, convolution.bias, padding=convolution.padding)

    def activate(self, convolved: torch.Tensor) -> torch.Tensor:
        """F_r from the whole of the convolution: normalisation and activation of the fusion."""
        return convolved if self.fusion is None else cast(nn.Module, self.fusion.adn)(convolved)

    def fuse_convolved(self, convolved: torch.Tensor, embedding: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """What ``fuse`` gives, from ``convolve(features)``: the prompts' share is added where there are any.

        A convolution is linear in its channels, and zero a voxel away from prompts that are zero: their share is
        computed in a box around them, in less time than ``fuse`` takes by as much as the box is smaller.
        """
        place = None if self.fusion is None else _around(prompts)
        if place is None or self.fusion is None:
            return self.activate(convolved)
        box = prompts[(..., *place)]
        spread = torch.bmm(embedding.transpose(1, 2), box.to(embedding.dtype).flatten(2)).unflatten(2, box.shape[2:])
        convolution = cast(nn.Conv3d, self.fusion.conv)
        theirs = convolution.weight[:, convolved.shape[1] :]
        whole = convolved.clone()
        whole[(..., *place)] += F.conv3d(spread.to(convolved.dtype), theirs, padding=convolution.padding)
        return self.activate(whole)

    def answer(self, convolved: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """As ``forward``, from ``convolve(features)``."""
        embedding = self.embedding(queries)
        return correlate(embedding, self.fuse_convolved(convolved, embedding, prompts))

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


def _around(prompts: torch.Tensor) -> tuple[slice, slice, slice] | None:
    """The box of all prompts ``[B, N, H, W, D]`` that are not zero and a voxel around it; None where all are."""
    filled = (prompts != 0).flatten(0, 1).any(dim=0)
    sides = []
    for axis, side in enumerate(filled.shape):
        places = filled.movedim(axis, 0).flatten(1).any(dim=1).nonzero().flatten().tolist()
        if not places:
            return None
        sides.append(slice(max(places[0] - 1, 0), min(places[-1] + 2, side)))
    return sides[0], sides[1], sides[2]
