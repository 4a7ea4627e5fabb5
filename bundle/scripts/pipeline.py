"""The steps of the inference config one by one, for programs that keep an image and ask about it again and again.

A run of the bundle takes a case from file to file. Here the same objects, built from the same config, are called
step by step: the image is read once, the networks stay loaded, and nothing is written.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys, convert_to_tensor
from nibabel.orientations import apply_orientation

from scripts.data.volume_checks import check_geometry, check_shape
from scripts.errors import InputError
from scripts.inferers.two_stage import TwoStageInferer
from scripts.report import ReportStructuresd
from scripts.request import Request, decode_request
from scripts.transforms.postprocess import FilterComponentsd, LabelInstancesd, RemoveSmallComponentsd
from scripts.transforms.prompt_text import EncodePromptsd
from scripts.transforms.reading import LoadVolumed
from scripts.weights import WeightsLoader

CLEANING = (FilterComponentsd, RemoveSmallComponentsd)
DESCRIBING = (LabelInstancesd, ReportStructuresd)
UNNAMED = "image"
PERMUTATION_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Case:
    """An image prepared for a question.

    Attributes:
        data: the preprocessed case.
        queries: ``[N, L]`` on the networks' device.
        mirrored: queries of the targets' other sides, or None.
        shape: (H, W, D) of the image as stored.
        affine: its 4x4 voxel to world matrix, RAS mm.
    """

    data: Mapping[str, Any]
    queries: torch.Tensor
    mirrored: torch.Tensor | None
    shape: tuple[int, ...]
    affine: np.ndarray

    @property
    def image(self) -> MetaTensor:
        """``[1, H, W, D]``, axes as the networks want them."""
        return self.data["image"]

    @property
    def request(self) -> Request:
        """The words and the targets they were understood as."""
        return decode_request(self.data["request"])


class Pipeline:
    """Preprocessing, system and report of an inference config.

    Args:
        preprocessing: one of its steps reads the image; those after it keep the image's voxels and may only reorder
            its axes.
        inferer: the two-stage system; with ``keep_masks`` overlapping structures keep all of their voxels.
        network: the network, or the stages' in a ``ModuleDict``, with its weights.
        postprocessing: its component filters and its report are used.
        parser: understands names of targets.
        device: where the networks run.

    Raises:
        ValueError: an inferer that is not the two-stage system, or no step that reads an image.
    """

    def __init__(
        self,
        preprocessing: Compose,
        inferer: TwoStageInferer,
        network: torch.nn.Module,
        postprocessing: Compose,
        parser: Any,
        device: torch.device | str = "cpu",
    ) -> None:
        if not isinstance(inferer, TwoStageInferer):
            raise InputError(f"session: the config's inferer must be a TwoStageInferer, got {type(inferer).__name__}")
        self.preprocessing = tuple(preprocessing.transforms)
        readers = [step for step in self.preprocessing if isinstance(step, LoadVolumed)]
        if len(readers) != 1:
            raise InputError(f"session: one step of the preprocessing must read the image, got {len(readers)}")
        self.reader = readers[0]
        self.encoders = [step for step in self.preprocessing if isinstance(step, EncodePromptsd)]
        self.inferer, self.parser, self.device = inferer, parser, torch.device(device)
        self.network = network.to(self.device).eval()
        self.cleaning = [step for step in postprocessing.transforms if isinstance(step, CLEANING)]
        self.describing = [step for step in postprocessing.transforms if isinstance(step, DESCRIBING)]

    @classmethod
    def from_bundle(cls, bundle_root: str | Path, **overrides: Any) -> Pipeline:
        """Build the steps of a bundle's ``configs/inference.json`` and load its weights.

        Args:
            bundle_root: folder of the bundle.
            overrides: replace keys of the config.

        Raises:
            InputError: no such bundle, or weights that are absent or do not fit.
        """
        root = Path(bundle_root).expanduser().resolve()
        file = root / "configs" / "inference.json"
        if not file.is_file():
            raise InputError(f"session: no configs/inference.json in {bundle_root}: give the folder of the bundle")
        config = ConfigParser()
        config.read_meta(root / "configs" / "metadata.json")
        config.read_config(file)
        config.update({"bundle_root": str(root), "progress": False, "save_masks": True, **overrides})
        for handler in config.get_parsed_content("handlers"):
            if isinstance(handler, WeightsLoader):
                handler()
        parts = ("preprocessing", "inferer", "network", "postprocessing", "parser", "device")
        return cls(*map(config.get_parsed_content, parts))

    def check_modality(self, modality: str) -> None:
        """Raise ``ValueError`` for a modality that the terminology does not know."""
        self.inferer.terminology.modality(modality)

    def understand(self, text: str | Sequence[str], modality: str | None = None) -> Request:
        """What words mean, without an image: quick enough to refuse them before one is read.

        Args:
            text: one prompt or several.
            modality: of the study; the config's where None.

        Raises:
            ValueError: words that are not understood, or that the weights do not know.
        """
        if len(self.encoders) != 1:
            raise InputError(f"one step of the preprocessing must understand words, got {len(self.encoders)}")
        return self.encoders[0].transform.parse(text, modality)

    def read(
        self, image: str | Path | np.ndarray | torch.Tensor, affine: np.ndarray | torch.Tensor | None = None
    ) -> MetaTensor:
        """The image ``[1, H, W, D]`` as stored, from a file, or from voxels ``[H, W, D]`` and their affine (RAS mm).

        Raises:
            InputError: an image that cannot be used.
        """
        if not isinstance(image, (str, Path)):
            return _as_volume(image, affine)
        if affine is not None:
            raise InputError("session: a file has its own affine, give one with an array only")
        return self.reader.transform(image)

    def prepare(self, text: str | Sequence[str], modality: str | None, volume: MetaTensor) -> Case:
        """Understand the words and preprocess the image for them: grey values are scaled as the targets need it.

        Args:
            text: one prompt or several.
            modality: of the study; the config's where None.
            volume: from ``read``; left as it is.

        Raises:
            ValueError: words that are not understood, or an image that cannot be segmented.
        """
        data: Any = {"text": text, "modality": modality, "image": volume.meta[ImageMetaKey.FILENAME_OR_OBJ]}
        for step in self.preprocessing:
            if step is self.reader:
                data = {**data, "image": MetaTensor(volume.as_tensor(), meta=copy.deepcopy(volume.meta))}
            else:
                data = step(data)
        mirrored = data.get("mirrored_queries")
        return Case(
            data={key: data[key] for key in ("image", "request")},
            queries=data["queries"].to(self.device),
            mirrored=None if mirrored is None else mirrored.to(self.device),
            shape=tuple(volume.shape[1:]),
            affine=volume.affine.numpy(),
        )

    def ask(self, case: Case) -> dict[str, np.ndarray]:
        """The system's answer, see ``TwoStageInferer``, on the image's own grid: ``[C, H, W, D]`` by name."""
        out = self.inferer(
            case.image[None],  # type: ignore[arg-type]
            self.network,
            queries=case.queries,
            request=case.data["request"],
            mirrored_queries=None if case.mirrored is None else case.mirrored[None],
        )
        return {name: _as_stored(value[0], case) for name, value in out.items()}

    def clean(self, case: Case, found: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Label map and probability ``[H, W, D]`` after the config's component filters."""
        data: Any = {**case.data, **{name: torch.from_numpy(found[name]) for name in ("label_map", "probability")}}
        for step in self.cleaning:
            data = step(data)
        labels = np.asarray(data["label_map"])[0]
        return labels, np.where(labels != 0, found["probability"][0], 0)

    def describe(
        self, case: Case, labels: np.ndarray, probability: np.ndarray
    ) -> tuple[dict[str, Any], np.ndarray | None]:
        """The report on a label map ``[H, W, D]``, and the map of single lesions where such were asked for."""
        data: Any = {
            **case.data,
            "label_map": torch.from_numpy(labels)[None],
            "probability": torch.from_numpy(probability)[None],
        }
        for step in self.describing:
            data = step(data)
        instances = data.get("instances")
        return data.get("report", {}), None if instances is None else np.asarray(instances)[0]


