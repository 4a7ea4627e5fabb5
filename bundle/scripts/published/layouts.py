"""Tell the published layouts apart, and say of any other checkpoint why it is none that this network can take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from scripts.convert_checkpoint import (
    FIRST_CONVOLUTION,
    TRAINING_HEADS,
    as_two_channels,
    convert_reference_state_dict,
    is_alias,
    original_of,
)
from scripts.errors import InputError
from scripts.networks import MedalS
from scripts.networks.medal_s import PUBLISHED_LEVEL_HIDDEN
from scripts.published.checkpoint_file import Checkpoint
from scripts.published.reference_network import PublishedNetwork, Sizes
from scripts.weights import describe_misfit

MEDAL_S, SAT = "Medal S", "SAT"
MEDAL_S_CHANNELS = 2
FUSION = "fusion_conv."

# Of each: what gives it away among the names, and what that means.
_OTHERS: tuple[tuple[Callable[[str], bool], str], ...] = (
    (
        lambda name: name.startswith("text_tower."),
        "it is a text encoder, not a network; give it with --text-encoder",
    ),
    (
        lambda name: name.startswith("backbone.swinViT."),
        "its backbone is a SwinUNETR (a SAT variant), which this network has not; only U-Net backbones convert",
    ),
    (
        lambda name: "mamba" in name.lower(),
        "its backbone is a U-Mamba (a SAT variant), which this network has not; only U-Net backbones convert",
    ),
    (
        lambda name: name.startswith("query_proj."),
        "it is SAT's UNET-H, with wider queries than the text encoder's; only SAT-Nano's U-Net converts",
    ),
    (
        lambda name: name.startswith("backbone.encoder.stages.0.0.convs.2."),
        "it has three convolutions a stage (SAT-Pro, UNET-L), this network has two; only SAT-Nano's U-Net converts",
    ),
    (
        lambda name: name.startswith(("query_decoder.", "mask_head.")),
        "it has this bundle's own names already: it is converted, use it as weights",
    ),
)


@dataclass(frozen=True)
class Conversion:
    """A checkpoint's tensors under our names.

    Attributes:
        layout: ``MEDAL_S`` or ``SAT``.
        state: our names to tensors; views of the checkpoint's wherever no number changes.
        source: the published names to the tensors that count, without aliases and training heads.
        renamed: how many tensors have another name now.
        aliases: how many second names of tensors were dropped.
        training_heads: how many tensors of the heads that only training needs were dropped.
    """

    layout: str
    state: dict[str, torch.Tensor]
    source: dict[str, torch.Tensor]
    renamed: int
    aliases: int
    training_heads: int


def convert(checkpoint: Checkpoint, network: MedalS) -> Conversion:
    """Convert a published network to our names, with every tensor accounted for.

    Args:
        checkpoint: Medal S or SAT-Nano.
        network: what it is for; may be on the meta device.

    Raises:
        InputError: another layout (which, where it is known); missing, extra or mis-shaped tensors; two names of one
            tensor with different values; or a layout that the network is not built for.
    """
    layout = identify(checkpoint)
    state = checkpoint.state
    heads = {name for name in state if name.startswith(TRAINING_HEADS)}
    aliases = {name for name in state if is_alias(name)}
    wanted = _wanted(network, layout, _channels(state))
    complete = wanted | (_wanted_heads(network) if heads else {})
    expected = complete | {name: complete[original_of(name)] for name in aliases if original_of(name) in complete}
    if misfit := describe_misfit(state, expected):
        raise InputError(f"{checkpoint.name} looks like {layout}, but it {misfit}; give the file as it was published")
    kept = {name: tensor for name, tensor in state.items() if name not in heads}
    try:
        converted = convert_reference_state_dict(_for_two_channels(kept) if layout == SAT else kept)
    except ValueError as e:
        raise InputError(f"{checkpoint.name}: {e}; these weights are broken") from e
    if misfit := describe_misfit(converted, network.state_dict()):
        raise InputError(
            f"{checkpoint.name} is {layout}, which the overlay's network is not built for: it {misfit}; "
            f"choose the overlay of {layout}"
        )
    source = {name: tensor for name, tensor in kept.items() if name not in aliases}
    renamed = sum(name not in converted for name in source)
    return Conversion(layout, converted, source, renamed, len(aliases), len(heads))


def identify(checkpoint: Checkpoint) -> str:
    """``MEDAL_S`` or ``SAT``.

    Raises:
        InputError: neither; why.
    """
    state = checkpoint.state
    for gives_away, meaning in _OTHERS:
        if any(map(gives_away, state)):
            raise InputError(f"{checkpoint.name} cannot be imported as a network: {meaning}")
    if FIRST_CONVOLUTION not in state or state[FIRST_CONVOLUTION].ndim != 5:
        raise InputError(
            f"{checkpoint.name} is no published network: wanted {FIRST_CONVOLUTION}, got {_some(list(state))}"
        )
    channels, fusion = _channels(state), any(name.startswith(FUSION) for name in state)
    if fusion:
        return MEDAL_S
    if channels != MEDAL_S_CHANNELS:
        return SAT
    raise InputError(
        f"{checkpoint.name} is neither Medal S nor SAT: it takes {channels} channels, as Medal S, but lacks {FUSION}*, "
        "which reads its spatial prompts"
    )


def reference_of(conversion: Conversion, network: MedalS) -> PublishedNetwork:
    """The published layers with the checkpoint's own tensors in float32, for comparison with what was converted."""
    with torch.device("meta"):
        reference = _reference(network, conversion.layout, _channels(conversion.source))
    wide = {name: tensor.float() for name, tensor in conversion.source.items()}
    reference.load_state_dict(wide, strict=True, assign=True)
    return reference.eval()


def _reference(network: MedalS, layout: str, channels: int) -> PublishedNetwork:
    medal_s = layout == MEDAL_S
    return PublishedNetwork(Sizes.of(network), MEDAL_S_CHANNELS if medal_s else channels, fusion=medal_s)


def _wanted(network: MedalS, layout: str, channels: int) -> dict[str, torch.Tensor]:
    """Published names and, as tensors without memory, shapes."""
    with torch.device("meta"):
        return dict(_reference(network, layout, channels).state_dict())


def _wanted_heads(network: MedalS) -> dict[str, torch.Tensor]:
    """The heads for deep supervision: all of them, or none."""
    width, features = network.query_decoder.dim, network.backbone.features[1:-1]
    shapes: dict[str, tuple[int, ...]] = {}
    for level, (hidden, channels) in enumerate(zip(PUBLISHED_LEVEL_HIDDEN, features, strict=False)):
        for layer, (wide, narrow) in ((0, (width, hidden)), (2, (hidden, channels))):
            shapes[f"{TRAINING_HEADS}{level}.{layer}.weight"] = (narrow, wide)
            shapes[f"{TRAINING_HEADS}{level}.{layer}.bias"] = (narrow,)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _for_two_channels(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """SAT's tensors, the first convolution under all of its names for image and foreground prompt."""
    first = {name for name in state if name == FIRST_CONVOLUTION or original_of(name) == FIRST_CONVOLUTION}
    return {name: as_two_channels(tensor) if name in first else tensor for name, tensor in state.items()}


def _channels(state: Mapping[str, torch.Tensor]) -> int:
    return int(state[FIRST_CONVOLUTION].shape[1])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
