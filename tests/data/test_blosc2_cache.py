"""A stored case: patches as written, places that lie in their class, no half case, no damage unseen."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scripts.data import blosc2_cache
from scripts.data.blosc2_cache import (
    ARRAY_FILES,
    FACTS_FILE,
    FORMAT_VERSION,
    IMAGE_FILE,
    LABEL_FILE,
    class_locations,
    draw_location,
    read_facts,
    read_patch,
    verify_case,
    write_case,
    write_facts,
)

SHAPE = (40, 70, 9)
FACTS = {"version": FORMAT_VERSION, "name": "one", "spacing": (1.0, 1.0, 2.0)}


@pytest.fixture(scope="module")
def volumes() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, SHAPE, dtype=np.uint8), rng.integers(0, 4, SHAPE).astype(np.uint16)


def store(folder: Path, volumes: tuple[np.ndarray, np.ndarray], **facts: object) -> Path:
    image, label = volumes
    places = class_locations(label, (1, 2, 3), np.random.default_rng(0), limit=50)
    write_case(folder, image, label, places, {**FACTS, **facts}, (72, 72, 72))
    return folder


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, volumes: tuple[np.ndarray, np.ndarray]) -> Path:
    return store(tmp_path_factory.mktemp("set") / "CT_Some" / "one", volumes)


@given(
    start=st.tuples(*(st.integers(-6, n - 1) for n in SHAPE)),
    size=st.tuples(*(st.integers(1, 44) for _ in SHAPE)),
)
def test_a_patch_is_what_was_written_and_zero_outside(case: Path, volumes, start, size):
    margin = 50
    for name, array in zip((IMAGE_FILE, LABEL_FILE), volumes, strict=True):
        padded = np.pad(array, margin)
        wanted = padded[tuple(slice(s + margin, s + margin + n) for s, n in zip(start, size, strict=True))]
        patch = read_patch(case, name, start, size)
        assert patch.dtype == array.dtype
        np.testing.assert_array_equal(patch, wanted)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_images_keep_their_type_and_values(tmp_path: Path, volumes, dtype):
    image = (volumes[0] * 0.37).astype(dtype)
    store(tmp_path / "a" / "b", (image, volumes[1]))
    patch = read_patch(tmp_path / "a" / "b", IMAGE_FILE, (0, 0, 0), SHAPE)
    assert patch.dtype == dtype
    np.testing.assert_array_equal(patch, image)


def test_chunks_are_half_a_patch(case: Path):
    assert blosc2.open(str(case / IMAGE_FILE), mode="r").chunks == (36, 36, 9)


@settings(max_examples=40)
@given(
    labels=hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 9)] * 3), elements=st.integers(0, 4)),
    limit=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_locations_lie_in_their_class_and_are_as_many_as_can_be(labels, limit, seed):
    found = class_locations(labels, (1, 2, 4, 9), np.random.default_rng(seed), limit)
    assert set(found) == set(np.unique(labels)) & {1, 2, 4, 9}
    for value, voxels in found.items():
        assert (labels[tuple(voxels.T)] == value).all()
        assert len(np.unique(voxels, axis=0)) == len(voxels) == min(limit, (labels == value).sum())
    again = class_locations(labels, (9, 4, 2, 1), np.random.default_rng(seed), limit)
    for value, voxels in found.items():
        np.testing.assert_array_equal(voxels, again[value])


def test_drawn_places_lie_in_their_class_and_follow_the_generator(case: Path, volumes):
    drawn = [draw_location(case, 2, np.random.default_rng(seed)) for seed in range(30)]
    assert all(volumes[1][place] == 2 for place in drawn)
    assert drawn == [draw_location(case, 2, np.random.default_rng(seed)) for seed in range(30)]
    assert len(set(drawn)) > 10
    with pytest.raises(ValueError, match="no places of class 7"):
        draw_location(case, 7, np.random.default_rng(0))


def test_a_sound_case_is_verified_and_its_facts_return(case: Path):
    facts = verify_case(case)
    assert facts["name"] == "one"
    assert facts["spacing"] == [1.0, 1.0, 2.0]
    assert set(facts["files"]) == set(ARRAY_FILES)


@pytest.mark.parametrize("name", ARRAY_FILES)
@pytest.mark.parametrize("fault", ["byte", "end", "gone"])
def test_damage_is_found(tmp_path: Path, volumes, name: str, fault: str):
    file = store(tmp_path / "CT_Some" / "one", volumes) / name
    content = bytearray(file.read_bytes())
    if fault == "byte":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        verify_case(file.parent, contents=False)  # the quick look cannot know
    elif fault == "end":
        file.write_bytes(content[:-5])
    else:
        file.unlink()
    with pytest.raises(ValueError, match=f"CT_Some/one: {name} is missing or not as it was written"):
        verify_case(file.parent)


def test_changed_facts_are_found_and_rewritten_ones_are_not(tmp_path: Path, volumes):
    folder = store(tmp_path / "CT_Some" / "one", volumes)
    facts = read_facts(folder)
    (folder / FACTS_FILE).write_text(json.dumps({**facts, "name": "two"}))
    with pytest.raises(ValueError, match="was changed"):
        read_facts(folder)
    write_facts(folder, {**facts, "name": "three"})
    assert verify_case(folder)["name"] == "three"
    (folder / FACTS_FILE).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        read_facts(folder)


def test_an_array_that_is_no_array_is_one_clear_error(tmp_path: Path, volumes):
    folder = store(tmp_path / "CT_Some" / "one", volumes)
    (folder / IMAGE_FILE).write_bytes(b"nothing of the kind" * 9)
    with pytest.raises(ValueError, match=r"CT_Some/one: image.b2nd cannot be read: prepare it again"):
        read_patch(folder, IMAGE_FILE, (0, 0, 0), (4, 4, 4))


def test_writing_again_replaces_all(tmp_path: Path, volumes):
    folder = store(tmp_path / "CT_Some" / "one", volumes)
    store(folder, (volumes[0][:5], volumes[1][:5]), name="other")
    assert verify_case(folder)["name"] == "other"
    assert [path.name for path in folder.parent.iterdir()] == ["one"]
    assert read_patch(folder, IMAGE_FILE, (0, 0, 0), (6, 1, 1)).ravel().tolist() == [*volumes[0][:5, 0, 0], 0]


def _die_while_writing(folder: Path, volumes: tuple[np.ndarray, np.ndarray]) -> None:
    blosc2_cache.np.savez_compressed = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    store(folder, volumes)


@pytest.mark.parametrize("existed", [False, True])
def test_a_kill_in_the_middle_leaves_no_half_case(tmp_path: Path, volumes, existed: bool):
    """The process dies after the arrays and before the facts: what was there before is there after."""
    folder = tmp_path / "CT_Some" / "one"
    if existed:
        store(folder, volumes, name="before")
    process = multiprocessing.get_context("fork").Process(target=_die_while_writing, args=(folder, volumes))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    if existed:
        assert verify_case(folder)["name"] == "before"
    else:
        assert not folder.exists()
    store(folder, volumes, name="after")
    assert verify_case(folder)["name"] == "after"
    assert [path.name for path in folder.parent.iterdir()] == ["one"]
