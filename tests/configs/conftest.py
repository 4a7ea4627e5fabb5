"""Run the real inference config on small volumes, with random weights or a network whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

# Coarse, small and without the shipped fine network, so that a run takes a second.
QUICK: dict[str, Any] = {
    "spacing": [6.0, 6.0, 6.0],
    "roi_size": [32, 32, 32],
    "stages": [1],
    "progress": False,
    "device": "cpu",
}


class Thresholder(torch.nn.Module):
    """A network without weights: each query finds where the image is brighter than the query's own level."""

    def __init__(self, levels: tuple[float, ...]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        return torch.cat([(image - level) * 40 for level in self.levels[: prompts.shape[1]]], dim=1)


class Repeater(torch.nn.Module):
    """A network without weights that answers with its prompts."""

    def forward(self, image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        return (prompts - 0.5) * 40


@pytest.fixture(scope="session")
def quick() -> dict[str, Any]:
    """Options that make a run take a second."""
    return dict(QUICK)


@pytest.fixture(scope="session")
def thresholder() -> type[Thresholder]:
    """A network that finds what is bright."""
    return Thresholder


@pytest.fixture(scope="session")
def repeater() -> type[Repeater]:
    """A network that repeats its prompts."""
    return Repeater


@pytest.fixture(scope="session")
def inference_config(bundle_dir: Path) -> Path:
    """The front-door config."""
    return bundle_dir / "configs" / "inference.json"


@pytest.fixture(scope="session")
def random_weights(inference_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict for the config's own network, untrained."""
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(inference_config)
    parser["bundle_root"] = str(inference_config.parents[1])
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(parser.get_parsed_content("network_def").half().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def no_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty state dict, for networks without weights."""
    path = tmp_path_factory.mktemp("weights") / "empty.pt"
    torch.save({}, path)
    return path


@pytest.fixture
def build(inference_config: Path, random_weights: Path) -> Callable[..., ConfigWorkflow]:
    """Make and initialise a workflow: ``build(image=..., prompts=..., output_dir=...)``."""

    def make(**override: Any) -> ConfigWorkflow:
        keys: dict[str, Any] = {
            "bundle_root": str(inference_config.parents[1]),
            "weights": str(random_weights),
            **QUICK,
            **override,
        }
        workflow = ConfigWorkflow(config_file=str(inference_config), workflow_type="infer", logging_file=False, **keys)
        workflow.initialize()
        return workflow

    return make


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A small noisy volume, stored with its axes permuted and flipped."""
    rng = np.random.default_rng(0)
    affine = np.array([[0, 0, -5.0, 60], [-5, 0, 0, 50], [0, 6, 0, -50], [0, 0, 0, 1]])
    voxels = rng.normal(500, 100, (20, 18, 22)).astype(np.float32)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 1)
    image.header["descrip"] = b"Name of a Patient"
    nib.save(image, tmp_path / "head.nii.gz")
    return tmp_path / "head.nii.gz"
