"""The network's parts at small sizes: shapes, independence of queries, the meaning of absent prompts."""

from __future__ import annotations

import pytest
import torch

from scripts.networks import MaskHead, MedalS, PlainUNet, QueryDecoder, TextProjection


def small_network(**kwargs) -> MedalS:
    torch.manual_seed(0)
    features = (4, 8, 12)
    return MedalS(
        PlainUNet(2, features, (1, 2, 2)),
        QueryDecoder(sum(features), dim=24, num_layers=2, num_heads=4, feedforward=32),
        MaskHead(24, 16, features[0]),
        TextProjection(10, 24),
        **kwargs,
    ).eval()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 1, 16, 12, 8, generator=g),
        torch.randn(2, 5, 10, generator=g),
        (torch.rand(2, 5, 16, 12, 8, generator=g) < 0.2).float(),
    )


def test_unet_scales():
    scales, decoded = PlainUNet(2, (4, 8, 12), (1, 2, 2))(torch.randn(1, 2, 16, 8, 12))
    assert [tuple(s.shape[1:]) for s in scales] == [(4, 16, 8, 12), (8, 8, 4, 6), (12, 4, 2, 3)]
    assert [tuple(d.shape[1:]) for d in decoded] == [(4, 16, 8, 12), (8, 8, 4, 6)]


def test_one_logit_map_per_query(batch):
    image, queries, prompts = batch
    assert small_network()(image, queries, prompts).shape == (2, 5, 16, 12, 8)


def test_queries_without_batch_axis_serve_every_image(batch):
    image, queries, _ = batch
    network = small_network()
    torch.testing.assert_close(network(image, queries[0]), network(image, queries[:1].expand(2, -1, -1)))


@torch.no_grad()
def test_a_query_does_not_depend_on_the_others_without_prompts(batch):
    image, queries, _ = batch
    network = small_network()
    together, alone = network(image, queries), network(image, queries[:, 3:4])
    torch.testing.assert_close(together[:, 3:4], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_prompts_change_the_answer_and_zeros_differ_from_none(batch):
    image, queries, prompts = batch
    network = small_network()
    given, zero, none = (network(image, queries, p) for p in (prompts, torch.zeros_like(prompts), None))
    assert (given - zero).abs().max() > 1e-3
    assert (zero - none).abs().max() > 1e-3


@torch.no_grad()
def test_absent_foreground_is_the_union_of_the_prompts(batch):
    image, queries, prompts = batch
    network = small_network()
    union = prompts.amax(dim=1, keepdim=True)
    torch.testing.assert_close(network(image, queries, prompts), network(image, queries, prompts, union))


def test_deep_supervision_only_in_training(batch):
    image, queries, prompts = batch
    network = small_network(deep_supervision=True, level_hidden=(16,))
    assert isinstance(network(image, queries, prompts), torch.Tensor)
    levels = network.train()(image, queries, prompts)
    assert [tuple(level.shape[2:]) for level in levels] == [(16, 12, 8), (8, 6, 4)]


def test_every_parameter_but_the_frozen_one_learns(batch):
    image, queries, prompts = batch
    network = small_network(deep_supervision=True, level_hidden=(16,)).train()
    sum(level.square().mean() for level in network(image, queries, prompts)).backward()
    idle = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_side_that_does_not_fit_is_named(batch):
    image, queries, _ = batch
    with pytest.raises(ValueError, match=r"multiple of 4 voxels, got \(15, 12, 8\)"):
        small_network()(image[:, :, :15], queries)


def test_image_of_wrong_rank_is_named(batch):
    _, queries, _ = batch
    with pytest.raises(ValueError, match=r"\[B, 1, H, W, D\], got \(2, 2, 16, 12, 8\)"):
        small_network()(torch.zeros(2, 2, 16, 12, 8), queries)


def test_stages_and_strides_must_match():
    with pytest.raises(ValueError, match="3 features and 2 strides"):
        PlainUNet(2, (4, 8, 12), (1, 2))
