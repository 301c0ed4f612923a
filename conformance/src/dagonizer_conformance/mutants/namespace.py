"""Stores in which namespaces meet."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from dagonizer import StoreError
from dagonizer_conformance.mutants.mutant import mutant
from dagonizer_conformance.mutants.reference import ReferenceStore

if TYPE_CHECKING:
    from collections.abc import Iterable


@mutant("namespace-ignored", "namespace.same-key")
class IgnoreNamespace(ReferenceStore):
    """All namespaces are one."""

    def _namespace_for(self, key: str) -> str:  # noqa: ARG002
        return "all"


@mutant("namespace-ignored-by-delete", "namespace.same-key")
class DeleteEverywhere(ReferenceStore):
    """A delete forgets the condition on the namespace."""

    async def _delete(self, key: str) -> None:
        for namespace in {self._namespace, self._namespace.removesuffix("-there"), f"{self._namespace}-there"}:
            await self._write({"command": "delete", "namespace": namespace, "key": self._encode_key(key)})


class _Joined(ReferenceStore):
    separator = ""

    def place(self, key: str) -> dict[str, str]:
        return {"namespace": "", "key": f"{self._namespace}{self.separator}{self._encode_key(key)}"}


@mutant("namespace-joined-by-colon", "namespace.joined-names")
class JoinByColon(_Joined):
    """Namespace and key are joined by a colon."""

    separator = ":"


@mutant("namespace-joined-by-hyphen", "namespace.joined-names")
class JoinByHyphen(_Joined):
    """Namespace and key are joined by a hyphen."""

    separator = "-"


@mutant("namespace-joined", "namespace.joined-names")
class JoinWithout(_Joined):
    """Namespace and key are joined by nothing."""


class _HashesLongKeys(ReferenceStore):
    """Replaces a long key by a hash: correct, with the namespace and its length in it."""

    long = 200

    def place(self, key: str) -> dict[str, str]:
        place = super().place(key)
        if len(key.encode()) <= self.long:
            return place
        return {"namespace": "hashed", "key": hashlib.sha256(self._hashed(key).encode()).hexdigest()}

    def _hashed(self, key: str) -> str:
        return f"{len(self._namespace)}:{self._namespace}{key}"


@mutant("namespace-left-out-of-hash", "namespace.same-key")
class LeaveOutOfHash(_HashesLongKeys):
    """A key that is too long for a name is replaced by its hash, without the namespace."""

    def _hashed(self, key: str) -> str:
        return key


@mutant("namespace-joined-in-hash", "namespace.joined-names")
class JoinInHash(_HashesLongKeys):
    """A key that is too long for a name is replaced by a hash of the namespace, a colon and the key."""

    def _hashed(self, key: str) -> str:
        return f"{self._namespace}:{key}"


@mutant("namespace-sanitized", "namespace.joined-names")
class SanitizeNamespace(ReferenceStore):
    """A namespace is made the name of a table, in which its colons become hyphens."""

    def _namespace_for(self, key: str) -> str:  # noqa: ARG002
        return self._namespace.replace(":", "-")


class _Beside(ReferenceStore):
    """Removes entries of other namespaces that begin like its own."""

    async def _remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            namespace = f"{self._namespace}-bystander"
            await self._write({"command": "delete", "namespace": namespace, "key": key})


@mutant("namespace-deleted-by-prefix", "namespace.bystander-untouched")
class DeleteBeside(_Beside):
    """A delete removes the key from every namespace that begins like its own."""

    async def _delete(self, key: str) -> None:
        await super()._delete(key)
        await self._remove([key])


@mutant("namespace-wiped-at-close", "namespace.bystander-untouched")
class WipeAtClose(_Beside):
    """Closing a store cleans up behind it, in all namespaces."""

    async def aclose(self) -> None:
        await self._remove(["bystander"])
        await super().aclose()


@mutant("namespace-others-evicted", "namespace.bystander-untouched")
class EvictOthers(_Beside):
    """The first save of a client makes room by evicting what other namespaces have left."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self._made_room = False

    async def _save(self, key: str, json: str) -> None:
        if not self._made_room:
            self._made_room = True
            await self._remove(["bystander"])
        await super()._save(key, json)


@mutant("saves-spread-late", "namespace.bystander-untouched")
class SpreadLate(ReferenceStore):
    """Keeps what was saved in its process, for all stores there to see, and writes it a second later."""

    _unwritten: ClassVar[dict[tuple[str, str], str | None]] = {}
    _tasks: ClassVar[set[asyncio.Task[None]]] = set()

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``."""
        place = self._namespace, key
        return self._unwritten[place] if place in self._unwritten else await super().load(key)

    async def _save(self, key: str, json: str) -> None:
        self._write_soon(key, json)

    async def _delete(self, key: str) -> None:
        self._write_soon(key, None)

    def _write_soon(self, key: str, json: str | None) -> None:
        self._unwritten[self._namespace, key] = json
        task = asyncio.create_task(self._write_late(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write_late(self, key: str) -> None:
        await asyncio.sleep(1.2)
        place = self._namespace, key
        with suppress(StoreError, KeyError):
            text = self._unwritten[place]
            # This one may be closed.
            async with ReferenceStore(self._host, self._port, self._namespace) as store:
                await (store.delete(key) if text is None else store.save(key, text))
            del self._unwritten[place]
