"""The full network gives the published code's numbers, to 1e-3, once its parameters are converted."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.convert_checkpoint import convert_reference_state_dict
from scripts.networks import MedalS, sinusoidal_position_code

TOLERANCE = 1e-3


def filled(name: str, shape: list[int]) -> torch.Tensor:
    """A parameter's value by the fill rule of the golden data: a function of its name and shape."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        fan = np.prod(shape[1:])
        return torch.from_numpy(x * np.float32(np.sqrt((2 if len(shape) >= 3 else 1) / fan)))
    x = np.float32(0.1) * x
    return torch.from_numpy(np.float32(1) + x if name.endswith("weight") else x)


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden"


@pytest.fixture(scope="module")
def reference(golden: Path) -> dict[str, torch.Tensor]:
    """The published layout's state dict, aliases included."""
    layout = json.loads((golden / "state_dict_keys.json").read_text())
    state: dict[str, torch.Tensor] = {}
    for entry in layout["entries"]:
        original = entry["alias_of"]
        state[entry["name"]] = state[original] if original else filled(entry["name"], entry["shape"])
    return state


@pytest.fixture(scope="module")
def network(reference: dict[str, torch.Tensor]) -> Iterator[MedalS]:
    network = MedalS(deep_supervision=True)
    network.load_state_dict(convert_reference_state_dict(reference), strict=True)
    return network.eval()


@pytest.fixture(scope="module")
def inputs(golden: Path) -> dict[str, torch.Tensor]:
    with np.load(golden / "net_inputs_n3.npz") as data:
        return {key: torch.from_numpy(data[key].astype(np.float32)) for key in data}


def differ(actual: torch.Tensor, expected: np.ndarray) -> float:
    assert tuple(actual.shape) == expected.shape
    return float((actual.detach() - torch.from_numpy(expected)).abs().max())


def test_size_is_the_published_one(network: MedalS, golden: Path):
    layout = json.loads((golden / "state_dict_keys.json").read_text())
    assert sum(p.numel() for p in network.parameters()) == layout["total_parameter_count"] == 110_497_216
    assert sum(p.numel() for p in MedalS().parameters()) == layout["total_without_mid_mask_embed_proj"]


@pytest.mark.parametrize("case", ["given", "zero", "none"])
def test_inference_logits(network: MedalS, inputs: dict[str, torch.Tensor], golden: Path, case: str):
    prompts = {"given": inputs["s_p"], "zero": torch.zeros_like(inputs["s_p"]), "none": None}[case]
    foreground = torch.zeros_like(inputs["s_f"]) if case == "zero" else inputs["s_f"]
    with torch.no_grad():
        logits = network(inputs["image"], inputs["queries"], prompts, foreground)
    with np.load(golden / f"net_expected_n3_{case}.npz") as expected:
        assert differ(logits, expected["logits"]) < TOLERANCE


def test_foreground_is_derived_from_the_prompts(network: MedalS, inputs: dict[str, torch.Tensor], golden: Path):
    with torch.no_grad():
        logits = network(inputs["image"], inputs["queries"][0], inputs["s_p"])
    with np.load(golden / "net_expected_n3_given.npz") as expected:
        assert differ(logits, expected["logits"]) < TOLERANCE


def without_dropout_and_randomness(network: MedalS) -> MedalS:
    """Training mode (deep supervision) with the dropout layers off, as the golden data was made."""
    network.train()
    network.query_decoder.eval()
    return network


def test_deep_supervision_levels(network: MedalS, inputs: dict[str, torch.Tensor], golden: Path):
    without_dropout_and_randomness(network)
    with torch.no_grad():
        levels = network(inputs["image"], inputs["queries"], inputs["s_p"], inputs["s_f"])
    network.eval()
    assert len(levels) == 4
    with np.load(golden / "net_expected_n3_train.npz") as expected:
        assert differ(levels[0][..., ::2, ::2, ::2], expected["level0_stride2"]) < TOLERANCE
        for index in (1, 2, 3):
            assert differ(levels[index], expected[f"level{index}"]) < TOLERANCE


def test_batch_of_two(network: MedalS, golden: Path):
    with np.load(golden / "net_batch2_n2.npz") as data:
        batch = {key: data[key].astype(np.float32) for key in data}
    without_dropout_and_randomness(network)
    arguments = [torch.from_numpy(batch[key]) for key in ("image", "queries", "s_p", "s_f")]
    with torch.no_grad():
        levels = network(*arguments)
    network.eval()
    assert differ(levels[0][..., ::2, ::2, ::2], batch["level0_stride2"]) < TOLERANCE
    for index in (1, 2, 3):
        assert differ(levels[index], batch[f"level{index}"]) < TOLERANCE


def test_intermediate_values(network: MedalS, inputs: dict[str, torch.Tensor], golden: Path):
    with torch.no_grad(), np.load(golden / "net_intermediate_n3.npz") as expected:
        scales, decoded = network.encode(inputs["image"], inputs["s_f"])
        adapted = network.decode(scales, inputs["queries"])
        assert differ(scales[-1], expected["encoder_last"]) < TOLERANCE
        assert differ(decoded[-1], expected["decoder_level4"]) < TOLERANCE
        assert differ(network.query_decoder.tokens(scales)[0], expected["image_tokens"][:, 0]) < TOLERANCE
        assert differ(adapted[0], expected["decoded_queries"][:, 0]) < TOLERANCE
        assert differ(network.mask_head.embedding(adapted)[0], expected["mask_embedding"]) < TOLERANCE


def test_position_code_fits_any_grid(golden: Path):
    with np.load(golden / "net_pos_encoding_7x7x4.npz") as expected:
        assert differ(sinusoidal_position_code((7, 7, 4), 768), expected["pos"][:, 0]) < 1e-6


@pytest.mark.parametrize("prefix", ["", "module."])
def test_conversion_takes_every_tensor_once(reference: dict[str, torch.Tensor], prefix: str):
    converted = convert_reference_state_dict({prefix + name: tensor for name, tensor in reference.items()})
    assert len(converted) == 208
    assert converted.keys() == MedalS(deep_supervision=True).state_dict().keys()


def test_conversion_without_training_heads(reference: dict[str, torch.Tensor]):
    trimmed = {name: tensor for name, tensor in reference.items() if not name.startswith("mid_mask_embed_proj")}
    MedalS().load_state_dict(convert_reference_state_dict(trimmed), strict=True)


def test_conversion_refuses_what_it_does_not_know(reference: dict[str, torch.Tensor]):
    with pytest.raises(ValueError, match="no parameter of the published"):
        convert_reference_state_dict({**reference, "backbone.decoder.seg_layers.0.weight": torch.zeros(1)})
    alias = "backbone.encoder.stages.0.0.convs.0.all_modules.0.bias"
    with pytest.raises(ValueError, match="different values"):
        convert_reference_state_dict({**reference, alias: reference[alias] + 1})
    with pytest.raises(ValueError, match="alias of"):
        convert_reference_state_dict({alias: reference[alias]})
