"""Prepare one training case: read, turn, scale, crop to non-zero, resample by the training rule, store.

Steps and their order are those of inference, so that the network sees in training what it will see later; only the
crop and the rule for the spacing differ.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, SpatialCrop
from monai.utils import convert_to_tensor

from scripts.data.blosc2_cache import FORMAT_VERSION, class_locations, verify_case, write_case, write_facts
from scripts.data.case_sources import SourceCase
from scripts.data.case_targets import CaseTargets, TargetReader
from scripts.data.label_files import relabel
from scripts.data.npz_reader import TRUSTED_KEY, npz_labels
from scripts.data.prompt_sentences import PromptSentences
from scripts.errors import InputError
from scripts.transforms.intensity import DEFAULT_WINDOW, ScaleByModality
from scripts.transforms.reading import LoadVolume
from scripts.transforms.resampling import DynamicSpacing, image_geometry
from scripts.transforms.resampling_plan import ResamplingPlan, plan_fixed, working_spacing
from scripts.transforms.training_spacing import plan_training_spacing, smallest_target_extent
from scripts.transforms.validation import CheckVoxels

logger = logging.getLogger(__name__)
Box = list[list[int]]
RULES = ("training", "fixed")
INTENSITIES = ("scaled", "stored")
SAME_GRID = 0.1
"""Voxels by which the corners of image and label map may lie apart."""
LARGEST_FLOAT16 = 65504.0
LARGEST_LABEL = 2**16 - 1


@dataclass(frozen=True)
class PrepareSettings:
    """How all cases of a set are prepared; triples in the order of the axes after turning."""

    patch_size: tuple[int, int, int] = (192, 192, 192)
    """Of training, voxels: enters the rule for the spacing, and decides the chunks."""
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Target spacing of the network, mm."""
    rule: str = "training"
    """``training``: ``plan_training_spacing``; ``fixed``: every case to ``spacing``."""
    orientation: str = "RAS"
    """Axis codes that every volume is turned to, as inference's ``orientation``."""
    intensity: str = "scaled"
    """``scaled``: 0..255 as inference scales them, uint8; ``stored``: the file's values, float16 (uint8 stays)."""
    antialias: bool = False
    """Smooth what is resampled coarser; as inference's ``antialias``."""
    locations: int = 10_000
    """Most stored voxels per class."""
    seed: int = 0
    """Draws those."""

    def __post_init__(self) -> None:
        for name, value, known in (("rule", self.rule, RULES), ("intensity", self.intensity, INTENSITIES)):
            if value not in known:
                raise ValueError(f"prepare: {name} {value!r} arrived; give {' or '.join(known)}")


