"""The weights that a training run may start from; tests/docs/test_finetune_page.py runs a whole fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from scripts.errors import InputError
from scripts.fine_tuning import start_from
from scripts.networks import MedalS
from scripts.weights import load_weights

TINY_NETWORK = {"text_dim": 16, "query_dim": 24, "features": [4, 8], "strides": [1, 2]}


@pytest.fixture(scope="module")
def network_def(bundle_dir: Path) -> dict[str, Any]:
    """The small network's definition, tiny."""
    parser = ConfigParser()
    parser.read_config(str(bundle_dir / "configs" / "small_network.json"))
    parser.update(TINY_NETWORK)
    return parser


def equal(network: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, state[name].to(tensor.dtype)) for name, tensor in network.state_dict().items())


def tiny(network_def: ConfigParser, deep_supervision: bool = False) -> MedalS:
    parser = ConfigParser(network_def.get())
    parser.update({"deep_supervision": deep_supervision})
    return parser.get_parsed_content("network_def")


def test_starts_from_plain_weights_and_from_checkpoints(network_def: ConfigParser, tmp_path: Path):
    given = tiny(network_def).state_dict()
    averaged = {"n_averaged": torch.tensor(3)} | {f"module.{name}": tensor + 1 for name, tensor in given.items()}
    files = {
        "plain": (given, given),
        "checkpoint": ({"network": given, "ema": {}, "trainer": {"iteration": 3}}, given),
        "average": ({"network": given, "ema": averaged}, {name: tensor + 1 for name, tensor in given.items()}),
    }
    for name, (content, wanted) in files.items():
        torch.save(content, tmp_path / name)
        network = tiny(network_def)
        start_from(network, tmp_path / name)
        assert equal(network, wanted), name
    network = tiny(network_def)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    start_from(network, None)
    assert equal(network, before)


def test_training_heads_may_be_new_or_left_over(network_def: ConfigParser, tmp_path: Path):
    without, with_heads = tiny(network_def), tiny(network_def, deep_supervision=True)
    torch.save(without.state_dict(), tmp_path / "without.pt")
    torch.save(with_heads.state_dict(), tmp_path / "with.pt")
    start_from(with_heads, tmp_path / "without.pt")
    assert torch.equal(with_heads.mask_head.embedding[0].weight, without.mask_head.embedding[0].weight)
    start_from(without, tmp_path / "with.pt")
    load_weights(without, tmp_path / "without.pt")  # the strict way still has nothing to complain about


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mask_head.x": torch.zeros(1)}, "lacks backbone.*has unknown mask_head.x"),
        ([1, 2], "holds list; wanted a state dict"),
        ({"model_state_dict": {"liver": torch.zeros(1)}}, "'liver' is no parameter of the published"),
    ],
)
def test_weights_that_do_not_fit_are_refused(network_def: ConfigParser, tmp_path: Path, content: Any, message: str):
    torch.save(content, tmp_path / "weights.pt")
    network = tiny(network_def)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        start_from(network, tmp_path / "weights.pt")
    assert equal(network, before)


def test_a_missing_or_broken_file_is_one_clear_error(network_def: ConfigParser, tmp_path: Path):
    with pytest.raises(InputError, match="fine-tuning: no weights at"):
        start_from(tiny(network_def), tmp_path / "none.pt")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="not a file of plain weights"):
        start_from(tiny(network_def), tmp_path / "broken.pt")