def _as_volume(image: np.ndarray | torch.Tensor, affine: np.ndarray | torch.Tensor | None) -> MetaTensor:
    """Voxels in memory as the reader gives those of a file."""
    if affine is None and isinstance(image, MetaTensor):
        affine = image.affine
    values = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    values = values[0] if values.ndim == 4 and len(values) == 1 else values
    check_shape(UNNAMED, values.shape)
    if values.dtype.kind not in "buif":
        raise InputError(f"{UNNAMED}: {values.dtype} voxels, wanted real numbers")
    if affine is None:
        raise InputError("session: an array needs its affine, the 4x4 matrix from voxel indices to RAS mm")
    matrix = np.array(affine.cpu() if isinstance(affine, torch.Tensor) else affine, dtype=float)
    if matrix.shape != (4, 4):
        raise InputError(f"session: the affine must be a 4x4 matrix, got the shape {matrix.shape}")
    check_geometry(UNNAMED, np.linalg.norm(matrix[:3, :3], axis=0).tolist(), matrix)
    meta = {
        ImageMetaKey.FILENAME_OR_OBJ: UNNAMED,
        MetaKeys.ORIGINAL_AFFINE: matrix,
        MetaKeys.SPATIAL_SHAPE: np.array(values.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
        "stored_dtype": str(values.dtype),
    }
    return MetaTensor(torch.tensor(values.astype(np.float32))[None], affine=torch.from_numpy(matrix), meta=meta)


def _as_stored(volume: torch.Tensor, case: Case) -> np.ndarray:
    """``[C, H, W, D]`` with the axes of the image as stored."""
    to_stored = np.linalg.solve(case.affine, case.image.affine.cpu().double().numpy())[:3, :3]
    axes = np.abs(to_stored).argmax(axis=0)
    signs = np.sign(to_stored[axes, range(3)])
    wanted = np.zeros((3, 3))
    wanted[axes, range(3)] = signs
    if not np.allclose(to_stored, wanted, atol=PERMUTATION_TOLERANCE):
        raise InputError("session: the config's preprocessing resamples the image, wanted one that only reorders axes")
    values = convert_to_tensor(volume, track_meta=False).cpu().numpy().transpose(1, 2, 3, 0)
    turned = apply_orientation(values, np.stack([axes, signs], axis=1))
    return np.ascontiguousarray(turned.transpose(3, 0, 1, 2))
