"""Measure what the documentation claims, as ratios side by side in one run: ``python -m scripts.bench``.

Run in the bundle's root. Everything is built from ``configs/inference.json``; each topic is a module of
``scripts.benchmarks``.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks import full_network, memory, postprocessing, precision, questions, spatial_prompt
from scripts.benchmarks.measuring import Section, Settings, describe_machine, load_average
from scripts.benchmarks.table import as_markdown, rewrite
from scripts.errors import InputError, install_excepthook

logger = logging.getLogger(__name__)

SECTIONS: Mapping[str, Callable[[Settings], Section]] = {
    "parallel": questions.run_parallel,
    "second_question": questions.run_second_question,
    "windows": questions.run_windows,
    "full_network": full_network.run,
    "precision": precision.run,
    "postprocessing": postprocessing.run,
    "spatial_prompt": spatial_prompt.run,
    "memory": memory.run,
    "memory_two_stages": memory.run_two_stages,
}
# Takes several minutes by itself; asked for by name.
ON_REQUEST = ("memory_two_stages",)


def measure(settings: Settings, names: Sequence[str]) -> dict[str, Any]:
    """Run some sections.

    Args:
        settings: sizes and device.
        names: keys of ``SECTIONS``.

    Returns:
        ``machine``, ``settings``, load averages, seconds in all and ``sections`` by name: plain values for JSON.
    """
    began, load = time.perf_counter(), load_average()
    sections = {}
    for name in names:
        started = time.perf_counter()
        section = SECTIONS[name](settings)
        sections[name] = section.as_entry() | {"seconds": round(time.perf_counter() - started, 1)}
        logger.info("%s: %.0f s", name, sections[name]["seconds"])
        for row in section.rows:
            logger.info("  %-70s %8.4g %-3s %s", row.what, row.value, row.unit, _verdict(row.met))
    return {
        "machine": describe_machine(settings.device),
        "settings": {"quick": settings.quick, "rounds": settings.rounds, "queries": settings.queries},
        "load_at_start": load,
        "load_at_end": load_average(),
        "seconds": round(time.perf_counter() - began, 1),
        "sections": sections,
    }


def chosen_sections(only: str | None) -> list[str]:
    """Names of the sections to run, in their usual order.

    Raises:
        InputError: a name that there is not.
    """
    if not only:
        return [name for name in SECTIONS if name not in ON_REQUEST]
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in SECTIONS]
    if unknown or not names:
        raise InputError(f"bench: there is no section {', '.join(unknown) or only!r}; there are {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names]


def main(arguments: list[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Measure speed and memory side by side and write them as JSON.")
    parser.add_argument("--config_file", nargs="+", default=["configs/inference.json"], help="with overlays, if any")
    parser.add_argument("--bundle_root", type=Path, default=Path())
    parser.add_argument("--only", help=f"sections, separated by commas: {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--queries", type=int, default=24, help="structures asked for together")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each call; the median counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("bench.json"))
    parser.add_argument("--markdown", type=Path, help="document whose marked section is rewritten")
    options = parser.parse_args(arguments)
    install_excepthook()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    settings = Settings(
        config=tuple(options.config_file),
        bundle_root=options.bundle_root,
        quick=options.quick,
        rounds=options.rounds,
        queries=options.queries,
        device=torch.device(options.device),
    )
    result = measure(settings, chosen_sections(options.only))
    scratch = options.output.with_name(f".{options.output.name}.unfinished")
    scratch.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    scratch.replace(options.output)
    if options.markdown:
        rewrite(options.markdown, result)
    else:
        logger.info("\n%s", as_markdown(result))
    logger.info("written to %s", options.output)


def _verdict(met: bool | None) -> str:
    return "" if met is None else "reached" if met else "MISSED"


if __name__ == "__main__":
    main()
