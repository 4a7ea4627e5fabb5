"""Refinement against networks whose answer is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scripts.inferers import PromptWindowInferer, RefinementInferer
from scripts.inferers.refinement import random_block_mask
from scripts.networks import MaskHead, MedalS, PlainUNet, QueryDecoder, TextProjection

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

    RefinementInferer(iterations=1, threshold=None, batch_halves=True)(IMAGE, network, QUERIES)
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


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("repeats", [1, 3])
def test_disagreement_is_the_distance_of_the_two_masked_predictions(halves: bool, repeats: int) -> None:
    """A network that repeats its prompts says 1 in one half and 0 in the other, wherever the prompt was 1."""
    prompts = (torch.rand(1, 2, 12, 8, 10) > 0.5).float()
    refine = RefinementInferer(
        iterations=0, first_pass="masked", repeats=repeats, batch_halves=halves, return_disagreement=True
    )
    _, disagreement = refine(IMAGE, repeat_prompts, QUERIES, prompts)
    assert torch.allclose(disagreement, prompts, atol=1e-6)


def test_without_refinement_nothing_disagrees() -> None:
    out, disagreement = RefinementInferer(iterations=0, return_disagreement=True)(IMAGE, repeat_prompts, QUERIES, FULL)
    assert out.shape == FULL.shape
    assert disagreement is None


def test_a_call_may_ask_for_more() -> None:
    refine = RefinementInferer(iterations=0)
    assert isinstance(refine(IMAGE, repeat_prompts, QUERIES), torch.Tensor)
    _, disagreement = refine(IMAGE, repeat_prompts, QUERIES, FULL, iterations=1, return_disagreement=True)
    assert torch.allclose(disagreement, FULL, atol=1e-6)


def small_network() -> MedalS:
    features = (4, 8, 12)
    torch.manual_seed(0)
    return MedalS(
        PlainUNet(2, features, (1, 2, 2)), QueryDecoder(24, 24, 2, 4, 32), MaskHead(24, 16, 4), TextProjection(4, 24)
    ).eval()


@pytest.mark.parametrize("first_pass", ["plain", "masked"])
@pytest.mark.parametrize("halves", [True, False])
@torch.no_grad()
def test_cached_mode_runs_the_unet_once(first_pass: str, halves: bool) -> None:
    network, image = small_network(), torch.randn(2, 1, 8, 12, 8)
    runs = []
    network.backbone.register_forward_hook(lambda *_: runs.append(1))
    prompts = (torch.rand(2, 2, 8, 12, 8) > 0.5).float()
    refine = RefinementInferer(iterations=2, repeats=2, first_pass=first_pass, mode="cached", batch_halves=halves)
    out = refine(image, network, torch.randn(2, 4), prompts)
    assert len(runs) == 1
    assert out.shape == prompts.shape


@torch.no_grad()
def test_cached_mode_is_the_paper_s_formula() -> None:
    """One masked pass by hand: the U-Net sees an empty foreground, fusion and correlation see the masked prompts."""
    network, image, queries = small_network(), torch.randn(1, 1, 8, 8, 8), torch.randn(2, 4)
    prompts = (torch.rand(1, 2, 8, 8, 8) > 0.5).float()
    kept = random_block_mask((8, 8, 8), 8 // 2, torch.Generator().manual_seed(0))
    scales, decoded = network.encode(image)
    adapted = network.decode(scales, queries)
    first, second = (network.mask_head(decoded[0], adapted, prompts * half).sigmoid() for half in (kept, ~kept))
    refine = RefinementInferer(iterations=0, first_pass="masked", prompt_block_size=4, mode="cached")
    out = refine(image, network, queries, prompts)
    assert torch.allclose(out, torch.where(kept, second, first), atol=1e-6)
    exact = RefinementInferer(iterations=0, first_pass="masked", prompt_block_size=4)(image, network, queries, prompts)
    assert (out - exact).abs().max() > 1e-4


def test_cached_mode_needs_a_network_with_features() -> None:
    with pytest.raises(ValueError, match="needs a network with features"):
        RefinementInferer(mode="cached")(IMAGE, repeat_prompts, QUERIES)


@pytest.mark.parametrize(
    "arguments",
    [
        {"iterations": -1},
        {"repeats": 0},
        {"block_size": 0},
        {"first_pass": "both"},
        {"mode": "fast"},
        {"batch_halves": "sometimes"},
    ],
)
def test_meaningless_settings_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"wanted|must be"):
        RefinementInferer(**arguments)
