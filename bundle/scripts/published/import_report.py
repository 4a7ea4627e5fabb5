"""The report of an import: what was read and written, what was left out, and how far the two networks' answers lie."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = 1


@dataclass(frozen=True)
class SelfCheck:
    """The published layers with the source's tensors against our network with the written file's, in float32.

    Attributes:
        shape: (H, W, D) of the random image.
        largest_difference: of the logits, absolute.
        standard_deviation: of the source's logits, to judge the difference by.
    """

    shape: tuple[int, ...]
    largest_difference: float
    standard_deviation: float


@dataclass(frozen=True)
class ImportedNetwork:
    """One network; counts are of tensors, sizes in bytes, hashes SHA-256."""

    role: str
    source: str
    source_sha256: str
    source_size: int
    source_dtypes: list[str]
    source_tensors: int
    layout: str
    step: int | None
    output: str
    output_sha256: str
    output_size: int
    output_dtypes: list[str]
    output_tensors: int
    parameters: int
    renamed: int
    dropped_aliases: int
    dropped_training_heads: int
    dropped_entries: list[str]
    check: SelfCheck


@dataclass(frozen=True)
class ImportedBank:
    """The embedding bank; ``targets`` are the pairs of structure and modality in the terminology, all of them in it."""

    source: str
    source_sha256: str
    source_size: int
    language_model: str
    output: str
    output_sha256: str
    output_size: int
    encoder: str
    sentences: int
    structures: int
    targets: int
    width: int


@dataclass
class ImportReport:
    """All of an import."""

    overlay: str
    repository: str | None
    revision: str | None
    versions: dict[str, str]
    networks: list[ImportedNetwork] = field(default_factory=list)
    bank: ImportedBank | None = None

    def keep(self, earlier: Mapping[str, Any], still_there: Callable[[str, str], bool]) -> None:
        """Take over what an earlier report says of files that this import left as they were.

        Args:
            earlier: of ``to_dict``; what cannot be read in it is dropped.
            still_there: whether a file, by its name and SHA-256, is.
        """
        anew = {network.output for network in self.networks}
        for entry in earlier.get("networks") or []:
            with suppress(TypeError, KeyError):
                network = ImportedNetwork(**{**entry, "check": SelfCheck(**entry["check"])})
                if network.output not in anew and still_there(network.output, network.output_sha256):
                    self.networks.append(network)
        self.networks.sort(key=lambda network: network.output)
        if self.bank is None and isinstance(earlier.get("bank"), dict):
            with suppress(TypeError):
                bank = ImportedBank(**earlier["bank"])
                self.bank = bank if still_there(bank.output, bank.output_sha256) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the same for the same import."""
        return {"format": FORMAT, **asdict(self)}

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_text(self) -> str:
        """For people: a paragraph for each file written."""
        origin = f" from {self.repository} at {self.revision}" if self.repository else ""
        lines = [f"Published weights for the overlay {self.overlay}{origin}", ""]
        for network in self.networks:
            lines += [*_network_lines(network), ""]
        if self.bank is not None:
            lines += [*_bank_lines(self.bank), ""]
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return "\n".join([*lines, f"Made with {versions}.", ""])


def _network_lines(network: ImportedNetwork) -> list[str]:
    dropped = [
        f"{network.dropped_aliases} second names of tensors" if network.dropped_aliases else "",
        f"{network.dropped_training_heads} tensors of training heads" if network.dropped_training_heads else "",
        ", ".join(network.dropped_entries),
    ]
    check = network.check
    return [
        f"{network.output}: {network.output_tensors} tensors, {network.parameters:,} parameters, "
        f"{', '.join(network.output_dtypes)}, {network.output_size:,} bytes",
        f"  SHA-256 {network.output_sha256}",
        f"  from    {network.source} ({network.layout}{_step(network.step)}): {network.source_tensors} tensors, "
        f"{', '.join(network.source_dtypes)}, {network.source_size:,} bytes",
        f"  SHA-256 {network.source_sha256}",
        f"  renamed {network.renamed}; left out: {'; '.join(filter(None, dropped)) or 'nothing'}",
        f"  checked on {' x '.join(map(str, check.shape))} random voxels: logits differ by at most "
        f"{check.largest_difference:.2g} (standard deviation {check.standard_deviation:.2g})",
    ]


def _bank_lines(bank: ImportedBank) -> list[str]:
    return [
        f"{bank.output}: {bank.sentences} sentences of {bank.structures} structures ({bank.targets} targets), "
        f"width {bank.width}, {bank.output_size:,} bytes",
        f"  SHA-256 {bank.output_sha256}",
        f"  from    {bank.source} with {bank.language_model}, {bank.source_size:,} bytes",
        f"  SHA-256 {bank.source_sha256}",
        f"  made by encoder {bank.encoder}",
    ]


def _step(step: int | None) -> str:
    return "" if step is None else f", step {step}"
