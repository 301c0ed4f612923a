"""Stores that lose what they have acknowledged."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, ClassVar

from dagonizer.errors import StoreUnavailableError
from dagonizer_conformance.mutants.mutant import mutant
from dagonizer_conformance.mutants.reference import ReferenceStore

_PARTS = 8
_TRIES = 100


@mutant("durability-memory-of-the-client", "durability.reopen-after-close", "durability.reopen-without-close")
class KeepsInClient(ReferenceStore):
    """Every client keeps its entries to itself."""

    def _namespace_for(self, key: str) -> str:
        return f"{super()._namespace_for(key)}-{self._client}"


@mutant("durability-emptied-at-close", "durability.reopen-after-close")
class EmptiedAtClose(ReferenceStore):
    """Closing a client removes its entries, like a temporary directory."""

    async def aclose(self) -> None:
        if not self._closed:
            async for key in self.list_keys():
                await self.delete(key)
        await super().aclose()


class _WriteBack(ReferenceStore):
    """Keeps saves in the client until it is closed, or ``_flush`` is called."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - those of the class above
        super().__init__(*args, **options)
        self._unwritten: dict[str, str] = {}

    async def save(self, key: str, json: str) -> None:
        self._check_open()
        self.place(key)
        self._encode_value(json)
        self._unwritten[key] = json

    async def load(self, key: str) -> str | None:
        stored = await super().load(key)
        return self._unwritten.get(key, stored)

    async def delete(self, key: str) -> None:
        await super().delete(key)
        self._unwritten.pop(key, None)

    async def aclose(self) -> None:
        if not self._closed:
            await self._flush()
        await super().aclose()

    async def _flush(self) -> None:
        while self._unwritten:
            await self._save(*self._unwritten.popitem())


@mutant("durability-flushed-at-close", "durability.reopen-without-close", "durability.client-kill")
class FlushedAtClose(_WriteBack):
    """Saves stay in the client until it is closed."""


@mutant("durability-flushed-by-timer", "durability.reopen-without-close", "durability.client-kill")
class FlushedByTimer(_WriteBack):
    """Saves stay in the client for 200 ms."""

    async def save(self, key: str, json: str) -> None:
        await super().save(key, json)
        asyncio.get_running_loop().call_later(0.2, lambda: asyncio.ensure_future(self._flush()))


@mutant("durability-deletes-remembered", "durability.reopen-after-close", "durability.reopen-without-close")
class DeletesRemembered(ReferenceStore):
    """A client only remembers what it has deleted, and leaves it at the backend."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - those of the class above
        super().__init__(*args, **options)
        self._deleted: set[str] = set()

    async def save(self, key: str, json: str) -> None:
        await super().save(key, json)
        self._deleted.discard(key)

    async def load(self, key: str) -> str | None:
        text = await super().load(key)
        return None if key in self._deleted else text

    async def delete(self, key: str) -> None:
        self.place(key)
        self._deleted.add(key)


@mutant("durability-1000-keys", "durability.many-keys", faults=("evict-after-1000",))
class KeepsThousandKeys(ReferenceStore):
    """The backend keeps the newest 1,000 keys."""


@mutant("durability-short-hashes", "durability.many-keys")
class ShortHashes(ReferenceStore):
    """Keys are stored under the first 7 bits of their hashes, so that among many keys two meet."""

    def _encode_key(self, key: str) -> str:
        # So few that two of 40 meet, which is what a busy machine has time for.
        return str(hashlib.sha256(super()._encode_key(key).encode()).digest()[0] // 2)


@mutant("durability-expires", "durability.nothing-expires", faults=("expire",))
class Expires(ReferenceStore):
    """Entries have a time to live of a second, which nobody asked for."""


@mutant("durability-acknowledged-too-soon", "durability.backend-kill", faults=("acknowledge-before-write",))
class AcknowledgedTooSoon(ReferenceStore):
    """The backend acknowledges before it writes."""


@mutant("durability-in-memory", "durability.backend-kill", faults=("no-journal",))
class InMemory(ReferenceStore):
    """The backend keeps everything in memory."""


@mutant("durability-lock-left-behind", "durability.client-kill", faults=("slow",))
class LockLeftBehind(ReferenceStore):
    """A writer holds a lock at the backend, which stays for ever when its process is killed."""

    async def _save(self, key: str, json: str) -> None:
        lock = {"namespace": f"{self._namespace}-locks", "key": key}
        for _ in range(_TRIES):
            if "conflict" not in await self._write({"command": "put-if", **lock, "expected": None}):
                await super()._save(key, json)
                await self._write({"command": "delete", **lock})
                return
        raise StoreUnavailableError(f"another client has locked {key!r}")


@mutant("durability-part-by-part", "durability.client-kill", faults=("slow",))
class PartByPart(ReferenceStore):
    """A text is written in eight parts, each over the one that was there."""

    async def _save(self, key: str, json: str) -> None:
        size = -(-len(json) // _PARTS) or 1
        for part in range(_PARTS):
            await super()._save(f"{key}/{part}", json[part * size : (part + 1) * size])

    async def load(self, key: str) -> str | None:
        text = await super().load(f"{key}/0")
        if text is not None:
            for part in range(1, _PARTS):
                text += await super().load(f"{key}/{part}") or ""
        return text

    async def _delete(self, key: str) -> None:
        for part in range(_PARTS):
            await super()._delete(f"{key}/{part}")


@mutant("durability-shared-cache", "durability.in-the-backend")
class SharedCache(ReferenceStore):
    """A save changes no more than a cache that the clients of a process share."""

    _cache: ClassVar[dict[tuple[str, str], str]] = {}

    async def _save(self, key: str, json: str) -> None:
        self._encode_value(json)
        self._cache[self._namespace, self._encode_key(key)] = json

    async def load(self, key: str) -> str | None:
        stored = await super().load(key)
        return self._cache.get((self._namespace, key), stored)

    async def _delete(self, key: str) -> None:
        await super()._delete(key)
        self._cache.pop((self._namespace, key), None)


@mutant("durability-deleted-later", "durability.in-the-backend")
class DeletedLater(ReferenceStore):
    """A deleted entry is only marked as such; its text stays at the backend."""

    _MARK = "deleted: "

    async def _delete(self, key: str) -> None:
        if (text := await self.load(key)) is not None:
            await self._save(key, self._MARK + text)

    async def load(self, key: str) -> str | None:
        text = await super().load(key)
        return None if text is None or text.startswith(self._MARK) else text
