"""Released files as the authors publish them, with the same names and nesting, made small and filled at random."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, MPNetConfig

from scripts.published.reference_network import PublishedNetwork, Sizes

State = dict[str, torch.Tensor]

SIZES = Sizes(features=(8, 16, 24, 32), strides=(1, 2, 2, 2), width=16, heads=8, layers=1, feedforward=32, hidden=16)
OVERLAY_KEYS: dict[str, Any] = {"features": [8, 16, 24, 32], "strides": [1, 2, 2, 2], "query_dim": 16, "text_dim": 16}
COARSE = "nano_UNet_CVPR2025_crop_size_224_224_128_spacing_1.5_1.5_3.0_step_358600.pth"
FINE = "nano_UNet_CVPR2025_crop_size_192_192_192_spacing_1.0_1.0_1.0_step_341300.pth"
LANGUAGE_MODEL = "BioLORD-2023-C"
WORDS = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>", "[CLS]", "[SEP]", "left", "right", "kidney", "liver"]


@dataclass(frozen=True)
class Makers:
    """What makes released files.

    Attributes:
        network: ``(seed, in_channels, fusion)`` to the state dict of a published network, aliases and heads included.
        text_encoder: ``(seed, modalities)`` to the state dict of a published text encoder.
        checkpoint: a state dict to what the authors' trainer saves.
        language_model: writes configuration and tokenizer of the language model into a folder.
        overlay: writes an overlay of a release for networks of the small sizes, given its name, into a folder.
        sizes: of the networks.
    """

    network: Callable[..., State]
    text_encoder: Callable[..., State]
    checkpoint: Callable[..., dict[str, Any]]
    language_model: Callable[[Path], Path]
    overlay: Callable[..., Path]
    sizes: Sizes


def network_state(seed: int, in_channels: int = 2, fusion: bool = True, sizes: Sizes = SIZES) -> State:
    """Every tensor under its name and under its alias, and the heads that only training needs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PublishedNetwork(sizes, in_channels, fusion)
        for parameter in network.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 0.5)
        state = dict(network.state_dict())
        for name in list(state):
            for number, part in enumerate((".conv.", ".norm.")):
                if ".convs." in name and part in name:
                    state[name.replace(part, f".all_modules.{number}.")] = state[name]
        for level, (hidden, channels) in enumerate(zip((256, 384, 512), sizes.features[1:-1], strict=False)):
            for layer, (wide, narrow) in ((0, (sizes.width, hidden)), (2, (hidden, channels))):
                state[f"mid_mask_embed_proj.{level}.{layer}.weight"] = torch.randn(narrow, wide)
                state[f"mid_mask_embed_proj.{level}.{layer}.bias"] = torch.randn(narrow)
    return state


def model_config(width: int = 16) -> MPNetConfig:
    return MPNetConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=300,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )


def text_encoder_state(seed: int = 0, modalities: int = 5, width: int = 16) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = AutoModel.from_config(model_config(width))
        state = {f"text_tower.biolord.{name}": tensor for name, tensor in tower.state_dict().items()}
        for layer in (0, 2):
            state[f"projection_layer.{layer}.weight"] = torch.randn(width, width) / 4
            state[f"projection_layer.{layer}.bias"] = torch.randn(width)
        state["modality_embed.weight"] = torch.randn(modalities, width)
    return state


def checkpoint_of(state: State, step: int = 358600, parallel: bool = True) -> dict[str, Any]:
    """As the authors' trainer saves it: names of DDP, and AdamW's state with the learning rate a NumPy number."""
    moments = {0: {"step": torch.tensor(float(step)), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.ones(3)}}
    group = {"lr": np.float64(1e-5), "betas": (0.9, 0.999), "params": [0], "foreach": None}
    return {
        "step": step,
        "model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()} if parallel else state,
        "optimizer_state_dict": {"state": moments, "param_groups": [group]},
    }


def write_language_model(folder: Path) -> Path:
    """The language model's folder without weights."""
    folder.mkdir(parents=True)
    model_config().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MPNetTokenizer"}))
    return folder


@pytest.fixture(scope="session")
def makers(bundle_dir: Path) -> Makers:
    """See ``Makers``."""

    def overlay(folder: Path, name: str = "published") -> Path:
        content = json.loads((bundle_dir / "configs" / f"{name}.json").read_text()) | OVERLAY_KEYS
        content["network_def"]["mask_head"]["hidden"] = SIZES.hidden
        content["network_def"]["query_decoder"] |= {"num_layers": SIZES.layers, "feedforward": SIZES.feedforward}
        content |= {"roi_size": [32, 32, 16], "fine_roi_size": [24, 24, 24]}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content))
        return folder / f"{name}.json"

    return Makers(network_state, text_encoder_state, checkpoint_of, write_language_model, overlay, SIZES)


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as the hub's repository gives: two networks, the text encoder and the language model's folder.

    The coarse checkpoint names NumPy's scalars as NumPy 1 did, the fine one as NumPy 2 does.
    """
    folder = tmp_path_factory.mktemp("release") / "Medal-S-V1.0"
    folder.mkdir()
    torch.save(checkpoint_of(network_state(1)), folder / COARSE)
    name_as_numpy_1(folder / COARSE)
    torch.save(checkpoint_of(network_state(2), step=341300, parallel=False), folder / FINE)
    torch.save({"step": 10, "model_state_dict": text_encoder_state()}, folder / "text_encoder.pth")
    write_language_model(folder / LANGUAGE_MODEL)
    return folder


def name_as_numpy_1(file: Path) -> None:
    """Rewrite a checkpoint's pickle: the module was called ``numpy.core`` before."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"numpy._core.", b"numpy.core."))
