"""What the shell completes: the schemes of store URLs, and the keys of a store."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from typing import TYPE_CHECKING

import typer  # noqa: TC002 - typer reads annotations when it runs

from dagonizer import open_store
from dagonizer.contracts import SupportsListing
from dagonizer.errors import DagonizerError
from dagonizer.registry import installed_schemes

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLAIN = re.compile(r"(?!-)[\w./@%+=:,-]+", re.ASCII)
_MOST_KEYS = 50
_SECONDS = 2.0


def complete_url(incomplete: str) -> list[str]:
    """Return the installed schemes that ``incomplete`` begins."""
    return [f"{scheme}://" for scheme in sorted(installed_schemes()) if scheme.startswith(incomplete)]


def complete_key(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return some keys that start with ``incomplete``, none where the store cannot tell them at once."""
    return _some_keys(ctx.params.get("store"), incomplete)


def complete_other_key(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return some keys that start with ``incomplete`` of the store of a second key."""
    return _some_keys(ctx.params.get("with_store") or ctx.params.get("store"), incomplete)


def _some_keys(url: str | None, prefix: str) -> list[str]:
    url = url or os.environ.get("DAGONIZER_STORE")
    if not url:
        return []
    keys: list[str] = []
    # At a prompt there is nobody to tell.
    with contextlib.suppress(DagonizerError, TimeoutError):
        asyncio.run(asyncio.wait_for(_collect(url, prefix, keys), _SECONDS))
    return sorted(_plain(keys))


async def _collect(url: str, prefix: str, keys: list[str]) -> None:
    async with open_store(url) as store:
        if isinstance(store, SupportsListing):
            async for key in store.list_keys(prefix):
                keys.append(key)
                if len(keys) == _MOST_KEYS:
                    return


def _plain(keys: Iterable[str]) -> Iterable[str]:
    # A shell takes them for what they are, and a command for no option; whoever may write to the store must not write
    # commands for its readers.
    return filter(_PLAIN.fullmatch, keys)
