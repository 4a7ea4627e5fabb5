"""The published layer sequence in plain PyTorch: the yardstick of converted weights and of the network's speed.

Written out from the paper (Shi et al., arXiv 2511.13001, section 2) and the published parameter list, whose names it
keeps: a published checkpoint loads into it as it is. Every step is the obvious one: nothing is left out, reused or
fused by hand. SAT (Zhao et al., arXiv 2312.17183) is the same but for the prompts: the image on three channels, and no
fusion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from scripts.networks import MedalS, sinusoidal_position_code
from scripts.networks.query_decoder import CrossAttentionLayer


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network; the defaults are the published ones.

    Attributes:
        features: channels of each encoder stage, fine to coarse.
        strides: of each encoder stage.
        width: of queries and image tokens.
        heads: attention heads.
        layers: of the transformer decoder.
        feedforward: hidden width of each of them.
        hidden: hidden width of the mask embedding.
    """

    features: tuple[int, ...] = (64, 64, 128, 256, 512, 768)
    strides: tuple[int, ...] = (1, 2, 2, 2, 2, 2)
    width: int = 768
    heads: int = 8
    layers: int = 6
    feedforward: int = 2048
    hidden: int = 256

    @classmethod
    def of(cls, network: MedalS) -> Sizes:
        """Those of a network of ours."""
        decoder = network.query_decoder
        upsample = [cast(nn.ConvTranspose3d, up).stride[0] for up in network.backbone.upsample]
        layers = [cast(CrossAttentionLayer, layer) for layer in decoder.layers]
        return cls(
            features=network.backbone.features,
            strides=(network.backbone.divisor // math.prod(upsample), *upsample[::-1]),
            width=decoder.dim,
            heads=layers[0].attention.num_heads,
            layers=len(layers),
            feedforward=layers[0].linear1.out_features,
            hidden=cast(nn.Linear, network.mask_head.embedding[0]).out_features,
        )


PUBLISHED = Sizes()


class ConvBlock(nn.Module):
    """Convolution, instance normalisation, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, stride, padding=1, bias=True)
        self.norm = nn.InstanceNorm3d(out_channels, eps=1e-5, affine=True)
        self.nonlin = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, in, h, w, d]`` to ``[B, out, ...]``."""
        return self.nonlin(self.norm(self.conv(x)))


class ConvBlocks(nn.Module):
    """Blocks one after another; the first one changes channels and resolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, count: int = 2) -> None:
        super().__init__()
        rest = [ConvBlock(out_channels, out_channels) for _ in range(count - 1)]
        self.convs = nn.Sequential(ConvBlock(in_channels, out_channels, stride), *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, in, h, w, d]`` to ``[B, out, ...]``."""
        return self.convs(x)


class Encoder(nn.Module):
    """Features at every scale."""

    def __init__(self, in_channels: int, sizes: Sizes) -> None:
        super().__init__()
        inputs = (in_channels, *sizes.features[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(ConvBlocks(i, o, s)) for i, o, s in zip(inputs, sizes.features, sizes.strides, strict=True)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Fine to coarse."""
        scales = []
        for stage in self.stages:
            x = stage(x)
            scales.append(x)
        return scales


class Decoder(nn.Module):
    """Back to full resolution, with skip connections."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        pairs = list(zip(sizes.features[:0:-1], sizes.features[-2::-1], sizes.strides[:0:-1], strict=True))
        self.transpconvs = nn.ModuleList(nn.ConvTranspose3d(i, o, s, s) for i, o, s in pairs)
        self.stages = nn.ModuleList(ConvBlocks(2 * o, o) for _, o, _ in pairs)

    def forward(self, scales: Sequence[torch.Tensor]) -> torch.Tensor:
        """Full-resolution features ``[B, C, H, W, D]``."""
        x = scales[-1]
        for number, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x = stage(torch.cat((up(x), scales[-(number + 2)]), dim=1))
        return x


class Backbone(nn.Module):
    """The U-Net."""

    def __init__(self, in_channels: int, sizes: Sizes) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(in_channels, sizes), Decoder(sizes)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Encoder scales, and the decoder's finest one."""
        scales = self.encoder(x)
        return scales, self.decoder(scales)


class DecoderLayer(nn.Module):
    """Pre-norm cross-attention and feed-forward, tokens first as in DETR; ``norm1`` is a parameter without use."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, feedforward = sizes.width, sizes.feedforward
        self.multihead_attn = nn.MultiheadAttention(width, sizes.heads)
        self.linear1, self.linear2 = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, queries: torch.Tensor, memory: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Queries ``[N, B, width]``, memory and position ``[tokens, B, width]``."""
        queries = queries + self.multihead_attn(self.norm2(queries), memory + position, memory)[0]
        return queries + self.linear2(F.relu(self.linear1(self.norm3(queries))))


class TransformerDecoder(nn.Module):
    """Layers and a final normalisation."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """As a layer."""
        for layer in self.layers:
            queries = layer(queries, memory, position)
        return self.norm(queries)


class PublishedNetwork(nn.Module):
    """The published network without its training heads.

    Args:
        sizes: the published ones, or smaller for a test.
        in_channels: 2 is Medal S, image and foreground prompt; SAT repeats the image on each of its channels.
        fusion: whether spatial prompts are read, as in Medal S; SAT has none.
    """

    def __init__(self, sizes: Sizes = PUBLISHED, in_channels: int = 2, fusion: bool = True) -> None:
        super().__init__()
        width, channels = sizes.width, sizes.features[0]
        self.in_channels = in_channels
        self.backbone = Backbone(in_channels, sizes)
        self.projection_layer = nn.Sequential(
            nn.Linear(sum(sizes.features), width), nn.GELU(), nn.Linear(width, width), nn.GELU()
        )
        self.transformer_decoder = TransformerDecoder(sizes)
        self.mask_embed_proj = nn.Sequential(
            nn.Linear(width, sizes.hidden), nn.GELU(), nn.Linear(sizes.hidden, channels), nn.GELU()
        )
        self.fusion_conv = ConvBlocks(2 * channels, channels, count=1) if fusion else None

    def forward(self, image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Segment every query.

        Args:
            image: ``[B, 1, H, W, D]``.
            queries: ``[B, N, width]``.
            prompts: S_p ``[B, N, H, W, D]``; zeros for text-only; not read without fusion.

        Returns:
            Logits ``[B, N, H, W, D]``.
        """
        if self.fusion_conv is None:
            scales, features = self.backbone(image.expand(-1, self.in_channels, -1, -1, -1))
        else:
            foreground = (prompts.sum(dim=1, keepdim=True) > 0).to(image.dtype)
            scales, features = self.backbone(torch.cat((image, foreground), dim=1))
        grid = scales[-1].shape[2:]
        pooled = torch.cat([F.adaptive_avg_pool3d(scale, grid) for scale in scales], dim=1)
        memory = self.projection_layer(pooled.flatten(2).permute(2, 0, 1))
        position = sinusoidal_position_code(grid, memory.shape[-1], device=memory.device).unsqueeze(1)
        adapted = self.transformer_decoder(queries.transpose(0, 1), memory, position.to(memory.dtype))
        embedding = self.mask_embed_proj(adapted.transpose(0, 1))
        if self.fusion_conv is not None:
            spread = torch.einsum("bnc,bnhwd->bchwd", embedding, prompts.to(embedding.dtype))
            features = self.fusion_conv(torch.cat((features, spread), dim=1))
        return torch.einsum("bchwd,bnc->bnhwd", features, embedding)
