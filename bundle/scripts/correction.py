"""What a user's corrections mean: for the prompt that the network gets, and for the answer that it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scripts.transforms.prompt_shapes import Box, Marks, bounding_box, join_boxes


@dataclass(frozen=True)
class Correction:
    """One correction of one target.

    Attributes:
        number: place of the target among those asked for.
        marks: the marked voxels.
        positive: they belong to the target; else they do not.
        binding: the answer has them so, whatever the network says.
        replaces: the marks are the target's whole new prompt, and put an end to earlier corrections of it.
    """

    number: int
    marks: Marks
    positive: bool
    binding: bool
    replaces: bool = False

    def applied_to(self, present: np.ndarray, box: Box) -> np.ndarray:
        """The target's prompt in a box: its present mask there, corrected; both bool ``[h, w, d]``."""
        marked = self.marks.within(box)
        if self.replaces:
            return marked
        return present | marked if self.positive else present & ~marked

    def touches(self, present: Callable[[], np.ndarray]) -> Marks:
        """The marks, in a box that holds every voxel whose prompt may change.

        Args:
            present: gives the target's present mask, bool ``[H, W, D]``; called where all of it is needed.
        """
        before = bounding_box(present()) if self.replaces else None
        if before is None:
            return self.marks
        box = join_boxes(before, self.marks.box)
        return Marks(box, np.packbits(self.marks.within(box)))


def honoured(
    mask: np.ndarray, box: Box, corrections: Sequence[Correction], number: int
) -> tuple[np.ndarray, np.ndarray]:
    """A predicted mask with the binding corrections; where they contradict each other the last one counts.

    Args:
        mask: bool ``[h, w, d]``.
        box: where it lies in the image.
        corrections: of all targets, in order. A voxel given to another target later is no longer bound to this one.
        number: place of the mask's target.

    Returns:
        The mask, and which of its voxels are bound to it.
    """
    bound_in, bound_out = np.zeros_like(mask), np.zeros_like(mask)
    for correction in corrections:
        marked = correction.marks.within(box)
        if correction.number != number:
            if correction.positive and correction.binding:
                bound_in &= ~marked
            continue
        settled = np.ones_like(mask) if correction.replaces else marked
        bound_in &= ~settled
        bound_out &= ~settled
        if correction.binding:
            chosen = bound_in if correction.positive else bound_out
            chosen |= marked
    return (mask | bound_in) & ~bound_out, bound_in
