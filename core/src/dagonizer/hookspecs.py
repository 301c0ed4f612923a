"""What a plugin implements, to be found under an entry point of the group ``dagonizer.stores``.

The entry point's name is the URL scheme, its value the module that holds the hooks, marked with ``hookimpl``. Only
``dagonizer_open_store`` is required.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pluggy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from dagonizer.contracts import CheckpointStore
    from dagonizer.diagnosis import Finding
    from dagonizer.url import Host, Parameter, StoreURL

PROJECT = "dagonizer"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class StoreDescription(msgspec.Struct, frozen=True):
    """What ``dagonizer stores`` prints of a plugin.

    ``schemes`` are those that it opens, ``summary`` says in a few words what it keeps checkpoints in, and
    ``parameters`` are those of its URLs (``parameters_of`` a configuration).
    """

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


@hookspec(firstresult=True)
def dagonizer_diagnose_store(url: StoreURL) -> AsyncIterator[Finding] | None:
    """Return an asynchronous generator of what is found when the backend of ``url`` is examined, as it is found.

    It opens and closes connections of its own, changes nothing that is there, and says with ``DURABILITY`` what an
    acknowledged save outlives. It may raise any ``StoreError`` when it can examine no more. What can be seen through
    the contract, such as how long a save takes, is looked at for every store, and is not its business.
    """
