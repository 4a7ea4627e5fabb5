"""One client's work on one image: from what was asked before to what is asked now, with no more than needs be.

A request brings all corrections again. Those that the session has made already are left alone, new ones are made;
where one is missing now, or another mask was uploaded, the session goes back and makes them anew. What a request gives
back hence depends on the request, not on the way that led there, with one exception: a correction concerns the answer
that the user is looking at, so its structure is corrected among those that were asked for last.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lib.configs.models import BACKGROUND
from lib.requests import Click, Question, Upload, Voxel
from scripts.errors import InputError
from scripts.interactive import Result, Session
from scripts.pipeline import Pipeline
from scripts.request import Request
from scripts.transforms.prompt_shapes import Marks, PromptShapes

logger = logging.getLogger(__name__)
FOREGROUND_SCRIBBLES, BACKGROUND_SCRIBBLES = "foreground_scribbles", "background_scribbles"


@dataclass(frozen=True)
class Mark:
    """One correction, comparable with what another request brings.

    Attributes:
        target: canonical name of the structure.
        positive: adds to it.
        voxel: of a point.
        digest: of a drawn mask's voxels.
        drawn: those voxels; not compared.
        replaces: the mask is the structure as it is now.
        binding: its voxels are in the answer whatever the network says.
    """

    target: str
    positive: bool
    voxel: Voxel | None = None
    digest: bytes = b""
    drawn: Marks | None = field(default=None, compare=False, repr=False)
    replaces: bool = False
    binding: bool | None = None


@dataclass(frozen=True)
class Found:
    """The present answer.

    Attributes:
        result: of the session.
        targets: names to give back, in the order asked.
        warnings: what was not taken into account.
    """

    result: Result
    targets: tuple[str, ...]
    warnings: tuple[str, ...] = ()


class Work:
    """A session of the bundle and the corrections that are in it; for one thread at a time.

    Args:
        pipeline: of the engine.
        generation: of its weights.
        modality: of the image, where the words name none.
    """

    def __init__(self, pipeline: Pipeline, generation: int, modality: str) -> None:
        self.generation, self.modality = generation, modality
        self._session = Session(pipeline)
        self._image: str | None = None
        self._shapes: PromptShapes | None = None
        self._result: Result | None = None
        self._marks: list[Mark] = []
        self._background: dict[Voxel, str] = {}
        self._pointed: dict[str, frozenset[tuple[Voxel, bool]]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        shown = 0 if self._result is None else self._result.label_map.nbytes
        return self._session.nbytes + shown + sum(m.drawn.bits.nbytes for m in self._marks if m.drawn is not None)

    def answer(self, question: Question, meant: Request) -> Found:
        """What is asked, on the image's own grid.

        Args:
            question: what is asked.
            meant: how its words were understood.

        Raises:
            ValueError: an image or marks that cannot be used.
        """
        if self._image is None:
            self._session.set_image(question.image, modality=self.modality)
            self._image = question.image
        elif self._shapes is not None and self._result is None:  # the request before failed between two corrections
            self._result = self._session.result()
        asked = tuple(target.name for target in meant.targets)
        warnings = list(question.warnings)
        clicks = self._without_stale(question, asked, warnings)
        corrects = bool(clicks or question.scribbled or not question.complete)
        self._ask(asked, meant, corrects and not question.fresh)
        wanted = self._wanted(question, clicks, asked, warnings)
        self._correct(wanted, self._concerned(question, clicks, asked), question)
        if self._result is None:
            self._result = self._session.result()
        # A background click changes a structure that was not named.
        shown = tuple(dict.fromkeys([*asked, *(mark.target for mark in wanted)]))
        return Found(self._result, shown, tuple(warnings))

    def _ask(self, asked: tuple[str, ...], meant: Request, keep: bool) -> None:
        """Have an answer for the structures asked; one that has more serves where only ``keep`` is wanted."""
        present = () if self._result is None else tuple(target.name for target in self._result.request.targets)
        if set(asked) == set(present) or (keep and set(asked) <= set(present)):
            return
        names = list(dict.fromkeys([*present, *asked])) if keep else list(meant.text)
        self._result = self._session.segment(names)
        self._shapes = PromptShapes(self._result.label_map.shape, self._result.affine)
        self._marks, self._background = [], {}

    def _without_stale(self, question: Question, asked: Sequence[str], warnings: list[str]) -> tuple[Click, ...]:
        """The clicks, but for those that OHIF repeats from another structure."""
        if question.complete or not question.clicks or len(asked) != 1:
            return question.clicks
        brought = frozenset((click.voxel, click.positive) for click in question.clicks)
        other = next((name for name, points in self._pointed.items() if points == brought and name != asked[0]), None)
        if other is not None:
            warnings.append(f"points did not count: they are those of {other}, from an earlier request")
            return ()
        self._pointed[asked[0]] = brought
        return question.clicks

    def _concerned(self, question: Question, clicks: Sequence[Click], asked: Sequence[str]) -> list[Mark]:
        """Corrections in the session of which the request says whether they still stand."""
        if question.complete and not clicks:
            return list(self._marks)
        own = self._marks if question.complete else [mark for mark in self._marks if mark.target in asked]
        return [mark for mark in own if question.scribbled or mark.voxel is not None]

    def _wanted(
        self, question: Question, clicks: Sequence[Click], asked: Sequence[str], warnings: list[str]
    ) -> list[Mark]:
        """All corrections that the request brings, in its order."""
        marks = [] if question.upload is None else self._drawn(question.upload, question.scribbled, asked, warnings)
        for click in clicks:
            target = self._owner(click.voxel) if click.target is None else self._canonical(click.target)
            if target is None:
                warnings.append(f"a background point at {_text(click.voxel)} did not count: no structure is there")
            else:
                marks.append(Mark(target, click.positive, voxel=click.voxel))
        return list(dict.fromkeys(marks))

    def _owner(self, voxel: Voxel) -> str | None:
        """The structure that has a voxel, or had it when a background point was first set there."""
        if voxel in self._background or self._result is None:
            return self._background.get(voxel)
        place = tuple(int(np.floor(number + 0.5)) for number in voxel)
        shape = self._result.label_map.shape
        if any(not 0 <= number < side for number, side in zip(place, shape, strict=True)):
            raise InputError(f"background: point {_text(voxel)} is outside the image of {shape} voxels")
        value = int(self._result.label_map[place])
        names = {target.id: target.name for target in self._result.request.targets}
        if value in names:
            self._background[voxel] = names[value]
        return self._background.get(voxel)

    def _drawn(self, upload: Upload, scribbled: bool, asked: Sequence[str], warnings: list[str]) -> list[Mark]:
        """The masks of an uploaded label map, those that replace first: structures to start from, scribbles."""
        volume = self._session.pipeline.read(upload.path)
        values, affine = volume.as_tensor()[0].numpy(), volume.affine.numpy()
        shapes = self._shapes
        if shapes is None:
            raise RuntimeError("work: nothing was asked for yet")
        marks, passed = [], 0
        for value, name in upload.names.items():
            scribble = scribbled and name in (FOREGROUND_SCRIBBLES, BACKGROUND_SCRIBBLES)
            target = asked[0] if scribble else self._known(name, asked)
            if target is None:
                passed += not scribbled
            elif (mask := values == value).any() and not (scribbled and self._is_present(target, mask)):
                drawn = shapes.drawn(mask, affine)
                digest = hashlib.blake2b(repr(drawn.box).encode() + drawn.bits.tobytes(), digest_size=16).digest()
                added = not scribble or name == FOREGROUND_SCRIBBLES
                binding = True if scribbled else None
                marks.append(Mark(target, added, digest=digest, drawn=drawn, replaces=not scribble, binding=binding))
        if passed:
            warnings.append(f"{passed} names of the uploaded label did not count: they were not asked for")
        return sorted(marks, key=lambda mark: not mark.replaces)

    def _is_present(self, target: str, mask: np.ndarray) -> bool:
        """Whether a mask is the structure just as the present answer has it: then there is nothing to do for it."""
        return self._result is not None and np.array_equal(mask, self._result.mask(target))

    def _known(self, name: str, asked: Sequence[str]) -> str | None:
        """The structure asked for that a segment's name means, or None."""
        if name.lower() == BACKGROUND:
            return None
        try:
            canonical = self._canonical(name)
        except ValueError:
            return None
        return canonical if canonical in asked else None

    def _canonical(self, name: str) -> str:
        """The terminology's name of one structure.

        Raises:
            ValueError: no structure, or several.
        """
        meant = self._session.pipeline.understand(name, self.modality).targets
        if len(meant) > 1:
            raise InputError(f"{name!r} means several structures: {', '.join(target.name for target in meant)}")
        return meant[0].name

    def _correct(self, wanted: Sequence[Mark], concerned: Sequence[Mark], question: Question) -> None:
        """Make the corrections in the session those of the request."""
        # A structure that was uploaded just as it is shown goes on from its corrections.
        goes_on = question.scribbled and not any(mark.replaces for mark in wanted)
        missing = [mark for mark in concerned if mark not in wanted]
        again: list[Mark] = []
        if question.fresh or (missing and not goes_on):
            targets = {mark.target for mark in concerned}
            again = [mark for mark in self._marks if mark.target in targets and mark not in concerned]
            for target in sorted(targets):
                self._session.reset(target)
            self._marks = [mark for mark in self._marks if mark.target not in targets]
            self._result = None
        for mark in [*again, *wanted]:
            if mark not in self._marks:
                self._apply(mark)

    def _apply(self, mark: Mark) -> None:
        self._result = None
        if mark.drawn is None or self._shapes is None:
            self._session.add_prompt(mark.target, point=mark.voxel, positive=mark.positive)
        else:
            drawn = np.zeros(self._shapes.shape, dtype=bool)
            drawn[mark.drawn.box] = mark.drawn.mask
            if mark.replaces:
                self._session.add_prompt(mark.target, mask=drawn, enforce=mark.binding)
            else:
                self._session.add_prompt(mark.target, scribble=drawn, positive=mark.positive)
        self._marks.append(mark)


def _text(voxel: Voxel) -> str:
    return ", ".join(f"{number:g}" for number in voxel)
