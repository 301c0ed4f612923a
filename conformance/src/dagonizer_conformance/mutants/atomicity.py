"""Stores whose saves do not happen at one moment."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import ClassVar

from dagonizer import InvalidValueError, StoreConflictError, StoreError
from dagonizer_conformance.mutants.mutant import mutant
from dagonizer_conformance.mutants.reference import ReferenceStore


@mutant("deletes-before-it-saves", "atomicity.readers-during-overwrites")
class DeletesBeforeItSaves(ReferenceStore):
    """Replaces an entry by deleting it and saving a new one."""

    async def _save(self, key: str, json: str) -> None:
        await self._delete(key)
        await super()._save(key, json)


@mutant("saves-in-place", "atomicity.readers-during-overwrites")
class SavesInPlace(ReferenceStore):
    """Writes the first half of a long text before the rest."""

    async def _save(self, key: str, json: str) -> None:
        await super()._save(key, json[: len(json) // 2])
        await super()._save(key, json)


@mutant("loads-in-two-parts", "atomicity.readers-during-overwrites")
class LoadsInTwoParts(ReferenceStore):
    """Loads the two halves of a text with two requests."""

    async def load(self, key: str) -> str | None:
        first = await super().load(key)
        second = await super().load(key)
        if first is None or second is None:
            return second
        return first[: len(first) // 2] + second[len(first) // 2 :]


@mutant("caches-loads", "atomicity.visible-at-once")
class CachesLoads(ReferenceStore):
    """Remembers what it has loaded or saved, and does not ask again."""

    def __init__(self, host: str, port: int, namespace: str, *, timeout: float = 2.0) -> None:
        super().__init__(host, port, namespace, timeout=timeout)
        self._cache: dict[str, str | None] = {}

    async def load(self, key: str) -> str | None:
        if key not in self._cache:
            self._cache[key] = await super().load(key)
        return self._cache[key]

    async def _save(self, key: str, json: str) -> None:
        await super()._save(key, json)
        self._cache[key] = json

    async def _delete(self, key: str) -> None:
        await super()._delete(key)
        self._cache[key] = None


@mutant("deletes-later", "atomicity.visible-at-once")
class DeletesLater(ReferenceStore):
    """Acknowledges a deletion, and leaves it to a task in the background."""

    _tasks: ClassVar[set[asyncio.Task[None]]] = set()

    async def _delete(self, key: str) -> None:
        task = asyncio.create_task(self._delete_soon(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _delete_soon(self, key: str) -> None:
        await asyncio.sleep(0.02)
        with suppress(StoreError):
            await super()._delete(key)


@mutant("inserts-what-is-new", "atomicity.first-save-race")
class InsertsWhatIsNew(ReferenceStore):
    """Looks whether a key is there, to insert or to update it, and fails if another one was quicker."""

    async def _save(self, key: str, json: str) -> None:
        if await self.load_versioned(key) is None:
            try:
                await self._save_if(key, json, None)
            except StoreConflictError as exc:
                raise RuntimeError("the key exists already") from exc
        else:
            await super()._save(key, json)


@mutant("creates-empty", "atomicity.first-save-race")
class CreatesEmpty(ReferenceStore):
    """Creates an empty entry for a new key before it fills it."""

    async def _save(self, key: str, json: str) -> None:
        if await self.load_versioned(key) is None:
            await super()._save(key, "")
            await asyncio.sleep(0.001)
        await super()._save(key, json)


@mutant("checks-as-it-writes", "atomicity.failed-save")
class ChecksAsItWrites(ReferenceStore):
    """Finds out that a text cannot be stored when most of it is written."""

    async def _save(self, key: str, json: str) -> None:
        try:
            await super()._save(key, json)
        except InvalidValueError:
            await super()._save(key, json[:-1])
            raise
