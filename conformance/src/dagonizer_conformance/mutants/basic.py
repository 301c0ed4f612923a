"""Stores that are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagonizer_conformance.mutants.mutant import mutant
from dagonizer_conformance.mutants.reference import ReferenceStore

if TYPE_CHECKING:
    from typing import Any


@mutant("basic-save-does-nothing", "basic.round-trip")
class SaveNothing(ReferenceStore):
    """A failure to write is swallowed."""

    async def _save(self, key: str, json: str) -> None:
        """Save nothing."""


@mutant("basic-bytes-returned", "basic.round-trip")
class ReturnBytes(ReferenceStore):
    """The driver's bytes are returned without being decoded."""

    async def load(self, key: str) -> Any:  # noqa: ANN401
        text = await super().load(key)
        return None if text is None else text.encode()


@mutant("basic-absent-is-empty", "basic.absent-is-none")
class AbsentIsEmpty(ReferenceStore):
    """An absent key loads as the empty text."""

    async def load(self, key: str) -> str | None:
        return await super().load(key) or ""


@mutant("basic-absent-raises", "basic.absent-is-none")
class AbsentRaises(ReferenceStore):
    """Loading an absent key raises KeyError."""

    async def load(self, key: str) -> str | None:
        text = await super().load(key)
        if text is None:
            raise KeyError(key)
        return text


@mutant("basic-first-save-stays", "basic.overwrite")
class KeepFirst(ReferenceStore):
    """A save is an INSERT … ON CONFLICT DO NOTHING."""

    async def _save(self, key: str, json: str) -> None:
        if await self.load(key) is None:
            await super()._save(key, json)


@mutant("basic-saves-appended", "basic.overwrite")
class AppendSaves(ReferenceStore):
    """A save appends a row, and a load reads the first one that it finds, with two rows at most per key."""

    async def _save(self, key: str, json: str) -> None:
        old, _, newer = (await self.load(key) or "").partition("\n")
        await super()._save(key, f"{old}\n{newer or json}" if old else json)


@mutant("basic-delete-does-nothing", "basic.save-after-delete")
class DeleteNothing(ReferenceStore):
    """A delete does nothing."""

    async def _delete(self, key: str) -> None:
        """Delete nothing."""


@mutant("basic-tombstone-stays", "basic.save-after-delete")
class KeepTombstone(ReferenceStore):
    """A deleted key keeps its mark of deletion when it is saved again."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self._deleted: set[str] = set()

    async def load(self, key: str) -> str | None:
        return None if key in self._deleted else await super().load(key)

    async def _delete(self, key: str) -> None:
        await super()._delete(key)
        self._deleted.add(key)


@mutant("basic-delete-absent-raises", "basic.delete-absent")
class DeleteAbsentRaises(ReferenceStore):
    """Deleting an absent key raises, as unlinking a file does."""

    async def _delete(self, key: str) -> None:
        if await self.load(key) is None:
            raise FileNotFoundError(key)
        await super()._delete(key)


@mutant("basic-save-returns-reply", "basic.returns-none")
class ReturnReply(ReferenceStore):
    """A save returns what the driver returned."""

    async def save(self, key: str, json: str) -> Any:  # noqa: ANN401
        await super().save(key, json)
        return "OK"


@mutant("basic-delete-returns-count", "basic.returns-none")
class ReturnCount(ReferenceStore):
    """A delete returns how many entries it removed."""

    async def delete(self, key: str) -> Any:  # noqa: ANN401
        there = await self.load(key) is not None
        await super().delete(key)
        return int(there)


@mutant("basic-delete-by-prefix", "basic.neighbours-survive")
class DeleteByPrefix(ReferenceStore):
    """A delete removes every key that begins with the one to delete."""

    async def _delete(self, key: str) -> None:
        for there in [there async for there in self.list_keys(key)]:
            await super()._delete(there)


@mutant("basic-load-takes", "basic.repeated-load")
class LoadTakes(ReferenceStore):
    """A load takes the entry out, as from a queue."""

    async def load(self, key: str) -> str | None:
        text = await super().load(key)
        await self._delete(key)
        return text


@mutant("basic-load-yields-once", "basic.repeated-load")
class LoadOnce(ReferenceStore):
    """A load of what the client has seen returns None, as an answer "not modified" without a body is taken."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self._seen: dict[str, str | None] = {}

    async def load(self, key: str) -> str | None:
        text = await super().load(key)
        return None if text is not None and self._seen.get(key) == text else self._seen.setdefault(key, text)


@mutant("basic-deletion-not-shared", "basic.model")
class DeleteLocally(ReferenceStore):
    """A deletion is only remembered by the client that deleted, and forgotten when it closes."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self._deleted: set[str] = set()

    async def save(self, key: str, json: str) -> None:
        await super().save(key, json)
        self._deleted.discard(key)

    async def load(self, key: str) -> str | None:
        return None if key in self._deleted else await super().load(key)

    async def _delete(self, key: str) -> None:
        self._deleted.add(key)


@mutant("basic-absence-cached", "basic.model")
class CacheAbsence(ReferenceStore):
    """A client that has found a key absent believes so until it saves the key itself."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self._absent: set[str] = set()

    async def save(self, key: str, json: str) -> None:
        await super().save(key, json)
        self._absent.discard(key)

    async def load(self, key: str) -> str | None:
        text = None if key in self._absent else await super().load(key)
        if text is None:
            self._absent.add(key)
        return text


@mutant("basic-written-at-close", "basic.model")
class WriteAtClose(ReferenceStore):
    """Saves are written when the client is closed."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self._unwritten: dict[str, str] = {}

    async def load(self, key: str) -> str | None:
        return self._unwritten.get(key) or await super().load(key)

    async def aclose(self) -> None:
        for key, json in self._unwritten.items():
            await super()._save(key, json)
        await super().aclose()

    async def _save(self, key: str, json: str) -> None:
        self._encode_key(key)
        self._encode_value(json)
        self._unwritten[key] = json

    async def _delete(self, key: str) -> None:
        self._unwritten.pop(key, None)
        await super()._delete(key)
