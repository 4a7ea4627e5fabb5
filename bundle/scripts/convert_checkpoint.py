"""Convert the published checkpoints' parameter names to ours, strictly: every tensor accounted for, none guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

FIRST_CONVOLUTION = "backbone.encoder.stages.0.0.convs.0.conv.weight"
TRAINING_HEADS = "mid_mask_embed_proj."

# Each published convolution block is registered twice; `all_modules` names the same tensors once more.
_ALIAS = re.compile(r"\.all_modules\.(\d)\.")
_ALIAS_OF = {"0": ".conv.", "1": ".norm."}

_RENAME: tuple[tuple[str, str], ...] = (
    (r"^backbone\.encoder\.stages\.(\d+)\.0\.convs\.(\d)\.conv\.", r"backbone.encoder.\1.\2.conv."),
    (r"^backbone\.encoder\.stages\.(\d+)\.0\.convs\.(\d)\.norm\.", r"backbone.encoder.\1.\2.adn.N."),
    (r"^backbone\.decoder\.stages\.(\d+)\.convs\.(\d)\.conv\.", r"backbone.decoder.\1.\2.conv."),
    (r"^backbone\.decoder\.stages\.(\d+)\.convs\.(\d)\.norm\.", r"backbone.decoder.\1.\2.adn.N."),
    (r"^backbone\.decoder\.transpconvs\.(\d+)\.", r"backbone.upsample.\1."),
    (r"^projection_layer\.", r"query_decoder.projection."),
    (r"^transformer_decoder\.layers\.(\d+)\.multihead_attn\.", r"query_decoder.layers.\1.attention."),
    (r"^transformer_decoder\.layers\.(\d+)\.norm1\.", r"query_decoder.layers.\1.unused_norm."),
    (r"^transformer_decoder\.layers\.(\d+)\.norm2\.", r"query_decoder.layers.\1.attention_norm."),
    (r"^transformer_decoder\.layers\.(\d+)\.norm3\.", r"query_decoder.layers.\1.feedforward_norm."),
    (r"^transformer_decoder\.layers\.(\d+)\.(linear[12])\.", r"query_decoder.layers.\1.\2."),
    (r"^transformer_decoder\.norm\.", r"query_decoder.norm."),
    (r"^mid_mask_embed_proj\.(\d)\.", r"level_embeddings.\1."),
    (r"^mask_embed_proj\.", r"mask_head.embedding."),
    (r"^fusion_conv\.convs\.0\.conv\.", r"mask_head.fusion.conv."),
    (r"^fusion_conv\.convs\.0\.norm\.", r"mask_head.fusion.adn.N."),
)


def is_alias(name: str) -> bool:
    """Whether a published name is a second one of a tensor."""
    return _ALIAS.search(name) is not None


def original_of(alias: str) -> str:
    """The first name of the tensor that an alias names once more."""
    return _ALIAS.sub(lambda match: _ALIAS_OF.get(match[1], match[0]), alias)


def without_module(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without ``module.`` before its names.

    Raises:
        ValueError: if a name is there with and without it.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    if len(plain) < len(state_dict):
        twice = next(name for name in plain if name in state_dict and f"module.{name}" in state_dict)
        raise ValueError(f"'{twice}' is there twice, with and without 'module.'; which of them counts is unknown")
    return plain


def _rename(name: str) -> str:
    for pattern, replacement in _RENAME:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    raise ValueError(f"'{name}' is no parameter of the published Medal S layout")


def convert_reference_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a published Medal S state dict to the names of ``scripts.networks.MedalS``.

    Args:
        state_dict: the published ``model_state_dict``, with or without ``module.`` before every name, and with or
            without the ``mid_mask_embed_proj`` entries that only training needs. Aliases of one tensor must agree.

    Returns:
        The same tensors under our names, each once; loads with ``strict=True`` into ``MedalS(deep_supervision=True)``
        where the training heads are in it, else into ``MedalS()``.

    Raises:
        ValueError: if a name is not of the published layout, if a tensor is missing under its own name, or if two
            names of one tensor hold different values, or with and without ``module.``.
    """
    plain = without_module(state_dict)
    originals = {name: tensor for name, tensor in plain.items() if not is_alias(name)}
    converted = {_rename(name): tensor for name, tensor in originals.items()}
    for name in plain.keys() - originals.keys():
        original = original_of(name)
        if original not in originals:
            raise ValueError(f"'{name}' is an alias of '{original}', which the checkpoint lacks")
        if not torch.equal(plain[name], originals[original]):
            raise ValueError(f"'{name}' and '{original}' should be one tensor but hold different values")
    return converted


def as_two_channels(weight: torch.Tensor) -> torch.Tensor:
    """The first convolution of a network without foreground prompt, for input of image and foreground prompt.

    SAT (Zhao et al., arXiv 2312.17183) repeats the image on each of its channels: one channel with the sum of their
    weights gives the same. The foreground prompt, which it does not know, gets weights of zero.

    Args:
        weight: ``[out, channels, k, k, k]``.

    Returns:
        ``[out, 2, k, k, k]``.
    """
    summed = weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    return torch.cat([summed, torch.zeros_like(summed)], dim=1)
