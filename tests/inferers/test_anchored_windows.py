"""Windows at fixed places of an image: they show what is asked for, and questions share them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor

from scripts.inferers import FeatureCache, PromptWindowInferer, RefinementInferer, Stage, TwoStageInferer
from scripts.inferers.anchored_windows import covering_windows, image_middle
from scripts.inferers.grid_boxes import moved_box
from scripts.inferers.window_grid import WindowGrid
from scripts.request import Request, RequestedTarget, encode_request
from scripts.text import Terminology
from scripts.transforms.resampling import DynamicSpacing

SIZE = 16

side = st.integers(1, 90)
span = side.flatmap(
    lambda n: st.tuples(st.just(n), st.tuples(st.integers(0, n - 1), st.integers(1, n)).filter(lambda v: v[0] < v[1]))
)


@given(axes=st.tuples(span, span, span), middle=st.tuples(*[st.floats(0, 90)] * 3))
def test_what_is_looked_at_holds_the_box_and_consists_of_windows_at_fixed_places(
    axes: tuple[tuple[int, tuple[int, int]], ...], middle: tuple[float, ...]
) -> None:
    shape, box = [n for n, _ in axes], tuple(slice(*ends) for _, ends in axes)
    part = covering_windows(WindowGrid(shape, (SIZE,) * 3), middle, box)  # type: ignore[arg-type]
    windows = WindowGrid([own.stop - own.start for own in part], (SIZE,) * 3)
    for axis, (n, own, wanted) in enumerate(zip(shape, part, box, strict=True)):
        assert 0 <= own.start <= wanted.start < wanted.stop <= own.stop <= n
        starts = {own.start + place[axis].start for place in windows.slices}
        assert starts <= {*range(0, n, SIZE // 8), n - SIZE, 0}
        if wanted.stop - wanted.start <= SIZE - SIZE // 4:
            assert len(starts) == 1
            assert starts <= {*range(0, n, SIZE // 4), n - SIZE, 0}


def test_boxes_in_the_middle_of_an_image_are_seen_through_one_and_the_same_window() -> None:
    windows = WindowGrid((40, 40, 40), (SIZE,) * 3)
    boxes = [(slice(a, a + 4), slice(b, b + 6), slice(18, 22)) for a, b in product((14, 18, 21), (15, 17))]
    assert {str(covering_windows(windows, (20.0, 20.0, 20.0), box)) for box in boxes} == {
        str((slice(12, 28), slice(12, 28), slice(12, 28)))
    }
    away = (slice(2, 6), slice(15, 21), slice(18, 22))
    assert covering_windows(windows, (20.0, 20.0, 20.0), away)[0] == slice(0, 16)


def test_the_middle_of_an_image_is_that_of_its_grey_values() -> None:
    image = torch.full((1, 20, 10, 30), -3.0)
    assert image_middle(image) == (9.5, 4.5, 14.5)
    image[0, 4:7, 2:5, 20:29] = 7
    assert image_middle(image) == pytest.approx((5, 3, 24))


def test_a_box_on_a_grid_twice_as_fine_with_its_first_axis_turned() -> None:
    turned = torch.diag(torch.tensor([-0.5, 0.5, 0.5, 1.0]).double())
    turned[:3, 3] = torch.tensor([9.75, -0.25, -0.25])
    box = (slice(2, 4), slice(0, 1), slice(5, 9))
    assert moved_box(box, torch.eye(4).double(), turned, (24, 24, 24)) == (slice(13, 17), slice(0, 2), slice(10, 18))


class Finder(torch.nn.Module):
    """Finds the voxels whose grey value is the query's, and half heeds a prompt; counts the windows it encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded = 0

    def features(self, image: torch.Tensor, with_plain: bool = False) -> tuple[torch.Tensor, ...]:
        self.encoded += len(image)
        return image, image

    def answer(
        self, features: tuple[torch.Tensor, ...], queries: torch.Tensor, prompts: torch.Tensor | None = None
    ) -> torch.Tensor:
        value = queries[..., 0].reshape(1, -1, 1, 1, 1)
        found = torch.where((features[0] - value).abs() < 10, 2.0, -3.0)
        return found if prompts is None else found + prompts

    def forward(self, image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor | None = None) -> torch.Tensor:
        return self.answer(self.features(image), queries, prompts)


BOXES = {100: (slice(14, 20), slice(12, 20), slice(14, 22)), 200: (slice(20, 25), slice(15, 21), slice(16, 20))}
NAMES = {100: "Liver", 200: "Spleen"}


class System:
    """Two stages on a volume of 40 voxels of 1 mm, windows of 16, the fine stage at the volume's own resolution."""

    def __init__(self, fine_grid: str, cache: FeatureCache | None, mode: str = "fixed") -> None:
        self.terminology = Terminology.load()
        self.fine = Finder()
        stages = []
        for number, first_pass in ((1, "plain"), (2, "masked")):
            refine = RefinementInferer(0, first_pass=first_pass, prompt_block_size=4, mode="cached", cache=cache)
            windows = PromptWindowInferer((SIZE,) * 3, window_inferer=refine, progress=False)
            stages.append(Stage(number, DynamicSpacing((SIZE,) * 3, (3.0 - number,) * 3, number, mode=mode), windows))
        self.inferer = TwoStageInferer(self.terminology, *stages, fine_grid=fine_grid)

    def ask(self, *values: int) -> torch.Tensor:
        """Probabilities of the label map, ``[40, 40, 40]``, negative where it is not the first target's."""
        image = torch.zeros(1, 1, 40, 40, 40)
        for value, box in BOXES.items():
            image[(0, 0, *box)] = value
        networks = torch.nn.ModuleDict({"coarse": Finder(), "fine": self.fine})
        targets = [self.terminology.target(NAMES[value], "CT") for value in values]
        records = [RequestedTarget(t.name, t.id, t.modality, t.kind, t.key, "", "name", 1.0, t.color) for t in targets]
        out = self.inferer(
            MetaTensor(image[0], affine=torch.as_tensor(np.diag([1.0, 1, 1, 1])))[None],
            networks.eval(),
            queries=torch.tensor([[float(value)] for value in values]),
            request=encode_request(Request(("",), "CT", tuple(records))),
        )
        labels, probability = (out[name].as_tensor()[0, 0] for name in ("label_map", "probability"))
        return torch.where(labels == targets[0].id, 1, -1) * probability


def test_other_words_about_the_same_image_encode_no_window_again() -> None:
    shared = System("image", FeatureCache(0.1, dtype=None))
    first, second = shared.ask(100), shared.ask(200)
    assert shared.fine.encoded == 1
    for value, answer in ((100, first), (200, second)):
        expected = torch.zeros(40, 40, 40, dtype=torch.bool)
        expected[BOXES[value]] = True
        assert torch.equal(answer > 0, expected)
        assert torch.equal(answer, System("image", None).ask(value))
    region = System("region", FeatureCache(0.1, dtype=None))
    assert torch.equal(region.ask(100) > 0, first > 0)
    region.ask(200)
    assert region.fine.encoded > 1


def test_dynamic_grids_depend_on_the_question_and_stay_those_of_the_region() -> None:
    """Planned for the whole image they would be coarser than those of the region."""
    wanted, answer = (System(grid, None, mode="dynamic").ask(100) for grid in ("region", "image"))
    assert (wanted > 0).any()
    assert torch.equal(answer, wanted)


def test_a_fine_grid_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="fine_grid is 'region' or 'image', got 'world'"):
        System("world", None)
