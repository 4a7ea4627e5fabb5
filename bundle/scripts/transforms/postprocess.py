"""Clean up a label map: drop improbable and small components, and number the single objects of lesion targets.

Components are 6-connected and never cross from one label to another, so that one labelling of the whole map serves all
classes at once; it is confined to the box around the labels in question.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import MetaKeys, convert_data_type, convert_to_dst_type

from scripts.components import find_components
from scripts.measurement import InstanceMeasurement, measure_instances, sum_by_label
from scripts.request import RequestedTarget, decode_request

if TYPE_CHECKING:
    from scripts.text import Terminology


def keep_probable_components(
    labels: NdarrayOrTensor,
    probability: NdarrayOrTensor,
    classes: Sequence[int],
    size_ratio: float = 0.6,
    candidates: int = 3,
    high: float = 0.86,
    margin: float = 0.1,
) -> NdarrayOrTensor:
    """Algorithm 3 of the Medal S paper: of each class, keep the components that are large or probable.

    Of a class's largest components, those whose mean probability is above ``high`` and within ``margin`` of the best
    are kept, if there are at least two. Else the most probable one is kept if it is the largest, or the second largest
    and more than ``size_ratio`` of the largest in size; else the largest. Components of equal size rank as they come in
    the array, first axis slowest; of equal probability the larger counts as the best.

    Args:
        labels: label map, integers from 0, ``[H, W, D]`` or ``[1, H, W, D]``; left as it is.
        probability: probability of each voxel's label, of the same shape.
        classes: label values to treat; others, and values absent from the map, are not touched.
        size_ratio: 0.6 as in the paper; 0 gives the rule of the published program, which lacks this test.
        candidates: number of largest components of a class that are looked at; all others go.
        high: mean probability above which several components may stay.
        margin: greatest distance from the best mean probability for the same.

    Returns:
        Label map of the same type, shape and dtype; voxels of dropped components are 0.

    Raises:
        ValueError: shapes that differ, or labels that are no integers in 0..65535.
    """
    volume = _volume(labels)
    values = _volume(probability)
    if values.shape != volume.shape:
        raise ValueError(
            f"postprocess: labels have the shape {volume.shape}, probability {values.shape}: give both on one grid"
        )
    found = find_components(volume, classes)
    means = sum_by_label(found.numbers, values[found.box], len(found.voxels)) / np.maximum(found.voxels, 1)
    keep = np.zeros(len(found.voxels), dtype=bool)
    for ranked in found.ranked():
        top = ranked[:candidates]
        keep[_choose(top, means[top], found.voxels[top], size_ratio, high, margin)] = True
    return _restore(found.drop(volume, keep), labels)


def remove_small_components(
    labels: NdarrayOrTensor, min_voxels: int = 10, classes: Sequence[int] | None = None
) -> NdarrayOrTensor:
    """Remove components of fewer than ``min_voxels`` voxels.

    Args:
        labels: label map, integers from 0, ``[H, W, D]`` or ``[1, H, W, D]``; left as it is.
        min_voxels: size of the smallest component that stays.
        classes: label values to treat, all where None.

    Returns:
        Label map of the same type, shape and dtype.

    Raises:
        ValueError: labels that are no integers in 0..65535.
    """
    volume = _volume(labels)
    found = find_components(volume, classes)
    return _restore(found.drop(volume, found.voxels >= min_voxels), labels)


def label_instances(labels: NdarrayOrTensor, classes: Sequence[int]) -> tuple[NdarrayOrTensor, list[int]]:
    """Give every component of some classes a number of its own.

    Args:
        labels: label map, integers from 0, ``[H, W, D]`` or ``[1, H, W, D]``; left as it is.
        classes: label values whose components are numbered, in the order in which they are counted.

    Returns:
        Instance map of the same shape, uint16 (uint32 above 65,535 objects): 1..K, by class and within a class from
        the largest down, 0 elsewhere; and the label value of each of the K objects.

    Raises:
        ValueError: labels that are no integers in 0..65535.
    """
    volume = _volume(labels)
    found = find_components(volume, classes)
    ranked = {int(found.owner[numbers[0]]): numbers for numbers in found.ranked()}
    order = [number for value in dict.fromkeys(classes) if value in ranked for number in ranked[value]]
    lookup = np.zeros(len(found.voxels), dtype=np.uint16 if len(order) <= np.iinfo(np.uint16).max else np.uint32)
    lookup[order] = np.arange(1, len(order) + 1)
    instances = np.zeros(volume.shape, dtype=lookup.dtype)
    instances[found.box] = lookup[found.numbers]
    return _restore(instances, labels), found.owner[order].tolist()


class FilterComponents(Transform):
    """Array transform around ``keep_probable_components``.

    Args:
        size_ratio: 0.6 as in the paper, 0 as in the published program.
    """

    def __init__(self, size_ratio: float = 0.6) -> None:
        self.size_ratio = size_ratio

    def __call__(  # type: ignore[override]
        self, labels: NdarrayOrTensor, probability: NdarrayOrTensor, classes: Sequence[int]
    ) -> NdarrayOrTensor:
        """Label map ``[1, H, W, D]``, probabilities of the same shape and label values to a new label map."""
        return keep_probable_components(labels, probability, classes, self.size_ratio)


class FilterComponentsd(MapTransform):
    """Dictionary version of ``FilterComponents``: treats the targets asked for whose policy says so.

    Args:
        keys: label map ``[1, H, W, D]``.
        terminology: knows the policy ``filter_components`` of each target.
        size_ratio: see ``FilterComponents``.
        probability_key: probability of each voxel's label.
        request_key: the request.
    """

    def __init__(
        self,
        keys: KeysCollection,
        terminology: Terminology,
        size_ratio: float = 0.6,
        probability_key: str = "probability",
        request_key: str = "request",
    ) -> None:
        super().__init__(keys)
        self.transform = FilterComponents(size_ratio)
        self.terminology = terminology
        self.probability_key = probability_key
        self.request_key = request_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with the filtered label map."""
        d = dict(data)
        targets = decode_request(d[self.request_key]).targets
        classes = [target.id for target in targets if self.terminology.policy(target.key).filter_components]
        if classes:
            for key in self.key_iterator(d):
                d[key] = self.transform(d[key], d[self.probability_key], classes)
        return d


