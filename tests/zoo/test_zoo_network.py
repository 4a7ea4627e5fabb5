"""The network as MONAI's bundle commands use it: an image and nothing else in, the channels of the metadata out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, verify_net_in_out

from scripts.metadata import trained_structures
from scripts.networks import KnownStructures


@pytest.fixture(scope="module")
def config(bundle_dir: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(bundle_dir / "configs" / "inference.json"))
    parser.read_meta(str(bundle_dir / "configs" / "metadata.json"))
    parser["bundle_root"] = str(bundle_dir)
    return parser


@pytest.fixture(scope="module")
def network(config: ConfigParser, bundle_dir: Path) -> KnownStructures:
    """The coarse network with its shipped weights."""
    network: KnownStructures = config.get_parsed_content("network_def")
    state = torch.load(bundle_dir / "models" / "model.pt", weights_only=True)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    return network.eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0)) * 4 - 2


def test_passes_verify_net_in_out(bundle_dir: Path) -> None:
    """Called as the zoo's own check calls it, at the sides that the metadata give."""
    configs = bundle_dir / "configs"
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        bundle_root=str(bundle_dir),
        device="cpu",
    )


def test_verify_net_in_out_would_see_another_number_of_channels(bundle_dir: Path) -> None:
    configs = bundle_dir / "configs"
    side: dict[str, Any] = {"_meta_::network_data_format::inputs::image::spatial_shape": [32, 32, 32]}
    with pytest.raises(ValueError, match="channel number"):
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(configs / "metadata.json"),
            config_file=str(configs / "inference.json"),
            bundle_root=str(bundle_dir),
            device="cpu",
            **{"_meta_::network_data_format::outputs::pred::num_channels": 32, **side},
        )


@torch.inference_mode()
def test_an_image_alone_is_asked_for_all_known_structures(
    network: KnownStructures, config: ConfigParser, image: torch.Tensor
) -> None:
    """The same as asking for them by their names, in the order of the channels, with empty prompts."""
    names = trained_structures(config["_meta_"])
    request, queries = config.get_parsed_content("encode_prompts").transform(names)
    assert [target.name for target in request.targets] == names
    asked = network(image, queries, torch.zeros(1, len(names), *image.shape[2:]))
    alone = network(image)
    assert alone.shape == (1, 1 + len(names), *image.shape[2:])
    torch.testing.assert_close(alone[:, 1:], asked, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_the_largest_channel_is_the_label(network: KnownStructures, image: torch.Tensor) -> None:
    """Of the most probable structure where it reaches one half, else the background's."""
    channels = network(image)
    probability, best = torch.sigmoid(channels[:, 1:]).max(dim=1)
    expected = torch.where(probability > 0.5, best + 1, 0)
    assert torch.equal(channels.argmax(dim=1), expected)
    assert 0 < expected.bool().float().mean() < 1


def test_without_default_queries_an_image_alone_is_an_error(network: KnownStructures, image: torch.Tensor) -> None:
    without = copy.copy(network)
    without.default = None
    with pytest.raises(ValueError, match="no default queries"):
        without(image)


def test_prompts_need_queries(network: KnownStructures, image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="prompts without queries"):
        network(image, prompts=torch.zeros(1, 1, 32, 32, 32))
