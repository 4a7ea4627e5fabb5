"""Pages that a program writes: put one in place, or say that it is out of date.

Shared by the programs of this folder whose result is a Markdown page of ``docs/``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import typer

REPOSITORY = Path(__file__).resolve().parents[1]
BUNDLE = REPOSITORY / "bundle"
sys.path.insert(0, str(BUNDLE))  # the pages tell of the bundle's own modules and configs


def run(page: Path, make: Callable[[], str], check: bool) -> None:
    """Write a page, or only compare it with what would be written.

    Args:
        page: the file.
        make: returns the page's text.
        check: write nothing; end with exit code 1 where the file differs.
    """
    try:
        text = make()
    except ValueError as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(1) from e
    name = page.relative_to(REPOSITORY)
    if page.is_file() and page.read_text(encoding="utf-8") == text:
        typer.echo(f"{name}: up to date")
        return
    if check:
        typer.echo(f"error: {name} is not what its program writes now. Run: make docs", err=True)
        raise typer.Exit(1)
    temporary = page.with_name(f"{page.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(page)
    typer.echo(f"{name}: written")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped, line breaks become blanks."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + [("| " + " | ".join(row) + " |").replace("|  |", "| |") for row in cells])
