"""Refinement against networks whose answer is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scripts.inferers import PromptWindowInferer, RefinementInferer
from scripts.inferers.refinement import random_block_mask

QUERIES = torch.zeros(2, 4)
IMAGE = torch.zeros(1, 1, 12, 8, 10)
FULL = torch.ones(1, 2, 12, 8, 10)


def repeat_prompts(image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """A network that sees nothing but its prompts."""
    return (prompts - 0.5) * 200


@given(shape=st.tuples(*[st.integers(1, 20)] * 3), block=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 2**31 - 1))
def test_mask_is_a_random_half_of_the_blocks(shape: tuple[int, int, int], block: int, seed: int) -> None:
    mask = random_block_mask(shape, block, torch.Generator().manual_seed(seed))
    assert mask.shape == (1, 1, *shape)
    corners = mask[0, 0, ::block, ::block, ::block]
    assert corners.sum() == max(1, corners.numel() // 2)
    whole = corners
    for axis in range(3):
        whole = whole.repeat_interleave(block, dim=axis)
    assert torch.equal(whole[: shape[0], : shape[1], : shape[2]], mask[0, 0])


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("repeats", [1, 3])
def test_every_voxel_is_predicted_while_its_own_prompt_is_blanked(halves: bool, repeats: int) -> None:
    """A network that repeats its prompts must end up with nothing: no voxel ever saw its own."""
    refine = RefinementInferer(iterations=0, first_pass="masked", repeats=repeats, batch_halves=halves)
    assert refine(IMAGE, repeat_prompts, QUERIES, FULL).max() < 1e-6


@pytest.mark.parametrize("halves", [True, False])
def test_every_voxel_sees_the_prompts_of_the_other_half(halves: bool) -> None:
    """Answering 1 where a voxel's own prompt is absent but others are there gives 1 everywhere."""

    def others(image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        somewhere = prompts.flatten(2).any(dim=2)[:, :, None, None, None]
        return ((prompts == 0) & somewhere).float() * 200 - 100

    refine = RefinementInferer(iterations=0, first_pass="masked", batch_halves=halves)
    assert refine(IMAGE, others, QUERIES, FULL).min() > 1 - 1e-6


def test_first_prediction_becomes_the_prompt() -> None:
    """The prompts of a refinement are the thresholded answer of the pass before, half of it at a time."""
    answer = torch.rand(1, 2, 12, 8, 10)
    seen: list[torch.Tensor] = []

    def network(image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        seen.append(prompts.clone())
        return answer.logit().expand(len(image), -1, -1, -1, -1)

    out = RefinementInferer(iterations=1, batch_halves=False)(IMAGE, network, QUERIES)
    assert len(seen) == 3
    assert not seen[0].any()
    assert torch.equal(seen[1] + seen[2], (answer >= 0.5).float())
    assert not (seen[1] * seen[2]).any()
    assert torch.allclose(out, answer, atol=1e-5)


def test_probabilities_can_be_the_prompt() -> None:
    answer = torch.rand(1, 2, 12, 8, 10)
    seen: list[torch.Tensor] = []

    def network(image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        seen.append(prompts)
        return answer.logit().expand(len(image), -1, -1, -1, -1)

    RefinementInferer(iterations=1, threshold=None)(IMAGE, network, QUERIES)
    assert torch.allclose(seen[1].sum(dim=0, keepdim=True), answer, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "prompts", "passes"),
    [
        ({"iterations": 0}, None, 1),
        ({"iterations": 1}, None, 3),
        ({"iterations": 2, "repeats": 2}, None, 9),
        ({"iterations": 1}, FULL, 3),
        ({"iterations": 0, "first_pass": "masked"}, FULL, 2),
        ({"iterations": 1, "first_pass": "masked"}, FULL, 4),
    ],
)
def test_number_of_passes(arguments: dict, prompts: torch.Tensor | None, passes: int) -> None:
    count = 0

    def network(image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += len(image)
        return prompts

    RefinementInferer(**arguments)(IMAGE, network, QUERIES, prompts)
    assert count == passes


def test_given_prompts_are_the_start() -> None:
    seen: list[torch.Tensor] = []
    RefinementInferer(iterations=0)(IMAGE, lambda x, q, p: seen.append(p) or p, QUERIES, FULL)
    assert torch.equal(seen[0], FULL)


def test_one_batch_or_two_passes_agree() -> None:
    network = torch.nn.Conv3d(3, 2, 3, padding=1)

    def call(image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        return network(torch.cat([image, prompts], dim=1))

    image = torch.rand(2, 1, 8, 8, 8)
    together, apart = (RefinementInferer(batch_halves=b)(image, call, QUERIES) for b in (True, False))
    assert torch.allclose(together, apart, atol=1e-6)


def test_masks_depend_on_the_seed_alone() -> None:
    """The same window gives the same answer on every call, after any number of other windows."""

    def smear(image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool3d(prompts, 3, stride=1, padding=1) + image

    refine = RefinementInferer(iterations=2)
    first = refine(torch.ones(1, 1, 8, 8, 8), smear, QUERIES)
    refine(torch.rand(1, 1, 8, 8, 8), smear, QUERIES)
    torch.rand(100)
    assert torch.equal(refine(torch.ones(1, 1, 8, 8, 8), smear, QUERIES), first)
    other = RefinementInferer(iterations=2, seed=1)(torch.ones(1, 1, 8, 8, 8), smear, QUERIES)
    assert not torch.equal(other, first)


def test_works_inside_the_window_inferer_in_any_batching() -> None:
    image = torch.randn(1, 1, 12, 12, 8)

    def network(image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        return image + torch.nn.functional.avg_pool3d(prompts, 3, stride=1, padding=1)

    outs = [
        PromptWindowInferer((8, 8, 8), sw_batch_size=n, window_inferer=RefinementInferer(), progress=False)(
            image, network, QUERIES
        )
        for n in (1, 4)
    ]
    assert torch.allclose(outs[0], outs[1], atol=1e-6)


@pytest.mark.parametrize("arguments", [{"iterations": -1}, {"repeats": 0}, {"block_size": 0}, {"first_pass": "both"}])
def test_meaningless_settings_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"wanted|must be"):
        RefinementInferer(**arguments)
