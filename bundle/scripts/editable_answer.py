"""A segmentation that can be corrected target by target, and every correction taken back exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scripts.transforms.prompt_shapes import Box, unpack

BITS = 8


@dataclass(frozen=True)
class Change:
    """What one correction did to the target.

    Attributes:
        box: the part of the image that may differ, slices along H, W and D.
        added: voxels that the target gained.
        removed: voxels that it lost.
    """

    box: Box
    added: int
    removed: int


@dataclass
class _Difference:
    """Values that the changed voxels of a box had, or will have again: it is exchanged with those in place."""

    number: int
    box: Box
    changed: np.ndarray
    labels: np.ndarray
    probability: np.ndarray
    inside: np.ndarray

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.changed, self.labels, self.probability, self.inside))


class EditableAnswer:
    """Label map, probability and every target's own mask on one grid.

    A target's own mask may overlap others; the label map gives each voxel to one of them, the most probable. Memory
    grows with the volume and one bit per voxel and target; a correction remembers the voxels that it changed.

    Args:
        labels: label map ``[H, W, D]``; it is copied.
        probability: of each voxel's label, float16 ``[H, W, D]``; copied.
        ids: label value of each target.
        mask_bits: every target's mask, uint8 ``[ceil(N / 8), H, W, D]``, see ``GridMerger``; those of the label map
            where None. Voxels that the label map leaves empty are left out.
        threshold: probability that a voxel has at least which falls to a target whose own is not remembered.
        history_mb: MiB of corrections that can be taken back; the oldest are forgotten first.
    """

    def __init__(
        self,
        labels: np.ndarray,
        probability: np.ndarray,
        ids: Sequence[int],
        mask_bits: np.ndarray | None = None,
        threshold: float = 0.5,
        history_mb: float = 256,
    ) -> None:
        self.labels = np.array(labels)
        self.probability = np.array(probability, dtype=np.float16)
        self.ids = tuple(int(value) for value in ids)
        self.threshold = threshold
        self.history_bytes = int(history_mb * 2**20)
        self.forgotten = 0
        self._done: list[_Difference] = []
        self._undone: list[_Difference] = []
        self._bits = np.zeros((math.ceil(len(self.ids) / BITS), *self.labels.shape), dtype=np.uint8)
        if mask_bits is not None:
            np.multiply(mask_bits, self.labels != 0, out=self._bits, casting="unsafe")
        for number, value in enumerate(self.ids):
            self._bits[number // BITS] |= (self.labels == value).view(np.uint8) << (number % BITS)

    @property
    def steps(self) -> int:
        """Corrections that can be taken back."""
        return len(self._done)

    @property
    def undone(self) -> int:
        """Corrections that can be made again."""
        return len(self._undone)

    @property
    def history_size(self) -> int:
        """Bytes that the corrections take."""
        return sum(step.nbytes for step in (*self._done, *self._undone))

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is held."""
        return self.labels.nbytes + self.probability.nbytes + self._bits.nbytes + self.history_size

    def mask(self, number: int, box: Box | None = None) -> np.ndarray:
        """bool ``[h, w, d]``: a target's own mask in a box of the image, or all of it."""
        plane = self._bits[number // BITS]
        return (plane[box or ...] >> (number % BITS) & 1).view(bool)

    def replace(
        self, number: int, box: Box, mask: np.ndarray, probability: np.ndarray, certain: np.ndarray | None = None
    ) -> Change:
        """Give a target a new mask within a box; what lies outside the box stays as it is, bit for bit.

        Where targets compete for a voxel the more probable one has it. A voxel that the target loses falls to the
        first other target whose own mask has it.

        Args:
            number: place of the target in ``ids``.
            box: slices with start and stop along H, W and D.
            mask: bool ``[h, w, d]``.
            probability: of the target, ``[h, w, d]``; looked at inside the mask.
            certain: voxels of the mask that no other target may have, with probability 1.
        """
        own, before = self.ids[number], self.mask(number, box)
        old_labels, old_probability = self.labels[box], self.probability[box]
        sure = np.zeros_like(mask) if certain is None else certain & mask
        value = np.where(sure, 1, probability).astype(np.float16)
        others = (old_labels != 0) & (old_labels != own)
        wins = mask & (~others | sure | (value > old_probability))
        loses = (old_labels == own) & ~mask
        labels, best = old_labels.copy(), old_probability.copy()
        labels[wins], best[wins] = own, value[wins]
        labels[loses], best[loses] = 0, 0
        for other, label in enumerate(self.ids):
            if other != number and loses.any():
                falls = loses & self.mask(other, box)
                labels[falls], best[falls] = label, self.threshold
                loses &= ~falls
        changed = (labels != old_labels) | (best != old_probability) | (mask != before)
        step = _Difference(number, box, np.packbits(changed), labels[changed], best[changed], mask[changed])
        self._exchange(step)
        self._done.append(step)
        self._undone.clear()
        self._forget()
        return Change(box, int((mask & ~before).sum()), int((before & ~mask).sum()))

    def undo(self) -> Box:
        """Take the last correction back; returns the box that it concerned.

        Raises:
            IndexError: there is none.
        """
        return self._move(self._done, self._undone)

    def redo(self) -> Box:
        """Make the correction again that was taken back last; returns the box that it concerns.

        Raises:
            IndexError: there is none.
        """
        return self._move(self._undone, self._done)

    def _move(self, source: list[_Difference], goal: list[_Difference]) -> Box:
        step = source.pop()
        self._exchange(step)
        goal.append(step)
        return step.box

    def _exchange(self, step: _Difference) -> None:
        """Put a difference's values in place, and those that were there into the difference."""
        plane, place = self._bits[step.number // BITS][step.box], step.number % BITS
        changed = unpack(step.changed, plane.shape)
        for volume, values in ((self.labels[step.box], step.labels), (self.probability[step.box], step.probability)):
            present = volume[changed]
            volume[changed] = values
            values[...] = present
        present = plane[changed]
        plane[changed] = (present & ~np.uint8(1 << place)) | (step.inside.view(np.uint8) << place)
        step.inside[...] = (present >> place & 1).view(bool)

    def _forget(self) -> None:
        while self._done and self.history_size > self.history_bytes:
            self._done.pop(0)
            self.forgotten += 1