class RemoveSmallComponents(Transform):
    """Array transform around ``remove_small_components``.

    Args:
        min_voxels: size of the smallest component that stays.
    """

    def __init__(self, min_voxels: int = 10) -> None:
        self.min_voxels = min_voxels

    def __call__(self, labels: NdarrayOrTensor, classes: Sequence[int] | None = None) -> NdarrayOrTensor:
        """Label map ``[1, H, W, D]`` and label values (None: all) to a new label map."""
        return remove_small_components(labels, self.min_voxels, classes)


class RemoveSmallComponentsd(MapTransform):
    """Dictionary version of ``RemoveSmallComponents`` for the targets asked for.

    Args:
        keys: label map ``[1, H, W, D]``.
        min_voxels: see ``RemoveSmallComponents``.
        kinds: kinds of targets that are treated: "lesion", "anatomy".
        request_key: the request.
    """

    def __init__(
        self,
        keys: KeysCollection,
        min_voxels: int = 10,
        kinds: Sequence[str] = ("lesion",),
        request_key: str = "request",
    ) -> None:
        super().__init__(keys)
        self.transform = RemoveSmallComponents(min_voxels)
        self.kinds = tuple(kinds)
        self.request_key = request_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with the small components removed."""
        d = dict(data)
        targets = _targets_of_kind(d[self.request_key], self.kinds)
        if targets:
            for key in self.key_iterator(d):
                d[key] = self.transform(d[key], [target.id for target in targets])
        return d


class LabelInstances(Transform):
    """Array transform around ``label_instances`` that also measures the objects."""

    def __call__(  # type: ignore[override]
        self, labels: NdarrayOrTensor, probability: NdarrayOrTensor, names: Mapping[int, str], affine: np.ndarray
    ) -> tuple[NdarrayOrTensor, list[InstanceMeasurement]]:
        """Number and measure.

        Args:
            labels: label map ``[1, H, W, D]``.
            probability: probability of each voxel's label, of the same shape.
            names: label value -> name of the targets to number, in the order of numbering.
            affine: 4x4, voxel to RAS world in mm.

        Returns:
            Instance map as ``label_instances`` gives it, and the measurements of its objects.
        """
        instances, owners = label_instances(labels, list(names))
        return instances, measure_instances(_volume(instances), owners, names, _volume(probability), affine)


class LabelInstancesd(MapTransform):
    """Dictionary version of ``LabelInstances``; adds nothing where no target of the kinds was asked for.

    Args:
        keys: label map ``[1, H, W, D]``, one key.
        kinds: kinds of targets whose components count as objects.
        instances_key: where the instance map goes.
        table_key: where the measurements go, a list of dictionaries, ``InstanceMeasurement.as_row``.
        probability_key: probability of each voxel's label.
        image_key: preprocessed image with the metadata of its file.
        request_key: the request.
    """

    def __init__(
        self,
        keys: KeysCollection,
        kinds: Sequence[str] = ("lesion",),
        instances_key: str = "instances",
        table_key: str = "instance_table",
        probability_key: str = "probability",
        image_key: str = "image",
        request_key: str = "request",
    ) -> None:
        super().__init__(keys)
        self.transform = LabelInstances()
        self.kinds = tuple(kinds)
        self.instances_key, self.table_key = instances_key, table_key
        self.probability_key, self.image_key, self.request_key = probability_key, image_key, request_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with instance map and table added."""
        d = dict(data)
        names = {target.id: target.name for target in _targets_of_kind(d[self.request_key], self.kinds)}
        if names:
            affine = np.asarray(d[self.image_key].meta[MetaKeys.ORIGINAL_AFFINE], dtype=float)
            for key in self.key_iterator(d):
                d[self.instances_key], table = self.transform(d[key], d[self.probability_key], names, affine)
                d[self.table_key] = [row.as_row() for row in table]
        return d


