"""The report, and the request it begins with."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import InputError
from scripts.measurement import measure
from scripts.report import ReportStructuresd, build_report, describe_image, format_table
from scripts.request import Request, RequestedTarget, as_flag, as_texts, decode_request, encode_request
from scripts.transforms.postprocess import LabelInstancesd

AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 4, 10], [0, 0, 0, 1]])


def target(name: str, label: int, kind: str = "anatomy") -> RequestedTarget:
    return RequestedTarget(name, label, "MRI", kind, f"MRI_{name}", name.lower(), "synonym", 0.9, (10, 20, 30), None)


@pytest.fixture
def volume() -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros((10, 8, 6), np.uint8)
    labels[2:5, 3:5, 1:3] = 4
    labels[6, 6, 4] = 4
    labels[0, 0:2, 0] = 250
    probability = np.where(labels == 4, 0.75, 0.5).astype(np.float16)
    probability[6, 6, 4] = 1
    return labels, probability


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


@pytest.fixture
def case(volume: tuple[np.ndarray, np.ndarray]) -> dict:
    """Two lesions of one target, an anatomy, and a lesion target that was not found."""
    labels, probability = (torch.from_numpy(part)[None] for part in volume)
    request = Request(
        ("words",), "MRI", (target("Organ", 250), target("Lesion", 4, "lesion"), target("Absent", 5, "lesion"))
    )
    meta = {"filename_or_obj": "head.nii.gz", "original_affine": AFFINE, "spatial_shape": np.array([10, 8, 6])}
    return {
        "label_map": labels,
        "probability": probability,
        "image": MetaTensor(torch.zeros(1, 2, 2, 2), meta=meta),
        "request": encode_request(request),
    }


def test_lesions_stand_under_their_target(case: dict) -> None:
    report = ReportStructuresd({"name": "x", "version": "1"})(LabelInstancesd("label_map")(case))["report"]
    organ, lesion, absent = report["structures"]
    assert organ["instances"] is None
    assert organ["instance_count"] is None
    assert absent["instances"] == []
    assert absent["instance_count"] == 0
    assert absent["voxels"] is None
    assert lesion["instance_count"] == 2
    assert [row["id"] for row in lesion["instances"]] == [1, 2]
    assert [row["voxels"] for row in lesion["instances"]] == [12, 1]
    assert sum(row["volume_ml"] for row in lesion["instances"]) == pytest.approx(lesion["volume_ml"])
    assert lesion["instances"][1]["longest_diameter_mm"] == 4  # one voxel of 1.5 x 2 x 4 mm
    assert lesion["instances"][1]["mean_probability"] == 1
    assert "2 found, longest diameter" in format_table(report).splitlines()[2]
    json.dumps(report, allow_nan=False)


def test_lesions_that_were_not_looked_for(case: dict) -> None:
    report = ReportStructuresd({"name": "x", "version": "1"})(case)["report"]
    assert [row["instances"] for row in report["structures"]] == [None] * 3
    assert "found, longest" not in format_table(report)


def test_disagreement_is_the_mean_over_the_structure(case: dict) -> None:
    report = ReportStructuresd({"name": "x", "version": "1"})
    assert [row["disagreement"] for row in report(case)["report"]["structures"]] == [None] * 3
    difference = torch.zeros(1, 10, 8, 6, dtype=torch.float16)
    difference[case["label_map"] == 4] = 0.25
    difference[0, 6, 6, 4] = 0.875
    rows = report(case | {"disagreement": difference})["report"]["structures"]
    assert [row["disagreement"] for row in rows] == [0, pytest.approx((12 * 0.25 + 0.875) / 13, abs=1e-4), None]


def test_the_same_case_gives_the_same_bytes(case: dict) -> None:
    runs = [
        json.dumps(ReportStructuresd({"name": "x", "version": "1"})(LabelInstancesd("label_map")(case))["report"])
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


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
