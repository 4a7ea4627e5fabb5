"""Sliding windows whose spatial prompts travel with the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data.utils import dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.inferers.utils import _get_scan_interval
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple_rep
from tqdm import tqdm

from scripts.inferers.refinement import RefinementInferer


class PromptWindowInferer(SlidingWindowInferer):
    """Window inference for a network that takes an image, text queries and spatial prompts.

    MONAI's inferer hands extra tensors whole to every window, so the prompts ride on the image's channel axis and
    are split off again in each window. Windows advance by half a patch, the last one is moved back to the border,
    and a volume smaller than a window is padded with zeros at its end, as in the published program.

    Args:
        roi_size: window in voxels, three numbers; multiples of the network's divisor.
        sw_batch_size: windows per network call.
        overlap: fraction shared by neighbouring windows.
        mode: "gaussian" or "constant" weighting.
        sigma_scale: Gaussian's standard deviation as a fraction of the window.
        window_inferer: called as ``(image, network, queries, prompts)`` on each window, returns probabilities; one
            text-only pass where None.
        device: where windows are added up; the image's device where None.
        progress: show a bar with the windows done.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        sw_batch_size: int = 1,
        overlap: float = 0.5,
        mode: str = "gaussian",
        sigma_scale: float = 0.125,
        window_inferer: Callable[..., torch.Tensor] | None = None,
        device: torch.device | str | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__(
            roi_size=tuple(roi_size),
            sw_batch_size=sw_batch_size,
            overlap=overlap,
            mode=mode,
            sigma_scale=sigma_scale,
            device=device,
        )
        self.window_size = tuple(int(side) for side in roi_size)
        self.window_inferer = RefinementInferer(iterations=0) if window_inferer is None else window_inferer
        self.show_progress = progress

    def windows(self, shape: Sequence[int]) -> list[tuple[slice, ...]]:
        """The windows of a volume of ``shape`` voxels, after padding, in the order in which they are run."""
        roi = self.window_size
        padded = tuple(max(side, window) for side, window in zip(shape, roi, strict=True))
        interval = _get_scan_interval(padded, roi, len(roi), ensure_tuple_rep(self.overlap, len(roi)))
        return dense_patch_slices(padded, roi, interval)

    def __call__(  # type: ignore[override]
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        queries: torch.Tensor,
        prompts: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Segment a whole volume.

        Args:
            inputs: image ``[B, 1, H, W, D]``.
            network: any callable ``(image, queries, prompts)`` giving logits ``[B, N, H, W, D]``.
            queries: ``[B, N, L]`` or ``[N, L]``; with several images in a batch all ask the same.
            prompts: starting S_p ``[B, N, H, W, D]``; None is text-only.

        Returns:
            Probabilities ``[B, N, H, W, D]`` float32, with the metadata of ``inputs``.

        Raises:
            ValueError: where shapes disagree.
        """
        shape, channels = tuple(inputs.shape[2:]), inputs.shape[1]
        queries = queries[0] if queries.ndim == 3 else queries
        if prompts is not None and tuple(prompts.shape) != (inputs.shape[0], len(queries), *shape):
            raise ValueError(
                f"prompts of shape {tuple(prompts.shape)} do not fit {len(queries)} queries on an image of {shape}"
            )
        stack = inputs if prompts is None else torch.cat([inputs, prompts.to(inputs)], dim=1)
        missing = [max(window - side, 0) for side, window in zip(shape, self.window_size, strict=True)]
        stack = F.pad(convert_to_tensor(stack, track_meta=False), [n for m in reversed(missing) for n in (0, m)])

        total = len(self.windows(shape)) * len(stack)
        with tqdm(total=total, desc="segmenting", unit="window", disable=not self.show_progress) as bar:

            def window(x: torch.Tensor) -> torch.Tensor:
                own = x[:, channels:] if prompts is not None else None
                out = self.window_inferer(x[:, :channels], network, queries, own)
                bar.update(len(x))
                return out.float()

            with torch.no_grad():
                out: Any = super().__call__(stack, window)
        out = out[(..., *(slice(side) for side in shape))]
        return convert_to_dst_type(out, inputs, dtype=torch.float32, device=out.device)[0]
