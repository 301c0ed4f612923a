"""Opens a store by URL, through the plugin whose entry point names the URL's scheme.

Only the requested scheme's plugin is imported. Each call has a plugin manager of its own, so nothing is registered for
the life of the process, and one module may stand behind several schemes.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import msgspec
import pluggy

from dagonizer import hookspecs
from dagonizer.contracts import OPTIONAL_METHODS, ClosableStore
from dagonizer.diagnosis import LIMIT
from dagonizer.errors import DuplicateSchemeError, StoreClosedError, StoreError, UnknownSchemeError
from dagonizer.url import StoreURL

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from importlib.metadata import EntryPoint
    from types import TracebackType
    from typing import Self

    from dagonizer.contracts import CheckpointStore
    from dagonizer.diagnosis import Finding
    from dagonizer.hookspecs import StoreDescription
    from dagonizer.url import Host

P = ParamSpec("P")
R = TypeVar("R")

ENTRY_POINT_GROUP = "dagonizer.stores"

# The schemes of this distribution's extras, to say what to install; opening one never looks here.
_EXTRA_BY_SCHEME = {
    "file": "file",
    "postgresql": "postgres",
    "postgres": "postgres",
    "redis": "redis",
    "rediss": "redis",
    "redis+unix": "redis",
    "redis+cluster": "redis",
    "redis+sentinel": "redis",
    "s3": "s3",
    "etcd": "etcd",
    "etcds": "etcd",
    "etcd+http": "etcd",
    "etcd+https": "etcd",
}


class StoreListing(msgspec.Struct, frozen=True):
    """A scheme that is installed: its distribution, and its plugin's description or why the plugin does not work."""

    scheme: str
    distribution: str
    description: StoreDescription | None
    error: str | None


def open_store(url: str | StoreURL) -> ClosableStore:
    """Open the store that ``url`` names, without connecting; the result also serves ``async with``.

    Raises ``StoreURLError`` for a URL that is malformed or has an unknown part, ``UnknownSchemeError`` when no plugin
    for its scheme is installed, ``DuplicateSchemeError`` when two distributions claim it, and ``StoreError`` when the
    plugin cannot be imported or opens nothing.
    """
    parsed = url if isinstance(url, StoreURL) else StoreURL.parse(url)
    entry_point = _entry_point(parsed.scheme)
    store: CheckpointStore | None = _hooks(entry_point).dagonizer_open_store(url=parsed)
    if store is None:
        raise StoreError(f"the plugin {_named(entry_point)} opened no store for {parsed}")
    return store if isinstance(store, ClosableStore) else _Closable(store)


def list_stores() -> tuple[StoreListing, ...]:
    """Return every installed scheme in alphabetical order. A plugin that does not work is listed with its error."""
    return tuple(_listing(scheme) for scheme in sorted(installed_schemes()))


def installed_schemes() -> frozenset[str]:
    """Return the schemes of the installed plugins, without importing any."""
    return frozenset(entry_point.name for entry_point in _entry_points())


def store_endpoints(url: str | StoreURL) -> tuple[Host, ...]:
    """Return the hosts that the store of ``url`` connects to, none for a store without a network.

    Raises the same errors as ``open_store``.
    """
    parsed = url if isinstance(url, StoreURL) else StoreURL.parse(url)
    endpoints = _hooks(_entry_point(parsed.scheme)).dagonizer_store_endpoints(url=parsed)
    return parsed.hosts if endpoints is None else tuple(endpoints)


def diagnose_store(url: str | StoreURL, *, limit: float = LIMIT) -> AsyncGenerator[Finding, None]:
    """Yield what is found when the store of ``url`` is examined, as it is found; no check takes more than ``limit`` s.

    Raises the same errors as ``open_store``, at once. What fails later is found: a store that cannot be reached is a
    finding of ``CONNECTION`` that is bad. See ``dagonizer.doctor.examine_store``, also for a store without a URL.
    """
    from dagonizer.doctor import examine_store  # noqa: PLC0415 - it needs asyncio, which opening a store does not

    parsed = url if isinstance(url, StoreURL) else StoreURL.parse(url)
    store = open_store(parsed)
    hooks = _hooks(_entry_point(parsed.scheme))
    return examine_store(store, lambda: hooks.dagonizer_diagnose_store(url=parsed), limit=limit)


