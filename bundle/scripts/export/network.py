"""Run an exported network where the inference config expects the network itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from scripts.export.archive import read_archive
from scripts.export.facts import ProgramFacts

logger = logging.getLogger(__name__)


class ExportedNetwork(nn.Module):
    """A program in the network's place: the same call, the same logits; always in evaluation mode.

    It has no ``features`` and ``answer``, so refinement runs in mode "exact" and nothing is cached between questions.

    Args:
        program: of ``export_program``.
        facts: its sizes.
    """

    def __init__(self, program: ExportedProgram, facts: ProgramFacts) -> None:
        super().__init__()
        self.facts = facts
        self.program = program.module().requires_grad_(False)
        self.training = False

    @property
    def divisor(self) -> int:
        """Every side of an input must be a multiple of this many voxels, and at least two of them."""
        return self.facts.divisor

    def train(self, mode: bool = True) -> ExportedNetwork:
        """Stay in evaluation mode: a program has no other."""
        return self

    def forward(self, image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Segment every query.

        Args:
            image: ``[B, 1, H, W, D]`` float; sides multiples of ``divisor``, at least two of them.
            queries: ``[B, N, L]``, ``[1, N, L]`` or ``[N, L]``.
            prompts: S_p, ``[B, N, H, W, D]``; zeros for text alone.

        Returns:
            Logits ``[B, N, H, W, D]``.

        Raises:
            ValueError: if a shape does not fit.
        """
        self._check(image, queries, prompts)
        asked = queries if queries.ndim == 3 else queries[None]
        return cast(torch.Tensor, self.program(image, asked.expand(len(image), -1, -1).contiguous(), prompts))

    def _check(self, image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> None:
        divisor, smallest = self.facts.divisor, self.facts.smallest_side
        if image.ndim != 5 or image.shape[1] != 1:
            raise ValueError(f"image must be [B, 1, H, W, D], got {tuple(image.shape)}")
        if any(side % divisor or side < smallest for side in image.shape[2:]):
            raise ValueError(
                f"every side of a patch must be a multiple of {divisor} voxels and at least {smallest} in an exported "
                f"network, got {tuple(image.shape[2:])}: pad the image or choose another roi_size"
            )
        if queries.ndim not in (2, 3) or queries.shape[-1] != self.facts.query_width:
            raise ValueError(
                f"queries must be [N, {self.facts.query_width}] or [B, N, {self.facts.query_width}], got "
                f"{tuple(queries.shape)}: take the sentence vectors that the network was trained with"
            )
        wanted = (len(image), queries.shape[-2], *image.shape[2:])
        if tuple(prompts.shape) != wanted:
            raise ValueError(f"prompts must be {list(wanted)}, got {list(prompts.shape)}")


def load_exported(path: str | Path, device: torch.device | str = "cpu") -> ExportedNetwork:
    """Load an exported network; nothing in the file is executed on loading, see ``read_archive``.

    Args:
        path: the ``.pt2`` file.
        device: where it runs. A program is bound to it: move it by loading it again, not by ``to``.

    Raises:
        InputError: no such file, or one that is refused.
    """
    program, facts = read_archive(path)
    goal = torch.device(device)
    if goal.type != "cpu":
        program = cast(Any, move_to_device_pass)(program, goal)
    logger.info("exported network loaded from %s (weights %s, %s)", Path(path).name, facts.weights, facts.bundle)
    return ExportedNetwork(program, facts)
