"""The overlay of the published networks: their sizes, axes and grids, and a run with both stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.text import EmbeddingBank, Terminology

TINY = {
    "features": [8, 16, 24, 32],
    "strides": [1, 2, 2, 2],
    "query_dim": 48,
    "roi_size": [32, 32, 16],
    "fine_roi_size": [24, 24, 24],
    "network_def#mask_head#hidden": 16,
    "network_def#query_decoder#num_layers": 1,
    "network_def#query_decoder#feedforward": 32,
}


@pytest.fixture(scope="module")
def overlaid(inference_config: Path) -> list[str]:
    return [str(inference_config), str(inference_config.with_name("published.json"))]


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random vectors of the tiny networks' width, with a vector for each modality, as the published encoder has."""
    sentences = Terminology.load().all_sentences()
    generator = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    vectors = torch.randn(len(sentences), TINY["query_dim"], generator=generator)
    EmbeddingBank(sentences, vectors, "random", torch.randn(5, TINY["query_dim"], generator=generator)).save(path)
    return path


def weights(overlaid: list[str], path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    parser = ConfigParser()
    parser.read_config(overlaid)
    parser.update(TINY)
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)
    return path


@pytest.fixture
def run(overlaid: list[str], bank: Path, inference_config: Path, tmp_path: Path) -> Callable[..., ConfigWorkflow]:
    def make(**override: Any) -> ConfigWorkflow:
        keys = {
            "bundle_root": str(inference_config.parents[1]),
            "weights": str(weights(overlaid, tmp_path / "coarse.pt", 1)),
            "fine_weights": str(weights(overlaid, tmp_path / "fine.pt", 2)),
            "embeddings": str(bank),
            "output_dir": str(tmp_path / "out"),
            "progress": False,
            "device": "cpu",
            **TINY,
            **override,
        }
        workflow = ConfigWorkflow(config_file=overlaid, workflow_type="infer", logging_file=False, **keys)
        workflow.initialize()
        workflow.run()
        return workflow

    return make


def test_the_networks_are_the_published_ones(overlaid: list[str]) -> None:
    parser = ConfigParser()
    parser.read_config(overlaid)
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    assert sum(value.numel() for value in network.parameters()) == 109_414_272  # without training heads
    assert not any(key.startswith("text_projection") for key in network.state_dict())


def test_both_stages_run_on_a_computed_tomogram(run: Callable[..., ConfigWorkflow], tmp_path: Path) -> None:
    """Random weights: what counts is that grids, axes, prompts and the modality vector fit together."""
    affine = np.array([[-2.0, 0, 0, 30], [0, 1.8, 0, -40], [0, 0, 5, 7], [0, 0, 0, 1]])
    voxels = np.random.default_rng(0).integers(-200, 300, (40, 44, 12)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "ct.nii.gz")
    workflow = run(image=str(tmp_path / "ct.nii.gz"), prompts=["liver and both kidneys on CT"])
    found = nib.load(tmp_path / "out" / "ct_seg.nii.gz")
    assert found.shape == voxels.shape
    assert np.array_equal(found.affine, nib.load(tmp_path / "ct.nii.gz").affine)
    inferer = workflow.parser.get_parsed_content("inferer")
    assert inferer.stages == (1, 2)
    assert inferer.stage[1].inferer.last_run.windows >= 1
    assert inferer.stage[2].inferer.last_run.windows >= 1


def test_one_file_may_hold_both_networks(
    run: Callable[..., ConfigWorkflow], overlaid: list[str], tmp_path: Path
) -> None:
    states = {
        part: torch.load(weights(overlaid, tmp_path / f"{part}.pt", seed), weights_only=True)
        for seed, part in ((3, "coarse"), (4, "fine"))
    }
    joined = {f"{part}.{key}": value for part, state in states.items() for key, value in state.items()}
    torch.save(joined, tmp_path / "both.pt")
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(0, 90, (20, 20, 20)), np.eye(4)), tmp_path / "ct.nii.gz")
    file = str(tmp_path / "both.pt")
    workflow = run(image=str(tmp_path / "ct.nii.gz"), prompts=["liver"], modality="CT", weights=file, fine_weights=file)
    networks = workflow.parser.get_parsed_content("network")
    for part, state in states.items():
        key = next(iter(state))
        assert torch.equal(networks[part].state_dict()[key], state[key])
