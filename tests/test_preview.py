"""The preview picture, read back."""

from __future__ import annotations

import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.preview import draw_preview

RED, GREEN = (255, 0, 0), (0, 255, 0)
STRUCTURES = [
    {"name": "Left thing", "label": 1, "color": RED, "volume_ml": 3.2},
    {"name": "Right thing", "label": 2, "color": GREEN, "volume_ml": 1.2},
]


def scene(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Grey noise with one structure on the patient's left in front, one on the right behind and above."""
    world = nib.affines.apply_affine(affine, np.stack(np.indices(shape), axis=-1))
    world -= nib.affines.apply_affine(affine, (np.array(shape) - 1) / 2)
    labels = np.zeros(shape, np.uint8)
    labels[np.linalg.norm(world - (-20, 15, -2), axis=-1) < 9] = 1
    labels[np.linalg.norm(world - (20, -15, 2), axis=-1) < 9] = 2
    return np.random.default_rng(0).normal(100, 20, shape).astype(np.float32), labels


def places(png: bytes, color: tuple[int, int, int]) -> np.ndarray:
    """Pixels of a colour, [n, 2] as (column, row), outside the legend."""
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    picture = picture[:, : picture.shape[1] - 345]
    return np.argwhere((np.abs(picture - color) < 40).all(axis=-1))[:, ::-1]


GRIDS = {
    "RAS": np.diag([1.5, 1.5, 1.5, 1]),
    "LPS": np.diag([-1.5, -1.5, 1.5, 1]),
    "SAL": np.array([[0, 0, -1.5, 0], [0, 1.5, 0, 0], [1.5, 0, 0, 0], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("orientation", GRIDS)
def test_left_is_on_the_right_of_the_picture(orientation: str) -> None:
    affine = GRIDS[orientation]
    png = draw_preview(*scene(affine, (60, 60, 60)), affine, STRUCTURES, "title")
    left, right = places(png, RED), places(png, GREEN)
    axial = 480  # columns of the first plane
    left, right = left[left[:, 0] < axial], right[right[:, 0] < axial]
    assert len(left) > 20
    assert len(right) > 20
    assert left[:, 0].mean() > right[:, 0].mean() + 100
    assert left[:, 1].mean() < right[:, 1].mean() - 100  # in front is on top


def test_all_orientations_give_the_same_picture() -> None:
    outlines = []
    for affine in GRIDS.values():
        png = draw_preview(*scene(affine, (60, 60, 60)), affine, STRUCTURES, "title")
        outlines.append([places(png, color).mean(axis=0) for color in (RED, GREEN)])
    assert np.allclose(outlines[0], outlines[1], atol=2)
    assert np.allclose(outlines[0], outlines[2], atol=2)


def test_anisotropic_voxels_keep_the_patients_proportions() -> None:
    """A ball stays round although its voxels are six times as high as wide."""
    affine = np.diag([1.0, 1, 6, 1])
    png = draw_preview(*scene(affine, (80, 80, 14)), affine, STRUCTURES[:1], "title")
    outline = places(png, RED)
    coronal = outline[(outline[:, 0] > 480) & (outline[:, 0] < 930)]
    width, height = np.ptp(coronal, axis=0)
    assert 0.5 < width / height < 2


def test_same_bytes_and_small() -> None:
    affine = np.diag([0.6, 0.6, 0.6, 1])
    scene_ = scene(affine, (120, 130, 110))
    first = draw_preview(*scene_, affine, STRUCTURES, "title")
    assert first == draw_preview(*scene_, affine, STRUCTURES, "title")
    assert len(first) <= 300_000


def test_nothing_found_and_many_structures() -> None:
    affine = np.eye(4)
    image, labels = scene(affine, (40, 40, 40))
    many = [
        {"name": f"Structure with quite a long name {n}", "label": n, "color": (n, 90, 200 - n), "volume_ml": None}
        for n in range(1, 60)
    ]
    png = draw_preview(image, labels * 0, affine, many, "title")
    assert Image.open(io.BytesIO(png)).size[1] >= 300


def test_one_slice_and_flat_images() -> None:
    labels = np.zeros((30, 30, 1), np.uint8)
    labels[5:20, 5:20] = 1
    assert draw_preview(np.zeros((30, 30, 1)), labels, np.diag([2.0, 2, 5, 1]), STRUCTURES, "title")
