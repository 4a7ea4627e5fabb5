"""How commands write: tables for people, plain columns for pipes, JSON for programs, notes on the error stream."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, JustifyMethod, OverflowMethod
from rich.padding import Padding
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

Cell = str | Text
_PLAIN_WIDTH = 100_000  # columns; a pipe has no edge at which a line would have to be cut
_INDENT = 5


def console(stderr: bool = False) -> Console:
    """A console that shows words as they are: square brackets and colons in a prompt are no markup."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def print_json(value: Any) -> None:
    """Write ``value`` as indented JSON, in ASCII so that any terminal and pipe takes it; nothing else on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_note(text: str) -> None:
    """Write a remark on the error stream, where it does not disturb what a program reads."""
    console(stderr=True).print(f"note: {text}", style="bold yellow", soft_wrap=True)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], below: int = 0, cut_below: bool = False
) -> None:
    """Write rows as aligned columns: in colour on a terminal; uncoloured, one line a row and never cut into a pipe.

    Args:
        columns: headings; those that end in ``#`` are numbers, set to the right, and shown without it.
        rows: as many cells as headings each; ``Text`` cells keep their colour on a terminal.
        below: on a terminal this many last columns, long texts, stand on a line below each row instead of in it.
        cut_below: cut this line at the edge of the terminal instead of wrapping it.
    """
    screen = console()
    if not screen.is_terminal:
        plain = Console(width=_PLAIN_WIDTH, color_system=None, markup=False, emoji=False, highlight=False)
        with plain.capture() as captured:
            plain.print(_table(columns, rows))
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    elif below:
        table = _table(columns[:-below], [row[:-below] for row in rows], one_line=True)
        heading, *lines = screen.render_lines(table, pad=False)
        screen.print(Segments([*heading, Segment.line()]))
        overflow: OverflowMethod = "ellipsis" if cut_below else "fold"
        for line, row in zip(lines, rows, strict=True):
            details = " | ".join(str(cell) for cell in row[-below:] if cell)
            text = Text(details, style="dim", no_wrap=cut_below, overflow=overflow)
            screen.print(Segments([*line, Segment.line()]), Padding(text, (0, 0, 0, _INDENT)), sep="")
    else:
        screen.print(_table(columns, rows))


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], one_line: bool = False) -> Table:
    """Columns without a frame; ``one_line``: no row wraps, and the widest column is cut where the room is short."""
    table = Table(box=None, pad_edge=False)
    widths = [max(cell_len(str(row[place])) for row in rows) for place in range(len(columns))]
    for column, width in zip(columns, widths, strict=True):
        fixed = one_line and width < max(widths)
        justify: JustifyMethod = "right" if column.endswith("#") else "left"
        table.add_column(
            column.rstrip("#"), justify=justify, no_wrap=fixed, overflow="ellipsis" if one_line else "fold"
        )
    for row in rows:
        table.add_row(*(_on_one_line(cell) if one_line else cell for cell in row))
    return table


def _on_one_line(cell: Cell) -> Text:
    text = cell.copy() if isinstance(cell, Text) else Text(cell)
    text.no_wrap = True
    return text


def swatch(color: tuple[int, int, int]) -> Cell:
    """A display colour (r, g, b): a block of that colour on a terminal, else its hexadecimal code."""
    code = "#{:02x}{:02x}{:02x}".format(*color)
    return Text("████", style=code) if console().is_terminal else code
