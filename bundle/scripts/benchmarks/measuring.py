"""What every benchmark needs: settings, timing side by side, results with their goals, facts about the machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Any

import monai
import torch
from monai.bundle import ConfigParser

LOWER, HIGHER = "<=", ">="


@dataclass(frozen=True)
class Settings:
    """How a benchmark is to be run.

    Attributes:
        config: the inference config; what is measured is built from it.
        bundle_root: folder of the bundle.
        quick: small sizes, to see that everything runs; its numbers say nothing about the goals.
        rounds: measurements of each call; the median counts. Calls of many seconds are measured less often.
        queries: structures asked for together.
        device: where networks run.
    """

    config: tuple[str, ...]
    bundle_root: Path
    quick: bool = False
    rounds: int = 5
    queries: int = 24
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def parser(self, **overrides: Any) -> ConfigParser:
        """The config with some keys replaced; what it names is built when asked for."""
        parser = ConfigParser()
        parser.read_meta(self.bundle_root / "configs" / "metadata.json")
        parser.read_config(list(self.config))
        parser.update(
            {"bundle_root": str(self.bundle_root), "device": str(self.device), "progress": False, **overrides}
        )
        return parser

    def few_rounds(self) -> int:
        """For calls of many seconds."""
        return 1 if self.quick else min(self.rounds, 2)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: a phrase for the reader.
        value: in ``unit``.
        unit: "s", "GiB", "x" (times as fast) or "" (a ratio).
        goal: ``value`` should be at most or at least this; None where there is no goal.
        sense: "<=" or ">=".
    """

    what: str
    value: float
    unit: str = ""
    goal: float | None = None
    sense: str = LOWER

    @property
    def met(self) -> bool | None:
        """Whether the goal was reached; None without one."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.sense == LOWER else self.value >= self.goal

    def as_entry(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "met": self.met}


@dataclass(frozen=True)
class Section:
    """What one benchmark found.

    Attributes:
        title: of its part of the table.
        rows: the lines of the table.
        details: everything that was measured: seconds, sizes, counts.
        notes: what the reader has to know to judge the numbers.
    """

    title: str
    rows: list[Row]
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_entry(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        rows = [row.as_entry() for row in self.rows]
        return {"title": self.title, "rows": rows, "details": dict(self.details), "notes": list(self.notes)}


def side_by_side(
    calls: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device | None = None, warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each call (of two the lower), measured in turn (A, B, A, B, ...) so that drift hits all alike.

    Args:
        calls: by name.
        rounds: measurements of each.
        device: waited for after each call, where it is a GPU.
        warm_up: run each once before anything is measured.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + warm_up):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn or not warm_up:
                seconds[name].append(time.perf_counter() - began)
    return {name: median_low(values) for name, values in seconds.items()}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, libraries; no names of hosts or users."""
    return {
        "processor": _processor().get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "avx512_bf16": has_avx512_bf16(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
    }


def has_avx512_bf16() -> bool:
    """Whether the processor multiplies bfloat16 numbers itself."""
    return "avx512_bf16" in _processor().get("flags", "").split()


def load_average() -> float | None:
    """Processes that wanted a core over the last minute, where the system tells."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _processor() -> dict[str, str]:
    """What Linux says about the first core."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if facts.is_file() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
