"""Points, boxes, scribbles and masks become the voxels they mean, on anisotropic and oblique grids too."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from scripts.transforms.prompt_shapes import Marks, PromptShapes, bounding_box, join_boxes

SHAPE = (20, 24, 9)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [20, -35, 10], degrees=True).as_matrix() @ np.diag([0.8, -0.8, 5.0])
OBLIQUE[:3, 3] = (10, -30, 55)


def whole(marks: Marks, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[marks.box] = marks.mask
    return mask


def world() -> np.ndarray:
    return apply_affine(OBLIQUE, np.stack(np.indices(SHAPE), axis=-1))


PLACES = st.tuples(*(st.floats(-0.5, side - 0.51) for side in SHAPE))


@given(place=PLACES, radius=st.floats(0.1, 12))
def test_a_point_is_a_ball_in_millimetres_and_never_empty(place: tuple[float, ...], radius: float) -> None:
    marks = PromptShapes(SHAPE, OBLIQUE).point(place, radius)
    nearest = tuple(np.clip(np.floor(np.array(place) + 0.5).astype(int), 0, np.array(SHAPE) - 1))
    found = whole(marks)
    assert found[nearest]
    found[nearest] = False
    distance = np.linalg.norm(world() - apply_affine(OBLIQUE, place), axis=-1)
    inside = distance <= radius * (1 - 1e-5)
    inside[nearest] = False
    assert found[inside].all()
    assert not found[distance > radius * (1 + 1e-5)].any()


@given(places=st.lists(PLACES, min_size=2, max_size=4), radius=st.floats(0.1, 6))
def test_a_scribble_is_a_tube_around_its_line(places: list[tuple[float, ...]], radius: float) -> None:
    mask = whole(PromptShapes(SHAPE, OBLIQUE).scribble(places, radius))
    points, wanted = world(), np.zeros(SHAPE, bool)
    for first, last in itertools.pairwise(places):
        start, end = apply_affine(OBLIQUE, [first, last])
        line = end - start
        share = np.clip((points - start) @ line / max(line @ line, 1e-30), 0, 1)
        wanted |= np.linalg.norm(points - start - share[..., None] * line, axis=-1) <= radius
    for place in places:
        wanted[tuple(np.clip(np.floor(np.array(place) + 0.5).astype(int), 0, np.array(SHAPE) - 1))] = True
    assert (mask != wanted).sum() <= 2  # voxels just on the surface may round either way


def test_world_points_and_the_default_radius() -> None:
    shapes = PromptShapes(SHAPE, OBLIQUE)
    by_index = shapes.point((4, 5, 6), 3.0)
    by_world = shapes.point(apply_affine(OBLIQUE, (4, 5, 6)), 3.0, world=True)
    assert np.array_equal(whole(by_index), whole(by_world))
    assert shapes.default_radius == pytest.approx(2.4)
    assert np.array_equal(whole(shapes.point((4, 5, 6))), whole(shapes.point((4, 5, 6), 2.4)))


def test_box_and_drawn_mask() -> None:
    shapes = PromptShapes(SHAPE, OBLIQUE)
    box = whole(shapes.box((6, 3, 2), (2, 5, 2)))
    assert box.sum() == 5 * 3
    assert box[2:7, 3:6, 2].all()
    rng = np.random.default_rng(0)
    drawn = rng.random(SHAPE) > 0.9
    assert np.array_equal(whole(shapes.drawn(drawn)), drawn)
    tensor = MetaTensor(torch.from_numpy(drawn)[None].float(), affine=torch.from_numpy(OBLIQUE))
    assert np.array_equal(whole(shapes.one_of(mask=tensor)), drawn)


def test_memory_is_a_bit_for_each_voxel_of_the_box() -> None:
    shapes = PromptShapes((512, 512, 600), np.eye(4))
    marks = shapes.point((200, 300, 100), 4.0)
    assert marks.shape == (9, 9, 9)
    assert marks.bits.nbytes == -(-(9**3) // 8)


BOXES = st.tuples(*(st.tuples(st.integers(0, side - 1), st.integers(1, side)) for side in SHAPE))


@given(ends=BOXES)
def test_any_part_of_marks(ends: tuple[tuple[int, int], ...]) -> None:
    marks = PromptShapes(SHAPE, OBLIQUE).point((9, 12, 4), 9.0)
    box = tuple(slice(min(a, b - 1), max(a + 1, b)) for a, b in ends)
    assert np.array_equal(marks.within(box), whole(marks)[box])


def test_bounding_and_joint_boxes() -> None:
    mask = np.zeros((5, 6, 7))
    assert bounding_box(mask) is None
    mask[1, 2, 3] = mask[3, 2, 5] = -1
    assert bounding_box(mask) == (slice(1, 4), slice(2, 3), slice(3, 6))
    other = (slice(0, 1), slice(4, 5), slice(3, 4))
    assert join_boxes(bounding_box(mask), other) == (slice(0, 4), slice(2, 5), slice(3, 6))
