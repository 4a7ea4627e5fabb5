"""Command line of the bundle: ``python -m scripts.cli --help``.

To add a command, write it in a file of its own in ``scripts/commands/`` and register it below. A command imports what
is slow to import (torch, MONAI) inside its function, so that the others start at once. A ``ValueError`` that it raises
for the user becomes one ``error: ...`` line and exit code 1.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from scripts.commands.embed import embed
from scripts.commands.evaluate import evaluate
from scripts.commands.export import export
from scripts.commands.import_weights import import_weights
from scripts.commands.parse import parse
from scripts.commands.prepare import prepare
from scripts.commands.segment import segment
from scripts.commands.targets import targets
from scripts.errors import find_user_error


class Commands(TyperGroup):
    """A group of commands whose errors of ours are one line for the user, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that ``ctx`` names; other exceptions than ours pass through."""
        try:
            return super().invoke(ctx)
        except typer.Exit:
            raise
        except Exception as error:
            ours = find_user_error(error)
            if ours is None:
                raise
            typer.echo(f"error: {' '.join(str(ours).split())}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Commands,
    help="Medal S: segment by text, see what can be asked for and how a text is understood, embed known sentences, "
    "import published weights, export networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(segment)
app.command()(targets)
app.command()(parse)
app.command()(embed)
app.command()(import_weights)
app.command()(export)
app.command()(prepare)
app.command()(evaluate)


if __name__ == "__main__":
    app()
