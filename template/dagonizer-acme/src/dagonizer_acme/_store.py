"""The store: what Acme holds for each key are the value's UTF-8 bytes.

They are under the prefix, in which ``%`` and ``:`` are percent-encoded, a colon, and the key as it is. So the first
colon ends the prefix, and no two pairs of prefix and key make the same name.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dagonizer import errors
from dagonizer.connections import Connections
from dagonizer.keys import key_bytes, value_bytes, value_text
from dagonizer_acme._errors import translated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType
    from typing import Self

    from dagonizer_acme._config import AcmeConfig


class AcmeCheckpointStore:
    """A store in Acme. Making one does no I/O.

    Errors, besides those of ``dagonizer.keys``: ``StoreUnavailableError``, ``StoreAccessError``,
    ``StoreCorruptedError``, ``StoreClosedError``.
    """

    def __init__(self, config: AcmeConfig) -> None:
        self._config = config
        self._beginning = config.prefix.replace("%", "%25").replace(":", "%3A").encode() + b":"
        self._connections = Connections(self._connect, timeout=config.timeout, owner=type(self))

    # These three are to be written, in terms of whatever ``_connect`` yields. A save that has begun goes on to its end
    # when it is cancelled, and those of one key are done one after the other. But what takes longer than ``timeout`` is
    # cancelled, and must not take effect later. So a function that blocks belongs into ``in_thread`` of
    # ``dagonizer.connections``, which waits for it where ``asyncio.to_thread`` does not, with ``timeout`` for itself;
    # and a connection that owes an answer is closed, see ``reset`` there. Keep to bytes: a name may hold any character,
    # and no two may meet.

    async def _save(self, client: AcmeConfig, name: bytes, value: bytes) -> None:
        """Put ``value`` under ``name``, replacing at once what is there; return when it will outlive a crash."""
        raise errors.StoreError("AcmeCheckpointStore._save is not written yet; it is in dagonizer_acme/_store.py")

    async def _load(self, client: AcmeConfig, name: bytes) -> bytes | None:
        """Return what is under ``name``, or None if there is nothing; any failure raises."""
        raise errors.StoreError("AcmeCheckpointStore._load is not written yet; it is in dagonizer_acme/_store.py")

    async def _delete(self, client: AcmeConfig, name: bytes) -> None:
        """Remove what is under ``name``, if there is anything."""
        raise errors.StoreError("AcmeCheckpointStore._delete is not written yet; it is in dagonizer_acme/_store.py")

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[AcmeConfig]:
        """Yield what operations use, once for each event loop: for a driver with connections, a client or a pool.

        Make it before the ``yield``, and close it after.
        """
        yield self._config

    async def save(self, key: str, json: str) -> None:
        """Put ``json`` under ``key``, replacing what is there."""
        self._connections.check_open()
        name, value = self._name(key), value_bytes(json)
        with translated("save", self._config.where):
            await self._connections.write(key, lambda client: self._save(client, name, value))

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``, or None. Raises ``StoreCorruptedError`` if it is no text."""
        self._connections.check_open()
        name = self._name(key)
        with translated("load", self._config.where):
            stored = await self._connections.read(lambda client: self._load(client, name))
        return None if stored is None else value_text(stored, key=key)

    async def delete(self, key: str) -> None:
        """Remove what is under ``key``, if there is anything."""
        self._connections.check_open()
        name = self._name(key)
        with translated("delete", self._config.where):
            await self._connections.write(key, lambda client: self._delete(client, name))

    async def aclose(self) -> None:
        """Wait for the operations that are under way, and close the connections."""
        await self._connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        await self.aclose()

    def _name(self, key: str) -> bytes:
        return self._beginning + key_bytes(key)
