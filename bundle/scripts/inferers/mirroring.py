"""Mirroring at test time: prompts flip with the image, and left and right change places in the question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from monai.inferers import Inferer


class MirrorInferer(Inferer):
    """Average an inferer's answers over flipped copies of its input.

    Across the left-right axis, a flip turns the left kidney into what looks like a right one. To hear about the left
    kidney, a flipped image has to be asked for the right one: ``mirrored_queries`` holds, for each target, the query
    of its other side (its own where it has none). The answer, flipped back, is the left kidney again, in the left
    kidney's channel: so channels keep their places, and a spatial prompt stays in its channel and flips with the
    image. Flips across other axes leave sides as they are.

    It wraps an inferer of single windows (inside a window inferer: the memory of a few windows) or of whole volumes
    (around one: two volumes per class more).

    Args:
        inferer: called as ``(image, network, queries, prompts)``, gives probabilities, alone or with their
            disagreement.
        axes: spatial axes 0, 1, 2 to flip, in every combination: 2, 4 or 8 views.
        left_right_axis: the axis that runs between the patient's left and right; None where sides mean nothing.
        return_disagreement: return a pair, see ``__call__``.

    Raises:
        ValueError: an axis that does not exist, or twice the same.
    """

    def __init__(
        self,
        inferer: Callable[..., Any],
        axes: Sequence[int] = (0,),
        left_right_axis: int | None = 0,
        return_disagreement: bool = False,
    ) -> None:
        super().__init__()
        if set(axes) - {0, 1, 2} or len(set(axes)) != len(axes) or left_right_axis not in (None, 0, 1, 2):
            raise ValueError(
                f"mirroring: axes and left_right_axis must be among 0, 1, 2, each axis once, got axes={list(axes)}, "
                f"left_right_axis={left_right_axis}"
            )
        self.inferer = inferer
        self.axes = tuple(axes)
        self.left_right_axis = left_right_axis
        self.return_disagreement = return_disagreement

    def views(self) -> list[tuple[int, ...]]:
        """The axes flipped in each view, the unflipped one first."""
        return [view for count in range(len(self.axes) + 1) for view in combinations(self.axes, count)]

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        queries: torch.Tensor,
        prompts: torch.Tensor | None = None,
        mirrored_queries: torch.Tensor | None = None,
        return_disagreement: bool | None = None,
        **options: Any,
    ) -> Any:
        """Predict every view.

        Args:
            inputs: image ``[B, 1, H, W, D]``.
            network: any callable ``(image, queries, prompts)``.
            queries: ``[N, L]`` or ``[B, N, L]``.
            prompts: S_p ``[B, N, H, W, D]`` or None.
            mirrored_queries: the other side's query of each target, shaped as ``queries``; needed where
                ``left_right_axis`` is one of ``axes``.
            return_disagreement: for this call, instead of the constructor's; also handed to the wrapped inferer.
            options: handed to the wrapped inferer.

        Returns:
            Mean probabilities ``[B, N, H, W, D]`` of the views; with ``return_disagreement`` also, in every voxel,
            the larger of the standard deviation over the views and the wrapped inferer's own mean disagreement:
            ``[B, N, H, W, D]``, or ``[B, 1, H, W, D]`` where the wrapped inferer gives the largest of all classes; a
            single view leaves the wrapped inferer's own, or None.

        Raises:
            ValueError: ``mirrored_queries`` is missing or of another shape.
        """
        if self.left_right_axis in self.axes and (mirrored_queries is None or mirrored_queries.shape != queries.shape):
            shape = None if mirrored_queries is None else tuple(mirrored_queries.shape)
            raise ValueError(
                f"mirroring: flipping left and right needs mirrored_queries of shape {tuple(queries.shape)}, got "
                f"{shape}: encode each target's other side, or leave that axis out"
            )
        wanted = self.return_disagreement if return_disagreement is None else return_disagreement
        if return_disagreement is not None:
            options = {**options, "return_disagreement": return_disagreement}
        views = self.views()
        spread = _Spread(len(views), with_deviation=wanted)
        for view in views:
            asked = mirrored_queries if self.left_right_axis in view else queries
            flipped = None if prompts is None else _flip(prompts, view)
            out = self.inferer(_flip(inputs, view), network, asked, flipped, **options)
            probabilities, disagreement = out if isinstance(out, tuple) else (out, None)
            spread.add(_flip(probabilities, view), None if disagreement is None else _flip(disagreement, view))
        return (spread.mean, spread.disagreement()) if wanted else spread.mean


class _Spread:
    """Running mean and standard deviation over the views (Welford), and the mean of their own disagreements."""

    def __init__(self, views: int, with_deviation: bool) -> None:
        self.views = views
        self.count = 0
        self.mean = torch.empty(0)
        self._squares: torch.Tensor | None = None
        self._inner: torch.Tensor | None = None
        self._with_deviation = with_deviation and views > 1

    def add(self, probabilities: torch.Tensor, inner: torch.Tensor | None) -> None:
        self.count += 1
        if self.views == 1:
            self.mean, self._inner = probabilities, inner
            return
        if self.count == 1:
            self.mean = probabilities.clone()
            self._squares = torch.zeros_like(self.mean) if self._with_deviation else None
            self._inner = None if inner is None else inner.clone()
            return
        step = probabilities - self.mean
        self.mean += step / self.count
        if self._squares is not None:
            self._squares += step * (probabilities - self.mean)
        if self._inner is not None and inner is not None:
            self._inner += (inner - self._inner) / self.count

    def disagreement(self) -> torch.Tensor | None:
        """``[B, N, ...]``, or ``[B, 1, ...]`` where the inner one has a single channel; None if none exists."""
        if self._squares is None:
            return self._inner
        deviation = (self._squares / self.count).clamp_(min=0).sqrt_()
        if self._inner is None:
            return deviation
        if self._inner.shape[1] == 1:
            deviation = deviation.amax(dim=1, keepdim=True)
        return torch.maximum(deviation, self._inner)


def _flip(tensor: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Flip spatial axes of ``[B, C, H, W, D]``."""
    return tensor.flip([axis + 2 for axis in axes]) if axes else tensor
