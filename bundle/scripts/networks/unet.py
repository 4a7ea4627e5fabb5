"""Image encoder and decoder: a plain-convolution U-Net that returns its features at every scale."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from monai.networks.blocks import Convolution
from torch import nn


def conv_block(in_channels: int, out_channels: int, stride: int = 1) -> Convolution:
    """3x3x3 convolution with bias, InstanceNorm (affine, eps 1e-5), LeakyReLU 0.01: the block of nnU-Net."""
    return Convolution(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        strides=stride,
        kernel_size=3,
        adn_ordering="NA",
        norm=("instance", {"affine": True, "eps": 1e-5}),
        act=("leakyrelu", {"negative_slope": 0.01, "inplace": True}),
        bias=True,
    )


def stage(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Two convolution blocks, the first of which changes channels and resolution."""
    return nn.Sequential(conv_block(in_channels, out_channels, stride), conv_block(out_channels, out_channels))


class PlainUNet(nn.Module):
    """Six-stage (by default) plain-convolution U-Net in nnU-Net style (paper section 2.1, spec "Network").

    Args:
        in_channels: channels of the input; Medal S stacks the image and the foreground prompt S_f.
        features: channels of each encoder stage, from fine to coarse.
        strides: stride of each stage; the first is 1 in the published network.

    Raises:
        ValueError: if ``features`` and ``strides`` differ in length.
    """

    def __init__(
        self,
        in_channels: int = 2,
        features: Sequence[int] = (64, 64, 128, 256, 512, 768),
        strides: Sequence[int] = (1, 2, 2, 2, 2, 2),
    ) -> None:
        super().__init__()
        if len(features) != len(strides):
            raise ValueError(f"one stride per stage is needed, got {len(features)} features and {len(strides)} strides")
        self.in_channels = in_channels
        self.features = tuple(features)
        self.divisor = prod(strides)
        inputs = (in_channels, *self.features[:-1])
        self.encoder = nn.ModuleList(stage(i, o, s) for i, o, s in zip(inputs, self.features, strides, strict=True))
        # The decoder is stored from coarse to fine, the order it runs in.
        coarse_to_fine = list(zip(self.features[:0:-1], self.features[-2::-1], strides[:0:-1], strict=True))
        self.upsample = nn.ModuleList(nn.ConvTranspose3d(i, o, kernel_size=s, stride=s) for i, o, s in coarse_to_fine)
        self.decoder = nn.ModuleList(stage(2 * o, o) for _, o, _ in coarse_to_fine)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Encode and decode ``x``.

        Args:
            x: ``[B, in_channels, H, W, D]``, each side a multiple of ``self.divisor``.

        Returns:
            The encoder's features, fine to coarse (one per stage), and the decoder's, fine to coarse (one fewer).
        """
        scales = []
        for block in self.encoder:
            x = block(x)
            scales.append(x)
        decoded = []
        for up, block, skip in zip(self.upsample, self.decoder, scales[-2::-1], strict=True):
            x = block(torch.cat([up(x), skip], dim=1))
            decoded.append(x)
        return scales, decoded[::-1]
