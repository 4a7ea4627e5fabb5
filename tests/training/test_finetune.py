"""docs/finetune.md word for word: its files and commands, on ten tiny heads with a structure not known before."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from transformers import BertConfig, BertModel, BertTokenizerFast

from scripts.errors import InputError
from scripts.fine_tuning import start_from
from scripts.networks import MedalS
from scripts.weights import load_weights

TINY_NETWORK = {"text_dim": 16, "query_dim": 24, "features": [4, 8], "strides": [1, 2]}
TINY_RUN = {
    **TINY_NETWORK,
    "roi_size": [16, 16, 16],
    "segment_steps": [6],
    "segment_warmup": [2],
    "val_interval": 3,
    "val_samples": 2,
    "num_workers": 0,
}
TINY_INFERENCE = {**TINY_NETWORK, "roi_size": [16, 16, 16], "progress": False}


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def network_def(bundle_dir: Path) -> dict[str, Any]:
    """The small network's definition, tiny."""
    parser = ConfigParser()
    parser.read_config(str(bundle_dir / "configs" / "small_network.json"))
    parser.update(TINY_NETWORK)
    return parser


@pytest.fixture(scope="module")
def workplace(bundle_dir: Path, network_def: ConfigParser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bundle`` with tiny weights and ``my_cases`` with ten heads, side by side; a tiny encoder for the sentences."""
    root = tmp_path_factory.mktemp("fine_tuning")
    bundle = root / "bundle"
    bundle.mkdir()
    for name in ("configs", "scripts", "docs"):
        (bundle / name).symlink_to(bundle_dir / name)
    (bundle / "models").mkdir()
    torch.manual_seed(0)
    torch.save(network_def.get_parsed_content("network_def").state_dict(), bundle / "models" / "model.pt")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "pineal", "gland", "body", "brain", "stem", "left", "right", "-"]
    encoder = bundle / "sentence-transformers" / "all-MiniLM-L6-v2"
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(encoder)
    (encoder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(encoder / "vocab.txt")).save_pretrained(encoder)
    cases = root / "my_cases"
    for folder in ("images", "labels"):
        (cases / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    for index in range(10):
        label = np.zeros((16, 16, 16), dtype=np.uint8)
        label[3:6, 4:12, 4 : 10 + index % 3] = 1
        label[9:13, 4:12, 4:12] = 2
        image = np.array([10.0, 200.0, 100.0])[label] + rng.normal(0, 5, label.shape)
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), cases / "images" / f"case_{index}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), cases / "labels" / f"case_{index}.nii.gz")
    return root


def run(command: str, root: Path, **changes: Any) -> None:
    """A command of the document in the bundle's folder, with tiny sizes added."""
    arguments = [sys.executable if word == "python" else word for word in shlex.split(command)]
    arguments += [part for key, value in changes.items() for part in (f"--{key}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(arguments, cwd=root / "bundle", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_worked_example_runs(workplace: Path, bundle_dir: Path):
    document = bundle_dir.parent / "docs" / "finetune.md"
    cases = workplace / "my_cases"
    content = json.loads(blocks(document, "json")[0])
    content["training"] = [
        {"image": f"images/case_{index}.nii.gz", "label": f"labels/case_{index}.nii.gz"} for index in range(8)
    ]
    (cases / "cases.json").write_text(json.dumps(content))
    (python,) = blocks(document, "python")
    subprocess.run([sys.executable, "-c", python], cwd=workplace / "bundle", check=True)
    embed, train, ask = blocks(document, "bash")
    run(embed, workplace)
    run(train, workplace, **TINY_RUN)
    assert (cases / "run" / "model.pt").is_file()
    assert (cases / "run" / "previews" / "truth.png").is_file()
    run(ask, workplace, **TINY_INFERENCE)
    report = json.loads(next((cases / "answer").rglob("*_seg.json")).read_text())
    found = {entry["name"]: entry["label"] for entry in report["structures"]}
    assert found == {"Pineal gland": 1001, "Brain-stem": 13}


# --- the weights that a run may start from ----------------------------------------------------------------------------


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
