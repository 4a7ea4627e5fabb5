"""Iterative refinement of one window by masked prompts (Algorithm 2 of Shi et al., arXiv 2511.13001)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.inferers import Inferer

Network = Callable[..., torch.Tensor]


def random_block_mask(shape: Sequence[int], block_size: int, generator: torch.Generator) -> torch.Tensor:
    """A random half of the blocks of a window.

    Args:
        shape: (H, W, D) of the window; a last block that does not fit is cut off.
        block_size: side of a block in voxels.
        generator: the only source of randomness, on the CPU.

    Returns:
        bool ``[1, 1, H, W, D]``, True in max(1, floor(blocks / 2)) blocks.
    """
    grid = [-(-side // block_size) for side in shape]
    count = grid[0] * grid[1] * grid[2]
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=generator)[: max(1, count // 2)]] = True
    mask = chosen.reshape(grid)
    for axis in range(3):
        mask = mask.repeat_interleave(block_size, dim=axis)
    return mask[: shape[0], : shape[1], : shape[2]][None, None]


class RefinementInferer(Inferer):
    """Predict a window, then let the prediction be its own spatial prompt, block by block unseen.

    A first pass starts from the given prompts, or from zeros (text-only). Each refinement keeps the prompt in a
    random half of the blocks and blanks it in the others, predicts, and predicts again with the halves exchanged;
    every voxel takes the prediction that was made while its own prompt was blanked.

    The masks depend on ``seed`` alone: the same window gives the same answer whenever and in whatever order it is
    asked. The whole network runs in every pass, as in the published program, because the foreground prompt is one
    of the U-Net's inputs.

    Args:
        iterations: refinements after the first pass (T); 0 is a single plain prediction.
        repeats: random masks averaged in each refinement (R).
        block_size: side of a block in voxels for refining a prediction.
        first_pass: what given prompts meet first. "plain" shows them whole, as Algorithm 2 starts; "masked" treats
            them like a prediction to be refined, in blocks of ``prompt_block_size``, as the published program does
            with the masks of its first stage.
        prompt_block_size: block side for ``first_pass`` "masked".
        threshold: probabilities at or above it become 1 in the next prompt, others 0, as the published program does;
            None hands on the probabilities, as the paper says.
        batch_halves: run the two halves of a refinement as one batch: faster, at twice the memory.
        seed: of the masks.
    """

    def __init__(
        self,
        iterations: int = 1,
        repeats: int = 1,
        block_size: int = 4,
        first_pass: str = "plain",
        prompt_block_size: int = 8,
        threshold: float | None = 0.5,
        batch_halves: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if iterations < 0 or repeats < 1 or min(block_size, prompt_block_size) < 1:
            raise ValueError(
                f"wanted iterations >= 0, repeats >= 1 and block sizes >= 1, got iterations={iterations}, "
                f"repeats={repeats}, block_size={block_size}, prompt_block_size={prompt_block_size}"
            )
        if first_pass not in ("plain", "masked"):
            raise ValueError(f"first_pass must be 'plain' or 'masked', got {first_pass!r}")
        self.iterations = iterations
        self.repeats = repeats
        self.block_size = block_size
        self.first_pass = first_pass
        self.prompt_block_size = prompt_block_size
        self.threshold = threshold
        self.batch_halves = batch_halves
        self.seed = seed

    def __call__(
        self, inputs: torch.Tensor, network: Network, queries: torch.Tensor, prompts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predict one batch of windows.

        Args:
            inputs: image ``[B, 1, H, W, D]``.
            network: any callable ``(image, queries, prompts)`` giving logits ``[B, N, H, W, D]``.
            queries: ``[N, L]`` or ``[B, N, L]``.
            prompts: starting S_p ``[B, N, H, W, D]`` in 0..1, or None.

        Returns:
            Probabilities ``[B, N, H, W, D]``.
        """
        generator = torch.Generator().manual_seed(self.seed)
        if prompts is None:
            # Zeros, not None: the published text-only inference runs the fusion block on an empty prompt.
            prompts = inputs.new_zeros(len(inputs), queries.shape[-2], *inputs.shape[2:])
            out = torch.sigmoid(network(inputs, queries, prompts))
        elif self.first_pass == "masked":
            out = self._refine(inputs, network, queries, prompts, self.prompt_block_size, generator)
        else:
            out = torch.sigmoid(network(inputs, queries, prompts))
        for _ in range(self.iterations):
            prompts = out if self.threshold is None else (out >= self.threshold)
            out = self._refine(inputs, network, queries, prompts.to(inputs.dtype), self.block_size, generator)
        return out

    def _refine(
        self,
        inputs: torch.Tensor,
        network: Network,
        queries: torch.Tensor,
        prompts: torch.Tensor,
        block_size: int,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """One refinement: the mean over ``repeats`` of the two exchanged predictions."""
        total = torch.zeros_like(prompts)
        for _ in range(self.repeats):
            kept = random_block_mask(inputs.shape[2:], block_size, generator).to(inputs.device)
            halves = [prompts * kept, prompts * ~kept]
            if self.batch_halves:
                twice = queries if queries.ndim == 2 else queries.repeat(2, 1, 1)
                logits = network(torch.cat([inputs, inputs]), twice, torch.cat(halves))
                seen_kept, seen_others = torch.sigmoid(logits).chunk(2)
            else:
                seen_kept, seen_others = (torch.sigmoid(network(inputs, queries, half)) for half in halves)
            total = total + torch.where(kept, seen_others, seen_kept).to(total.dtype)
        return total / self.repeats