class CasePreparer:
    """Prepares cases one by one; holds what all of them need.

    Args:
        folder: of the training set; a case goes to ``<folder>/<dataset>/<name>``.
        settings: see there.
        prompts_json: file with the datasets' sentences, or None.
        verify: compare what is already there with its checksums, instead of by size alone.
    """

    def __init__(
        self, folder: Path, settings: PrepareSettings, prompts_json: str | None = None, verify: bool = False
    ) -> None:
        self.folder, self.settings, self.verify = folder, settings, verify
        self.targets = TargetReader(PromptSentences.load(prompts_json))

    def __call__(self, case: SourceCase) -> bool:
        """Prepare a case unless it is there already, made from the same files in the same way.

        Where only its sentences, names or section changed, the volumes stay and the facts are written anew.

        Returns:
            Whether volumes were made.

        Raises:
            ValueError: the case cannot be used, and why.
        """
        targets = self.targets.describe(case.dataset, case.modality, case.labels, case.instances, case.npz)
        window = self._window(targets)
        described = {
            "name": case.name,
            "dataset": case.dataset,
            "section": case.section,
            "modality": targets.modality,
            "instances": targets.instances,
            "sentences": {str(value): list(texts) for value, texts in targets.sentences.items()},
            "names": {str(value): name for value, name in targets.names.items()},
        }
        fingerprint = _fingerprint(case, self.settings, targets, window)
        place = self.folder / case.key
        facts = self._stored(place, fingerprint)
        if facts is None:
            self._make(case, targets, window, {**described, "fingerprint": fingerprint}, place)
            return True
        if any(facts[key] != value for key, value in described.items()):
            write_facts(place, {**facts, **described})
        return False

    def _stored(self, place: Path, fingerprint: str) -> dict[str, Any] | None:
        """Facts of the case as it is stored; None where it is not, is damaged, or was made in another way."""
        if not place.exists():
            return None
        try:
            facts = verify_case(place, contents=self.verify)
        except InputError as e:
            logger.warning("%s; it is now", e)
            return None
        return facts if facts["fingerprint"] == fingerprint else None

    def _window(self, targets: CaseTargets) -> str:
        """The CT window that all targets agree on, else the default: as inference chooses it."""
        terms = self.targets.prompts.terminology
        known = [terms.target(name, targets.modality) for name in targets.names.values() if name is not None]
        wanted = {target.concept.window or DEFAULT_WINDOW for target in known}
        return wanted.pop() if len(wanted) == 1 else DEFAULT_WINDOW

    def _make(self, case: SourceCase, targets: CaseTargets, window: str, facts: Mapping[str, Any], place: Path) -> None:
        image, label, trusted = _load(case)
        original = _geometry(image)
        source_dtype = str(image.meta.get("stored_dtype"))
        image, label, crop = self._align(image, _named_only(label, targets, case.name), targets.modality, window)
        before = _values(label)
        plan = self._plan(image, label, targets.instances, trusted)
        image = DynamicSpacingTo(plan, self.settings.antialias, "linear")(image)
        stored_image = self._stored_image(image, source_dtype)
        stored_label = _smallest_unsigned(DynamicSpacingTo(plan, False, "nearest")(label))
        lost = sorted(before - _values(stored_label))
        if lost:
            logger.warning("%s: labels %s are too small for the new grid and were lost", case.key, lost[:8])
        classes = (stored_label > 0).view(np.uint8) if targets.instances else stored_label
        rng = np.random.default_rng([self.settings.seed, *case.key.encode()])
        locations = class_locations(classes, targets.sentences, rng, self.settings.locations)
        counts = np.bincount(classes.ravel())
        made = {
            "version": FORMAT_VERSION,
            **_geometry(image),
            "orientation": self.settings.orientation,
            "region": _box(classes > 0),
            "voxels": {str(value): int(counts[value]) for value in locations},
            "lost": lost,
            "image_dtype": str(stored_image.dtype),
            "label_dtype": str(stored_label.dtype),
            "window": window if targets.modality == "CT" else None,
            "crop": crop,
            "original": original,
            "source": [path.name for path in (case.image, case.label) if path is not None],
            "settings": asdict(self.settings),
        }
        write_case(place, stored_image, stored_label, locations, {**facts, **made}, self.settings.patch_size)

    def _align(
        self, image: MetaTensor, label: MetaTensor, modality: str, window: str
    ) -> tuple[MetaTensor, MetaTensor, Box]:
        """Image and label map turned, scaled and cropped to what is not zero in either, and that box."""
        turn = Orientation(self.settings.orientation, labels=None)
        turned, named = turn(image), turn(label)
        if self.settings.intensity == "scaled":
            turned = ScaleByModality(modality, window)(turned)
        box = _box((turned.numpy()[0] != 0) | (named.numpy()[0] != 0))
        if box is None:
            raise InputError("nothing is left of the image after scaling: every voxel is 0")
        crop: Any = SpatialCrop(roi_start=box[0], roi_end=box[1])
        return crop(turned), crop(named), box

    def _plan(self, image: MetaTensor, label: MetaTensor, instances: bool, trusted: bool) -> ResamplingPlan:
        shape, spacing = image_geometry(image)
        patch, target = self.settings.patch_size, self.settings.spacing
        if self.settings.rule == "fixed":
            return plan_fixed(shape, spacing, patch, target)
        extent = smallest_target_extent(label.numpy()[0].astype(np.uint16), instances)
        return plan_training_spacing(shape, working_spacing(spacing, shape, not trusted), patch, target, extent)

    def _stored_image(self, image: MetaTensor, source_dtype: str) -> np.ndarray:
        values = convert_to_tensor(image, track_meta=False).numpy()[0]
        if self.settings.intensity == "scaled" or source_dtype == "uint8":
            return np.rint(values).clip(0, 255).astype(np.uint8)
        return values.astype(np.float16 if np.abs(values).max() <= LARGEST_FLOAT16 else np.float32)


