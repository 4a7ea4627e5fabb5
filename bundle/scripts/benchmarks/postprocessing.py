"""Component filtering of a large label map in one pass, against class by class over the full volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cc3d
import numpy as np
from scipy.ndimage import label as scipy_label

from scripts.benchmarks.measuring import HIGHER, Row, Section, Settings, side_by_side
from scripts.transforms.postprocess import keep_probable_components, label_instances, remove_small_components

CLASSES = tuple(range(1, 25))
SIZE_RATIO, CANDIDATES, HIGH, MARGIN = 0.6, 3, 0.86, 0.1
# Relative size and number of a class's parts: one organ, two satellites, forty specks.
PARTS = ((1.0, 1), (0.4, 2), (0.05, 40))

Labeller = Callable[[np.ndarray], tuple[np.ndarray, int]]


def run(settings: Settings) -> Section:
    """Time Algorithm 3 of the paper three ways; the results must be the same."""
    shape = (64, 64, 48) if settings.quick else (512, 512, 300)
    labels, probability = phantom(shape)
    found: dict[str, np.ndarray] = {}

    def keep(name: str, labeller: Labeller | None = None) -> None:
        if labeller is None:
            found[name] = np.asarray(keep_probable_components(labels, probability, CLASSES))
        else:
            found[name] = class_by_class(labels, probability, CLASSES, labeller)

    ours = side_by_side({"one_pass": lambda: keep("one_pass")}, settings.few_rounds())
    others = {
        "class_by_class_scipy": lambda: keep("class_by_class_scipy", _with_scipy),
        "class_by_class_cc3d": lambda: keep("class_by_class_cc3d", _with_cc3d),
    }
    seconds = {**ours, **side_by_side(others, 1, warm_up=False)}
    if any(not np.array_equal(found["one_pass"], result) for result in found.values()):
        raise ValueError("bench: one pass and class by class keep other components: one of them is wrong")
    rest = side_by_side(
        {
            "small_objects": lambda: remove_small_components(labels, 10),
            "instances_of_3_classes": lambda: label_instances(labels, CLASSES[:3]),
        },
        1,
        warm_up=False,
    )
    return Section(
        f"Post-processing, {' x '.join(map(str, shape))} voxels, {len(CLASSES)} classes",
        [
            Row("component filter (Algorithm 3), all classes in one pass", seconds["one_pass"], "s", 5.0),
            Row("times as fast as class by class over the full volume, scipy",
                seconds["class_by_class_scipy"] / seconds["one_pass"], "x", 5.0, HIGHER),
            Row("times as fast as class by class over the full volume, cc3d",
                seconds["class_by_class_cc3d"] / seconds["one_pass"], "x", 5.0, HIGHER),
            Row("small objects removed", rest["small_objects"], "s"),
            Row("instances numbered, 3 classes", rest["instances_of_3_classes"], "s"),
        ],
        {"seconds": {**seconds, **rest}, "foreground": float((labels > 0).mean()), "shape": list(shape)},
        ["Label map: 24 ellipsoids with two satellites and forty specks each; the results of all three are equal."],
    )  # fmt: skip


def phantom(shape: Sequence[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A label map uint8 ``[H, W, D]`` of 24 organs with loose parts, and probabilities float16 in 0.5..1."""
    rng = np.random.default_rng(seed)
    probability = np.empty(shape, np.float16)
    for plane in probability:
        plane[:] = rng.random(plane.shape, dtype=np.float32) * 0.5 + 0.5
    labels = np.zeros(shape, np.uint8)
    size = np.array(shape)
    for value in CLASSES:
        centre = rng.uniform(0.2 * size, 0.8 * size)
        radii = rng.uniform(0.05, 0.13, 3) * size
        for scale, count in PARTS:
            for _ in range(count):
                place = centre + (rng.normal(0, 0.1, 3) * size if scale < 1 else 0)
                _draw(labels, value, place, np.maximum(radii * scale, 1.5))
    return labels, probability


def class_by_class(
    labels: np.ndarray, probability: np.ndarray, classes: Sequence[int], labeller: Labeller
) -> np.ndarray:
    """Algorithm 3 as it is usually written: each class's mask is labelled over the full volume.

    Args:
        labels: ``[H, W, D]``; left as it is.
        probability: of each voxel's label.
        classes: label values.
        labeller: mask to components 1..K and K.
    """
    out = labels.copy()
    for value in classes:
        mask = out == value
        numbers, count = labeller(mask)
        if count == 0:
            continue
        sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
        order = np.argsort(-sizes, kind="stable")[:CANDIDATES]
        means = np.array([probability[numbers == place + 1].mean(dtype=np.float64) for place in order])
        keep = np.isin(numbers, order[_chosen(means, sizes[order])] + 1)
        out[mask & ~keep] = 0
    return out


def _chosen(means: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Places of the candidates, in order of size, that stay."""
    good = np.flatnonzero((means > HIGH) & (means.max() - means <= MARGIN))
    if len(good) >= 2:
        return good
    best = int(means.argmax())
    return np.array([best if best == 1 and sizes[1] > SIZE_RATIO * sizes[0] else 0])


def _with_scipy(mask: np.ndarray) -> tuple[np.ndarray, int]:
    return scipy_label(mask)


def _with_cc3d(mask: np.ndarray) -> tuple[np.ndarray, int]:
    return cc3d.connected_components(mask, connectivity=6, return_N=True)


def _draw(labels: np.ndarray, value: int, centre: np.ndarray, radii: np.ndarray) -> None:
    """Fill an ellipsoid, where it lies in the volume."""
    low = np.maximum((centre - radii).astype(int), 0)
    high = np.minimum((centre + radii).astype(int) + 2, labels.shape)
    if (high <= low).any():
        return
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    places = np.ogrid[box]
    inside = sum(((place - c) / r) ** 2 for place, c, r in zip(places, centre, radii, strict=True)) < 1
    labels[box][inside] = value
