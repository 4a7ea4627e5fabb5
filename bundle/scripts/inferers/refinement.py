"""Iterative refinement of one window by masked prompts (Algorithm 2 of Shi et al., arXiv 2511.13001)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from monai.inferers import Inferer

from scripts.inferers.feature_cache import FeatureCache, ReusableNetwork

logger = logging.getLogger(__name__)
Network = Callable[..., torch.Tensor]
# Logits for prompts [k * B, N, H, W, D], k copies of the batch one after another; None is text-only.
Predictor = Callable[["torch.Tensor | None"], torch.Tensor]


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

    A first pass starts from the given prompts, or from none (text-only). Each refinement keeps the prompt in a
    random half of the blocks and blanks it in the others, predicts, and predicts again with the halves exchanged;
    every voxel takes the prediction that was made while its own prompt was blanked.

    The masks depend on ``seed`` alone: the same window gives the same answer whenever and in whatever order it is
    asked. A text-only pass takes its features from ``cache`` where there is one: they do not depend on the queries.

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
        batch_halves: run the two halves of a refinement as one batch, at twice the memory: True, False, or "auto":
            on a GPU while memory lasts; never on a CPU, which gains nothing by it.
        seed: of the masks.
        mode: "exact" runs the whole network in every pass, as the published program, because the foreground prompt
            is one of the U-Net's inputs; "cached" runs the U-Net once, without prompts, and only fusion and
            correlation again, as the paper says: several times faster, other numbers.
        cache: keeps the features of windows between calls; None computes them every time. It is not used while
            gradients are recorded or the network trains.
        return_disagreement: return a pair, see ``__call__``.
    """

    def __init__(
        self,
        iterations: int = 1,
        repeats: int = 1,
        block_size: int = 4,
        first_pass: str = "plain",
        prompt_block_size: int = 8,
        threshold: float | None = 0.5,
        batch_halves: bool | str = "auto",
        seed: int = 0,
        mode: str = "exact",
        cache: FeatureCache | None = None,
        return_disagreement: bool = False,
    ) -> None:
        super().__init__()
        if iterations < 0 or repeats < 1 or min(block_size, prompt_block_size) < 1:
            raise ValueError(
                f"wanted iterations >= 0, repeats >= 1 and block sizes >= 1, got iterations={iterations}, "
                f"repeats={repeats}, block_size={block_size}, prompt_block_size={prompt_block_size}"
            )
        if first_pass not in ("plain", "masked"):
            raise ValueError(f"first_pass must be 'plain' or 'masked', got {first_pass!r}")
        if mode not in ("exact", "cached"):
            raise ValueError(f"refinement: mode must be 'exact' or 'cached', got {mode!r}")
        if batch_halves not in (True, False, "auto"):
            raise ValueError(f"refinement: batch_halves must be true, false or 'auto', got {batch_halves!r}")
        self.iterations = iterations
        self.repeats = repeats
        self.block_size = block_size
        self.first_pass = first_pass
        self.prompt_block_size = prompt_block_size
        self.threshold = threshold
        self.batch_halves = batch_halves
        self.seed = seed
        self.mode = mode
        self.cache = cache
        self.return_disagreement = return_disagreement

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Network,
        queries: torch.Tensor,
        prompts: torch.Tensor | None = None,
        iterations: int | None = None,
        return_disagreement: bool | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor | None]:
        """Predict one batch of windows.

        Args:
            inputs: image ``[B, 1, H, W, D]``.
            network: any callable ``(image, queries, prompts)`` giving logits ``[B, N, H, W, D]``; mode "cached" and
                the cache need a ``ReusableNetwork``.
            queries: ``[N, L]`` or ``[B, N, L]``.
            prompts: starting S_p ``[B, N, H, W, D]`` in 0..1, or None.
            iterations: for this call, instead of the constructor's.
            return_disagreement: likewise.

        Returns:
            Probabilities ``[B, N, H, W, D]``; with ``return_disagreement`` also how far apart the two masked
            predictions of the last refinement were, |p_a - p_b| ``[B, N, H, W, D]`` averaged over the repeats, or
            None where nothing was refined.

        Raises:
            ValueError: mode "cached" with a network that cannot keep its features.
        """
        wanted = self.return_disagreement if return_disagreement is None else return_disagreement
        generator = torch.Generator().manual_seed(self.seed)
        predict = self._predictor(inputs, network, queries)
        disagreement = None
        if prompts is not None and self.first_pass == "masked":
            out, disagreement = self._refine(
                predict, prompts.to(inputs.dtype), self.prompt_block_size, generator, wanted
            )
        else:
            out = torch.sigmoid(predict(prompts))
        for _ in range(self.iterations if iterations is None else iterations):
            prompts = out if self.threshold is None else (out >= self.threshold)
            out, disagreement = self._refine(predict, prompts.to(inputs.dtype), self.block_size, generator, wanted)
        return (out, disagreement) if wanted else out

    def _predictor(self, inputs: torch.Tensor, network: Network, queries: torch.Tensor) -> Predictor:
        """How a pass over this batch is made, in either mode."""
        reusable = isinstance(network, ReusableNetwork)
        if self.mode == "cached" and not reusable:
            raise ValueError(
                "refinement: mode 'cached' needs a network with features() and answer(), got "
                f"{type(network).__name__}: take mode 'exact'"
            )
        with_plain = self.mode == "cached"
        features: list[tuple[torch.Tensor, ...]] = []

        def known() -> tuple[torch.Tensor, ...]:
            if not features:
                features.append(self._features(inputs, network, with_plain))
            return features[0]

        def predict(prompts: torch.Tensor | None) -> torch.Tensor:
            if prompts is None and reusable and not getattr(network, "training", False):
                return network.answer(known(), queries)  # type: ignore[attr-defined]
            if prompts is None:
                # Zeros, not None: the published text-only inference runs the fusion block on an empty prompt.
                prompts = inputs.new_zeros(len(inputs), queries.shape[-2], *inputs.shape[2:])
            copies = len(prompts) // len(inputs)
            asked = queries if queries.ndim == 2 or len(queries) == 1 else _repeated(queries, copies)
            if self.mode == "exact":
                return network(_repeated(inputs, copies), asked, prompts)
            tensors = tuple(_repeated(t, copies) for t in known())
            return network.answer(tensors, asked, prompts)  # type: ignore[attr-defined]

        return predict

    def _features(self, inputs: torch.Tensor, network: Network, with_plain: bool) -> tuple[torch.Tensor, ...]:
        """The batch's features, from the cache where it may be used."""
        fixed = isinstance(network, torch.nn.Module) and not network.training and not torch.is_grad_enabled()
        if self.cache is not None and fixed:
            return self.cache.features(network, inputs, with_plain)
        made = network.features(inputs, with_plain=with_plain)  # type: ignore[attr-defined]
        return tuple(t for t in made if t is not None)

    def _refine(
        self,
        predict: Predictor,
        prompts: torch.Tensor,
        block_size: int,
        generator: torch.Generator,
        with_distance: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One refinement: the mean over ``repeats`` of the two exchanged predictions, and of their distance."""
        total = torch.zeros_like(prompts)
        distance = torch.zeros_like(prompts) if with_distance else None
        for _ in range(self.repeats):
            kept = random_block_mask(prompts.shape[2:], block_size, generator).to(prompts.device)
            seen_kept, seen_others = self._both_halves(predict, prompts * kept, prompts * ~kept)
            total += torch.where(kept, seen_others, seen_kept).to(total.dtype)
            if distance is not None:
                distance += (seen_kept - seen_others).abs()
        if self.repeats > 1:
            total /= self.repeats
        if distance is not None and self.repeats > 1:
            distance /= self.repeats
        return total, distance

    def _both_halves(
        self, predict: Predictor, kept: torch.Tensor, others: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities with either half of the prompts, together or one after the other."""
        if self.batch_halves is True or (self.batch_halves == "auto" and kept.device.type != "cpu"):
            try:
                first, second = torch.sigmoid(predict(torch.cat([kept, others]))).chunk(2)
                return first, second
            except torch.cuda.OutOfMemoryError:
                if self.batch_halves is True:
                    raise
                self.batch_halves = False
                logger.warning("refinement: two halves do not fit the GPU's memory together, running them in turn")
        return torch.sigmoid(predict(kept)), torch.sigmoid(predict(others))


def _repeated(tensor: torch.Tensor, copies: int) -> torch.Tensor:
    """The whole batch ``copies`` times over; nothing is copied where expanding does it."""
    if copies == 1:
        return tensor
    if len(tensor) == 1:
        return tensor.expand(copies, *tensor.shape[1:])
    return tensor.repeat(copies, *[1] * (tensor.ndim - 1))
