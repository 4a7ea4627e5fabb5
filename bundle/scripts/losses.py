"""Segmentation loss per text query: binary cross-entropy plus Dice, over the decoder's scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

LEVEL_WEIGHTS = (1.0, 0.5, 0.25, 0.125)


class PromptLoss(nn.Module):
    """Mean over the real queries of (BCE + Dice), summed over the scales (spec "Training", published code).

    MONAI's ``DiceCELoss`` averages over every channel; here padded query slots must count neither in the sum nor
    in the divisor, which is the number of real queries of the whole batch.

    Args:
        level_weights: weight of each scale, from fine to coarse; those in use are divided by their sum.
        smooth: added to the Dice numerator and denominator.
        reduction: ``"mean"`` for the training loss (a scalar); ``"none"`` for one value per sample, divided by that
            sample's own number of real queries (0 where it has none).
    """

    def __init__(
        self, level_weights: Sequence[float] = LEVEL_WEIGHTS, smooth: float = 1e-7, reduction: str = "mean"
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
        self.level_weights = tuple(level_weights)
        self.smooth = smooth
        self.reduction = reduction

    def forward(
        self, logits: torch.Tensor | Sequence[torch.Tensor], masks: torch.Tensor, query_mask: torch.Tensor
    ) -> torch.Tensor:
        """Loss of one batch.

        Args:
            logits: ``[B, N, H, W, D]``, or a list of them from fine to coarse.
            masks: 0/1 ``[B, N, H, W, D]`` of any dtype, at full resolution.
            query_mask: ``[B, N]``, 1 for a real query, 0 for padding.

        Returns:
            A scalar, or ``[B]`` with ``reduction="none"``.

        Raises:
            ValueError: if there are more scales than weights, or the shapes do not fit.
        """
        bce, dice = self.components(logits, masks, query_mask)
        return bce + dice

    def components(
        self, logits: torch.Tensor | Sequence[torch.Tensor], masks: torch.Tensor, query_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The BCE part and the Dice part of the loss, reduced alike."""
        levels = [logits] if isinstance(logits, torch.Tensor) else list(logits)
        if not 0 < len(levels) <= len(self.level_weights):
            raise ValueError(f"got {len(levels)} scales of logits for {len(self.level_weights)} level weights")
        if levels[0].shape != masks.shape or query_mask.shape != masks.shape[:2]:
            raise ValueError(
                f"logits {tuple(levels[0].shape)}, masks {tuple(masks.shape)} and query_mask {tuple(query_mask.shape)} "
                "do not belong together: wanted [B, N, H, W, D] twice and [B, N]"
            )
        weights = self.level_weights[: len(levels)]
        query_mask = query_mask.to(torch.float32)
        totals = torch.zeros(2, *query_mask.shape, device=query_mask.device)
        for level, weight in zip(levels, weights, strict=True):
            level_masks = masks.to(torch.float32)
            if level.shape != masks.shape:
                level_masks = F.interpolate(level_masks, size=level.shape[2:], mode="nearest")
            totals = totals + weight / sum(weights) * torch.stack(self._per_query(level.float(), level_masks))
        totals = totals * query_mask
        if self.reduction == "none":
            return tuple(totals.sum(dim=2) / query_mask.sum(dim=1).clamp(min=1))
        return tuple(totals.sum(dim=(1, 2)) / (query_mask.sum() + 1e-14))

    def _per_query(self, logits: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """BCE and Dice loss, each ``[B, N]``."""
        logits, masks = logits.flatten(2), masks.flatten(2)
        bce = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(dim=2)
        probability = logits.sigmoid()
        overlap = (probability * masks).sum(dim=2)
        total = probability.square().sum(dim=2) + masks.square().sum(dim=2)
        return bce, 1 - (2 * overlap + self.smooth) / (total + self.smooth)
