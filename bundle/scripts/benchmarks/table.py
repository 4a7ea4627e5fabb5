"""Write measurements as a Markdown table into a marked section of a document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
VERDICT = {True: "yes", False: "**no**", None: ""}


def as_markdown(result: Mapping[str, Any]) -> str:
    """The machine, one table for each section, and the goals that were missed.

    Args:
        result: as ``scripts.bench`` writes it.
    """
    lines = [_machine(result), ""]
    rows = [row for section in result["sections"].values() for row in section["rows"]]
    with_goal = [row for row in rows if row["met"] is not None]
    missed = [row["what"] for row in with_goal if not row["met"]]
    lines += [f"Goals reached: {len(with_goal) - len(missed)} of {len(with_goal)}." + _listing(missed), ""]
    for section in result["sections"].values():
        lines += [f"### {section['title']}", ""]
        if section["rows"]:
            lines += ["| measured | value | goal | reached |", "|---|---:|---:|---|", *map(_line, section["rows"]), ""]
        lines += [paragraph for note in section["notes"] for paragraph in (note, "")]
    return "\n".join(lines).rstrip() + "\n"


def rewrite(path: Path, result: Mapping[str, Any]) -> None:
    """Replace what stands between the marks in a document.

    Args:
        path: Markdown file with one line ``BEGIN`` and, below it, one line ``END``; it is made where absent.
        result: see ``as_markdown``.

    Raises:
        ValueError: a document without the marks; it is left as it is.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# Performance\n\n{BEGIN}\n{END}\n"
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"bench: {path.name} has no section between {BEGIN} and {END}: add these two lines")
    scratch = path.with_name(f".{path.name}.unfinished")
    scratch.write_text(f"{head}{BEGIN}\n\n{as_markdown(result)}\n{END}{tail}", encoding="utf-8")
    scratch.replace(path)


def _machine(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    gpu = "" if machine["device"] == "cpu" else f", {machine['device']}"
    loads = [f"{load:g}" for load in (result["load_at_start"], result["load_at_end"]) if load is not None]
    busy = f"; load average {' at the start, '.join(loads)} at the end" if len(loads) == 2 else ""
    quick = " Quick run: small sizes, its numbers say nothing about the goals." if result["settings"]["quick"] else ""
    bf16 = "with" if machine["avx512_bf16"] else "without"
    return (
        f"{machine['processor']}, {machine['cores']} cores ({bf16} avx512_bf16){gpu}; {machine['threads']} threads; "
        f"Python {machine['python']}, torch {machine['torch']}, MONAI {machine['monai']}{busy}; "
        f"{result['seconds']:.0f} s in all.{quick}"
    )


def _listing(missed: list[str]) -> str:
    return f" Missed: {'; '.join(missed)}." if missed else ""


def _line(row: Mapping[str, Any]) -> str:
    goal = "" if row["goal"] is None else f"{'≤' if row['sense'] == '<=' else '≥'} {_number(row['goal'], row['unit'])}"
    return f"| {row['what']} | {_number(row['value'], row['unit'])} | {goal} | {VERDICT[row['met']]} |"


def _number(value: float, unit: str) -> str:
    """Three digits, but as many as tell a value near 1 from 1."""
    digits = f"{value:.5f}".rstrip("0").rstrip(".") if 0.99 <= value < 1 else f"{value:.3g}"
    return f"{digits}{' ' * (unit not in ('', 'x'))}{unit}"
