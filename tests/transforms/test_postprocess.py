"""Components of a label map: Algorithm 3, removal of small ones, numbering of lesions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.data import MetaTensor
from scipy.ndimage import label as label_mask

from scripts.request import Request, RequestedTarget, encode_request
from scripts.transforms.postprocess import (
    FilterComponentsd,
    LabelInstancesd,
    RemoveSmallComponentsd,
    keep_probable_components,
    label_instances,
    remove_small_components,
)

SHAPE = (6, 7, 5)
CASES = range(9)
CLASSES = (1, 2, 3)


def one_class_at_a_time(
    labels: np.ndarray, probability: np.ndarray, classes: tuple[int, ...], ratio: float
) -> np.ndarray:
    """Algorithm 3 word by word, each class over the full volume."""
    result = labels.copy()
    for value in classes:
        components, count = label_mask(labels == value)
        if not count:
            continue
        masks = sorted((components == n for n in range(1, count + 1)), key=np.count_nonzero, reverse=True)[:3]
        means = [probability[mask].mean(dtype=np.float64) for mask in masks]
        kept = [m for m, p in zip(masks, means, strict=True) if p > 0.86 and max(means) - p <= 0.1]
        if len(kept) < 2:
            best = means.index(max(means))
            if best == 1 and masks[1].sum() > ratio * masks[0].sum():
                kept = [masks[1]]
            else:
                kept = [masks[0]]
        result[(labels == value) & ~np.any(kept, axis=0)] = 0
    return result


# Clumps come from repeating a coarse grid, probabilities from few levels so that the rules' branches are all met.
coarse_labels = arrays(np.uint8, (3, 4, 3), elements=st.integers(0, 3))
levels = st.sampled_from([0.5, 0.8, 0.86, 0.88, 0.9, 0.95, 1.0])


@st.composite
def volumes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Label map and probability, the latter much the same within a component."""
    widths = [draw(st.lists(st.integers(1, 3), min_size=side, max_size=side)) for side in (3, 4, 3)]
    labels, probability = draw(coarse_labels), draw(arrays(np.float16, (3, 4, 3), elements=levels.map(np.float16)))
    for axis, width in enumerate(widths):
        labels, probability = (np.repeat(volume, width, axis=axis) for volume in (labels, probability))
    return labels, probability


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("rule", "ratio"), [("paper", 0.6), ("code", 0.0)])
def test_golden(shared: Path, case: int, rule: str, ratio: float) -> None:
    with np.load(shared / "golden" / "postprocess.npz") as golden:
        labels, probability = golden[f"case{case}_labels"], golden[f"case{case}_max_prob"]
        classes = golden[f"case{case}_process_labels"].tolist()
        expected = golden[f"case{case}_expected_{rule}_rule"]
    result = keep_probable_components(labels, probability, classes, size_ratio=ratio)
    assert np.array_equal(result, expected)
    assert result.dtype == labels.dtype


def test_golden_cases_are_all_tested(shared: Path) -> None:
    assert len(json.loads((shared / "golden" / "postprocess.json").read_text())) == len(CASES)


@given(volumes(), st.sampled_from([0.0, 0.6]))
@settings(max_examples=200)
def test_equals_one_class_at_a_time(volume: tuple[np.ndarray, np.ndarray], ratio: float) -> None:
    labels, probability = volume
    for classes in (CLASSES, (2,), (3, 1)):
        expected = one_class_at_a_time(labels, probability, classes, ratio)
        assert np.array_equal(keep_probable_components(labels, probability, classes, ratio), expected)


@given(volumes(), st.permutations(CLASSES))
def test_names_of_the_classes_do_not_matter(volume: tuple[np.ndarray, np.ndarray], order: list[int]) -> None:
    labels, probability = volume
    rename = np.array([0, *(300 * value for value in order)], dtype=np.int32)
    renamed = keep_probable_components(rename[labels], probability, rename[1:].tolist())
    assert np.array_equal(renamed, rename[keep_probable_components(labels, probability, CLASSES)])


