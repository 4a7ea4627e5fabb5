"""The network for tools that give it nothing but an image: it then answers for every structure its weights know.

MONAI's commands for bundles (``verify_net_in_out``, ``ckpt_export``, ``onnx_export``) and the programs that run what
these write know one input. The answer is then of the form that the metadata describe: one channel per number in
``channel_def``, of which the largest is the label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from scripts.networks.medal_s import MedalS

# A structure is where its probability is at least one half, that is, where its logit is at least this.
BACKGROUND_LOGIT = 0.0


class KnownStructures(MedalS):
    """``MedalS``, with the same parameters, whose queries may be left out.

    Args:
        default: gives the queries of a call without any, as ``{"queries": [N, L]}``; asked at the first such call,
            because building the network should not embed sentences. None: a call without queries is an error.
        parts: see ``MedalS``.
    """

    def __init__(self, default: Callable[[], Mapping[str, Any]] | None = None, **parts: Any) -> None:
        super().__init__(**parts)
        self.default = default

    def forward(
        self,
        image: torch.Tensor,
        queries: torch.Tensor | None = None,
        prompts: torch.Tensor | None = None,
        foreground: torch.Tensor | None = None,
    ) -> torch.Tensor | list[torch.Tensor]:
        """Segment every query, or every known structure where there are no queries.

        Args:
            image: ``[B, 1, H, W, D]`` float; sides multiples of ``divisor``.
            queries: see ``MedalS``; None asks for the N known structures, in words alone.
            prompts: see ``MedalS``; only with queries.
            foreground: see ``MedalS``; only with queries.

        Returns:
            With queries what ``MedalS`` returns. Without, logits ``[B, 1 + N, H, W, D]`` with the background first:
            their argmax is the label map where every structure counts from a probability of one half on.

        Raises:
            ValueError: if a shape does not fit, or queries are needed and there are none.
        """
        if queries is not None:
            return super().forward(image, queries, prompts, foreground)
        if prompts is not None or foreground is not None:
            raise ValueError("network: prompts without queries: say which structures the prompts are of")
        known = self._known(image)
        logits = self.answer(self.features(image), known)
        return torch.cat([torch.full_like(logits[:, :1], BACKGROUND_LOGIT), logits], dim=1)

    def _known(self, image: torch.Tensor) -> torch.Tensor:
        """Queries ``[N, L]`` of the known structures, where the image is."""
        if self.default is None:
            raise ValueError("network: it was given an image without queries, and has no default queries: give queries")
        queries: torch.Tensor = self.default()["queries"]
        return queries.to(image.device, image.dtype)
