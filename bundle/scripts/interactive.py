"""Segment an image by text and correct the answer with points, boxes, scribbles and masks, in Python.

The session runs the bundle's own inference config: the same preprocessing, stages, post-processing and report as a
run of the bundle, with the networks loaded once.

    session = Session.from_bundle("bundle")
    session.set_image("head.nii.gz")
    answer = session.segment("both hippocampi")
    session.add_prompt("left hippocampus", point=(92, 110, 61))
    session.undo()
    session.save("head_seg.nii.gz")
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey

from scripts.correction import Correction, honoured
from scripts.data.label_files import write_nifti, write_nrrd
from scripts.editable_answer import Change, EditableAnswer
from scripts.errors import InputError
from scripts.inferers.local_update import LocalUpdate
from scripts.pipeline import Case, Pipeline
from scripts.request import Request
from scripts.transforms.prompt_shapes import Box, PromptShapes

logger = logging.getLogger(__name__)

WRITERS = {".nii.gz": write_nifti, ".nii": write_nifti, ".nrrd": write_nrrd}


@dataclass(frozen=True)
class Result:
    """An answer on the image's own grid.

    Attributes:
        label_map: ``[H, W, D]`` integers, 0 is background.
        affine: 4x4 voxel to world matrix of the image, RAS mm.
        request: the words and the targets they were understood as.
        report: see ``scripts.report``.
        instances: ``[H, W, D]`` with a number for every single lesion; None where no lesions were asked for.
    """

    label_map: np.ndarray
    affine: np.ndarray
    request: Request
    report: Mapping[str, Any]
    instances: np.ndarray | None = None

    def mask(self, target: str) -> np.ndarray:
        """bool ``[H, W, D]``: the voxels of the label map that a target, by its name, has."""
        values = {item.name: item.id for item in self.request.targets}
        if target not in values:
            raise InputError(f"session: {target!r} was not asked for; asked for were: {', '.join(values)}")
        return self.label_map == values[target]


@dataclass(frozen=True)
class Edit:
    """What a prompt did.

    Attributes:
        target: name of the structure.
        windows: windows that were predicted for it.
        seconds: time that it took.
        change: voxels gained and lost, and the box that may differ.
    """

    target: str
    windows: int
    seconds: float
    change: Change


@dataclass
class _Question:
    """Everything about one text: what was prepared for it, the answer, and the corrections so far."""

    case: Case
    answer: EditableAnswer
    update: LocalUpdate
    done: list[Correction]
    undone: list[Correction]

    @property
    def request(self) -> Request:
        return self.case.request


class Session:
    """One user's work on one image at a time; not to be shared by threads.

    Args:
        pipeline: the steps of the inference config.
        history_mb: MiB that corrections may take to be undone; the oldest are forgotten first.
        iterations: refinements after the prediction that follows a correction.
    """

    def __init__(self, pipeline: Pipeline, history_mb: float = 256, iterations: int = 0) -> None:
        self.pipeline, self.history_mb, self.iterations = pipeline, history_mb, iterations
        self._volume: MetaTensor | None = None
        self._modality: str | None = None
        self._question: _Question | None = None

    @classmethod
    def from_bundle(
        cls, bundle_root: str | Path, history_mb: float = 256, iterations: int = 0, **overrides: Any
    ) -> Session:
        """A session on a bundle's ``configs/inference.json``, with its weights.

        Args:
            bundle_root: folder of the bundle.
            history_mb: see the class.
            iterations: see the class.
            overrides: replace keys of the config, such as ``weights``, ``device`` or ``spacing``.

        Raises:
            InputError: no such bundle, or weights that are absent or do not fit.
        """
        return cls(Pipeline.from_bundle(bundle_root, **overrides), history_mb, iterations)

    @property
    def request(self) -> Request:
        """The words that were asked last, and what they were understood as."""
        return self._asked().request

    @property
    def nbytes(self) -> int:
        """Bytes of the image, the answer and its corrections that are held between calls; the networks not counted."""
        volume = 0 if self._volume is None else self._volume.nbytes
        return (
            volume if self._question is None else volume + self._question.answer.nbytes + self._question.update.nbytes
        )

    def set_image(
        self,
        image: str | Path | np.ndarray | torch.Tensor,
        affine: np.ndarray | torch.Tensor | None = None,
        modality: str | None = None,
    ) -> None:
        """Take up an image; answers about the one before are dropped.

        Args:
            image: path of a file or DICOM folder, or voxels ``[H, W, D]``.
            affine: 4x4 voxel to world matrix of an array, RAS mm; a file has its own.
            modality: "CT", "MRI", ... where the words will not say it; the config's where None.

        Raises:
            InputError: an image or modality that cannot be used; the session stays as it was.
        """
        if modality is not None:
            self.pipeline.check_modality(modality)
        volume = self.pipeline.read(image, affine)
        self._volume, self._modality, self._question = volume, modality, None

    def segment(self, text: str | Sequence[str]) -> Result:
        """Ask for structures in words. A new question drops the answer to the one before, with its corrections.

        Raises:
            ValueError: no image yet, or words that are not understood; the session stays as it was.
        """
        if self._volume is None:
            raise InputError("session: there is no image yet: call set_image first")
        case = self.pipeline.prepare(text, self._modality, self._volume)
        found = self.pipeline.ask(case)
        labels, probability = self.pipeline.clean(case, found)
        ids = [target.id for target in case.request.targets]
        system = self.pipeline.inferer
        bits = found.get("mask_bits")
        answer = EditableAnswer(labels, probability, ids, bits, system.threshold, self.history_mb)
        network, targets = self.pipeline.network, case.request.targets
        update = LocalUpdate(system, case.image, network, targets, case.shape, case.affine, self.iterations)
        self._question = _Question(case, answer, update, [], [])
        return self.result()

    def result(self) -> Result:
        """The present answer, with a report that describes it.

        Raises:
            InputError: nothing was asked for yet.
        """
        asked = self._asked()
        labels = asked.answer.labels.copy()
        report, instances = self.pipeline.describe(asked.case, labels, asked.answer.probability)
        return Result(labels, asked.case.affine.copy(), asked.request, report, instances)

    def add_prompt(
        self,
        target: str | int,
        *,
        point: Sequence[float] | None = None,
        scribble: Sequence[Sequence[float]] | np.ndarray | torch.Tensor | None = None,
        box: Sequence[Sequence[float]] | None = None,
        mask: np.ndarray | torch.Tensor | None = None,
        positive: bool = True,
        world: bool = False,
        radius: float | None = None,
        enforce: bool | None = None,
    ) -> Edit:
        """Correct one structure; only the windows that see the correction are predicted again.

        The target's present mask with the correction becomes its spatial prompt: a positive point, scribble or box is
        added to it, a negative one taken out of it, a positive mask replaces it, a negative mask is taken out of it.

        Args:
            target: name of a structure that was asked for, in any wording, or its label value.
            point: three numbers: voxel indices of the image as stored, or with ``world`` RAS mm.
            scribble: points ``[K, 3]`` joined by a line, or the drawn voxels ``[H, W, D]`` as for ``mask``.
            box: two opposite corners, both inclusive.
            mask: voxels ``[H, W, D]`` on the image's own grid; a MetaTensor's affine is checked.
            positive: False removes.
            world: coordinates are in mm.
            radius: of points and lines, mm; three voxels where None.
            enforce: the marked voxels are in the answer (or out of it) whatever the network says, until a positive
                mask or reset takes their place. Where None that holds for points, scribbles and all that is removed;
                the inside of a box and a drawn mask are a rough outline, which the network may correct.

        Raises:
            ValueError: not exactly one shape, an unknown target, or a shape that is not on the image; the session
                stays as it was.
        """
        asked = self._asked()
        number = self._number(target, asked.request)
        shapes = PromptShapes(asked.case.shape, asked.case.affine)
        marks = shapes.one_of(point, scribble, box, mask, world, radius)
        exact = not positive or (box is None and mask is None)
        binding = exact if enforce is None else enforce
        edit = self._apply(asked, Correction(number, marks, positive, binding, replaces=mask is not None and positive))
        asked.undone.clear()
        return edit

    def undo(self) -> Box:
        """Take back the last correction, bit for bit; returns the part of the image that it concerned.

        Raises:
            InputError: nothing to take back.
        """
        asked = self._asked()
        if not asked.answer.steps:
            reason = " any more: earlier ones exceeded history_mb, use reset" if asked.done else ""
            raise InputError(f"session: there is no correction to undo{reason}")
        asked.undone.append(asked.done.pop())
        return asked.answer.undo()

    def redo(self) -> Box:
        """Make the correction again that was taken back last; returns the part of the image that it concerns.

        Raises:
            InputError: nothing to make again.
        """
        asked = self._asked()
        if not asked.undone:
            raise InputError("session: there is no correction to redo")
        asked.done.append(asked.undone.pop())
        return asked.answer.redo()

    def reset(self, target: str | int | None = None) -> None:
        """Drop all corrections, or those of one target: the answer is as if they had never been made.

        Corrections of other targets are predicted again. There is nothing to undo or redo but those afterwards.

        Raises:
            ValueError: an unknown target.
        """
        asked = self._asked()
        number = None if target is None else self._number(target, asked.request)
        kept = [] if number is None else [one for one in asked.done if one.number != number]
        if len(kept) == len(asked.done):
            return
        if asked.answer.forgotten:
            self.segment(asked.request.text)
            asked = self._asked()
        while asked.answer.steps:
            asked.answer.undo()
        asked.done, asked.undone = [], []
        for correction in kept:
            self._apply(asked, correction)

    def save(self, path: str | Path) -> Path:
        """Write the present label map (.nii.gz, .nii or .nrrd) and, beside it, the report (.json).

        Raises:
            InputError: another ending, a folder that cannot be written to; nothing is written then.
        """
        result, goal = self.result(), Path(path).expanduser()
        suffix = next((ending for ending in WRITERS if goal.name.lower().endswith(ending)), None)
        if suffix is None:
            raise InputError(f"session: cannot save as {goal.name}: end its name in one of {', '.join(WRITERS)}")
        report = goal.with_name(f"{goal.name[: -len(suffix)]}.json")
        source = self._asked().case.image.meta[ImageMetaKey.FILENAME_OR_OBJ]
        try:
            with tempfile.TemporaryDirectory(dir=goal.parent, prefix=".unfinished_") as scratch:
                volume, text = Path(scratch) / f"seg{suffix}", Path(scratch) / "seg.json"
                WRITERS[suffix](volume, result.label_map, source, result.affine)
                text.write_text(json.dumps(result.report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
                text.replace(report)
                volume.replace(goal)
        except OSError as e:
            raise InputError(f"session: cannot write to {goal.parent} ({e.strerror}): nothing was saved") from e
        return goal

    def _apply(self, asked: _Question, correction: Correction) -> Edit:
        """Predict with a correction and put the outcome in place; the only method that changes the answer."""
        began = time.perf_counter()
        number = correction.number
        update = asked.update(
            number,
            asked.case.queries[number : number + 1],
            lambda box: correction.applied_to(asked.answer.mask(number, box), box),
            correction.touches(lambda: asked.answer.mask(number)),
            correction.positive,
            asked.answer.labels,
            None if asked.case.mirrored is None else asked.case.mirrored[number : number + 1],
        )
        mask, certain = honoured(update.mask, update.box, [*asked.done, correction], number)
        change = asked.answer.replace(number, update.box, mask, update.probability, certain)
        asked.done.append(correction)
        edit = Edit(asked.request.targets[number].name, update.windows, time.perf_counter() - began, change)
        logger.info("%s: %d windows, +%d -%d voxels", edit.target, edit.windows, change.added, change.removed)
        return edit

    def _number(self, target: str | int, request: Request) -> int:
        """Place of a target among those asked for."""
        known = [(item.name, item.id, item.key) for item in request.targets]
        for number, names in enumerate(known):
            if target in names or str(target).strip().lower() == names[0].lower():
                return number
        try:
            meant = [item.name for item in self.pipeline.parser.parse(str(target), request.modality)]
        except ValueError:
            meant = []
        if len(meant) == 1 and meant[0] in [name for name, *_ in known]:
            return [name for name, *_ in known].index(meant[0])
        asked = ", ".join(name for name, *_ in known)
        raise InputError(f"session: {target!r} is none of the structures asked for, which are: {asked}")

    def _asked(self) -> _Question:
        if self._question is None:
            raise InputError("session: nothing was asked for yet: call set_image and segment first")
        return self._question
