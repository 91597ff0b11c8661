"""The ``dklfm`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dklfm.cli import asking, making, stages

# Commands import what they run when they run it, so that --help and errors come at once.

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def options(
    trust: Annotated[
        list[Path] | None,
        typer.Option(help="A Python file whose systems may run, although a store names them."),
    ] = None,
) -> None:
    """Infer the hidden force behind dynamical systems."""
    if trust:
        from dklfm.systems import custom

        for file in trust:
            custom.trust(file)


app.add_typer(asking.app)
app.add_typer(making.app)
app.add_typer(stages.app, name="stage")

__all__ = ["app"]
