"""The augmentation that prepared.json declares is the published one, runs from its seed and keeps shapes and labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

PUBLISHED = {
    "noise": 0.1,
    "blur": 0.2,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.25,
    "gamma_inverted": 0.1,
    "gamma": 0.3,
    "mirror": 0.5,
}


@pytest.fixture
def parser(bundle_dir: Path) -> ConfigParser:
    content = json.loads((bundle_dir / "configs" / "prepared.json").read_text())
    kept = ("noise_std", "augmentation_overrides")
    train = {"augmentation": content["train#augmentation"]}
    return ConfigParser({key: content[key] for key in kept} | {"train": train, "roi_size": [24, 24, 24]})


def patch(size: int = 32) -> dict:
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(1, size, size, size, dtype=torch.int16)
    label[:, 4:12, 8:24, 8:24], label[:, 20:28, 8:24, 8:24] = 1, 2
    image = MetaTensor(torch.randn(label.shape, generator=generator) * 0.2 + label)
    sentences = {1: ["left kidney"], 2: ["right kidney"]}
    return {"image": image, "label": MetaTensor(label), "sentences": sentences, "modality": "CT"}


def test_the_steps_have_the_published_probabilities(parser):
    steps = parser["train"]["augmentation"]["steps"]
    assert {name: step["prob"] for name, step in steps.items() if "prob" in step} == PUBLISHED
    spatial = steps["spatial"]["transform"]
    assert (spatial["prob_rotate"], spatial["prob_scale"]) == (0.2, 0.2)
    assert (spatial["degrees"], spatial["scale"]) == (30.0, [0.7, 1.4])


def test_the_chain_is_a_function_of_its_seed(parser):
    chain = parser.get_parsed_content("train#augmentation")

    def run(seed: int) -> torch.Tensor:
        result = chain.set_random_state(seed)(patch())
        assert result["image"].shape == result["label"].shape == (1, 24, 24, 24)
        assert result["label"].dtype == torch.int16
        assert torch.isfinite(result["image"]).all()
        return result["image"].as_tensor()

    images = [run(seed) for seed in range(12)]
    assert all(torch.equal(image, run(seed)) for seed, image in enumerate(images))
    assert len({image.sum().item() for image in images}) > 6


def test_a_data_set_may_switch_mirroring_off(parser):
    parser["augmentation_overrides"] = {"US_": {"mirror": None, "spatial": None}}
    chain = parser.get_parsed_content("train#augmentation")
    for seed in range(6):
        result = chain.set_random_state(seed)(patch(24) | {"dataset": "US_Low_limb_Leg"})
        assert torch.equal(result["label"], patch(24)["label"])