@given(volumes())
def test_result_is_part_of_the_input_and_stays_when_repeated(volume: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probability = volume
    before = labels.copy(), probability.copy()
    result = keep_probable_components(labels, probability, CLASSES)
    assert np.array_equal(labels, before[0])
    assert np.array_equal(probability, before[1])
    assert np.isin(result[result > 0], labels).all()
    assert np.array_equal(result[result > 0], labels[result > 0])
    assert set(np.unique(result)) | {0} == set(np.unique(labels)) | {0}  # no class is lost
    assert np.array_equal(keep_probable_components(result, probability, CLASSES), result)


@pytest.mark.parametrize("order", ["C", "F"])
def test_of_equal_components_the_first_in_the_array_stays(order: str) -> None:
    labels = np.zeros(SHAPE, np.uint8, order=order)  # type: ignore[call-overload]
    labels[0, 6, 4] = labels[5, 0, 0] = 1
    result = keep_probable_components(labels, np.full(SHAPE, 0.7, np.float32), [1])
    assert np.argwhere(result).tolist() == [[0, 6, 4]]


@pytest.mark.parametrize("labels", [np.zeros(SHAPE, np.uint8), np.zeros((0, 3, 3), np.int16), np.full((1, 1, 1), 4)])
def test_nothing_to_drop(labels: np.ndarray) -> None:
    assert np.array_equal(keep_probable_components(labels, labels.astype(np.float16), [1, 2, 4]), labels)
    assert np.array_equal(remove_small_components(labels, 1), labels)
    instances, owners = label_instances(labels, [1, 4])
    assert instances.shape == labels.shape
    assert owners == ([4] if labels.any() else [])


def test_tensors_keep_their_kind_and_metadata() -> None:
    labels = torch.zeros(1, *SHAPE, dtype=torch.int32)
    labels[0, :3], labels[0, 4, 0, 0] = 700, 700
    affine = torch.diag(torch.tensor([2.0, 3, 4, 1], dtype=torch.float64))
    result = keep_probable_components(MetaTensor(labels, affine=affine), labels.half() / 1000, [700])
    assert isinstance(result, MetaTensor)
    assert torch.equal(result.affine, affine)
    assert result.dtype == torch.int32
    assert result.shape == labels.shape
    assert int((result > 0).sum()) == 3 * 7 * 5
    assert labels[0, 4, 0, 0] == 700


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros(SHAPE, np.float32), "integers, got float32"),
        (np.full(SHAPE, -1, np.int16), "got -1"),
        (np.full(SHAPE, 70_000), "70000"),
        (np.zeros((2, *SHAPE), np.uint8), r"got the shape \(2, 6, 7, 5\)"),
    ],
)
def test_labels_that_are_none(labels: np.ndarray, words: str) -> None:
    for call in (lambda: remove_small_components(labels), lambda: label_instances(labels, [1])):
        with pytest.raises(ValueError, match=words):
            call()


def test_probability_on_another_grid() -> None:
    with pytest.raises(ValueError, match=r"\(6, 7, 5\), probability \(3, 7, 5\)"):
        keep_probable_components(np.zeros(SHAPE, np.uint8), np.zeros((3, 7, 5)), [1])


@given(volumes(), st.integers(1, 12), st.sampled_from([None, (1,), (2, 3)]))
def test_small_components_go(volume: tuple[np.ndarray, np.ndarray], least: int, classes: tuple | None) -> None:
    labels = volume[0]
    result = remove_small_components(labels, least, classes)
    expected = labels.copy()
    for value in classes or CLASSES:
        components, _ = label_mask(labels == value)
        small = np.bincount(components.ravel()) < least
        expected[small[components] & (components > 0)] = 0
    assert np.array_equal(result, expected)


@given(volumes())
def test_every_object_has_its_own_number(volume: tuple[np.ndarray, np.ndarray]) -> None:
    labels = volume[0]
    instances, owners = label_instances(labels, [3, 1])
    assert instances.dtype == np.uint16
    assert np.array_equal(instances > 0, (labels == 3) | (labels == 1))
    sizes = []
    for number, owner in enumerate(owners, start=1):
        mask = instances == number
        assert label_mask(mask)[1] == 1
        assert set(labels[mask]) == {owner}
        sizes.append((-(owner == 3), -int(mask.sum())))
    assert sizes == sorted(sizes)  # label 3 first, as asked; the largest first
    assert len(owners) == sum(label_mask(labels == value)[1] for value in (1, 3))


