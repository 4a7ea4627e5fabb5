"""Hand an inference batch to the evaluator: image, queries and, where there are any, prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import PrepareBatch


class PrepareRequest(PrepareBatch):
    """Pick what ``TwoStageInferer`` needs from a batch; the queries go to the device, volumes stay on the host.

    MONAI's ``PrepareBatchExtraInput`` demands every key; prompts are absent in text-only requests.

    Args:
        image_key: ``[B, 1, H, W, D]``.
        queries_key: ``[B, N, L]``.
        request_key: the encoded requests.
        prompts_key: packed masks, optional.
        mirrored_key: queries of the other sides, optional.
    """

    def __init__(
        self,
        image_key: str = "image",
        queries_key: str = "queries",
        request_key: str = "request",
        prompts_key: str = "prompts",
        mirrored_key: str = "mirrored_queries",
    ) -> None:
        self.image_key = image_key
        self.moved = {"queries": queries_key, "mirrored_queries": mirrored_key}
        self.kept = {"request": request_key, "prompts": prompts_key}

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None, tuple, dict[str, Any]]:
        """Image, no label, no positional and the keyword arguments of the inferer."""
        options = {name: batchdata[key] for name, key in self.kept.items() if key in batchdata}
        for name, key in self.moved.items():
            if key in batchdata:
                options[name] = batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs)
        return batchdata[self.image_key], None, (), options
