"""The package alone, in an empty folder, with an environment that its own metadata names: it segments and trains.

The environment has the very versions in the metadata, as the zoo's own check installs them; the newest ones are those
of all other tests. Takes minutes and gigabytes, so ``make test-e2e`` runs it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.e2e

SPACING_MM = 3.0
STRUCTURES = {"Left hippocampus": 1, "Brain-stem": 2}
# Two optimiser steps on small patches; everything else is the bundle's own.
TWO_STEPS: dict[str, Any] = {
    "modality": "MRI",
    "spacing": [SPACING_MM] * 3,
    "roi_size": [32, 32, 32],
    "max_queries": 2,
    "batch_size": 1,
    "num_workers": 0,
    "segment_steps": [2],
    "segment_warmup": [1],
    "segment_lr": [1e-3],
    "val_interval": 2,
    "val_samples": 1,
    "log_interval": 1,
}
# What reaches a fresh shell; anything of the test's own environment would stand in for what the metadata forgot.
KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "SSL_CERT_FILE", "UV_CACHE_DIR", "UV_INDEX_URL", "UV_DEFAULT_INDEX")

Run = Callable[..., str]


def requirements(metadata: dict[str, Any]) -> list[str]:
    """What the metadata ask for, as lines for an installer."""
    own = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    versions = {name: metadata[key] for name, key in own.items()} | metadata["required_packages_version"]
    return [f"{name}=={version}" for name, version in versions.items()]


def ball(x: float, y: float, z: float, radius: float) -> np.ndarray:
    """Mask of a ball, in voxels, in a cube of 40."""
    return ((np.indices((40, 40, 40)) - np.reshape((x, y, z), (3, 1, 1, 1))) ** 2).sum(axis=0) < radius**2


@pytest.fixture(scope="module")
def installer() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        pytest.skip("uv is not installed")
    return found


@pytest.fixture(scope="module")
def run(bundle_dir: Path, installer: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``run(*words)``: a Python command in the unpacked package; returns what it printed."""
    root = tmp_path_factory.mktemp("fresh")
    variables = {name: os.environ[name] for name in KEPT if name in os.environ}
    variables |= {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}

    def call(*command: str | Path, folder: Path = root) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}"
        return done.stdout

    call(sys.executable, bundle_dir.parent / "tools" / "package_bundle.py", "--output", root)
    (package,) = root.glob("medal_s_v*.zip")
    with zipfile.ZipFile(package) as archive:
        archive.extractall(root)
    folder = root / "medal_s"
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    environment = root / "environment"
    call(installer, "venv", "--quiet", "--python", sys.executable, environment)
    python = environment / "bin" / "python"
    call(installer, "pip", "install", "--quiet", "--python", python, *requirements(metadata))
    return lambda *words: call(python, *words, folder=folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images with labels, of balls in a ball, and the list of these cases."""
    folder = tmp_path_factory.mktemp("images")
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    for number in range(2):
        head, left, stem = (ball(*place) for place in ((20, 20, 20, 17), (14, 18, 18 + number, 4), (24, 20, 14, 5)))
        label = np.select([left, stem], list(STRUCTURES.values())).astype(np.uint8)
        noise = np.random.default_rng(number).normal(0, 5, label.shape)
        image = (100.0 * head + 60.0 * label + noise).astype(np.float32)
        nib.save(nib.Nifti1Image(image, affine), folder / f"image_{number}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / f"label_{number}.nii.gz")
    cases = [{"image": f"image_{n}.nii.gz", "label": f"label_{n}.nii.gz"} for n in range(2)]
    (folder / "cases.json").write_text(json.dumps({"labels": STRUCTURES, "training": cases, "validation": cases[:1]}))
    return folder


def test_segments(run: Run, images: Path, tmp_path: Path) -> None:
    run(
        *("-m", "monai.bundle", "run", "--config_file", "configs/inference.json"),
        *("--image", images / "image_0.nii.gz", "--prompts", "['left hippocampus', 'brain-stem']"),
        *("--output_dir", tmp_path, "--progress", "false"),
    )
    assert {file.name for file in tmp_path.iterdir()} == {
        "image_0_seg.nii.gz",
        "image_0_seg.json",
        "image_0_preview.png",
    }
    assert nib.load(tmp_path / "image_0_seg.nii.gz").shape == nib.load(images / "image_0.nii.gz").shape
    report = json.loads((tmp_path / "image_0_seg.json").read_text())
    assert [structure["name"] for structure in report["structures"]] == list(STRUCTURES)


def test_trains_two_steps(run: Run, images: Path, tmp_path: Path) -> None:
    sizes = tmp_path / "two_steps.json"
    sizes.write_text(
        json.dumps({**TWO_STEPS, "data_list": str(images / "cases.json"), "output_dir": str(tmp_path / "run")})
    )
    run(
        *("-m", "monai.bundle", "run", "training"),
        *("--config_file", f"['configs/train.json','configs/small_network.json','{sizes}']"),
    )
    assert (tmp_path / "run" / "checkpoints" / "checkpoint_iteration=2.pt").is_file()
    weights = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert all(torch.isfinite(tensor.float()).all() for tensor in weights.values())


def test_commands_answer(run: Run) -> None:
    """The command line needs packages of its own."""
    assert "hippocampus" in run("-m", "scripts.cli", "parse", "both hippocampi", "--modality", "MRI").lower()
