"""Corrections where the fine stage's windows lie at fixed places: what was encoded for the first answer serves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.interactive import Session

AFFINE = np.diag([-1.0, 1.0, 1.0, 1.0])
SHAPE = (40, 40, 40)
BOXES = {
    "Left thalamus": (slice(14, 20), slice(16, 22), slice(15, 21)),
    "Left putamen": (slice(21, 26), slice(14, 20), slice(17, 23)),
    "Left cerebral cortex": (slice(2, 38), slice(30, 34), slice(17, 23)),
}


class Finder(torch.nn.Module):
    """Finds a structure by its grey value (in the order first asked) and what it was shown; counts windows."""

    def __init__(self) -> None:
        super().__init__()
        self.known: list[bytes] = []
        self.encoded = 0

    def features(self, image: torch.Tensor, with_plain: bool = False) -> tuple[torch.Tensor, ...]:
        self.encoded += len(image)
        return image, image

    def answer(
        self, features: tuple[torch.Tensor, ...], queries: torch.Tensor, prompts: torch.Tensor | None = None
    ) -> torch.Tensor:
        rows = [row.numpy().tobytes() for row in queries.reshape(-1, queries.shape[-1])]
        self.known += [row for row in dict.fromkeys(rows) if row not in self.known]
        levels = torch.tensor([50.0 * (1 + self.known.index(row)) for row in rows]).reshape(1, -1, 1, 1, 1)
        found = (features[0] - levels).abs() < 10
        if prompts is not None:
            found = found | (prompts > 0)
        return torch.where(found, 6.0, -6.0)

    def forward(self, image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor | None = None) -> torch.Tensor:
        return self.answer(self.features(image), queries, prompts)


def picture() -> np.ndarray:
    image = np.zeros(SHAPE, np.uint8)
    for level, box in enumerate(BOXES.values(), start=1):
        image[box] = 50 * level
    image[-1, -1, -1] = 255
    return image


@pytest.fixture
def make(bundle_dir: Path, tmp_path: Path) -> Any:
    """A session on the bundle's config with toy networks, which has looked at the picture."""
    torch.save({}, tmp_path / "empty.pt")
    pad = {"_target_": "SpatialPad", "spatial_size": [16] * 3, "method": "end"}
    weights = dict.fromkeys(("weights", "fine_weights"), str(tmp_path / "empty.pt"))

    def build(cache_gb: float, *names: str) -> tuple[Session, Finder]:
        fine = Finder()
        options = {"spacing": [2.0] * 3, "fine_spacing": [1.0] * 3, "roi_size": [16] * 3, "fine_roi_size": [16] * 3}
        session = Session.from_bundle(
            bundle_dir,
            **{**weights, **options, "prepare": pad, "fine_prepare": pad, "device": "cpu", "stages": [1, 2]},
            coarse_network=Finder().eval(),
            fine_network=fine.eval(),
            min_voxels=1,
            fine_grid="image",
            refinement_mode="cached",
            feature_cache_gb=cache_gb,
        )
        session.set_image(picture(), AFFINE)
        # Both networks know the grey values in the same order, whatever is asked first.
        for name in BOXES:
            session.segment(name)
        session.segment(list(names))
        return session, fine

    return build


def test_a_click_encodes_nothing_and_gives_what_it_gives_without_a_cache(make: Any) -> None:
    session, fine = make(0.1, "Left thalamus", "Left putamen")
    other, encoding = make(0, "Left thalamus", "Left putamen")
    encoded, again = fine.encoded, encoding.encoded
    for point, positive in (((17, 23, 18), True), ((14, 16, 15), False)):
        edits = [
            one.add_prompt("Left thalamus", point=point, positive=positive, radius=1.5) for one in (session, other)
        ]
        assert edits[0].windows == edits[1].windows == 1
        assert edits[0].change == edits[1].change
    assert (fine.encoded, encoding.encoded) == (encoded, again + 2)
    mask = session.result().mask("Left thalamus")
    assert mask[17, 23, 18]
    assert not mask[14, 16, 15]
    assert np.array_equal(session.result().label_map, other.result().label_map)
    assert session.result().mask("Left putamen").sum() == 5 * 6 * 6


def test_among_many_structures_a_click_is_answered_in_the_windows_of_its_own(make: Any) -> None:
    session, fine = make(0.1, *BOXES)
    whole = session.result().label_map
    windows = session.pipeline.inferer.stage[2].inferer.last_run.windows
    edit = session.add_prompt("Left putamen", point=(27, 17, 20), radius=1.5)
    assert windows > edit.windows == 1
    assert session.result().mask("Left putamen")[27, 17, 20]
    outside = np.ones(SHAPE, bool)
    outside[edit.change.box] = False
    assert np.array_equal(session.result().label_map[outside], whole[outside])
    encoded = fine.encoded
    session.undo()
    assert np.array_equal(session.result().label_map, whole)
    session.add_prompt("Left putamen", point=(23, 20, 20), radius=1.0)
    assert fine.encoded == encoded
    far = session.add_prompt("Left putamen", point=(36, 17, 20), radius=1.0)  # in the part of the cortex's windows
    assert session.result().mask("Left putamen")[36, 17, 20]
    assert far.windows >= 1
