"""What a plugin implements, to be found under an entry point of the group ``dagonizer.stores``.

The entry point's name is the URL scheme, its value the module that holds the hooks, marked with ``hookimpl``. Only
``dagonizer_open_store`` is required.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dagonizer.contracts import CheckpointStore
    from dagonizer.url import Host, Parameter, StoreURL

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


@hookspec(firstresult=True)
def dagonizer_store_endpoints(url: StoreURL) -> Sequence[Host] | None:
    """Return the hosts that the store of ``url`` connects to, none for a store without a network.

    A plugin needs this only if they are not the hosts of the URL.
    """
