"""The published layer sequence in plain PyTorch, as the yardstick for the full-size network's speed.

Written out from the paper (Shi et al., arXiv 2511.13001, section 2) and the published parameter list, whose names it
keeps: a published checkpoint loads into it as it is. Every step is the obvious one: nothing is left out, reused or
fused by hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from scripts.networks import sinusoidal_position_code

FEATURES = (64, 64, 128, 256, 512, 768)
STRIDES = (1, 2, 2, 2, 2, 2)
WIDTH, HEADS, LAYERS, FEEDFORWARD = 768, 8, 6, 2048


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
    """Features at six scales."""

    def __init__(self, in_channels: int = 2) -> None:
        super().__init__()
        inputs = (in_channels, *FEATURES[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(ConvBlocks(i, o, s)) for i, o, s in zip(inputs, FEATURES, STRIDES, strict=True)
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

    def __init__(self) -> None:
        super().__init__()
        pairs = list(zip(FEATURES[:0:-1], FEATURES[-2::-1], strict=True))
        self.transpconvs = nn.ModuleList(nn.ConvTranspose3d(i, o, 2, 2) for i, o in pairs)
        self.stages = nn.ModuleList(ConvBlocks(2 * o, o) for _, o in pairs)

    def forward(self, scales: Sequence[torch.Tensor]) -> torch.Tensor:
        """Full-resolution features ``[B, 64, H, W, D]``."""
        x = scales[-1]
        for number, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x = stage(torch.cat((up(x), scales[-(number + 2)]), dim=1))
        return x


class Backbone(nn.Module):
    """The U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Encoder scales, and the decoder's finest one."""
        scales = self.encoder(x)
        return scales, self.decoder(scales)


class DecoderLayer(nn.Module):
    """Pre-norm cross-attention and feed-forward, tokens first as in DETR; ``norm1`` is a parameter without use."""

    def __init__(self) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(WIDTH, HEADS)
        self.linear1, self.linear2 = nn.Linear(WIDTH, FEEDFORWARD), nn.Linear(FEEDFORWARD, WIDTH)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, queries: torch.Tensor, memory: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Queries ``[N, B, 768]``, memory and position ``[tokens, B, 768]``."""
        queries = queries + self.multihead_attn(self.norm2(queries), memory + position, memory)[0]
        return queries + self.linear2(F.relu(self.linear1(self.norm3(queries))))


class TransformerDecoder(nn.Module):
    """Six layers and a final normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """As a layer."""
        for layer in self.layers:
            queries = layer(queries, memory, position)
        return self.norm(queries)


class PublishedNetwork(nn.Module):
    """The published network without its training heads."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.projection_layer = nn.Sequential(
            nn.Linear(sum(FEATURES), WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU()
        )
        self.transformer_decoder = TransformerDecoder()
        self.mask_embed_proj = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, FEATURES[0]), nn.GELU())
        self.fusion_conv = ConvBlocks(2 * FEATURES[0], FEATURES[0], count=1)

    def forward(self, image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Segment every query.

        Args:
            image: ``[B, 1, H, W, D]``.
            queries: ``[B, N, 768]``.
            prompts: S_p ``[B, N, H, W, D]``; zeros for text-only.

        Returns:
            Logits ``[B, N, H, W, D]``.
        """
        foreground = (prompts.sum(dim=1, keepdim=True) > 0).to(image.dtype)
        scales, features = self.backbone(torch.cat((image, foreground), dim=1))
        grid = scales[-1].shape[2:]
        pooled = torch.cat([F.adaptive_avg_pool3d(scale, grid) for scale in scales], dim=1)
        memory = self.projection_layer(pooled.flatten(2).permute(2, 0, 1))
        position = sinusoidal_position_code(grid, WIDTH, device=memory.device).unsqueeze(1)
        adapted = self.transformer_decoder(queries.transpose(0, 1), memory, position.to(memory.dtype))
        embedding = self.mask_embed_proj(adapted.transpose(0, 1))
        spread = torch.einsum("bnc,bnhwd->bchwd", embedding, prompts.to(embedding.dtype))
        fused = self.fusion_conv(torch.cat((features, spread), dim=1))
        return torch.einsum("bchwd,bnc->bnhwd", fused, embedding)
