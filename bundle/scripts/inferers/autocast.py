"""Mixed precision for any inferer, on the CPU as well: MONAI's engines autocast on CUDA only."""

from __future__ import annotations

import weakref
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
        channels_last: store the network's weights (once, in place; values stay) and the image with channels last,
            for convolutions on tensor cores. On CPUs it makes this network slower: its instance normalisation has no
            such kernel there and copies every feature map back (1.1 times the time in float32, 2.7 in bfloat16).
    """

    def __init__(
        self,
        inferer: Inferer | None = None,
        dtype: torch.dtype = torch.bfloat16,
        enabled: bool = True,
        channels_last: bool = False,
    ) -> None:
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.dtype, self.enabled = dtype, enabled
        self.channels_last = channels_last
        self._converted: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As the wrapped inferer."""
        if self.channels_last:
            inputs = inputs.to(memory_format=torch.channels_last_3d)
            self._convert(network)
        with torch.autocast(inputs.device.type, dtype=self.dtype, enabled=self.enabled):
            return self.inferer(inputs, network, *args, **kwargs)

    def _convert(self, network: Callable[..., Any]) -> None:
        if isinstance(network, torch.nn.Module) and network not in self._converted:
            network.to(memory_format=torch.channels_last_3d)
            self._converted.add(network)
