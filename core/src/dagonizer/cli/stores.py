"""``dagonizer stores``: what is installed, as a table or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dagonizer.cli.outcome import YES, printable
from dagonizer.cli.terminal import measured, open_console
from dagonizer.registry import list_stores
from dagonizer.url import type_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from dagonizer.registry import StoreListing
    from dagonizer.url import Parameter


# Columns for what is said of a store.
_NARROWEST = 30


def show_stores(*, as_json: bool) -> int:
    """Print every installed store; a plugin that cannot be loaded is shown with its error.

    They are rows of a table, or one below the other where the terminal is too narrow for one.
    """
    listings = list_stores()
    if as_json:
        typer.echo(json.dumps([_listing_json(listing) for listing in listings], indent=2))
        return YES
    rows: list[tuple[Text, RenderableType, Text]] = []
    for group in _grouped(listings):
        schemes = Text("\n".join(f"{listing.scheme}:" for listing in group), style="cyan")
        rows.append((schemes, _described(group[0]), Text(group[0].distribution)))
    table = Table(show_lines=True, header_style="bold")
    table.add_column("scheme", no_wrap=True)
    table.add_column("store and the parameters of its URL", ratio=1, min_width=_NARROWEST)
    table.add_column("distribution", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = open_console()
    if measured(console, table).minimum <= console.width:
        console.print(table)
        return YES
    blocks = Group(*(Group(schemes, distribution, described, "") for schemes, described, distribution in rows))
    console.width = max(console.width, measured(console, blocks).minimum)
    console.print(blocks, end="")
    return YES


def _grouped(listings: Iterable[StoreListing]) -> list[list[StoreListing]]:
    groups: list[list[StoreListing]] = []
    for listing in listings:
        for group in groups:
            same = (listing.distribution, listing.description) == (group[0].distribution, group[0].description)
            if same and listing.description is not None:
                group.append(listing)
                break
        else:
            groups.append([listing])
    return groups


def _described(listing: StoreListing) -> RenderableType:
    if listing.error is not None:
        return Text(printable(f"cannot be loaded: {listing.error}"), style="red")
    if listing.description is None:
        return Text()
    if not listing.description.parameters:
        return Text(listing.description.summary)
    grid = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    grid.add_column(no_wrap=True, style="green")
    grid.add_column(ratio=1)
    for parameter in listing.description.parameters:
        about = Text(parameter.description)
        default = "" if parameter.default is None else f", default {_default_text(parameter)}"
        about.append(f" ({type_name(parameter.type)}{default})", style="dim")
        grid.add_row(Text(parameter.name), about)
    return Group(Text(listing.description.summary), grid)


def _default_text(parameter: Parameter) -> str:
    if isinstance(parameter.default, bool):
        return str(parameter.default).lower()
    return repr(parameter.default) if parameter.default == "" else str(parameter.default)


def _listing_json(listing: StoreListing) -> dict[str, Any]:
    description = listing.description
    return {
        "scheme": listing.scheme,
        "distribution": listing.distribution,
        "summary": None if description is None else description.summary,
        "parameters": [_parameter_json(p) for p in description.parameters] if description is not None else [],
        "error": listing.error,
    }


def _parameter_json(parameter: Parameter) -> dict[str, Any]:
    plain = parameter.default is None or isinstance(parameter.default, str | int | float)
    return {
        "name": parameter.name,
        "type": type_name(parameter.type),
        "default": parameter.default if plain else str(parameter.default),
        "description": parameter.description,
    }
