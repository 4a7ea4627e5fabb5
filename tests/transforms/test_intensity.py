"""Grey values to 0..255 by modality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import InputError
from scripts.text import Terminology
from scripts.transforms.intensity import CT_WINDOWS, ScaleByModality, ScaleByModalityd


@pytest.mark.parametrize(
    ("window", "hounsfield", "expected"),
    [
        ("soft_tissue", [-161, -160, 40, 240, 241], [0, 0, 127.5, 255, 255]),
        ("lung", [-1000, -910, -160, 590, 900], [0, 0, 127.5, 255, 255]),
        ("brain", [-1, 0, 40, 80, 81], [0, 0, 127.5, 255, 255]),
        ("bone", [-600, -500, 400, 1300, 1301], [0, 0, 127.5, 255, 255]),
    ],
)
def test_ct_windows(window: str, hounsfield: list[float], expected: list[float]) -> None:
    out = ScaleByModality("CT", window=window)(torch.tensor(hounsfield).reshape(1, 5, 1, 1).float())
    assert torch.allclose(out.flatten(), torch.tensor(expected))


def test_windows_are_those_of_the_terminology() -> None:
    assert {name: tuple(window) for name, window in Terminology.load().windows.items()} == CT_WINDOWS


def test_others_scale_between_percentiles_of_the_non_zero_voxels() -> None:
    values = torch.cat([torch.zeros(5000), torch.randn(9000) * 100 + 700]).reshape(1, 10, 20, 70)
    low, high = np.percentile(values[values != 0].numpy(), [0.5, 99.5])
    expected = np.clip((values.numpy() - low) / (high - low), 0, 1) * 255
    assert np.allclose(ScaleByModality("MRI")(values), expected, atol=1e-2)


def test_percentiles_of_a_large_volume_are_those_of_a_small_one() -> None:
    """Beyond some millions of voxels a subset decides; the result must not show it."""
    values = torch.rand(1, 200, 200, 130) + 1
    scaled = ScaleByModality("PET")(values)
    assert abs(float(scaled[values.isclose(torch.tensor(1.5), atol=1e-4)].mean()) - 127.5) < 0.5


def test_images_stored_as_uint8_stay() -> None:
    voxels = torch.tensor([0, 3, 200]).reshape(1, 3, 1, 1)
    assert ScaleByModality("MRI")(voxels.to(torch.uint8)).flatten().tolist() == [0, 3, 200]
    loaded = MetaTensor(voxels.float(), meta={"stored_dtype": "uint8"})
    assert ScaleByModality("CT")(loaded).flatten().tolist() == [0, 3, 200]


def test_binary_grey_values_still_scale() -> None:
    out = ScaleByModality("MRI")(torch.tensor([0.0, 0, 7, 7]).reshape(1, 4, 1, 1))
    assert out.flatten().tolist() == [0, 0, 255, 255]


def test_flat_images_and_unknown_windows_are_refused() -> None:
    with pytest.raises(InputError, match="everywhere"):
        ScaleByModality("MRI")(torch.ones(1, 2, 2, 2))
    with pytest.raises(ValueError, match="soft_tissue"):
        ScaleByModality("CT", window="soft")(torch.rand(1, 2, 2, 2))


def test_dictionary_takes_modality_and_window_from_the_request(make_request_text) -> None:
    image = torch.tensor([0.0, 40, 80]).reshape(1, 3, 1, 1)
    data = {"image": image, "request": make_request_text([("Brain", 1, "CT", "brain")])}
    assert ScaleByModalityd("image")(data)["image"].flatten().tolist() == [0, 127.5, 255]
    data["request"] = make_request_text([("Brain", 1, "CT", "brain"), ("Lung", 2, "CT", "lung")])
    out = ScaleByModalityd("image")(data)["image"].flatten()
    assert torch.allclose(out, (image.flatten() + 160) / 400 * 255)
    assert torch.equal(data["image"], image)


@pytest.mark.parametrize(("code", "warned"), [("MR", True), ("CT", False), ("OT", False), (None, False)])
def test_a_dicom_header_of_another_modality_is_warned_of(
    make_request_text, caplog: pytest.LogCaptureFixture, code: str | None, warned: bool
) -> None:
    image = MetaTensor(torch.arange(8.0).reshape(1, 2, 2, 2), meta={} if code is None else {"modality": code})
    ScaleByModalityd("image")({"image": image, "request": make_request_text([("Liver", 1, "CT", None)])})
    assert ("header says MRI, the request is for CT" in caplog.text) == warned
