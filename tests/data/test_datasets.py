"""Case lists say what is wrong with them; samples are functions of seed and number."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import RandGaussianNoised
from torch.utils.data import DataLoader

from scripts.data.datasets import (
    ResumableSampler,
    SeededDataset,
    image_label_cases,
    label_map_cases,
    sentence_table,
    target_values,
)


def noisy(length: int = 6, seed: int = 0) -> SeededDataset:
    data = [{"image": torch.full((1, 2, 2, 2), float(case))} for case in range(3)]
    return SeededDataset(data, RandGaussianNoised("image", prob=1.0), length=length, seed=seed)


def test_samples_do_not_depend_on_order_or_workers():
    alone = [noisy()[i]["image"] for i in range(6)]
    backwards = [noisy()[i]["image"] for i in reversed(range(6))][::-1]
    workers = [batch["image"][0] for batch in DataLoader(noisy(), batch_size=1, num_workers=2)]
    for a, b, c in zip(alone, backwards, workers, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert len({tuple(a.flatten().tolist()) for a in alone}) == 6


def test_another_seed_is_another_run():
    assert not torch.equal(noisy(seed=0)[0]["image"], noisy(seed=1)[0]["image"])


def test_progress_runs_from_zero_to_one():
    dataset = SeededDataset([{}], lambda case: case["progress"], length=5)
    assert [dataset[i] for i in range(5)] == [0, 0.25, 0.5, 0.75, 1]


def test_sampler_goes_on_where_the_run_stopped():
    sampler = ResumableSampler(5)
    assert list(sampler) == [0, 1, 2, 3, 4]
    sampler.start = 3
    assert list(sampler) == [3, 4]
    assert len(sampler) == 2


def test_no_cases_is_an_error():
    with pytest.raises(ValueError, match="list of cases is empty"):
        SeededDataset([], lambda case: case, length=1)


def test_label_maps_are_read_in_ras_and_split_by_name(tmp_path: Path):
    array = np.zeros((6, 5, 4), dtype=np.uint16)
    array[1:3, 1:4, 1:3] = 530
    array[4, 2, 2] = 2
    for name in ("a", "b", "c"):
        nib.save(nib.Nifti1Image(array[::-1], np.diag([-1.0, 1, 1, 1])), tmp_path / f"{name}.nii.gz")
    table = {1: ["liver"]}
    train = label_map_cases(tmp_path, "*.nii.gz", table, leave_out=["b"])
    val = label_map_cases(tmp_path, "*.nii.gz", table, only=["b"])
    assert (len(train), len(val)) == (2, 1)
    label = val[0]["label"]
    assert label.dtype == torch.int16
    assert label.shape == (1, 4, 3, 2)
    assert label[0, 0, 0, 0] == 530
    assert label[0, 3, 1, 1] == 2
    with pytest.raises(ValueError, match=r"lacks \['z'\].*set data_dir"):
        label_map_cases(tmp_path, "*.nii.gz", table, only=["z"])
    with pytest.raises(ValueError, match="holds 0 files"):
        label_map_cases(tmp_path / "nowhere", "*.nii.gz", table)


def test_tables_come_from_the_terminology():
    table = sentence_table(["Left hippocampus", "Brain-stem"], "MRI")
    values = target_values({"Left hippocampus": [17], "Brain-stem": [16, 173]}, "MRI")
    assert values[16] == values[173] != values[17]
    assert set(values.values()) == set(table)
    assert table[values[17]][0] == "left hippocampus"
    assert all("right" not in sentence for sentence in table[values[17]])
    with pytest.raises(ValueError, match="Left hippocampi"):
        sentence_table(["Left hippocampi"], "MRI")


def test_case_list_of_images_and_labels(tmp_path: Path):
    path = tmp_path / "cases.json"
    path.write_text(
        json.dumps({"labels": {"Liver": 1, "Spleen": 2}, "training": [{"image": "i.nii", "label": "l.nii"}]})
    )
    (case,) = image_label_cases(path, "CT")
    assert case["image"] == str(tmp_path / "i.nii")
    assert case["sentences"][2][0] == "spleen"
    with pytest.raises(ValueError, match="non-empty 'validation'"):
        image_label_cases(path, "CT", "validation")
    with pytest.raises(ValueError, match="no case list"):
        image_label_cases(tmp_path / "none.json", "CT")
