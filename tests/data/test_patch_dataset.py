"""Training samples from prepared cases: the same whoever reads them, drawn by weight, ready for the queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, EnsureTyped

from scripts.data.blosc2_cache import class_locations, write_case
from scripts.data.case_list import prepared_cases, write_case_list
from scripts.data.datasets import ResumableSampler
from scripts.data.patch_dataset import PatchDataset, RandCachedPatchd, measure_reading
from scripts.data.sampling import case_weights
from scripts.transforms.labels import SampleQueries, SampleQueriesd

PATCH = (8, 8, 8)


def facts_of(name: str, label: np.ndarray, instances: bool) -> dict[str, Any]:
    values = [1] if instances else [1, 2]
    classes = (label > 0).astype(np.uint8) if instances else label
    return {
        "version": 1,
        "name": name,
        "dataset": "CT_Lesions" if instances else "CT_Own",
        "section": "training",
        "modality": "CT",
        "instances": instances,
        "orientation": "RAS",
        "shape": list(label.shape),
        "spacing": [1.0, 1.0, 2.0],
        "affine": np.diag([1.0, 1.0, 2.0, 1.0]).tolist(),
        "region": [[0, 0, 0], list(label.shape)],
        "voxels": {str(v): int((classes == v).sum()) for v in values if (classes == v).any()},
        "sentences": {str(v): [f"target {v}", f"synonym {v}"] for v in values},
        "names": {str(v): None for v in values},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases: two with classes 1 and 2, one with lesions 5 and 300. The image says where a voxel is."""
    root, listed = tmp_path_factory.mktemp("set"), []
    for number, shape in enumerate([(12, 20, 9), (16, 16, 16), (30, 10, 5)]):
        instances = number == 2
        label = np.zeros(shape, np.uint16 if instances else np.uint8)
        label[2:5, 3:6, 1:4] = 300 if instances else 1
        label[7:9, 6:9, 1:5] = 5 if instances else 2
        image = (np.arange(label.size) % 251).reshape(shape).astype(np.uint8)
        facts = facts_of(str(number), label, instances)
        place = f"{facts['dataset']}/{number}"
        classes = (label > 0).astype(np.uint8) if instances else label
        write_case(root / place, image, label, class_locations(classes, (1, 2), np.random.default_rng(0)), facts, PATCH)
        listed.append((place, facts))
    write_case_list(root, listed)
    return root


def embed(sentences: list[str], modality: str) -> torch.Tensor:
    return torch.tensor([[float(text.split()[-1]), float(len(text))] for text in sentences])


def samples(folder: Path, length: int = 12, seed: int = 3) -> PatchDataset:
    cases = prepared_cases(folder)
    transform = Compose(
        [
            RandCachedPatchd(PATCH, foreground=0.5),
            EnsureTyped(keys=["image", "label"], track_meta=False),
            SampleQueriesd("label", SampleQueries(embed, max_queries=4, absent_if_empty=1)),
        ]
    )
    return PatchDataset(cases, transform, length, seed, weights=case_weights(cases, PATCH, 4))


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key] for key, value in a.items()
    )


def test_samples_are_the_same_in_any_order_and_for_any_reader(folder: Path):
    alone = [samples(folder)[i] for i in range(12)]
    backwards = [samples(folder)[i] for i in reversed(range(12))][::-1]
    assert all(equal(a, b) for a, b in zip(alone, backwards, strict=True))
    assert not all(equal(a, samples(folder, seed=4)[i]) for i, a in enumerate(alone))
    assert len({tuple(sample["patch_start"].tolist()) for sample in alone}) > 6


@pytest.mark.slow
def test_batches_are_the_same_with_no_and_two_workers_and_from_the_middle_on(folder: Path):
    def batches(workers: int, start: int = 0) -> list[dict]:
        loader = DataLoader(
            samples(folder),
            batch_size=2,
            sampler=ResumableSampler(12, start),
            num_workers=workers,
            prefetch_factor=None,
        )
        return list(loader)

    none = batches(0)
    assert len(none) == 6
    assert all(equal(a, b) for a, b in zip(none, batches(2), strict=True))
    assert all(equal(a, b) for a, b in zip(none[2:], batches(2, start=4), strict=True))


def test_ranks_that_share_the_numbers_see_what_one_process_sees(folder: Path):
    whole = [samples(folder)[i] for i in range(8)]
    ranks = [[samples(folder)[i] for i in range(rank, 8, 2)] for rank in range(2)]
    for number, sample in enumerate(whole):
        assert equal(sample, ranks[number % 2][number // 2])


def test_a_sample_is_what_training_takes(folder: Path):
    for index in range(12):
        sample = samples(folder)[index]
        assert sample["image"].shape == (1, *PATCH)
        assert sample["image"].dtype == torch.float32
        assert sample["label"].shape == (4, *PATCH)
        assert sample["queries"].shape == (4, 2)
        assert 1 <= sample["query_mask"].sum() <= 4
        assert sample["case"].startswith(sample["dataset"])
        assert 0 <= sample["progress"] <= 1
        for slot in range(4):  # the stand-in encoder says which target a query asks for
            asked = int(sample["queries"][slot, 0])
            assert asked == sample["query_values"][slot]
            assert (sample["label"][slot].sum() > 0) <= (asked > 0)


def test_image_and_label_of_a_patch_belong_together(folder: Path):
    for case in prepared_cases(folder):
        reader = RandCachedPatchd((10, 10, 10), foreground=1.0)
        reader.set_random_state(seed=1)
        sample = reader({**case, "progress": 0.5})
        shape = case["shape"]
        whole = (np.arange(np.prod(shape)) % 251).reshape(shape)
        places = np.argwhere(sample["label"][0].numpy() > 0)
        world = np.c_[places, np.ones(len(places))] @ sample["image"].affine.numpy().T
        voxels = np.linalg.solve(np.array(case["affine"]), world.T)[:3].round().astype(int)
        assert len(places) > 0
        np.testing.assert_array_equal(sample["image"][0].numpy()[tuple(places.T)], whole[tuple(voxels)])
        np.testing.assert_array_equal(voxels.T, places + sample["patch_start"].numpy())
        assert set(sample["label"].unique().tolist()) <= ({0, 1} if case["instances"] else {0, 1, 2})
        assert sample["progress"] == 0.5


def test_cases_are_drawn_by_weight(folder: Path):
    cases = [{**case, "number": number} for number, case in enumerate(prepared_cases(folder))]
    drawn = PatchDataset(cases, lambda case: case["number"], 3000, weights=[0, 3, 1])
    counts = np.bincount([drawn[i] for i in range(3000)], minlength=3)
    assert counts[0] == 0
    assert counts[1] / 3000 == pytest.approx(0.75, abs=0.03)
    for wrong in ([1, 1], [0, 0, 0], [1, -1, 1], [1, float("nan"), 1]):
        with pytest.raises(ValueError, match="patches: weights"):
            PatchDataset(cases, lambda case: case, 1, weights=wrong)


def test_wrong_patches_are_refused():
    for size, foreground in (((8, 8), 0.2), ((8, 8, 0), 0.2), ((8, 8, 8), 1.2)):
        with pytest.raises(ValueError, match="patches: patch size"):
            RandCachedPatchd(size, foreground)


def test_speed_can_be_measured(folder: Path):
    assert measure_reading(folder, PATCH, patches=5) > 0
