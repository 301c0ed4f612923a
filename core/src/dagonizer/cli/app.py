"""The commands and their options."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from dagonizer.cli.demo import run_demo
from dagonizer.cli.stores import show_stores

# The pretty exceptions of typer print local variables, and with them store URLs and their passwords.
app = typer.Typer(
    name="dagonizer",
    help="Checkpoint persistence for DAGs, pipelines and agents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def stores(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for machines.")] = False,
) -> None:
    """Show the stores that are installed, and the parameters that their URLs take."""
    show_stores(as_json=as_json)


@app.command()
def demo(
    *,
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A store that two processes share. [default: temporary files]"),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--input", metavar="DIR", help="A tree of Python modules. [default: the standard library]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, progress on stderr.")] = False,
) -> None:
    """Kill a run in the middle, resume it in another process, and compare it with one that was never interrupted."""
    raise typer.Exit(asyncio.run(run_demo(store, directory, as_json=as_json)))
