"""Measurements and the report."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import InputError
from scripts.report import build_report, describe_image, format_table, measure
from scripts.request import Request, RequestedTarget, as_flag, as_texts, decode_request, encode_request

AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 4, 10], [0, 0, 0, 1]])


def target(name: str, label: int) -> RequestedTarget:
    return RequestedTarget(
        name, label, "MRI", "anatomy", f"MRI_{name}", name.lower(), "synonym", 0.9, (10, 20, 30), None
    )


@pytest.fixture
def volume() -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros((10, 8, 6), np.uint8)
    labels[2:5, 3:5, 1:3] = 4
    labels[6, 6, 4] = 4
    labels[0, 0:2, 0] = 250
    probability = np.where(labels == 4, 0.75, 0.5).astype(np.float16)
    probability[6, 6, 4] = 1
    return labels, probability


def test_measurements_against_plain_numpy(volume: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probability = volume
    found = measure(labels, probability, AFFINE, [4, 250, 9])
    inside = np.argwhere(labels == 4)
    assert found[4].voxels == 13
    assert found[4].volume_ml == pytest.approx(13 * 12 / 1000)
    assert found[4].mean_probability == pytest.approx(probability[labels == 4].astype(float).mean(), abs=1e-4)
    assert found[4].centroid_mm == pytest.approx(nib.affines.apply_affine(AFFINE, inside).mean(axis=0), abs=0.01)
    assert found[4].bounding_box == {"first": [2, 3, 1], "last": [6, 6, 4]}
    assert found[4].touches_border is False
    assert found[250].touches_border is True
    assert found[250].voxels == 2


def test_absent_structure_has_no_numbers(volume: tuple[np.ndarray, np.ndarray]) -> None:
    """0 ml would read as a measurement: null says that nothing was found, also above every label present."""
    for absent in (9, 300):
        assert set(vars(measure(*volume, AFFINE, [absent])[absent]).values()) == {None}


def test_empty_label_map() -> None:
    labels = np.zeros((3, 3, 3), np.uint8)
    assert measure(labels, labels.astype(float), np.eye(4), [1])[1].voxels is None


def test_border_is_the_last_voxel_too() -> None:
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[1, 1, 4] = 1
    assert measure(labels, labels.astype(float), np.eye(4), [1])[1].touches_border is True


def test_report_is_valid_json_in_the_order_asked(volume: tuple[np.ndarray, np.ndarray]) -> None:
    request = Request(("b and a",), "MRI", (target("B", 9), target("A", 4)))
    meta = {
        "filename_or_obj": "/home/someone/head.nii.gz",
        "original_affine": AFFINE,
        "spatial_shape": np.array([10, 8, 6]),
    }
    report = build_report(
        request, measure(*volume, AFFINE, [9, 4]), describe_image(meta), {"name": "x", "version": "1"}
    )
    text = json.dumps(report, allow_nan=False)
    assert [s["name"] for s in report["structures"]] == ["B", "A"]
    assert {
        "name",
        "label",
        "modality",
        "volume_ml",
        "voxels",
        "mean_probability",
        "centroid_mm",
        "bounding_box",
    } <= set(report["structures"][0])
    assert report["structures"][1]["understood_from"] == "a"
    assert report["image"]["spacing_mm"] == [1.5, 2.0, 4.0]
    assert report["image"]["orientation"] == "ALS"
    assert "/home" not in text
    table = format_table(report).splitlines()
    assert "not found" in table[1]
    assert "0.16" in table[2]


def test_request_survives_as_text() -> None:
    request = Request(("a", "b"), "CT", (target("A", 4), target("B", 9)))
    assert decode_request(encode_request(request)) == request


def test_texts_from_a_command_line() -> None:
    assert as_texts("liver") == ("liver",)
    assert as_texts(("liver ", "", "left kidney")) == ("liver", "left kidney")


def test_flags_from_a_command_line() -> None:
    assert [as_flag(value) for value in (True, "true", "False", "no", 1)] == [True, True, False, False, True]
    with pytest.raises(InputError, match="'perhaps'"):
        as_flag("perhaps")