class DynamicSpacingTo(DynamicSpacing):
    """``DynamicSpacing`` to a plan that was made elsewhere, the same for image and label map.

    Args:
        plan: the grid.
        antialias, interpolation: as there.
    """

    def __init__(self, plan: ResamplingPlan, antialias: bool, interpolation: str) -> None:
        super().__init__(plan.padded_shape, plan.target_spacing, antialias=antialias, interpolation=interpolation)
        self.fixed_plan = plan

    def plan(
        self, image: torch.Tensor, targets: Sequence[str] = (), spacing: Sequence[float] | None = None
    ) -> ResamplingPlan:
        """The plan given."""
        return self.fixed_plan


def _load(case: SourceCase) -> tuple[MetaTensor, MetaTensor, bool]:
    """Image and label map ``[1, H, W, D]`` float32, and whether the header's spacing is to be trusted."""
    image: Any = CheckVoxels()(LoadVolume()(case.image))
    if case.label is None:
        values = np.ascontiguousarray(npz_labels(case.image)[None], dtype=np.float32)
        label = MetaTensor(torch.from_numpy(values), affine=image.affine.clone())
    else:
        label = LoadVolume()(case.label)
        _check_grid(image, label, case.label.name)
    return image, label, bool(image.meta.get(TRUSTED_KEY, True))


def _check_grid(image: MetaTensor, label: MetaTensor, name: str) -> None:
    if image.shape != label.shape:
        raise InputError(f"{name}: {tuple(label.shape[1:])} voxels, the image has {tuple(image.shape[1:])}")
    to_image = np.linalg.solve(image.affine.double().numpy(), label.affine.double().numpy()) - np.eye(4)
    shape = np.asarray(image.shape[1:])
    corners = np.array([[*(shape * corner), 1] for corner in np.ndindex(2, 2, 2)])
    apart = float(np.abs(corners @ to_image[:3].T).max())
    if apart > SAME_GRID:
        raise InputError(f"{name}: lies {apart:.1f} voxels apart from its image: resample it to the image's grid")


def _named_only(label: MetaTensor, targets: CaseTargets, name: str) -> MetaTensor:
    """The label map without values that cannot be asked for, and with those of one target merged."""
    values = label.numpy()
    largest = float(values.max())
    if values.min() < 0 or largest > LARGEST_LABEL or not np.array_equal(values, np.rint(values)):
        raise InputError(
            f"{name}: labels from {values.min():g} to {largest:g}, wanted whole numbers from 0 to {LARGEST_LABEL}"
        )
    if targets.instances:
        return label
    table = np.zeros(int(largest) + 1, dtype=np.float32)
    for value in (*targets.sentences, *targets.merged):
        if value <= largest:
            table[value] = targets.merged.get(value, value)
    renamed = relabel(values[0].astype(np.uint16), table)
    return MetaTensor(torch.from_numpy(renamed[None]), affine=label.affine.clone())


def _geometry(image: MetaTensor) -> dict[str, Any]:
    """Shape, voxel size (mm) and affine, as they stand in the facts."""
    shape, spacing = image_geometry(image)
    return {"shape": list(shape), "spacing": list(spacing), "affine": image.affine.tolist()}


def _values(labels: np.ndarray | MetaTensor) -> set[int]:
    """Label values that occur, without the background."""
    counts = np.bincount(np.asarray(labels).ravel().astype(np.int64))  # unique() would sort all voxels
    return set(np.flatnonzero(counts).tolist()) - {0}


def _box(mask: np.ndarray) -> Box | None:
    """``[start, stop]`` of a mask ``[H, W, D]``; None where it is empty."""
    along = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not all(len(found) for found in along):
        return None
    return [[int(found[0]) for found in along], [int(found[-1]) + 1 for found in along]]


def _smallest_unsigned(label: MetaTensor) -> np.ndarray:
    values = np.rint(convert_to_tensor(label, track_meta=False).numpy()[0])
    return values.astype(np.uint8 if values.max(initial=0) < 2**8 else np.uint16)


def _fingerprint(case: SourceCase, settings: PrepareSettings, targets: CaseTargets, window: str) -> str:
    """Changes with whatever the stored volumes depend on. Files are known by name, size and time, not read."""
    files = []
    for path in (case.image, case.label):
        if path is not None:
            if not path.is_file():
                raise InputError(f"no such file: {path}")
            state = path.stat()
            files.append([path.name, state.st_size, state.st_mtime_ns])
    depends = {
        "version": FORMAT_VERSION,
        "files": files,
        "settings": asdict(settings),
        "modality": targets.modality,
        "instances": targets.instances,
        "values": sorted(targets.sentences),
        "merged": sorted(targets.merged.items()),
        "window": window,
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
