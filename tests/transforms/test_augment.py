"""Flips keep names true: which axis runs left-right, what is exchanged, and what is rather not flipped."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Orientation

from scripts.text import Terminology
from scripts.transforms.augment import RandFlipSides, RandFlipSidesd, lateral_axis
from scripts.transforms.side_names import SideNames

SWAPPED = {"left": "right", "right": "left"}
KIDNEYS = {5: ["left kidney", "kidney left"], 9: ["right kidney"], 2: ["liver"]}
ORIENTATIONS = ["".join(a) for axes in itertools.permutations(("LR", "PA", "IS")) for a in itertools.product(*axes)]


@pytest.fixture(scope="module")
def terminology() -> Terminology:
    return Terminology.load()


def patch(orientation: str = "RAS", **more) -> dict:
    """A patient with a left kidney (5), a right one (9) and a liver (2), stored in some orientation."""
    labels = torch.zeros(1, 8, 6, 4, dtype=torch.int16)
    labels[0, 0, 1, 1], labels[0, 6, 1, 1], labels[0, 5, 4, 3] = 5, 9, 2
    label = Orientation(orientation, labels=None)(MetaTensor(labels, affine=np.diag([-1.0, 1, 1, 1])))
    image = label.float() * 10
    return {"image": image, "label": label, "sentences": KIDNEYS, "modality": "CT", **more}


def flipping(seed: int = 0, **kwargs) -> RandFlipSidesd:
    return RandFlipSidesd(["image", "label"], **kwargs).set_random_state(seed)


def voxels(label: torch.Tensor, value: int) -> list[list[int]]:
    return torch.nonzero(torch.as_tensor(label)[0] == value).tolist()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_lateral_axis_follows_from_the_affine(orientation):
    axis = next(place for place, letter in enumerate(orientation) if letter in "LR")
    assert lateral_axis(patch(orientation)["image"].affine) == axis


def test_an_oblique_affine_takes_its_nearest_axis():
    turn = np.deg2rad(30)
    oblique = np.array([[0.0, np.cos(turn), np.sin(turn)], [1, 0, 0], [0, -np.sin(turn), np.cos(turn)]])
    affine = np.eye(4)
    affine[:3, :3] = oblique @ np.diag([0.5, 2, 5])
    assert lateral_axis(affine) == 1


def test_an_affine_without_an_axis_is_refused():
    with pytest.raises(ValueError, match="augment: an affine has to move along every axis"):
        lateral_axis(np.diag([1.0, 0, 1, 1]))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", "SLA"])
def test_a_lateral_flip_exchanges_the_values_of_a_pair(orientation):
    data = patch(orientation)
    result = flipping(prob=0.0, lateral_prob=1.0)(data)
    axis = lateral_axis(data["image"].affine)
    mirrored = torch.flip(data["label"].as_tensor(), [axis + 1])
    assert voxels(result["label"], 9) == voxels(mirrored, 5)
    assert voxels(result["label"], 5) == voxels(mirrored, 9)
    assert voxels(result["label"], 2) == voxels(mirrored, 2)
    assert result["sentences"] == KIDNEYS
    assert torch.equal(result["image"].as_tensor(), torch.flip(data["image"].as_tensor(), [axis + 1]))


def test_label_maps_of_bytes_and_tables_read_from_json_do_too():
    data = patch() | {"sentences": {str(value): words for value, words in KIDNEYS.items()}}
    data["label"] = data["label"].to(torch.uint8)
    result = flipping(prob=0.0, lateral_prob=1.0)(data)
    assert voxels(result["label"], 9) == voxels(torch.flip(data["label"].as_tensor(), [1]), 5)
    assert result["label"].dtype == torch.uint8
    assert result["sentences"] == KIDNEYS


def test_other_flips_leave_values_and_names():
    data = patch()
    result = flipping(prob=1.0, lateral_prob=0.0)(data)
    assert torch.equal(result["label"].as_tensor(), torch.flip(data["label"].as_tensor(), [2, 3]))
    assert result["sentences"] == KIDNEYS


def test_two_lateral_flips_give_the_patch_back():
    data, transform = patch(), flipping(prob=0.0, lateral_prob=1.0)
    again = transform(transform(data))
    for key in ("image", "label"):
        assert torch.equal(again[key].as_tensor(), data[key].as_tensor())
    assert again["label"].dtype == torch.int16
    assert again["label"].affine.tolist() == data["label"].affine.tolist()


def test_the_input_is_left_alone():
    data = patch()
    before = {key: data[key].clone() for key in ("image", "label")}
    flipping(prob=1.0)(data)
    assert data["sentences"] is KIDNEYS
    assert all(torch.equal(data[key], before[key]) for key in before)


def test_a_side_whose_pair_the_table_lacks_is_renamed():
    data = patch() | {"sentences": {5: ["left kidney", "kidney left"], 2: ["liver"]}}
    result = flipping(prob=0.0, lateral_prob=1.0)(data)
    assert result["sentences"] == {5: ["right kidney", "kidney right"], 2: ["liver"]}
    assert voxels(result["label"], 5) == voxels(torch.flip(data["label"].as_tensor(), [1]), 5)


def test_masks_stay_with_their_voxels_and_their_sentences_exchange():
    masks = MetaTensor(torch.rand(3, 8, 6, 4) < 0.5, affine=patch()["image"].affine)
    data = patch() | {"label": masks, "sentences": ["kidney left", "liver", "right renal organ"]}
    result = flipping(prob=0.0, lateral_prob=1.0)(data)
    assert torch.equal(result["label"].as_tensor(), torch.flip(masks.as_tensor(), [1]))
    assert result["sentences"] == ["kidney right", "liver", "left renal organ"]


def test_masks_of_which_one_would_have_a_wrong_name_are_not_flipped_laterally():
    masks = MetaTensor(torch.rand(2, 8, 6, 4) < 0.5, affine=patch()["image"].affine)
    data = patch() | {"label": masks, "sentences": ["left kidney", "right middle lobe"]}
    result = flipping(prob=1.0)(data)
    assert torch.equal(result["label"].as_tensor(), torch.flip(masks.as_tensor(), [2, 3]))
    assert torch.equal(result["image"].as_tensor(), torch.flip(data["image"].as_tensor(), [2, 3]))
    assert result["sentences"] == data["sentences"]


def test_without_an_affine_it_says_what_to_give():
    data = patch() | {"image": torch.zeros(1, 8, 6, 4)}
    with pytest.raises(ValueError, match="nothing tells which axis runs left-right: give a MetaTensor or the affine"):
        flipping()(data)
    assert flipping(prob=1.0)(data | {"affine": np.eye(4)})["image"].shape == (1, 8, 6, 4)


def test_flips_after_the_queries_are_refused():
    with pytest.raises(ValueError, match="before the queries are made"):
        flipping(prob=1.0)(patch(queries=torch.zeros(2, 8)))


def test_each_axis_flips_at_its_own_rate():
    choice = RandFlipSides(prob=0.5, lateral_prob=0.2)
    choice.set_random_state(0)
    axes = [choice(np.eye(4)[[1, 0, 2, 3]]) for _ in range(2000)]
    rates = [np.mean([axis in chosen for chosen in axes]) for axis in range(3)]
    assert rates == pytest.approx([0.5, 0.2, 0.5], abs=0.04)


def test_same_seed_same_flips():
    def run(seed: int) -> list[list[float]]:
        transform = flipping(seed)
        return [transform(patch())["image"].flatten().tolist() for _ in range(8)]

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_every_pair_of_the_terminology_is_renamed_both_ways(terminology):
    """All names and synonyms, one by one; a second mirror brings each back."""
    names = SideNames(terminology)
    pairs = [target for target in terminology.targets() if target.concept.pair]
    assert len(pairs) > 100
    for target in pairs:
        other = terminology.other_side(target)
        sentences = terminology.sentences(target)
        mirrored = names.mirrored_sentences(sentences, target.modality)
        assert mirrored == terminology.sentences(other)
        for before, after in zip(sentences, mirrored, strict=True):
            if "left" in before or "right" in before:
                assert after == re.sub("left|right", lambda side: SWAPPED[side[0]], before)


def test_structures_without_sides_keep_their_names(terminology):
    names = SideNames(terminology)
    for target in terminology.targets():
        if target.concept.laterality is None:
            sentences = terminology.sentences(target)
            assert names.mirrored_sentences(sentences, target.modality) == sentences


@pytest.mark.parametrize(
    ("sentence", "modality", "mirrored"),
    [
        ("The left kidney in an abdominal CT scan", "CT", ["right kidney"]),
        ("Left atrium in cardiac MRI", "MRI", ["Left atrium in cardiac MRI"]),
        ("left and right kidney", "CT", ["left and right kidney"]),
        ("Lung middle lobe right", "CT", []),
        ("left widget", "CT", []),
        ("widget", "CT", ["widget"]),
        ("left kidney", None, ["right kidney"]),
        ("left hippocampus", "MRI", ["right hippocampus"]),
    ],
)
def test_sentences_as_data_sets_write_them(terminology, sentence, modality, mirrored):
    assert SideNames(terminology).mirrored_sentences([sentence], modality) == mirrored


def test_what_has_no_name_on_the_other_side_is_no_longer_asked_for(terminology):
    table = {1: ["lung middle lobe right"], 2: ["lung upper lobe right"], 3: ["left widget"]}
    mirrored = SideNames(terminology).mirrored_table(table, "CT")
    assert mirrored.values == {}
    assert mirrored.sentences == {2: ["lung upper lobe left"]}


def test_two_values_of_one_structure_are_renamed_rather_than_exchanged(terminology):
    table = {1: ["left kidney"], 2: ["kidney left"], 3: ["right kidney"]}
    mirrored = SideNames(terminology).mirrored_table(table, "CT")
    assert mirrored.values == {}
    assert mirrored.sentences == {1: ["right kidney"], 2: ["kidney right"], 3: ["left kidney"]}


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30, unique=True))
def test_any_table_mirrored_twice_says_what_it_said(terminology, picks):
    """As far as everything in it has a name on the other side: voxel by voxel, the same sentences."""
    targets = [target for target in terminology.targets("CT") if target.concept.pair or not target.concept.laterality]
    chosen = {targets[pick % len(targets)].id: targets[pick % len(targets)] for pick in picks}
    table = {place: [target.sentence] for place, target in enumerate(chosen.values(), start=1)}
    names = SideNames(terminology)
    once = names.mirrored_table(table, "CT")
    twice = names.mirrored_table(once.sentences, "CT")
    for value, words in table.items():
        now = once.values.get(value, value)
        assert twice.sentences[twice.values.get(now, now)] == words
