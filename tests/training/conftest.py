"""A tiny training run: label maps, the changes to the configs that make it tiny, and ways to start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMALL: dict[str, Any] = {
    "label_values": {"Left hippocampus": [17], "Brain-stem": [53]},
    "tissues": [
        {"values": [0], "mean": 0},
        {"values": [17], "mean": 220},
        {"values": [53], "mean": 120},
        {"values": [507], "mean": 60, "outside": True},
    ],
    "held_out": ["head_2"],
    "roi_size": [16, 16, 16],
    "features": [4, 8],
    "strides": [1, 2],
    "query_dim": 24,
    "max_queries": 4,
    "num_workers": 0,
    "val_interval": 3,
    "val_samples": 2,
    "log_interval": 3,
    "segment_steps": [6],
    "segment_warmup": [2],
    "segment_lr": [0.003],
    "device": "$torch.device('cpu')",
}
CONFIGS = ("train", "small_network", "brain")


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Config entries that make a run on ``label_maps`` tiny."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def label_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three heads of 48 mm with two structures side by side."""
    folder = tmp_path_factory.mktemp("maps")
    for index in range(3):
        head = np.zeros((48, 48, 48), dtype=np.uint16)
        head[2:46, 2:46, 2:46] = 507
        head[6:20, 10:38, 12 + index : 36] = 17
        head[28:42, 10:38, 12 + index : 36] = 53
        nib.save(nib.Nifti1Image(head, np.eye(4)), folder / f"head_{index}.nii.gz")
    return folder


@pytest.fixture(scope="session")
def configure(bundle_dir: Path, label_maps: Path) -> Callable[..., ConfigWorkflow]:
    """``configure(output, overlays, **changes)``: a tiny run in this process, not initialised yet."""

    def configured(output: Path, overlays: tuple[str, ...] = (), **changes: Any) -> ConfigWorkflow:
        return ConfigWorkflow(
            config_file=[str(bundle_dir / "configs" / f"{name}.json") for name in (*CONFIGS, *overlays)],
            workflow_type="train",
            run_id="training",
            bundle_root=str(bundle_dir),
            output_dir=str(output),
            **{"data_dir": str(label_maps), **SMALL, **changes},
        )

    return configured


@pytest.fixture(scope="session")
def train(configure: Callable[..., ConfigWorkflow]) -> Callable[..., ConfigWorkflow]:
    """``train(output, overlays, **changes)``: a tiny run in this process, from its beginning to its end."""

    def trained(output: Path, overlays: tuple[str, ...] = (), **changes: Any) -> ConfigWorkflow:
        workflow = configure(output, overlays, **changes)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        return workflow

    return trained


@pytest.fixture(scope="session")
def start(bundle_dir: Path, label_maps: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """``start(output, processes, overlays, **changes)``: the bundle's own command in a process of its own."""

    def started(
        output: Path, processes: int = 1, overlays: tuple[str, ...] = (), **changes: Any
    ) -> subprocess.Popen[bytes]:
        output.mkdir(parents=True, exist_ok=True)
        tiny = output / "tiny.json"
        places = {"bundle_root": str(bundle_dir), "data_dir": str(label_maps), "output_dir": str(output)}
        content = {**SMALL, **places, **changes}
        if processes > 1:
            del content["device"]
        tiny.write_text(json.dumps(content))
        files = [*(str(bundle_dir / "configs" / f"{name}.json") for name in (*CONFIGS, *overlays)), str(tiny)]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "monai.bundle", "run", "training"]
        return subprocess.Popen(
            [*command, "--config_file", repr(files)],
            cwd=bundle_dir,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.DEVNULL,
            stderr=(output / "log.txt").open("wb"),
        )

    return started


@pytest.fixture(scope="session")
def losses() -> Callable[[Path], dict[int, float]]:
    """``losses(output)``: step -> training loss, from TensorBoard's files; a step made twice counts as made last."""

    def read(output: Path) -> dict[int, float]:
        curve: dict[int, float] = {}
        for file in sorted(output.glob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime):
            events = EventAccumulator(str(file))
            events.Reload()
            if "train_loss" in events.Tags()["scalars"]:
                curve |= {event.step: event.value for event in events.Scalars("train_loss")}
        return curve

    return read


@pytest.fixture(scope="session")
def checkpoint() -> Callable[[Path, int], dict[str, Any]]:
    """``checkpoint(output, iteration)``: content of a run's checkpoint."""

    def read(output: Path, iteration: int) -> dict[str, Any]:
        return torch.load(output / "checkpoints" / f"checkpoint_iteration={iteration}.pt", weights_only=True)

    return read
