"""What a plugin implements, to be found under an entry point of the group ``dagonizer.stores``.

The entry point's name is the URL scheme, its value the module that holds the two hooks, marked with ``hookimpl``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pluggy

if TYPE_CHECKING:
    from dagonizer.contracts import CheckpointStore
    from dagonizer.url import Parameter, StoreURL

PROJECT = "dagonizer"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class StoreDescription(msgspec.Struct, frozen=True):
    """What ``dagonizer stores`` prints of a plugin."""

    schemes: tuple[str, ...]
    summary: str
    parameters: tuple[Parameter, ...] = ()


@hookspec(firstresult=True)
def dagonizer_open_store(url: StoreURL) -> CheckpointStore | None:
    """Return a store for ``url`` without connecting, or raise ``StoreURLError``."""


@hookspec(firstresult=True)
def dagonizer_describe_store() -> StoreDescription | None:
    """Return what the plugin opens."""
