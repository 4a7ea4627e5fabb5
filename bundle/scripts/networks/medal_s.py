"""The Medal S network: image, text queries and spatial prompts in; one mask of logits per query out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from scripts.networks.mask_head import MaskEmbedding, MaskHead, correlate
from scripts.networks.query_decoder import QueryDecoder
from scripts.networks.unet import PlainUNet

PUBLISHED_LEVEL_HIDDEN = (256, 384, 512)


class Features(NamedTuple):
    """What the network knows of an image before any question: nothing in it depends on queries or prompts.

    Attributes:
        tokens: the query decoder's image tokens, ``[B, h * w * d, dim]``.
        fused: full-resolution features after fusion with an empty prompt, F_r, ``[B, C, H, W, D]``.
        plain: the share of the full-resolution features F in the fusion's convolution, before any prompt is added,
            ``[B, C, H, W, D]``; None where nobody will give prompts.
    """

    tokens: torch.Tensor
    fused: torch.Tensor
    plain: torch.Tensor | None = None


class MedalS(nn.Module):
    """Spatio-textual prompt network of Shi et al., arXiv 2511.13001, section 2.

    The parts are collaborators, so that the config chooses their sizes; without arguments it is the published
    network (110.5 M parameters with its training heads).

    Args:
        backbone: U-Net over image and foreground prompt.
        query_decoder: adapts the queries to the image.
        mask_head: fuses spatial prompts and correlates.
        text_projection: maps sentence vectors to the query width; None where the queries arrive projected.
        deep_supervision: add the training heads for the decoder's coarser scales.
        level_hidden: hidden widths of those heads, from 1/2 resolution on; one head each.
    """

    def __init__(
        self,
        backbone: PlainUNet | None = None,
        query_decoder: QueryDecoder | None = None,
        mask_head: MaskHead | None = None,
        text_projection: nn.Module | None = None,
        deep_supervision: bool = False,
        level_hidden: Sequence[int] = PUBLISHED_LEVEL_HIDDEN,
    ) -> None:
        super().__init__()
        self.backbone = PlainUNet() if backbone is None else backbone
        self.query_decoder = QueryDecoder() if query_decoder is None else query_decoder
        self.mask_head = MaskHead() if mask_head is None else mask_head
        self.text_projection = nn.Identity() if text_projection is None else text_projection
        levels = zip(level_hidden, self.backbone.features[1:-1], strict=False) if deep_supervision else ()
        self.level_embeddings = nn.ModuleList(
            MaskEmbedding(self.query_decoder.dim, hidden, channels) for hidden, channels in levels
        )

    @property
    def divisor(self) -> int:
        """Every side of an input must be a multiple of this many voxels."""
        return self.backbone.divisor

    def encode(
        self, image: torch.Tensor, foreground: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Image features that depend on no query: encoder and decoder scales, each fine to coarse.

        Args:
            image: ``[B, 1, H, W, D]``.
            foreground: S_f, ``[B, 1, H, W, D]``; zeros where absent.
        """
        if image.ndim != 5 or image.shape[1] != 1:
            raise ValueError(f"image must be [B, 1, H, W, D], got {tuple(image.shape)}")
        if any(side % self.divisor for side in image.shape[2:]):
            raise ValueError(
                f"every side of a patch must be a multiple of {self.divisor} voxels, got {tuple(image.shape[2:])}: "
                "pad the image or choose another roi_size"
            )
        foreground = torch.zeros_like(image) if foreground is None else foreground.to(image.dtype)
        return self.backbone(torch.cat([image, foreground], dim=1))

    def decode(self, scales: Sequence[torch.Tensor], queries: torch.Tensor) -> torch.Tensor:
        """Queries ``[B, N, L]`` or ``[N, L]`` adapted to the image: ``[B, N, dim]``."""
        return self.query_decoder(scales, self.text_projection(_per_image(queries, scales[-1].shape[0])))

    def features(self, image: torch.Tensor, with_plain: bool = False) -> Features:
        """The part of a text-only pass that depends on no query: nearly all of its cost.

        ``answer(features(image), queries)`` equals ``forward(image, queries, zeros)``, because an empty prompt
        spreads to zeros for any query. So many questions about one image can share it.

        Args:
            image: ``[B, 1, H, W, D]``.
            with_plain: keep what ``answer`` needs to take prompts, at the cost of twice the memory.
        """
        scales, decoded = self.encode(image)
        plain = self.mask_head.convolve(decoded[0])
        fused = self.mask_head.activate(plain)
        return Features(self.query_decoder.tokens(scales), fused, plain if with_plain else None)

    def answer(
        self, features: Features | Sequence[torch.Tensor], queries: torch.Tensor, prompts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Segment every query from features computed before.

        Args:
            features: of ``features``, or its tensors in the same order.
            queries: ``[B, N, L]`` or ``[N, L]``.
            prompts: S_p, ``[B, N, H, W, D]``: only fusion and correlation see them, the U-Net did not (the paper's
                reuse of features, an approximation of ``forward``); None is an empty prompt, which is exact.

        Returns:
            Logits ``[B, N, H, W, D]``.

        Raises:
            ValueError: prompts for features that were made without ``with_plain``.
        """
        tokens, fused, plain = Features(*features)
        grid = [side // self.divisor for side in fused.shape[2:]]
        adapted = self.query_decoder.read(tokens, grid, self.text_projection(_per_image(queries, len(tokens))))
        if prompts is None:
            return self.mask_head(fused, adapted, None)
        if plain is None:
            raise ValueError("network: these features take no prompts, make them with features(image, with_plain=True)")
        return self.mask_head.answer(plain, adapted, prompts)

    def forward(
        self,
        image: torch.Tensor,
        queries: torch.Tensor,
        prompts: torch.Tensor | None = None,
        foreground: torch.Tensor | None = None,
    ) -> torch.Tensor | list[torch.Tensor]:
        """Segment every query.

        Args:
            image: ``[B, 1, H, W, D]`` float; sides multiples of ``divisor``.
            queries: text embeddings, ``[B, N, L]`` or ``[N, L]``.
            prompts: S_p, ``[B, N, H, W, D]``; None skips the fusion, zeros run it (text-only inference).
            foreground: S_f, ``[B, 1, H, W, D]``; where None it is 1 wherever any prompt is positive.

        Returns:
            Logits ``[B, N, H, W, D]``; in training mode with deep supervision a list from fine to coarse.

        Raises:
            ValueError: if a shape does not fit.
        """
        if foreground is None and prompts is not None:
            foreground = (prompts.sum(dim=1, keepdim=True) > 0).to(image.dtype)
        scales, decoded = self.encode(image, foreground)
        adapted = self.decode(scales, queries)
        logits = self.mask_head(decoded[0], adapted, prompts)
        if not (self.training and len(self.level_embeddings)):
            return logits
        coarser = zip(self.level_embeddings, decoded[1:], strict=False)
        return [logits, *(correlate(embed(adapted), features) for embed, features in coarser)]


def _per_image(queries: torch.Tensor, batch: int) -> torch.Tensor:
    """Queries ``[N, L]`` or ``[B, N, L]`` as ``[B, N, L]``."""
    return (queries if queries.ndim == 3 else queries.unsqueeze(0)).expand(batch, -1, -1)
