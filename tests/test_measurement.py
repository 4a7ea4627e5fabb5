"""Sizes, places and diameters of structures and objects."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from scripts.measurement import longest_diameter, measure

AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 4, 10], [0, 0, 0, 1]])


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


def test_more_labels_than_voxels() -> None:
    """A tiny volume with a large label value is measured like any other."""
    labels = np.full((2, 2, 2), 300, np.int32)
    labels[0, 0, 0] = 70_000
    found = measure(labels, labels / 70_000, np.eye(4), [300, 70_000, 1])
    assert [found[label].voxels for label in (300, 70_000, 1)] == [7, 1, None]
    assert found[70_000].mean_probability == 1


def test_disagreement_only_where_measured(volume: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probability = volume
    assert measure(labels, probability, AFFINE, [4])[4].disagreement is None
    assert measure(labels, probability, AFFINE, [4], 1 - probability)[4].disagreement == pytest.approx(
        12 / 13 / 4, abs=1e-4
    )


# --- longest diameter ------------------------------------------------------------------------------------------------


def oblique(spacing: tuple[float, ...], degrees: tuple[float, ...]) -> np.ndarray:
    """Affine of a rotated grid."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = (-100, 30, 7)
    return affine


def over_all_faces(mask: np.ndarray, affine: np.ndarray) -> float:
    """The greatest distance between the centres of any two voxel faces, found by trying all."""
    halves = np.concatenate([np.eye(3), -np.eye(3)]) / 2
    faces = np.concatenate([np.argwhere(mask) + half for half in halves])
    return float(pdist(nib.affines.apply_affine(affine, faces)).max())


angles = st.tuples(*[st.floats(-180, 180)] * 3)
spacings = st.tuples(*[st.floats(0.3, 6)] * 3)


@given(arrays(bool, st.tuples(*[st.integers(1, 5)] * 3)), angles, spacings)
def test_diameter_equals_all_pairs(mask: np.ndarray, degrees: tuple[float, ...], spacing: tuple[float, ...]) -> None:
    mask.flat[0] = True
    affine = oblique(spacing, degrees)
    assert longest_diameter(mask, affine) == pytest.approx(over_all_faces(mask, affine), rel=1e-9)


@pytest.mark.parametrize("shape", [(14, 11, 9), (25, 20, 1), (1, 1, 300), (30, 1, 30)])
def test_diameter_through_the_hull_equals_all_pairs(shape: tuple[int, ...]) -> None:
    """Large enough for the convex hull, which a flat or straight object must not upset."""
    mask = np.random.default_rng(0).random(shape) < 0.7
    affine = oblique((0.7, 0.9, 3.1), (20, -35, 70))
    assert longest_diameter(mask, affine) == pytest.approx(over_all_faces(mask, affine), rel=1e-9)


@given(angles)
def test_diameter_of_simple_shapes_whatever_the_rotation(degrees: tuple[float, ...]) -> None:
    affine = oblique((1.0, 2.0, 5.0), degrees)
    assert longest_diameter(np.ones((1, 1, 1), bool), affine) == pytest.approx(5)
    assert longest_diameter(np.ones((1, 1, 4), bool), affine) == pytest.approx(20)
    assert longest_diameter(np.ones((300, 1, 1), bool), affine) == pytest.approx(300)
    assert longest_diameter(np.eye(4, dtype=bool)[:, :, None], affine) == pytest.approx(np.hypot(3, 8))


def test_diameter_of_a_ball() -> None:
    affine = oblique((0.8, 0.8, 2.0), (10, 20, 30))
    index = np.stack(np.indices((90, 90, 40)), axis=-1)
    world = nib.affines.apply_affine(affine, index)
    mask = np.linalg.norm(world - nib.affines.apply_affine(affine, (45, 45, 20)), axis=-1) < 30
    assert longest_diameter(mask, affine) == pytest.approx(60, abs=2)  # a voxel's side
