"""Pages of the documentation as programs: their fenced blocks, a place to run them in, and a quick way to run them."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from transformers import BertConfig, BertModel, BertTokenizerFast

from scripts.text import EmbeddingBank, Terminology

logger = logging.getLogger(__name__)
TINY_NETWORK: dict[str, Any] = {"text_dim": 16, "query_dim": 24, "features": [4, 8], "strides": [1, 2]}
TINY_TRAINING = {
    **TINY_NETWORK,
    "roi_size": [16, 16, 16],
    "segment_steps": [6],
    "segment_warmup": [2],
    "val_interval": 3,
    "val_samples": 2,
    "num_workers": 0,
}
TINY_INFERENCE = {**TINY_NETWORK, "roi_size": [32, 32, 32], "progress": False}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language and its text."""

    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a block of shell; comments left out, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="session")
def docs_dir(bundle_dir: Path) -> Path:
    """The folder of the documentation."""
    return bundle_dir.parent / "docs"


@pytest.fixture(scope="session")
def blocks(docs_dir: Path) -> Callable[[str], list[Block]]:
    """``blocks(name)``: the fenced blocks of a page, in order."""

    def read(name: str) -> list[Block]:
        text = (docs_dir / name).read_text(encoding="utf-8")
        return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)]

    return read


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[list[str], Path], str]]:
    """``python(words, folder)``: run a Python command there; returns what it printed, and fails where it does."""
    log = tmp_path_factory.mktemp("python") / "log.txt"
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("warm_python.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )

    def run(words: list[str], folder: Path) -> str:
        assert server.stdin is not None
        assert server.stdout is not None
        log.write_text("")
        started = time.perf_counter()
        server.stdin.write(json.dumps({"words": words, "folder": str(folder), "log": str(log)}) + "\n")
        server.stdin.flush()
        code, _, seconds = server.stdout.readline().strip().partition(" ")
        output = log.read_text()
        logger.info("%.1f s, CPU %s s: %r", time.perf_counter() - started, seconds, shlex.join(words)[:100])
        assert code == "0", f"{shlex.join(words)} ended with {code}:\n{output[-3000:]}"
        return output

    with server:
        yield run
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture(scope="session")
def follow(
    blocks: Callable[[str], list[Block]], python: Callable[[list[str], Path], str]
) -> Callable[[str, Path, Mapping[str, Any] | None], list[str]]:
    """``follow(page, folder, sizes)``: do what a page says, in ``folder``; what each step printed.

    ``sizes`` maps a module's first words, such as ``monai.bundle run training``, to keys that make its run small.
    """

    def done(page: str, folder: Path, sizes: Mapping[str, Any] | None = None) -> list[str]:
        outputs = []
        code: list[str] = []
        for block in blocks(page):
            if block.language == "python":
                code.append(block.text)
            if block.language != "bash":
                continue
            if code:  # blocks of Python that follow each other are one program
                outputs.append(python(["-c", "\n".join(code)], folder))
                code = []
            for program, *words in block.commands:
                assert program == "python", f"{page}: {program}"
                keys = next((v for k, v in (sizes or {}).items() if " ".join(words).startswith(f"-m {k}")), {})
                outputs.append(python([*words, *(w for k, v in keys.items() for w in (f"--{k}", str(v)))], folder))
        if code:
            outputs.append(python(["-c", "\n".join(code)], folder))
        return outputs

    return done


def _beside(folder: Path, parts: Mapping[str, Path]) -> Path:
    """A ``bundle`` made of links; a folder of its own, so that ``..`` is ``folder`` and not the repository."""
    (folder / "bundle").mkdir()
    for name, part in parts.items():
        (folder / "bundle" / name).symlink_to(part)
    return folder


@pytest.fixture
def shipped(bundle_dir: Path, tmp_path: Path) -> Path:
    """A folder that holds ``bundle``, the repository's own; pages write beside it."""
    return _beside(tmp_path, {name: bundle_dir / name for name in ("configs", "scripts", "docs", "models")})


@pytest.fixture(scope="session")
def tiny_models(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the repository's configs and code, tiny weights and a tiny encoder of sentences."""
    bundle = tmp_path_factory.mktemp("tiny") / "bundle"
    (bundle / "models").mkdir(parents=True)
    for name in ("configs", "scripts", "docs"):
        (bundle / name).symlink_to(bundle_dir / name)
    parser = ConfigParser()
    parser.read_config(str(bundle_dir / "configs" / "small_network.json"))
    parser.update(TINY_NETWORK)
    torch.manual_seed(0)
    torch.save(parser.get_parsed_content("network_def").state_dict(), bundle / "models" / "model.pt")
    sentences = Terminology.load().all_sentences()
    vectors = torch.randn(len(sentences), TINY_NETWORK["text_dim"])
    EmbeddingBank(sentences, vectors, "tiny").save(bundle / "models" / "text_embeddings.safetensors")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "pineal", "gland", "body", "brain", "stem", "left", "right", "-"]
    encoder = bundle / "sentence-transformers" / "all-MiniLM-L6-v2"
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(encoder)
    (encoder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(encoder / "vocab.txt")).save_pretrained(encoder)
    return bundle


@pytest.fixture
def tiny(tiny_models: Path, tmp_path: Path) -> Path:
    """A folder that holds a tiny ``bundle``; pages write beside it."""
    return _beside(tmp_path, {part.name: part for part in tiny_models.iterdir()})


@pytest.fixture(scope="session")
def write_cases() -> Callable[[Path, int], None]:
    """``write_cases(folder, count)``: heads of 48 mm with two structures, as ``images`` and ``labels``."""

    def write(folder: Path, count: int) -> None:
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True)
        rng = np.random.default_rng(0)
        affine = np.diag([3.0, 3.0, 3.0, 1.0])
        for index in range(count):
            label = np.zeros((16, 16, 16), dtype=np.uint8)
            label[3:6, 4:12, 4 : 10 + index % 3] = 1
            label[9:13, 4:12, 4:12] = 2
            image = np.array([10.0, 200.0, 100.0])[label] + rng.normal(0, 5, label.shape)
            nib.save(nib.Nifti1Image(image.astype(np.float32), affine), folder / "images" / f"case_{index}.nii.gz")
            nib.save(nib.Nifti1Image(label, affine), folder / "labels" / f"case_{index}.nii.gz")

    return write


@pytest.fixture(scope="session")
def small_runs() -> dict[str, dict[str, Any]]:
    """Keys that make the commands of a page small, for ``follow``."""
    return {"monai.bundle run training": TINY_TRAINING, "monai.bundle run --config_file": TINY_INFERENCE}
