"""The published Medal S text encoder: BioLORD-2023-C with the weights of ``text_encoder.pth``, read strictly.

The published file holds every weight of the language model as well as what the wrapper adds, under the names

- ``text_tower.biolord.*``: the language model, as transformers names its parts;
- ``projection_layer.{0,2}.{weight,bias}``: Linear-GELU-Linear on the pooled state;
- ``modality_embed.weight``: one vector each for CT, MRI, US, PET and microscopy;

each perhaps behind ``module.``, in a bare state dict or under a key such as ``model_state_dict``. From the model's
folder or hub page only the configuration and the tokenizer are read, so a folder without weights suffices.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.weights import describe_misfit, read_plain, sha256_of

from .text_encoder import TextEncoder, TextHead

logger = logging.getLogger(__name__)

PUBLISHED_MODEL = "FremyCompany/BioLORD-2023-C"
TOWER_PREFIX = "text_tower.biolord."
WRAPPING_KEYS = ("model_state_dict", "state_dict", "model")
IGNORED_PREFIXES = ("atlas_tower.", "temperature")  # of the published pre-training; no query passes through them
NUM_MODALITIES = 5
MAX_TOKENS = 256


def load_published_encoder(
    model: str | Path = PUBLISHED_MODEL,
    head: str | Path = "text_encoder.pth",
    identity: str | None = None,
    local_files_only: bool = False,
    batch_size: int = 64,
) -> PublishedEncoder:
    """The published encoder; equal arguments give the same object, so that one process reads the weights once.

    Nothing but the head file's hash is read here; the rest follows when a sentence is first encoded.

    Args:
        model: folder or hub name with the language model's ``config.json`` and tokenizer; weights need not be there.
        head: the published ``text_encoder.pth``.
        identity: see ``PublishedEncoder``.
        local_files_only: never reach for the network.
        batch_size: sentences encoded at a time.

    Raises:
        ValueError: no such head file.
    """
    file = Path(head)
    if not file.is_file():
        raise ValueError(f"text encoder: no file {file}; give the path of the published text_encoder.pth")
    state = file.stat()
    # Size and time are part of the key: a file that was replaced is another encoder.
    return _shared_encoder(
        str(model), file.resolve(), (state.st_size, state.st_mtime_ns), identity, local_files_only, batch_size
    )


class PublishedEncoder(TextEncoder):
    """Sentences to query vectors by the published recipe; use ``load_published_encoder`` to share one per process.

    Args:
        model: see ``load_published_encoder``.
        head: see ``load_published_encoder``.
        identity: name under which vectors are kept; by default the model's own name and the start of the head file's
            SHA-256, so that a bank made with another head is refused.
        local_files_only: never reach for the network.
        batch_size: sentences encoded at a time.

    Raises:
        ValueError: on first use, if model or head cannot be read or do not fit each other (which entries).
    """

    def __init__(
        self,
        model: str | Path,
        head: str | Path,
        identity: str | None = None,
        local_files_only: bool = False,
        batch_size: int = 64,
    ) -> None:
        super().__init__(
            model,
            project=True,
            num_modalities=NUM_MODALITIES,
            special_tokens="written",
            max_length=MAX_TOKENS,
            identity=identity or f"{Path(model).name}+{sha256_of(Path(head))[:12]}",
            local_files_only=local_files_only,
            batch_size=batch_size,
        )
        self.head_file = Path(head)

    def _read_modules(self) -> tuple[nn.Module, TextHead]:
        entries = published_entries(self.head_file)
        tower = self._empty_tower()
        head = TextHead(int(tower.config.hidden_size), self.project, self.num_modalities)
        _check_entries(entries, _wanted_entries(tower, head), self.head_file.name)
        head.load_state_dict({name: entries[name] for name in head.state_dict()})
        tower.load_state_dict(
            {key.removeprefix(TOWER_PREFIX): value for key, value in entries.items() if key.startswith(TOWER_PREFIX)}
        )
        return tower, head

    def _empty_tower(self) -> Any:
        from transformers import AutoConfig, AutoModel  # heavy, and never needed while the bank suffices

        try:
            config = AutoConfig.from_pretrained(self.model_name, **self._source_options())
            return AutoModel.from_config(config, trust_remote_code=False).float()
        except (OSError, ValueError) as error:
            raise self._unusable(error, "a config.json") from error


def published_entries(file: str | Path) -> dict[str, Tensor]:
    """The encoder's tensors in a published file, without ``module.`` and without what no query needs.

    Nothing in the file is run: it is read with ``torch.load(weights_only=True)``.

    Raises:
        ValueError: the file is missing, damaged, holds anything but plain tensors, or no state dict.
    """
    path = Path(file)
    content = _read_plain(path)
    for key in WRAPPING_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(map(torch.is_tensor, content.values())):
        raise ValueError(
            f"text encoder: {path.name} holds no state dict (names to tensors), bare or under one of "
            f"{', '.join(WRAPPING_KEYS)}; give the published text_encoder.pth"
        )
    entries = {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    # Older releases of transformers kept the running numbers of the positions among the weights.
    return {
        name: tensor
        for name, tensor in entries.items()
        if not name.startswith(IGNORED_PREFIXES) and not name.endswith(".position_ids")
    }


def _read_plain(path: Path) -> object:
    try:
        return read_plain(path)
    except InputError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise ValueError(
                f"text encoder: {path.name} is refused: it holds something other than plain tensors, and opening that "
                "could run code; give the published text_encoder.pth, or a state dict saved by torch.save"
            ) from error
        raise ValueError(
            f"text encoder: {path.name} is missing, damaged or cut short ({type(error.__cause__).__name__}): download "
            "it again"
        ) from error


def _wanted_entries(tower: nn.Module, head: TextHead) -> dict[str, Tensor]:
    return {f"{TOWER_PREFIX}{name}": tensor for name, tensor in tower.state_dict().items()} | head.state_dict()


def _check_entries(entries: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Raise one ValueError that names missing, unexpected and mis-shaped entries, if there are any."""
    if misfit := describe_misfit(entries, wanted):
        raise ValueError(
            f"text encoder: {source} does not fit the language model: it {misfit}; "
            f"give the model it was trained with (published: {PUBLISHED_MODEL})"
        )


@lru_cache(maxsize=2)
def _shared_encoder(
    model: str,
    head: Path,
    version: tuple[int, int],
    identity: str | None,
    local_files_only: bool,
    batch_size: int,
) -> PublishedEncoder:
    return PublishedEncoder(model, head, identity, local_files_only, batch_size)
