"""An edit of prompts brings an earlier answer up to date, and it equals a run from scratch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.inferers import FeatureCache, PromptWindowInferer, RefinementInferer

QUERIES = torch.zeros(2, 4)
SHAPE = (21, 12, 18)


class Smear(torch.nn.Module):
    """Every answer depends on the prompts of the whole window."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        self.calls += len(image)
        return image - 0.5 + queries.sum() + prompts.mean(dim=(2, 3, 4), keepdim=True) * 3 + prompts


def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    prompts = (torch.rand(1, 2, *SHAPE, generator=generator) > 0.8).to(torch.uint8)
    return torch.rand(1, 1, *SHAPE, generator=generator), prompts


def make(cache: FeatureCache | None, accumulate: str = "float16") -> PromptWindowInferer:
    refine = RefinementInferer(iterations=0, first_pass="masked", prompt_block_size=4)
    return PromptWindowInferer(
        (8, 8, 8), 2, window_inferer=refine, progress=False, accumulate=accumulate, window_cache=cache
    )


@pytest.mark.parametrize("accumulate", ["float16", "float32"])
@pytest.mark.parametrize("gigabytes", [None, 0.0, 1e-4, 1.0])
def test_an_update_equals_a_run_from_scratch(gigabytes: float | None, accumulate: str) -> None:
    """Whether the neighbours' answers are remembered in full, in part or not at all."""
    image, prompts = case()
    inferer = make(None if gigabytes is None else FeatureCache(gigabytes), accumulate)
    before = inferer(image, Smear(), QUERIES, prompts)
    kept = before.clone()
    edited = prompts.clone()
    box = (slice(9, 11), slice(0, 2), slice(10, 14))
    edited[0, 1][box] = 1
    network = Smear()
    touched = inferer.touched_windows(SHAPE, box)
    updated = inferer(image, network, QUERIES, edited, windows=touched, previous=before)
    assert torch.equal(before, kept)
    assert torch.equal(updated, inferer(image, Smear(), QUERIES, edited))
    assert not torch.equal(updated, before)


@settings(max_examples=20)
@given(corner=st.tuples(st.integers(0, 20), st.integers(0, 11), st.integers(0, 17)), side=st.integers(1, 6))
def test_only_windows_around_the_edit_are_predicted(corner: tuple[int, int, int], side: int) -> None:
    image, prompts = case()
    inferer, network = make(FeatureCache(1.0)), Smear()
    before = inferer(image, network, QUERIES, prompts)
    box = tuple(slice(c, min(c + side, s)) for c, s in zip(corner, SHAPE, strict=True))
    edited = prompts.clone()
    edited[0, 0][box] = 1 - edited[0, 0][box]
    touched = inferer.touched_windows(SHAPE, box)
    updated = inferer(image, network, QUERIES, edited, windows=touched, previous=before)
    assert inferer.last_run.predicted == len(touched)
    assert inferer.last_run.cached == inferer.last_run.windows - len(touched)
    assert torch.equal(updated, make(None)(image, network, QUERIES, edited)) or torch.allclose(
        updated, make(None)(image, network, QUERIES, edited), atol=2e-3
    )


def test_undo_asks_the_network_nothing() -> None:
    image, prompts = case()
    inferer, network = make(FeatureCache(1.0)), Smear()
    before = inferer(image, network, QUERIES, prompts)
    box = (slice(0, 3), slice(0, 3), slice(0, 3))
    edited = prompts.clone()
    edited[0, 0][box] = 1
    touched = inferer.touched_windows(SHAPE, box)
    after = inferer(image, network, QUERIES, edited, windows=touched, previous=before)
    calls = network.calls
    assert torch.equal(inferer(image, network, QUERIES, prompts, windows=touched, previous=after), before)
    assert network.calls == calls


def test_another_question_or_setting_never_meets_a_remembered_window() -> None:
    image, _ = case()
    cache = FeatureCache(1.0, dtype=None)
    network = Smear()

    def ask(queries: torch.Tensor, **arguments: object) -> torch.Tensor:
        refine = RefinementInferer(**arguments)
        return PromptWindowInferer((8, 8, 8), window_inferer=refine, progress=False, window_cache=cache)(
            image, network, queries
        )

    first = ask(QUERIES, iterations=0)
    assert torch.equal(ask(QUERIES, iterations=0), first)
    hits = cache.statistics.hits
    assert hits > 0
    for queries, arguments in ((QUERIES + 1, {"iterations": 0}), (QUERIES, {}), (QUERIES, {"seed": 1})):
        assert not torch.equal(ask(queries, **arguments), first)
    assert cache.statistics.hits == hits


def test_update_of_the_disagreement() -> None:
    image, prompts = case()
    inferer = make(FeatureCache(1.0))
    before = inferer(image, Smear(), QUERIES, prompts, return_disagreement=True)
    box = (slice(0, 3), slice(5, 6), slice(0, 3))
    edited = prompts.clone()
    edited[0, 0][box] = 1
    touched = inferer.touched_windows(SHAPE, box)
    options = {"windows": touched, "previous": before, "return_disagreement": True}
    updated = inferer(image, Smear(), QUERIES, edited, **options)
    scratch = inferer(image, Smear(), QUERIES, edited, return_disagreement=True)
    assert all(torch.equal(a, b) for a, b in zip(updated, scratch, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"windows": [0]}, "belong together"),
        ({"previous": torch.zeros(1, 2, *SHAPE)}, "belong together"),
        ({"windows": [0], "previous": torch.zeros(1, 3, *SHAPE)}, "previous has shape"),
        ({"windows": [10000], "previous": torch.zeros(1, 2, *SHAPE)}, "must lie in"),
    ],
)
def test_an_update_that_does_not_fit_is_refused(arguments: dict, message: str) -> None:
    image, prompts = case()
    with pytest.raises(ValueError, match=message):
        make(None)(image, Smear(), QUERIES, prompts, **arguments)
