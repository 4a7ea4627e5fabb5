"""Which case and which patch: weights by the rule, patches where they can be, the same for the same generator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.data.blosc2_cache import write_case
from scripts.data.sampling import case_weights, draw_start, repeats

PATCH = (8, 8, 8)


def case(dataset: str = "CT_A", region: Any = ((0, 0, 0), (4, 4, 4)), targets: int = 3, **facts: Any) -> dict:
    return {"dataset": dataset, "region": region, "sentences": {n: ["x"] for n in range(1, targets + 1)}, **facts}


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    factors=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
)
def test_a_dataset_weighs_the_root_of_its_size_times_its_factor(counts, factors):
    cases = [case(f"CT_{number}") for number, count in enumerate(counts) for _ in range(count)]
    table = {f"CT_{number}": factors[number] for number in range(len(counts))}
    weights = case_weights(cases, PATCH, 32, table)
    assert weights.sum() == pytest.approx(1)
    total = sum(math.sqrt(count) * factors[number] for number, count in enumerate(counts))
    for number, count in enumerate(counts):
        of_dataset = [w for w, c in zip(weights, cases, strict=True) if c["dataset"] == f"CT_{number}"]
        assert sum(of_dataset) == pytest.approx(math.sqrt(count) * factors[number] / total)
        assert max(of_dataset) == pytest.approx(min(of_dataset))


@pytest.mark.parametrize(
    ("region", "targets", "expected"),
    [
        (None, 1, 1),
        (((0, 0, 0), (4, 4, 4)), 32, 1),
        (((0, 0, 0), (12, 4, 4)), 32, 2),  # 1.5 patches long, rounded half to even
        (((2, 2, 2), (18, 18, 4)), 32, 4),  # 2 x 2 patches
        (((0, 0, 0), (4, 4, 4)), 104, 3),  # 104 / 32 samples
        (((0, 0, 0), (12, 4, 4)), 80, 4),  # 1.5 x 2.5 = 3.75
    ],
)
def test_large_regions_and_many_targets_repeat(region, targets, expected):
    assert repeats(case(region=region, targets=targets), PATCH, 32) == expected


def test_repeats_count_in_the_weight():
    weights = case_weights([case(), case(region=((0, 0, 0), (32, 8, 8)))], PATCH, 32)
    assert weights[1] / weights[0] == pytest.approx(4)


def test_a_factor_of_zero_leaves_a_dataset_out_and_wrong_ones_are_refused():
    cases = [case("CT_A"), case("CT_B")]
    assert case_weights(cases, PATCH, 32, {"CT_A": 0}).tolist() == [0, 1]
    for factors in ({"CT_C": 1.0}, {"CT_A": -1.0}, {"CT_A": float("nan")}):
        with pytest.raises(ValueError, match=r"sampling: factors .* among \['CT_A', 'CT_B'\]"):
            case_weights(cases, PATCH, 32, factors)
    with pytest.raises(ValueError, match="positive weight"):
        case_weights(cases, PATCH, 32, {"CT_A": 0, "CT_B": 0})


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A volume of 20 x 20 x 5 with class 1 at one corner voxel and class 2 at one in the middle."""
    folder = tmp_path_factory.mktemp("set") / "CT_A" / "one"
    volume = np.zeros((20, 20, 5), np.uint8)
    places = {1: np.array([[0, 0, 0]]), 2: np.array([[10, 9, 2]])}
    write_case(folder, volume, volume, places, {"version": 1}, PATCH)
    return {"folder": str(folder), "shape": list(volume.shape), "voxels": {1: 1, 2: 1}}


@given(patch=st.tuples(*[st.integers(1, 30)] * 3), foreground=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 99))
def test_patches_lie_in_the_volume_or_the_volume_in_them(stored, patch, foreground, seed):
    start = draw_start(stored, patch, foreground, np.random.default_rng(seed))
    for s, p, n in zip(start, patch, stored["shape"], strict=True):
        assert min(0, n - p) <= s <= max(0, n - p)
    assert start == draw_start(stored, patch, foreground, np.random.default_rng(seed))


def test_random_patches_reach_every_place(stored):
    rng = np.random.default_rng(0)
    starts = np.array([draw_start(stored, (19, 8, 8), 0.0, rng) for _ in range(300)])
    assert [set(axis) for axis in starts.T.tolist()] == [{0, 1}, set(range(13)), {-3, -2, -1, 0}]


def test_a_share_of_the_patches_is_centred_on_a_random_class(stored):
    rng = np.random.default_rng(0)
    patch, centres = (3, 3, 3), {(0, 0, 0): 0, (9, 8, 1): 0}  # the corner is as near to the centre as it can be
    for _ in range(2000):
        start = draw_start(stored, patch, 0.2, rng)
        if start in centres:
            centres[start] += 1
    assert all(0.07 < count / 2000 < 0.13 for count in centres.values())


def test_a_case_without_a_class_has_random_patches(stored):
    start = draw_start({**stored, "voxels": {}}, PATCH, 1.0, np.random.default_rng(0))
    assert len(start) == 3
