"""Values of a saved label map get the names that the client meant, and their codes, or the label is refused."""

from __future__ import annotations

from typing import Any

import pytest

from lib.datastore.label_names import name_values, segments_of
from scripts.errors import InputError
from scripts.text.terminology import Terminology

A, B, C = ({"name": name} for name in ("Left hippocampus", "Right hippocampus", "Brain-stem"))


def by_idx(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"label_info": [{"name": name, "idx": idx} for name, idx in pairs]}


@pytest.mark.parametrize(
    ("values", "info", "names"),
    [
        ([2], by_idx(("a", 1), ("b", 2), ("c", 3)), ["b"]),
        ([1, 3], by_idx(("c", 3), ("b", 2), ("a", 1)), ["a", "c"]),
        ([14, 29], by_idx(("background", 0), ("x", "14"), ("y", 29)), ["x", "y"]),
        ([5, 9], {"label_info": [{"name": "a"}, {"name": "b"}]}, ["a", "b"]),
        ([2], {"label_info": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}, ["b"]),
        ([1, 2], {"label_info": [{"name": "background"}, {"name": "a"}, {"name": "b"}]}, ["a", "b"]),
        ([1, 2], {"label_names": {"a": 1, "b": 2, "c": 3}}, ["a", "b"]),
        ([2], {"params": {"label_names": {"a": 1, "b": 2}}}, ["b"]),
        ([7], {"label_info": [], "label_names": {"a": "7"}}, ["a"]),
    ],
)
def test_names_follow_the_values(values: list[int], info: dict[str, Any], names: list[str]) -> None:
    named = name_values(values, info)
    assert list(named) == values
    assert [entry["name"] for entry in named.values()] == names


@pytest.mark.parametrize(
    ("values", "info", "message"),
    [
        ([1], {}, "1 without a name"),
        ([1, 2, 4], by_idx(("a", 1)), "2, 4 without a name"),
        ([3, 8], {"label_info": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}, "3 names without idx for 2 values"),
        ([1], {"label_info": {"name": "a", "idx": 1}}, "must be a list"),
        ([1], {"label_info": [{"idx": 1}]}, "must be a list"),
        ([1], {"label_info": [{"name": "a", "idx": True}], "label_names": None}, None),
    ],
)
def test_a_value_without_a_name_is_refused(values: list[int], info: dict[str, Any], message: str | None) -> None:
    if message is None:  # no idx at all, one name for the one value
        assert name_values(values, info)[1]["name"] == "a"
        return
    with pytest.raises(InputError, match=message):
        name_values(values, info)


def test_segments_have_the_codes_of_what_the_names_mean() -> None:
    terminology = Terminology.load()
    named = {
        2: {"name": "Right hippocampus"},
        4: {"name": "left  HIPPOCAMPUS"},
        6: {"name": "Something else", "color": [10, 20, 30]},
        7: {"name": "Odd colour", "color": [400, 0, 0]},
        9: {"name": "x" * 80},
    }
    right, left, other, odd, long = segments_of(named, terminology, "MR")
    concept = terminology.target("Left hippocampus", "MRI").concept
    assert (left.label, left.name, left.codes, left.color) == (4, "left  HIPPOCAMPUS", concept.codes, concept.color)
    assert right.codes == terminology.target("Right hippocampus", "MRI").concept.codes != left.codes
    assert (other.codes, other.color, other.kind) == (None, (10, 20, 30), "anatomy")
    assert odd.color == (255, 0, 0)
    assert len(long.name) == 64


def test_a_name_is_looked_up_in_the_modality_of_the_image() -> None:
    terminology = Terminology.load()
    for modality, code in (("CT", "CT"), ("MR", "MRI")):
        (segment,) = segments_of({1: {"name": "Liver"}}, terminology, modality)
        assert segment.codes == terminology.target("Liver", code).concept.codes
    (segment,) = segments_of({1: {"name": "Liver"}}, terminology, "XA")
    assert segment.codes is not None
