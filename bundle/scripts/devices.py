"""Refuse a device that this machine does not have, before any work is done."""

from __future__ import annotations

import torch

from scripts.errors import InputError


def check_device(device: str | torch.device) -> None:
    """Make sure that networks can be put on a device.

    Args:
        device: as for ``torch.device``, such as "cpu" or "cuda:0".

    Raises:
        InputError: no such kind of device, or none here.
    """
    try:
        torch.empty(1, device=torch.device(device))
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0][:160]
        raise InputError(f"device {str(device)!r} cannot be used here ({reason}): give cpu, or cuda:0, ...") from e
