"""Hand a batch of ours to MONAI's engines: image and masks, and the network's further arguments."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import PrepareBatch


def _plain(value: torch.Tensor, device: Any, non_blocking: bool) -> torch.Tensor:
    tensor = value.as_tensor() if hasattr(value, "as_tensor") else value
    return tensor.to(device, non_blocking=non_blocking)


class PreparePrompts(PrepareBatch):
    """Image, targets and the keyword arguments ``queries``, ``prompts`` and ``foreground`` of the network.

    The targets are a dict ``masks`` [B, N, H, W, D] and ``query_mask`` [B, N], the further arguments of
    ``PromptLoss``. Without spatial prompts in the batch (text-only), S_p is zeros and S_f follows from it; where the
    batch's first sample says ``label_withheld``, S_p is withheld altogether.

    Args:
        text_only: ignore the batch's spatial prompts.
    """

    def __init__(self, text_only: bool = False) -> None:
        self.text_only = text_only

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], tuple, dict[str, Any]]:
        """See the class."""

        def get(key: str) -> torch.Tensor:
            return _plain(batchdata[key], device, non_blocking)

        image, masks = get("image"), get("label")
        arguments: dict[str, Any] = {"queries": get("queries")}
        if self.text_only or "label_prompt" not in batchdata:
            arguments["prompts"] = torch.zeros(masks.shape, dtype=image.dtype, device=image.device)
        else:
            withheld = bool(torch.as_tensor(batchdata["label_withheld"]).flatten()[0])
            arguments["prompts"] = None if withheld else get("label_prompt").to(image.dtype)
            arguments["foreground"] = get("label_foreground").to(image.dtype)
        return image, {"masks": masks, "query_mask": get("query_mask")}, (), arguments
