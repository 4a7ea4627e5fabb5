"""Hand an inference batch to the evaluator: image, queries and, where there are any, prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import PrepareBatch


class PrepareRequest(PrepareBatch):
    """Pick what the prompt inferer needs from a batch and move it to the device.

    MONAI's ``PrepareBatchExtraInput`` demands every key; prompts are absent in text-only requests.

    Args:
        image_key: ``[B, 1, H, W, D]``.
        queries_key: ``[B, N, L]``.
        prompts_key: ``[B, N, H, W, D]``, optional.
    """

    def __init__(self, image_key: str = "image", queries_key: str = "queries", prompts_key: str = "prompts") -> None:
        self.image_key = image_key
        self.queries_key = queries_key
        self.prompts_key = prompts_key

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None, tuple, dict[str, torch.Tensor | None]]:
        """Image, no label, no positional and the keyword arguments of the inferer."""

        def get(key: str) -> torch.Tensor:
            return batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs)

        prompts = get(self.prompts_key) if self.prompts_key in batchdata else None
        return get(self.image_key), None, (), {"queries": get(self.queries_key), "prompts": prompts}
