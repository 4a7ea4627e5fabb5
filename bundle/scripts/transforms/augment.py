"""Flips that exchange left and right: a mirrored left kidney is a right kidney, and is asked for as one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import convert_to_dst_type

from scripts.text.terminology import Terminology
from scripts.transforms.side_names import MirroredTable, SideNames

Sentences = Mapping[int, Sequence[str]] | Sequence[str]


def lateral_axis(affine: np.ndarray | torch.Tensor) -> int:
    """The spatial axis (0, 1 or 2) of an array that runs most nearly left-right.

    Args:
        affine: 4x4 voxel to world matrix, mm; may be oblique or anisotropic.

    Raises:
        ValueError: a matrix that leaves an axis out.
    """
    axes = nib.io_orientation(np.asarray(affine, dtype=float))[:, 0]
    if np.isnan(axes).any():
        raise ValueError(f"augment: an affine has to move along every axis, got {np.asarray(affine).tolist()}")
    return int(np.flatnonzero(axes == 0)[0])


class FlipSides(Transform):
    """Mirror a patch, and with it the names of the structures that have a side.

    An array that is flipped along its left-right axis shows a mirrored patient: what was labelled left kidney is now
    a right kidney. Flips along the other axes leave all names as they are. The affine stays too, since it is the
    patient who is mirrored and not the grid. Patches must come in one orientation, such as RAS.

    Args:
        terminology: says which targets are pairs; the bundle's own when None.
    """

    def __init__(self, terminology: Terminology | None = None) -> None:
        self.names = SideNames(terminology)

    def __call__(self, volume: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:  # type: ignore[override]
        """``[C, H, W, D]`` of any dtype, flipped along spatial axes."""
        return torch.flip(volume, [axis + 1 for axis in axes])

    def exchange(
        self, labels: torch.Tensor, sentences: Sentences, modality: str | None = None
    ) -> tuple[torch.Tensor, Sentences] | None:
        """Names of the mirrored patient.

        Args:
            labels: a label map ``[1, H, W, D]``, integer, or masks ``[N, H, W, D]``.
            sentences: a table label value -> sentences of a label map; for masks a list of N sentences.
            modality: of the image; None where unknown.

        Returns:
            The label map with the values of pairs exchanged, or the same masks, and the new table or list. None
            where no right names are to be had: of a table nothing would be left, or a mask would have a wrong name.
        """
        if isinstance(sentences, Mapping):
            table = {int(value): words for value, words in sentences.items()}
            mirrored = self.names.mirrored_table(table, modality)
            return (_renumbered(labels, mirrored), dict(mirrored.sentences)) if mirrored.sentences else None
        found = [self.names.mirrored_sentences([text], modality) for text in sentences]
        return (labels, [words[0] for words in found]) if all(found) else None


class RandFlipSides(Randomizable, Transform):
    """Random choice of the axes to flip.

    Args:
        prob: probability of a flip along each axis that does not run left-right.
        lateral_prob: probability of one along the axis that does; ``prob`` when None.
    """

    def __init__(self, prob: float = 0.5, lateral_prob: float | None = None) -> None:
        self.prob, self.lateral_prob = prob, prob if lateral_prob is None else lateral_prob

    def randomize(self, data: int) -> None:
        """Draw ``axes``; ``data`` is the axis that runs left-right."""
        limits = [self.lateral_prob if axis == data else self.prob for axis in range(3)]
        self.axes = np.flatnonzero(self.R.uniform(size=3) < limits).tolist()

    def __call__(self, affine: np.ndarray | torch.Tensor) -> list[int]:
        """Axes to flip in a patch with this affine."""
        self.randomize(lateral_axis(affine))
        return self.axes


class RandFlipSidesd(Randomizable, MapTransform):
    """Dictionary form: all keys flip alike, and the sentences follow.

    Args:
        keys: volumes ``[C, H, W, D]``; the first one's affine tells the left-right axis.
        label_key: the label map or masks, one of ``keys``.
        prob: see ``RandFlipSides``.
        lateral_prob: see ``RandFlipSides``.
        sentences_key: table or list of sentences, see ``FlipSides.exchange``; replaced.
        modality_key: modality of the image, if there.
        affine_key: affine of the patch, where the first key is no ``MetaTensor``.
        terminology: see ``FlipSides``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str = "label",
        prob: float = 0.5,
        lateral_prob: float | None = None,
        sentences_key: str = "sentences",
        modality_key: str = "modality",
        affine_key: str = "affine",
        terminology: Terminology | None = None,
    ) -> None:
        super().__init__(keys)
        if label_key not in self.keys:
            raise ValueError(f"augment: label_key {label_key!r} has to be one of the keys {self.keys}")
        self.label_key, self.sentences_key = label_key, sentences_key
        self.modality_key, self.affine_key = modality_key, affine_key
        self.transform = FlipSides(terminology)
        self.choice = RandFlipSides(prob, lateral_prob)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandFlipSidesd:
        """Seed the choice of axes as well."""
        super().set_random_state(seed, state)
        self.choice.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data``, flipped.

        Where the mirrored structures have no right names, it is not flipped left-right.

        Raises:
            ValueError: no affine, no sentences, or vectors of the sentences already there.
        """
        d = dict(data)
        affine = self._affine(d)
        axes, lateral = self.choice(affine), lateral_axis(affine)
        if lateral in axes:
            exchanged = self.transform.exchange(d[self.label_key], self._sentences(d), d.get(self.modality_key))
            if exchanged is None:
                axes = [axis for axis in axes if axis != lateral]
            else:
                d[self.label_key], d[self.sentences_key] = exchanged
        if axes:
            for key in self.key_iterator(d):
                d[key] = self.transform(d[key], axes)
        return d

    def _affine(self, data: Mapping[Hashable, Any]) -> Any:
        first = data[self.keys[0]]
        if isinstance(first, MetaTensor):
            return first.affine
        if self.affine_key not in data:
            raise ValueError(
                f"augment: {self.keys[0]!r} is a {type(first).__name__} and there is no {self.affine_key!r}, so "
                "nothing tells which axis runs left-right: give a MetaTensor or the affine"
            )
        return data[self.affine_key]

    def _sentences(self, data: Mapping[Hashable, Any]) -> Sentences:
        if self.sentences_key not in data or "queries" in data:
            raise ValueError(
                f"augment: a left-right flip needs {self.sentences_key!r} and has to come before the queries are made "
                f"of them, got the keys {sorted(map(str, data))}"
            )
        return data[self.sentences_key]


def _renumbered(labels: torch.Tensor, mirrored: MirroredTable) -> torch.Tensor:
    """A label map with the values of pairs exchanged; dtype and meta data stay."""
    if not mirrored.values:
        return labels
    plain = torch.as_tensor(labels).as_subclass(torch.Tensor)
    lookup = torch.arange(max(int(plain.max()), *mirrored.values) + 1, dtype=torch.int32)
    for old, new in mirrored.values.items():
        lookup[old] = new
    return convert_to_dst_type(lookup[plain.to(torch.int32)], labels, dtype=plain.dtype)[0]
