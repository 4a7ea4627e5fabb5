"""Export the network of one stage of an inference config, and compare what comes out with the network itself."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.errors import InputError
from scripts.export.archive import PROGRAM_SUFFIX, write_archive
from scripts.export.facts import ProgramFacts
from scripts.export.network import load_exported
from scripts.export.program import export_program
from scripts.metadata import program as bundle_program
from scripts.networks import MedalS
from scripts.weights import load_weights, sha256_of

# The config's keys for the network and the weights of each stage, and the network's name in a file that holds both.
STAGES = {
    "coarse": ("network_def", "weights", "coarse"),
    "fine": ("fine_network_def", "fine_weights", "fine"),
}
# On one machine the same operators run in the same order; more than rounding would be another network.
TOLERANCE = 1e-4
PROBE_QUERIES = 2


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: of it.
        difference: largest absolute difference of its logits to the network's, on random input.
        facts: what the file says of itself.
    """

    path: Path
    difference: float
    facts: ProgramFacts


def read_export_config(bundle: Path, overlays: list[str], **overrides: Any) -> ConfigParser:
    """The inference config with overlays, for ``export_stage``.

    Args:
        bundle: folder of the bundle.
        overlays: config files.
        overrides: keys to replace.
    """
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / "inference.json"), *overlays])
    parser.update({"bundle_root": str(bundle), **overrides})
    return parser


def export_stage(parser: ConfigParser, stage: str, folder: Path) -> Exported:
    """Write ``<name of the weights>.pt2``.

    Args:
        parser: of ``read_export_config``.
        stage: "coarse" or "fine".
        folder: where to.

    Raises:
        InputError: no or other weights, a network of another kind, or a folder that cannot be written to.
    """
    network_key, weights_key, part = STAGES[stage]
    weights = Path(parser.get_parsed_content(weights_key))
    network = parser.get_parsed_content(network_key)
    if not isinstance(network, MedalS):
        raise InputError(f"export: {network_key} must be a MedalS network, got {type(network).__name__}")
    load_weights(network, weights, part)
    facts = ProgramFacts(
        divisor=network.divisor,
        query_width=int(parser.get_parsed_content("text_dim")),
        weights=weights.name,
        weights_sha256=sha256_of(weights),
        bundle=" ".join(bundle_program(parser.get_parsed_content("metadata")).values()),
        torch=torch.__version__,
    )
    path = folder / f"{weights.stem}{PROGRAM_SUFFIX}"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished_") as scratch:
        trial = write_archive(export_program(network, facts.query_width), facts, Path(scratch) / path.name)
        difference = largest_difference(network, trial, facts)
        if not difference <= TOLERANCE:
            raise InputError(
                f"export: {path.name} differs from the network by {difference:.1e} in its logits, more than "
                f"{TOLERANCE:.0e}: it was not kept; please report it with the version of torch, {facts.torch}"
            )
        trial.replace(path)
    return Exported(path, difference, facts)


def largest_difference(network: MedalS, path: Path, facts: ProgramFacts) -> float:
    """How far the logits of a file are from the network's, on one random patch of other sizes than the example's."""
    random = torch.Generator().manual_seed(0)
    sides = [facts.smallest_side] * 3
    image = torch.randn(1, 1, *sides, generator=random)
    queries = torch.randn(1, PROBE_QUERIES, facts.query_width, generator=random)
    prompts = (torch.rand(1, PROBE_QUERIES, *sides, generator=random) > 0.5).float()
    exported = load_exported(path)
    with torch.no_grad():
        wanted = network.eval()(image, queries, prompts)
        return float((exported(image, queries, prompts) - wanted).abs().max())
