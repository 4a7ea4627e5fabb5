"""Write a converted network to a file, and check the file against the published layers."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from scripts.errors import InputError
from scripts.networks import MedalS
from scripts.published.checkpoint_file import Checkpoint
from scripts.published.import_report import ImportedNetwork, SelfCheck
from scripts.published.layouts import MEDAL_S, Conversion, convert, reference_of
from scripts.weights import read_plain, sha256_of

logger = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOLERANCE = 1e-3  # absolute on logits in float32, as for the parity with the published code
QUERIES = 2


def import_network(
    checkpoint: Checkpoint, network: MedalS, role: str, target: Path, output: str, dtype: str | None
) -> ImportedNetwork:
    """Convert a checkpoint to a state dict of ours in ``target`` and check what was written.

    One network's tensors are in memory at a time, besides those that the check computes with.

    Args:
        checkpoint: see ``convert``.
        network: what it is for, on the meta device.
        role: for the report.
        target: file to write, a temporary one.
        output: its name in the end, for the report.
        dtype: one of ``DTYPES``, or None to keep the checkpoint's.

    Raises:
        InputError: the checkpoint does not fit, does not survive the ``dtype``, or gives other logits than its source.
    """
    conversion = convert(checkpoint, network)
    state = {name: _as_stored(tensor, dtype, f"{checkpoint.name}: {name}") for name, tensor in conversion.state.items()}
    with target.open("wb") as stream:  # by its name torch.save would write that into the file, too
        torch.save(state, stream)
    dtypes = _dtypes(state)
    parameters = sum(tensor.numel() for tensor in state.values())
    del state
    check = _check(conversion, network, target, exact=dtypes == _dtypes(conversion.source))
    logger.info("%s: logits differ by at most %.2g", output, check.largest_difference)
    return ImportedNetwork(
        role=role,
        source=checkpoint.name,
        source_sha256=checkpoint.sha256,
        source_size=checkpoint.size,
        source_dtypes=_dtypes(checkpoint.state),
        source_tensors=len(checkpoint.state),
        layout=conversion.layout,
        step=checkpoint.step,
        output=output,
        output_sha256=sha256_of(target),
        output_size=target.stat().st_size,
        output_dtypes=dtypes,
        output_tensors=len(conversion.state),
        parameters=parameters,
        renamed=conversion.renamed,
        dropped_aliases=conversion.aliases,
        dropped_training_heads=conversion.training_heads,
        dropped_entries=list(checkpoint.left_out),
        check=check,
    )


def _as_stored(tensor: torch.Tensor, dtype: str | None, name: str) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise InputError(f"{name} holds {tensor.dtype}, wanted floating point numbers")
    stored = tensor.detach() if dtype is None else tensor.detach().to(DTYPES[dtype])
    if not bool(torch.isfinite(stored).all()):
        raise InputError(f"{name} has numbers too large for {dtype}; choose --dtype bfloat16 or float32")
    # A view would take all of the storage that it is a part of into the file.
    own = stored.untyped_storage().nbytes() == stored.numel() * stored.element_size()
    return stored if own and stored.is_contiguous() else stored.clone(memory_format=torch.contiguous_format)


def _dtypes(state: Mapping[str, torch.Tensor]) -> list[str]:
    return sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})


def _check(conversion: Conversion, network: MedalS, file: Path, exact: bool) -> SelfCheck:
    """Logits of the source through the published layers, and of the file through our network; one after the other."""
    divisor = network.divisor
    # Two cells at the bottleneck, where instance normalisation needs more than one.
    shape = (2 * divisor, divisor, divisor)
    generator = torch.Generator().manual_seed(0)
    image = 255 * torch.rand(1, 1, *shape, generator=generator)
    queries = torch.randn(1, QUERIES, network.query_decoder.dim, generator=generator)
    prompts = (torch.rand(1, QUERIES, *shape, generator=generator) > 0.7).float()
    with torch.inference_mode():
        expected = reference_of(conversion, network)(image, queries, prompts)
        gc.collect()
        wide = {name: tensor.float() for name, tensor in read_plain(file, mmap=True).items()}
        network.load_state_dict(wide, strict=True, assign=True)
        given = prompts if conversion.layout == MEDAL_S else None
        logits = network(image, queries, given)
    if not bool(torch.isfinite(logits).all() and torch.isfinite(expected).all()):
        raise InputError("weights: the converted network gives logits that are not finite; these weights are broken")
    check = SelfCheck(shape, float((logits - expected).abs().max()), float(expected.std()))
    if exact and check.largest_difference > TOLERANCE * max(1.0, check.standard_deviation):
        raise InputError(
            f"weights: the converted network's logits differ from the source's by {check.largest_difference:.2g}, "
            f"where at most {TOLERANCE:g} was expected; please report this with the versions of torch and MONAI"
        )
    return check
