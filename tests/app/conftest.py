"""The app's parts on a network whose answer is known: every structure has a grey value of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib.configs import ModelConfig, plan_models
from lib.engine import Engine
from lib.infers import MedalSInfer, Service
from lib.sessions import WorkStore
from scripts.metadata import read_metadata, trained_structures
from scripts.text import Terminology

WINDOW = 16
SHAPE = (40, 24, 32)
# Axes permuted and flipped: neither RAS nor LPS.
AFFINE = np.array([[0, 0, -1.0, 30], [-1, 0, 0, 20], [0, 1, 0, -25], [0, 0, 0, 1]])
LEVELS = {"Left thalamus": 50, "Left putamen": 100, "Brain-stem": 150, "Left hippocampus": 200}
BOXES = {
    "Left thalamus": (slice(3, 9), slice(4, 10), slice(3, 9)),
    "Left putamen": (slice(28, 36), slice(12, 20), slice(20, 28)),
    "Brain-stem": (slice(16, 22), slice(2, 8), slice(24, 30)),
    "Left hippocampus": (slice(16, 22), slice(14, 20), slice(4, 10)),
}


class Finder(torch.nn.Module):
    """Finds a structure by its grey value, and what its prompt has, grown by a voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: dict[bytes, float] = {}
        self.asked = 0
        self.fails = False
        self.while_asked: Callable[[], None] | None = None

    def forward(self, image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        if self.while_asked:
            self.while_asked()
        if self.fails:
            raise RuntimeError("the network fails")
        rows = queries.reshape(-1, queries.shape[-1])[: prompts.shape[1]]
        known = [self.levels.get(_key(row), -100.0) for row in rows]
        found = (image - torch.tensor(known).reshape(1, -1, 1, 1, 1)).abs() < 10
        found = found | (F.max_pool3d(prompts, 3, 1, 1) > 0)
        return torch.where(found, 6.0, -6.0)


def _key(row: torch.Tensor) -> bytes:
    return hashlib.blake2b(row.detach().float().numpy().tobytes()).digest()


def picture(shift: int = 0) -> np.ndarray:
    """uint8 ``SHAPE``: a box of grey for every structure; ``shift`` moves them along the first axis."""
    image = np.zeros(SHAPE, np.uint8)
    for name, box in BOXES.items():
        image[box] = LEVELS[name]
    image = np.roll(image, shift, axis=0)
    image[-1, -1, -1] = 255  # grey values stay as they are
    return image


def truth(name: str, shift: int = 0) -> np.ndarray:
    """Where a structure is."""
    return picture(shift) == LEVELS[name]


@pytest.fixture(scope="session")
def head() -> dict[str, Any]:
    """The picture, where its structures are, and its place in space."""
    return {"shape": SHAPE, "affine": AFFINE, "levels": LEVELS, "truth": truth, "picture": picture}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Write a picture, or voxels, and give its path."""

    def write(name: str = "head.nii.gz", voxels: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> str:
        nib.save(nib.Nifti1Image(picture() if voxels is None else voxels, affine), tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="session")
def models(bundle_dir: Path) -> dict[str, ModelConfig]:
    """The app's models by kind."""
    terminology = Terminology.load(bundle_dir / "configs" / "terminology.json")
    planned = plan_models(terminology, trained_structures(read_metadata(bundle_dir)))
    return {model.kind: model for model in planned}


@pytest.fixture(scope="session")
def engine(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The bundle's pipeline with the toy network, at 1 mm with windows of 16 voxels."""
    empty = tmp_path_factory.mktemp("weights") / "empty.pt"
    torch.save({}, empty)
    pad = {"_target_": "SpatialPad", "spatial_size": [WINDOW] * 3, "method": "end"}
    toy = Finder()
    engine = Engine(
        bundle_dir,
        {
            "coarse_network": toy,
            "weights": str(empty),
            "device": "cpu",
            "stages": [1],
            "spacing": [1.0, 1.0, 1.0],
            "roi_size": [WINDOW] * 3,
            "min_voxels": 1,
            "prepare": {"_target_": "Compose", "transforms": [pad]},
        },
    )
    encode = engine.pipeline.encoders[0].transform
    for name, level in LEVELS.items():
        toy.levels[_key(encode(name)[1][0])] = float(level)
    return engine


@pytest.fixture
def finder(engine: Engine) -> Iterator[Finder]:
    """The toy network of the engine, mended after the test."""
    toy = engine.pipeline.network["coarse"]  # type: ignore[index]
    yield toy
    toy.fails, toy.while_asked = False, None


@pytest.fixture(scope="session")
def service(engine: Engine) -> Service:
    """What the tasks share; every test has images of its own."""
    return Service(engine, WorkStore(0.25))


@pytest.fixture(scope="session")
def tasks(bundle_dir: Path, models: dict[str, ModelConfig], service: Service) -> dict[str, MedalSInfer]:
    """The infer tasks by kind."""
    return {kind: MedalSInfer(str(bundle_dir), model, service) for kind, model in models.items()}


class Asked:
    """An answer, read back."""

    def __init__(self, path: str, params: dict[str, Any]) -> None:
        self.path, self.params = Path(path), params
        self.names: dict[str, int] = params["label_names"]
        if path.endswith(".nrrd"):
            import itk

            self.itk = itk.imread(path)
            self.labels = np.asarray(itk.array_from_image(self.itk)).transpose(2, 1, 0)
        else:
            image: Any = nib.load(path)
            self.affine, self.labels = image.affine, np.asarray(image.dataobj)

    def mask(self, name: str) -> np.ndarray:
        """Voxels of a structure."""
        return self.labels == self.names[name]


@pytest.fixture
def ask(tasks: dict[str, MedalSInfer], tmp_path: Path) -> Callable[..., Asked]:
    """Ask a task; its answer file is moved to the test's folder."""
    count = 0

    def send(kind: str, image: str, **request: Any) -> Asked:
        nonlocal count
        count += 1
        path, params = tasks[kind]({"image": image, "model": "any", "description": "any", **request})
        kept = tmp_path / f"{count}_{Path(path).name}"
        Path(path).replace(kept)
        return Asked(str(kept), params)

    return send
