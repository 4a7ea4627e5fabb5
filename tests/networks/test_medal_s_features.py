"""Features computed once answer any text-only question exactly as a whole forward pass does."""

from __future__ import annotations

import pytest
import torch

from scripts.networks import Features, MaskHead, MedalS, PlainUNet, QueryDecoder, TextProjection


def small_network() -> MedalS:
    torch.manual_seed(0)
    features = (4, 8, 12)
    return MedalS(
        PlainUNet(2, features, (1, 2, 2)), QueryDecoder(24, 24, 2, 4, 32), MaskHead(24, 16, 4), TextProjection(10, 24)
    ).eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 1, 16, 12, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
def test_answer_is_the_forward_pass_with_empty_prompts(image: torch.Tensor, amp: bool, per_image: bool) -> None:
    network = small_network()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        features = network.features(image)
        for count in (1, 5):
            queries = torch.randn(2, count, 10) if per_image else torch.randn(count, 10)
            expected = network(image, queries, torch.zeros(2, count, 16, 12, 8))
            assert torch.equal(network.answer(features, queries), expected)


@torch.no_grad()
def test_prompts_reach_fusion_and_correlation_only(image: torch.Tensor) -> None:
    """The answer with prompts is the forward pass whose foreground prompt is empty."""
    network, queries = small_network(), torch.randn(5, 10)
    prompts = (torch.rand(2, 5, 16, 12, 8) > 0.7).float()
    out = network.answer(network.features(image, with_plain=True), queries, prompts)
    assert torch.allclose(out, network(image, queries, prompts, torch.zeros_like(image)), atol=1e-5)
    assert not torch.allclose(out, network(image, queries, prompts), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("place", [(0, 0, 0), (15, 11, 7), (7, 0, 5)])
def test_a_prompt_that_fills_little_of_a_window_counts_as_in_the_forward_pass(
    image: torch.Tensor, place: tuple[int, int, int]
) -> None:
    """Its share is computed in a box around it, at the window's rim as well; an empty one is no prompt at all."""
    network, queries = small_network(), torch.randn(5, 10)
    features = network.features(image, with_plain=True)
    before = [tensor.clone() for tensor in features if tensor is not None]
    prompts = torch.zeros(2, 5, 16, 12, 8)
    assert torch.equal(network.answer(features, queries, prompts), network.answer(features, queries))
    prompts[(0, 3, *place)] = 1
    expected = network(image, queries, prompts, torch.zeros_like(image))
    assert torch.allclose(network.answer(features, queries, prompts), expected, atol=1e-5)
    assert all(torch.equal(one, other) for one, other in zip(before, features, strict=True))


@torch.no_grad()
def test_features_are_lean_unless_prompts_will_come(image: torch.Tensor) -> None:
    features = small_network().features(image)
    assert isinstance(features, Features)
    assert features.plain is None
    assert features.fused.shape == (2, 4, 16, 12, 8)
    assert features.tokens.shape == (2, 4 * 3 * 2, 24)
    with pytest.raises(ValueError, match="with_plain=True"):
        small_network().answer(features, torch.randn(5, 10), torch.zeros(2, 5, 16, 12, 8))
