"""Find the connected components of several labels at once, in one pass over the box that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cc3d
import numpy as np

from scripts.measurement import slabs

FACE_NEIGHBOURS: Final = 6
LARGEST_LABEL = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Components:
    """The 6-connected components of some labels of a volume; none crosses from one label to another."""

    box: tuple[slice, ...]
    """The part of the volume that holds them."""
    numbers: np.ndarray
    """The components in that box, 1..K in the order of the array (first axis slowest), 0 elsewhere."""
    owner: np.ndarray
    """Label of each component, ``[K + 1]``; 0 for the background."""
    voxels: np.ndarray
    """Size of each component, ``[K + 1]``; 0 for the background."""

    def ranked(self) -> list[np.ndarray]:
        """Component numbers of each label present, largest first; of equal ones the first in the array first."""
        order = np.lexsort((-self.voxels[1:], self.owner[1:])) + 1
        return np.split(order, np.flatnonzero(np.diff(self.owner[order])) + 1) if len(order) else []

    def drop(self, labels: np.ndarray, keep: np.ndarray) -> np.ndarray:
        """A copy of the labels ``[H, W, D]`` without the components that are not kept; ``keep`` is ``[K + 1]`` bool."""
        keep = keep.copy()
        keep[0] = True  # labels that are not treated
        cleaned = labels.copy()
        inside = cleaned[self.box]
        for slab in slabs(inside.shape):
            inside[slab] *= keep[self.numbers[slab]]
        return cleaned


def find_components(labels: np.ndarray, classes: Sequence[int] | None = None) -> Components:
    """Number the components of some labels.

    Args:
        labels: label map ``[H, W, D]``, integers in 0..65535.
        classes: label values to treat, all where None.

    Raises:
        ValueError: labels that are no integers in 0..65535.
    """
    if labels.dtype.kind not in "ui":
        raise ValueError(f"components: labels must be integers, got {labels.dtype}: convert them first")
    largest = int(labels.max(initial=0))
    if labels.min(initial=0) < 0 or largest > LARGEST_LABEL:
        raise ValueError(
            f"components: labels must lie in 0..{LARGEST_LABEL}, got {labels.min()}..{largest}: renumber them"
        )
    lookup = np.arange(largest + 1, dtype=np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16)
    if classes is not None:
        lookup[~np.isin(lookup, list(classes))] = 0
    box = foreground_box(labels)
    # In C order whatever the caller's: cc3d counts in the order of memory, and ties are broken by that order.
    treated = np.ascontiguousarray(lookup[labels[box]])
    numbers, count = cc3d.connected_components(treated, connectivity=FACE_NEIGHBOURS, return_N=True)
    owner = np.zeros(count + 1, dtype=lookup.dtype)
    voxels = np.zeros(count + 1, dtype=np.int64)
    for slab in slabs(numbers.shape):
        part = numbers[slab].ravel()
        inside = np.flatnonzero(part)
        part = part[inside]
        owner[part] = treated[slab].ravel()[inside]
        voxels += np.bincount(part, minlength=count + 1)
    return Components(box, numbers, owner, voxels)


def foreground_box(labels: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds all labels; an empty one for an empty map."""
    box: list[slice] = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        present = np.flatnonzero(labels[tuple(box)].any(axis=others))
        box.append(slice(int(present[0]), int(present[-1]) + 1) if len(present) else slice(0, 0))
    return tuple(box)
