"""One stage of the system: the grid, the windows and the network that belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from scripts.transforms.resampling import DynamicSpacing, image_geometry, working_spacing

COARSE, FINE = 1, 2


class Stage:
    """A network's view of a volume: resampled to its grid, prepared as in its training, and run in windows.

    Args:
        number: 1 (coarse) or 2 (fine); chooses the entry of the policies that have one for each.
        resample: brings the image to the stage's grid.
        inferer: called as ``(image, network, queries, prompts, **options)``, gives probabilities, e.g.
            ``PromptWindowInferer``.
        prepare: what else the network was trained with (padding, normalisation), on ``[1, H, W, D]``.
        part: this stage's network where the evaluator holds several in a ``torch.nn.ModuleDict``.
    """

    def __init__(
        self,
        number: int,
        resample: DynamicSpacing,
        inferer: Inferer,
        prepare: Callable[[MetaTensor], MetaTensor] | None = None,
        part: str | None = None,
    ) -> None:
        if number not in (COARSE, FINE):
            raise ValueError(f"a stage has the number 1 (coarse) or 2 (fine), got {number!r}")
        self.number = number
        self.resample = resample
        self.inferer = inferer
        self.prepare = prepare
        self.part = part

    def network(self, networks: Any) -> Any:
        """This stage's network among those of the evaluator."""
        if isinstance(networks, torch.nn.ModuleDict):
            return networks[self.part or ("coarse", "fine")[self.number - 1]]
        return networks

    def spacing(self, image: MetaTensor) -> tuple[float, float, float]:
        """Working spacing in mm of a whole volume ``[1, H, W, D]``; a part of it keeps this spacing."""
        shape, sizes = image_geometry(image)
        return working_spacing(sizes, shape, self.resample.swap_spacing)

    def on_grid(self, image: MetaTensor, targets: Sequence[str], spacing: Sequence[float] | None = None) -> MetaTensor:
        """The image as the network wants it.

        Args:
            image: ``[1, H, W, D]`` with its affine.
            targets: policy keys of what is asked for.
            spacing: working spacing of the whole volume where the image is a part of it.

        Returns:
            ``[1, h, w, d]`` with its affine.
        """
        resampled = self.resample(image, targets, spacing)
        return resampled if self.prepare is None else self.prepare(resampled)

    def __call__(
        self,
        image: MetaTensor,
        networks: Any,
        queries: torch.Tensor,
        prompts: torch.Tensor | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Predict on the stage's grid.

        Args:
            image: from ``on_grid``.
            networks: the network, or the stages' networks in a ``ModuleDict``.
            queries: ``[n, L]``; the work is done on their device.
            prompts: starting S_p ``[n, h, w, d]`` of any type, or packed by ``pack_masks``, or None. The inferer moves
                their windows to the queries' device.
            options: handed to the inferer; those that are None are left out.

        Returns:
            Probabilities ``[n, h, w, d]`` and, where asked for with ``return_disagreement``, the disagreement
            ``[1, h, w, d]``.
        """
        given = {name: value for name, value in options.items() if value is not None}
        start = None if prompts is None else prompts[None]
        batch = image[None].to(queries.device)
        out = self.inferer(batch, self.network(networks), queries=queries, prompts=start, **given)
        if isinstance(out, tuple):
            return out[0][0], None if out[1] is None else out[1][0]
        return out[0], None


def join_networks(**networks: torch.nn.Module | None) -> torch.nn.Module:
    """The stages' networks as one module for the evaluator, by name; those that are None are left out."""
    return torch.nn.ModuleDict({name: network for name, network in networks.items() if network is not None})
