"""coarse.json and fine.json hold the published numbers, and prepared.json trains on what ``prepare`` makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.data.case_sources import SourceDefaults, find_cases
from scripts.data.case_targets import TargetReader
from scripts.data.preparation import PrepareSettings
from scripts.data.preparation_run import prepare_all
from scripts.data.prompt_sentences import PromptSentences
from scripts.networks import MedalS
from scripts.schedules import restarting_cosine

PUBLISHED_PARAMETERS = 110_497_216
RECIPES = {
    "coarse": {"patch": (224, 224, 128), "spacing": (1.5, 1.5, 3.0), "steps": 108_600, "gpus": 2, "batch": 4},
    "fine": {"patch": (192, 192, 192), "spacing": (1.0, 1.0, 1.0), "steps": 91_300, "gpus": 4, "batch": 8},
}


def recipe(bundle_dir: Path, name: str, **changes: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(bundle_dir / "configs" / f"{part}.json") for part in ("train", "prepared", name)])
    parser.update({"bundle_root": str(bundle_dir), **changes})
    return parser


@pytest.mark.parametrize("name", RECIPES)
def test_the_numbers_are_the_published_ones(bundle_dir: Path, shared: Path, name: str):
    wanted = RECIPES[name]
    parser = recipe(bundle_dir, name)

    def get(key: str) -> Any:
        return parser.get_parsed_content(key)

    assert tuple(get("roi_size")) == wanted["patch"]
    assert tuple(get("spacing")) == wanted["spacing"]
    assert get("steps") == wanted["steps"]
    assert get("samples_per_step") == wanted["batch"]  # on one GPU, by accumulation
    many = recipe(bundle_dir, name, world_size=wanted["gpus"])
    assert many.get_parsed_content("accumulation") == 1
    assert many.get_parsed_content("samples_per_step") == wanted["batch"]
    key = "crop_{}_{}_{}".format(*wanted["patch"]) + "_spacing_{}_{}_{}".format(*wanted["spacing"])
    golden = json.loads((shared / "golden" / "lr_schedule.json").read_text())[key]
    segments = [get("segment_steps"), get("segment_warmup"), get("segment_lr")]
    assert segments == [golden["steps"], golden["warmup"], golden["lr"]]
    for step, rate in zip(golden["sample_steps"], golden["expected_lr"], strict=True):
        assert restarting_cosine(step, *segments) == pytest.approx(rate, rel=1e-9)
    last = restarting_cosine(wanted["steps"], *segments)
    assert last < 1e-10 if name == "coarse" else last == pytest.approx(2e-5, rel=0.01)


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_is_the_published_one(bundle_dir: Path, name: str):
    with torch.device("meta"):
        network = recipe(bundle_dir, name).get_parsed_content("network_def")
        published = MedalS(deep_supervision=True)
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED_PARAMETERS
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == {
        name: tuple(value.shape) for name, value in published.state_dict().items()
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared training set of three tiny head MRIs, one of them for validation."""
    root = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(3):
        label = np.zeros((24, 24, 24), dtype=np.uint8)
        label[3:10, 4:20, 4:20], label[14:21, 4:20, 4:20] = 1, 2
        image = np.array([10.0, 200.0, 100.0])[label] + rng.normal(0, 5, label.shape)
        for kind, volume in (("image", image.astype(np.float32)), ("label", label)):
            nib.save(nib.Nifti1Image(volume, np.eye(4)), root / f"{kind}_{index}.nii.gz")
        pairs.append({kind: f"{kind}_{index}.nii.gz" for kind in ("image", "label")})
    listed = {
        "labels": {"Left hippocampus": 1, "Right hippocampus": 2},
        "training": pairs[:2],
        "validation": pairs[2:],
    }
    (root / "cases.json").write_text(json.dumps(listed))
    reader = TargetReader(PromptSentences.load())
    cases = find_cases(root / "cases.json", reader, SourceDefaults("MR_Heads", "MRI", None, False))
    settings = PrepareSettings(patch_size=(16, 16, 16), spacing=(1.0, 1.0, 1.0), rule="fixed")
    outcomes = prepare_all(cases, root / "set", settings, workers=1)
    assert not [outcome.error for outcome in outcomes if outcome.error]
    return root / "set"


def test_prepared_cases_train(bundle_dir: Path, prepared: Path, small: dict[str, Any], tmp_path: Path):
    """The published sampling and augmentation, with the small network instead of the published one."""
    changes = {key: small[key] for key in small if key not in ("label_values", "tissues", "held_out")}
    workflow = ConfigWorkflow(
        config_file=[str(bundle_dir / "configs" / f"{name}.json") for name in ("train", "small_network", "prepared")],
        workflow_type="train",
        run_id="training",
        bundle_root=str(bundle_dir),
        data_dir=str(prepared),
        output_dir=str(tmp_path),
        batch_size=2,
        **changes,
    )
    workflow.initialize()
    workflow.run()
    assert (tmp_path / "model.pt").is_file()
    assert (tmp_path / "previews" / "truth.png").is_file()
    dataset = workflow.parser.get_parsed_content("train#dataset")
    assert {dataset.case_of(index)[1]["name"] for index in range(12)} == {
        case["name"] for case in workflow.parser.get_parsed_content("train#cases")
    }
