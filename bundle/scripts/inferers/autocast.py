"""Mixed precision for any inferer, on the CPU as well: MONAI's engines autocast on CUDA only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer


class AutocastInferer(Inferer):
    """Run another inferer under autocast on the inputs' own device.

    Args:
        inferer: the inferer to wrap; the network itself by default.
        dtype: reduced precision, ``bfloat16`` or ``float16``; bfloat16 needs no loss scaling.
        enabled: False runs in the inputs' own precision.
    """

    def __init__(
        self, inferer: Inferer | None = None, dtype: torch.dtype = torch.bfloat16, enabled: bool = True
    ) -> None:
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.dtype, self.enabled = dtype, enabled

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As the wrapped inferer."""
        with torch.autocast(inputs.device.type, dtype=self.dtype, enabled=self.enabled):
            return self.inferer(inputs, network, *args, **kwargs)