def _targets_of_kind(request: str, kinds: Sequence[str]) -> list[RequestedTarget]:
    return [target for target in decode_request(request).targets if target.kind in kinds]


def _volume(array: NdarrayOrTensor) -> np.ndarray:
    """``[H, W, D]`` of an array or tensor of three dimensions, or four of which the first has one element."""
    volume = convert_data_type(array, np.ndarray)[0]
    if volume.ndim == 4 and len(volume) == 1:
        volume = volume[0]
    if volume.ndim != 3:
        raise ValueError(f"postprocess: wanted a volume [H, W, D] or [1, H, W, D], got the shape {tuple(array.shape)}")
    return volume


def _restore(volume: np.ndarray, like: NdarrayOrTensor) -> NdarrayOrTensor:
    """A result with the shape, container and metadata of the argument, and its own dtype."""
    return convert_to_dst_type(volume.reshape(like.shape), like, dtype=volume.dtype)[0]


def _choose(
    top: np.ndarray, means: np.ndarray, voxels: np.ndarray, size_ratio: float, high: float, margin: float
) -> np.ndarray:
    """Which of a class's largest components stay; all arguments in the order of size."""
    good = (means > high) & (means.max() - means <= margin)
    if good.sum() >= 2:
        return top[good]
    best = int(means.argmax())
    second_is_large = best == 1 and voxels[1] > size_ratio * voxels[0]
    return top[[best if second_is_large else 0]]