def _listing(scheme: str) -> StoreListing:
    try:
        entry_point = _entry_point(scheme)
    except DuplicateSchemeError as exc:
        return StoreListing(scheme, "", None, str(exc))
    try:
        description = _hooks(entry_point).dagonizer_describe_store()
    except StoreError as exc:
        return StoreListing(scheme, _distribution(entry_point), None, str(exc))
    return StoreListing(scheme, _distribution(entry_point), description, None)


def _entry_points() -> tuple[EntryPoint, ...]:
    return _entry_points_on(tuple(sys.path))


@functools.cache
def _entry_points_on(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:  # noqa: ARG001 - what the answer depends on
    """Return what is installed. To look costs a file of every distribution, so it is done once."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - slow to import, and only opening a store needs it

    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def _entry_point(scheme: str) -> EntryPoint:
    found = _claims(scheme)
    if not found:
        # It may have been installed since.
        _entry_points_on.cache_clear()
        found = _claims(scheme)
    if not found:
        raise UnknownSchemeError(_unknown(scheme))
    if len(found) > 1:
        claimants = " and ".join(_named(entry_point) for entry_point in found)
        raise DuplicateSchemeError(f"the scheme {scheme!r} is claimed by {claimants}; uninstall one of them")
    return found[0]


def _claims(scheme: str) -> list[EntryPoint]:
    return [entry_point for entry_point in _entry_points() if entry_point.name == scheme]


def _unknown(scheme: str) -> str:
    extra = _EXTRA_BY_SCHEME.get(scheme)
    if extra is not None:
        return f'no plugin for the scheme {scheme!r} is installed; run: pip install "dagonizer[{extra}]"'
    installed = sorted(installed_schemes())
    known = sorted(set(_EXTRA_BY_SCHEME).difference(installed))
    return f"unknown scheme {scheme!r}; installed: {', '.join(installed) or 'none'}" + (
        f"; to be had as extras of dagonizer: {', '.join(known)}" if known else ""
    )


def _hooks(entry_point: EntryPoint) -> Any:  # noqa: ANN401 - pluggy's hook relay has no static type
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(entry_point.load())
        manager.check_pending()
    except Exception as exc:  # a stranger's module can raise anything when it is imported
        raise StoreError(
            f"the plugin {_named(entry_point)} for the scheme {entry_point.name!r} cannot be loaded: "
            f"{type(exc).__name__}: {exc}"
        ) from exc
    return manager.hook


def _named(entry_point: EntryPoint) -> str:
    return f"{entry_point.value!r} of {_distribution(entry_point)}"


def _distribution(entry_point: EntryPoint) -> str:
    return "an unknown distribution" if entry_point.dist is None else entry_point.dist.name


class _Closable:
    """A plugin's store of three methods, given ``async with`` and an end, with whatever optional methods it has."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._closed = False
        self.save = self._until_closed(store.save)
        self.load = self._until_closed(store.load)
        self.delete = self._until_closed(store.delete)
        for name in OPTIONAL_METHODS:
            if hasattr(store, name):
                setattr(self, name, self._until_closed(getattr(store, name)))

    def _until_closed(self, method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if self._closed:
                raise StoreClosedError(f"this {type(self._store).__name__} is closed")
            return method(*args, **kwargs)

        return call

    async def aclose(self) -> None:
        """Close the store, once, if it can be closed."""
        if self._closed:
            return
        self._closed = True
        close = getattr(self._store, "aclose", None)
        if close is not None:
            await close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        await self.aclose()
