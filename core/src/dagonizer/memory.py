"""A store in this process's memory, for tests and demonstrations, and its plugin for ``memory://name``."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

from dagonizer.contracts import VersionedJson
from dagonizer.diagnosis import DURABILITY, Finding
from dagonizer.errors import StoreClosedError, StoreConflictError, StoreURLError
from dagonizer.hookspecs import StoreDescription, hookimpl
from dagonizer.keys import key_bytes, prefix_bytes, value_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType
    from typing import Self

    from dagonizer.url import Host, StoreURL


class _Entries:
    """What the stores of one name share. The lock is for stores used from several threads."""

    def __init__(self) -> None:
        self.by_key: dict[str, VersionedJson] = {}
        self.versions = itertools.count(1)
        self.lock = threading.Lock()


_entries_by_name: dict[str, _Entries] = {}


class MemoryCheckpointStore:
    """A store in memory, gone with the process.

    ``MemoryCheckpointStore()`` has entries of its own; stores with the same ``name`` share theirs. It keeps the whole
    contract, and lists keys and compares-and-swaps. A version counts the saves of all who share the entries.

    Errors are those of ``dagonizer.keys``, ``StoreConflictError``, and ``StoreClosedError`` after ``aclose``. It may be
    used from several threads and event loops.
    """

    def __init__(self, name: str | None = None) -> None:
        self._entries = _Entries() if name is None else _entries_by_name.setdefault(name, _Entries())
        self._closed = False

    @property
    def size(self) -> int:
        """How many entries the store holds."""
        return len(self._entries.by_key)

    async def save(self, key: str, json: str) -> None:
        """Put ``json`` under ``key``, replacing what is there."""
        self._check_open()
        self._replace(key, json)

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``, or None."""
        entry = await self.load_versioned(key)
        return None if entry is None else entry.json

    async def delete(self, key: str) -> None:
        """Remove the entry under ``key``, if there is one."""
        self._check_open()
        key_bytes(key)
        with self._entries.lock:
            self._entries.by_key.pop(key, None)

    async def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield every key that starts with ``prefix``, a literal text, in the order of their first saves."""
        self._check_open()
        prefix_bytes(prefix)
        for key in list(self._entries.by_key):
            if key.startswith(prefix):
                self._check_open()
                yield key

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version, or None."""
        self._check_open()
        key_bytes(key)
        return self._entries.by_key.get(key)

    async def save_if(self, key: str, json: str, *, expected: str | None) -> str:
        """Save if the entry has the version ``expected`` (None: no entry), else raise ``StoreConflictError``."""
        self._check_open()
        return self._replace(key, json, expected=expected, conditional=True)

    async def aclose(self) -> None:
        """Close this store; others of the same name keep the entries."""
        self._closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        await self.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError("this MemoryCheckpointStore is closed")

    def _replace(self, key: str, json: str, *, expected: str | None = None, conditional: bool = False) -> str:
        key_bytes(key)
        value_bytes(json)
        with self._entries.lock:
            current = self._entries.by_key.get(key)
            if conditional and (None if current is None else current.version) != expected:
                raise StoreConflictError(f"the entry under {key!r} is not at version {expected!r}")
            version = str(next(self._entries.versions))
            self._entries.by_key[key] = VersionedJson(json, version)
        return version


@hookimpl
def dagonizer_describe_store() -> StoreDescription:
    """Describe ``memory://name``."""
    return StoreDescription(schemes=("memory",), summary="in this process's memory, shared by name")


@hookimpl
def dagonizer_open_store(url: StoreURL) -> MemoryCheckpointStore:
    """Open ``memory://name``."""
    url.read_parameters(())
    if url.path not in ("", "/") or url.username is not None or len(url.hosts) > 1 or any(h.port for h in url.hosts):
        raise StoreURLError(f"{url}: a memory URL is memory://name")
    return MemoryCheckpointStore(url.hosts[0].name if url.hosts else "")


@hookimpl
def dagonizer_store_endpoints() -> tuple[Host, ...]:
    """Say that the name in ``memory://name`` is no host."""
    return ()


@hookimpl
async def dagonizer_diagnose_store() -> AsyncIterator[Finding]:
    """Say that nothing outlives the process."""
    yield Finding(
        check=DURABILITY,
        verdict="warning",
        message="an acknowledged save outlives nothing: the entries end with this process, and no other sees them",
        remedy="use a store outside the process, of which dagonizer stores shows the installed; this one is for tests",
    )
