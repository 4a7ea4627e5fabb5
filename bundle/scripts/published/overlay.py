"""What an overlay of the inference config says of published weights: their files, our files, and the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.config_files import BUNDLE, config_file
from scripts.errors import InputError
from scripts.networks import MedalS

SOURCE_KEY = "published_source"
NETWORK_ROLES = ("weights", "fine_weights")
TEXT_ROLE = "text_encoder"
BANK_KEY = "embeddings"


@dataclass(frozen=True)
class PublishedModel:
    """One release, as an overlay describes it.

    Attributes:
        name: of the overlay.
        repository: on the hub.
        patterns: how the released files are called, by role: ``weights``, ``fine_weights``, ``text_encoder``.
        language_model: hub name of the language model whose configuration and tokenizer the text encoder needs.
        outputs: names of the files that the overlay reads, by role; the text encoder's is the embedding bank.
        overlay: the file.
    """

    name: str
    repository: str
    patterns: dict[str, str]
    language_model: str
    outputs: dict[str, str]
    overlay: Path

    def network(self) -> MedalS:
        """The network of the overlay, without memory for its parameters (on PyTorch's meta device)."""
        with torch.device("meta"):
            network = _parser(self.overlay).get_parsed_content("network_def")
        if not isinstance(network, MedalS):
            raise InputError(f"{self.overlay.name}: network_def is a {type(network).__name__}, wanted a MedalS")
        return network.eval()


def read_overlay(overlay: str | Path = "published") -> PublishedModel:
    """The release that an overlay belongs to.

    Args:
        overlay: name of one in ``configs/``, or a file.

    Raises:
        InputError: no such overlay, or none of published weights.
    """
    known = _known()
    file = Path(config_file(overlay, "import-weights", known))
    parser = _parser(file)
    source = parser.get(SOURCE_KEY)
    if not isinstance(source, dict):
        raise InputError(
            f"overlay {overlay} belongs to no published weights: it has no {SOURCE_KEY}; try {', '.join(_known())}"
        )
    roles = [role for role in (*NETWORK_ROLES, TEXT_ROLE) if role in source]
    keys = {role: BANK_KEY if role == TEXT_ROLE else role for role in roles}
    return PublishedModel(
        name=file.stem,
        repository=str(source["repository"]),
        patterns={role: str(source[role]) for role in roles},
        language_model=str(source["language_model"]),
        outputs={role: Path(parser.get_parsed_content(key)).name for role, key in keys.items()},
        overlay=file,
    )


def _parser(overlay: Path) -> Any:
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / "inference.json"), str(overlay)])
    return parser


def _known() -> list[str]:
    files = sorted((BUNDLE / "configs").glob("*.json"))
    return [file.stem for file in files if SOURCE_KEY in ConfigParser.load_config_file(str(file))]
