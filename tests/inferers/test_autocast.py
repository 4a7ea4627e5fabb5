"""Mixed precision and memory layout change speed, not what is computed."""

from __future__ import annotations

import torch

from scripts.inferers import AutocastInferer


def test_precision_is_reduced_inside_only() -> None:
    linear, seen = torch.nn.Linear(3, 2), []
    AutocastInferer()(torch.rand(4, 3), lambda x: seen.append(linear(x).dtype))
    AutocastInferer(enabled=False)(torch.rand(4, 3), lambda x: seen.append(linear(x).dtype))
    assert seen == [torch.bfloat16, torch.float32]
    assert linear(torch.rand(4, 3)).dtype == torch.float32


@torch.no_grad()
def test_channels_last_keeps_the_answer_and_converts_once() -> None:
    network, image = torch.nn.Conv3d(2, 3, 3, padding=1), torch.rand(1, 2, 8, 8, 8)
    expected, before = network(image), network.weight.clone()
    inferer = AutocastInferer(enabled=False, channels_last=True)
    out = inferer(image, network)
    assert torch.allclose(out, expected, atol=1e-6)
    assert network.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(network.weight, before)
    place = network.weight.data_ptr()
    inferer(image, network)
    assert network.weight.data_ptr() == place