# --- the dictionary versions -----------------------------------------------------------------------------------------


def target(name: str, label: int, kind: str) -> RequestedTarget:
    return RequestedTarget(name, label, "CT", kind, f"CT_{name}", name, "name", 1.0, (9, 9, 9), None)


LIVER, KIDNEY, TUMOR = target("Liver", 1, "anatomy"), target("Kidney", 2, "anatomy"), target("Tumor", 3, "lesion")


@pytest.fixture
def make_case() -> Callable[..., dict]:
    """A case whose three labels each have a component of 12 voxels and one of 2."""

    def make(*targets: RequestedTarget) -> dict:
        labels = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
        for label in CLASSES:
            labels[0, 2 * label, 0:3, 0:4] = label
            labels[0, 2 * label, 6:8, 7] = label
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        return {
            "label_map": MetaTensor(labels, affine=torch.as_tensor(affine)),
            "probability": torch.full(labels.shape, 0.75, dtype=torch.float16),
            "image": MetaTensor(torch.zeros(1, 4, 4, 4), meta={"original_affine": affine}),
            "request": encode_request(Request(("text",), "CT", targets)),
        }

    return make


def voxels(case: dict) -> list[int]:
    return [int((case["label_map"] == label).sum()) for label in CLASSES]


def test_policy_decides_which_targets_are_filtered(make_case: Callable[..., dict]) -> None:
    terminology = SimpleNamespace(policy=lambda key: SimpleNamespace(filter_components=key == "CT_Kidney"))
    case = make_case(LIVER, KIDNEY, TUMOR)
    assert voxels(FilterComponentsd("label_map", terminology)(case)) == [14, 12, 14]
    assert voxels(case) == [14, 14, 14]
    assert voxels(FilterComponentsd("label_map", terminology)(make_case(LIVER))) == [14, 14, 14]


def test_kind_decides_which_targets_lose_small_components(make_case: Callable[..., dict]) -> None:
    case = make_case(LIVER, TUMOR)
    assert voxels(RemoveSmallComponentsd("label_map")(case)) == [14, 14, 12]
    assert voxels(RemoveSmallComponentsd("label_map", kinds=("anatomy",))(case)) == [12, 14, 14]
    assert voxels(RemoveSmallComponentsd("label_map", min_voxels=13, kinds=("lesion",))(case)) == [14, 14, 0]
    assert voxels(RemoveSmallComponentsd("label_map", min_voxels=2)(case)) == [14, 14, 14]


def test_lesions_are_numbered_and_measured(make_case: Callable[..., dict]) -> None:
    result = LabelInstancesd("label_map")(make_case(LIVER, TUMOR))
    instances = result["instances"]
    assert isinstance(instances, MetaTensor)
    assert instances.shape == result["label_map"].shape
    assert np.bincount(instances.numpy().ravel()).tolist() == [512 - 14, 12, 2]
    first, second = result["instance_table"]
    assert (first["id"], first["name"], first["label"], first["voxels"]) == (1, "Tumor", 3, 12)
    assert first["volume_ml"] == pytest.approx(12 * 8 / 1000)
    assert first["mean_probability"] == 0.75
    assert first["bounding_box"] == {"first": [6, 0, 0], "last": [6, 2, 3]}
    assert second["centroid_mm"] == [12, 13, 14]
    assert second["longest_diameter_mm"] == 4
    assert second["touches_border"] is True
    json.dumps(result["instance_table"])


def test_no_lesion_asked_for_or_none_found(make_case: Callable[..., dict]) -> None:
    assert "instances" not in LabelInstancesd("label_map")(make_case(LIVER))
    case = make_case(TUMOR)
    case["label_map"] = torch.zeros_like(case["label_map"])
    result = LabelInstancesd("label_map")(case)
    assert result["instance_table"] == []
    assert not result["instances"].any()


def test_more_objects_than_16_bits_count() -> None:
    labels = np.zeros((84, 84, 20), np.uint8)
    labels[(np.indices(labels.shape).sum(axis=0) % 2) == 0] = 1
    instances, owners = label_instances(labels, [1])
    assert instances.dtype == np.uint32
    assert instances.max() == len(owners) == 84 * 84 * 10
