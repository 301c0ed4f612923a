"""Stores whose listings tell too little, too much, or something else."""

from __future__ import annotations

import asyncio
import fnmatch
import re
import unicodedata
from typing import TYPE_CHECKING, Any

from dagonizer_conformance.mutants.mutant import mutant
from dagonizer_conformance.mutants.reference import ReferenceStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dagonizer.contracts import VersionedJson

_PAGE = 10
_CHUNK = 100_000


class _Filtering(ReferenceStore):
    """Lists all keys and picks those that match."""

    async def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        async for key in super().list_keys():
            if self._matches(key, prefix):
                yield key

    def _matches(self, key: str, prefix: str) -> bool:
        return key.startswith(prefix)


@mutant("listing-like", "listing.literal-prefix")
class PrefixAsLike(_Filtering):
    """The prefix goes into a LIKE pattern as it is."""

    def _matches(self, key: str, prefix: str) -> bool:
        pattern = re.escape(prefix).replace("%", ".*").replace("_", ".")
        return re.match(pattern, key, re.DOTALL) is not None


@mutant("listing-glob", "listing.literal-prefix")
class PrefixAsGlob(_Filtering):
    """The prefix goes into a glob pattern as it is, as with KEYS or SCAN."""

    def _matches(self, key: str, prefix: str) -> bool:
        return fnmatch.fnmatchcase(key, f"{prefix}*")


@mutant("listing-folds-case", "listing.literal-prefix")
class PrefixFoldsCase(_Filtering):
    """The prefix is compared without regard to case, as SQLite's LIKE does."""

    def _matches(self, key: str, prefix: str) -> bool:
        return key.lower().startswith(prefix.lower())


@mutant("listing-normalizes", "listing.literal-prefix")
class PrefixNormalized(_Filtering):
    """The prefix is compared in Unicode's composed form."""

    def _matches(self, key: str, prefix: str) -> bool:
        return unicodedata.normalize("NFC", key).startswith(unicodedata.normalize("NFC", prefix))


@mutant("listing-as-folder", "listing.literal-prefix")
class PrefixAsFolder(_Filtering):
    """A prefix is taken for a folder, whose name ends at a slash."""

    def _matches(self, key: str, prefix: str) -> bool:
        return key.startswith(prefix.rstrip("/") + "/" if prefix else "")


@mutant("listing-range-to-ffff", "listing.literal-prefix")
class PrefixAsShortRange(_Filtering):
    """The range of a prefix ends at U+FFFF, before emoji and all other astral characters."""

    def _matches(self, key: str, prefix: str) -> bool:
        return prefix <= key <= f"{prefix}\uffff"


@mutant("listing-tombstones", "listing.after-deletes")
class ListsDeleted(ReferenceStore):
    """Deleted keys stay in the listing."""

    async def _delete(self, key: str) -> None:
        await super()._save(key, "")

    async def load(self, key: str) -> str | None:
        return await super().load(key) or None


@mutant("listing-every-save", "listing.after-deletes")
class ListsEverySave(ReferenceStore):
    """The listing has a key as often as it was saved."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - those of the class above
        super().__init__(*args, **options)
        self._saves: list[str] = []

    async def _save(self, key: str, json: str) -> None:
        await super()._save(key, json)
        self._saves.append(key)

    async def _list_page(self, prefix: str, after: str) -> tuple[list[str], bool]:
        keys, more = await super()._list_page(prefix, after)
        return [key for found in keys for key in [found] * max(1, self._saves.count(found))], more


@mutant("listing-capped", "listing.many", faults=("list-capped",))
class ListsThousand(ReferenceStore):
    """A listing ends after 1,000 keys, as if there were no more pages."""


@mutant("listing-repeats-at-page-edge", "listing.many")
class RepeatsAtPageEdge(ReferenceStore):
    """Each page begins with the last key of the page before it."""

    async def _list_page(self, prefix: str, after: str) -> tuple[list[str], bool]:
        keys, more = await super()._list_page(prefix, after)
        return [after, *keys] if after else keys, more


@mutant("listing-skips-at-page-edge", "listing.many")
class SkipsAtPageEdge(ReferenceStore):
    """The first key of each page but the first is left out."""

    async def _list_page(self, prefix: str, after: str) -> tuple[list[str], bool]:
        keys, more = await super()._list_page(prefix, after)
        return keys[1:] if after else keys, more


@mutant("listing-by-offset", "listing.while-changing")
class PagesByOffset(ReferenceStore):
    """Pages are found by how many keys came before, so that they shift when keys come and go."""

    async def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        offset = 0
        while page := [key async for key in super().list_keys(prefix)][offset : offset + _PAGE]:
            for key in page:
                yield key
            offset += _PAGE


@mutant("listing-locked", "listing.while-changing")
class LocksWhileListing(ReferenceStore):
    """A client is locked from the first key of a listing to its last, so that no change succeeds in between."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - those of the class above
        super().__init__(*args, **options)
        self._lock = asyncio.Lock()

    async def _write(self, head: dict[str, Any], body: bytes = b"") -> dict[str, Any]:
        async with asyncio.timeout(0.3), self._lock:
            return await super()._write(head, body)

    async def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        async with self._lock:
            async for key in super().list_keys(prefix):
                yield key


@mutant("listing-joined-namespaces", "listing.own-namespace")
class JoinsNamespaces(ReferenceStore):
    """Namespaces are told apart by what keys begin with, and one namespace's name can begin with another's."""

    def _namespace_for(self, key: str) -> str:  # noqa: ARG002 - the same for all
        return "all"

    def _encode_key(self, key: str) -> str:
        return f"{self._namespace}-{super()._encode_key(key)}"

    def _decode_key(self, key: str) -> str:
        return key.removeprefix(f"{self._namespace}-")

    async def _list_page(self, prefix: str, after: str) -> tuple[list[str], bool]:
        return await super()._list_page(f"{self._namespace}-{prefix}", after)


@mutant("listing-shows-parts", "listing.own-namespace")
class ListsParts(ReferenceStore):
    """A large text is cut into parts, which the listing shows."""

    async def _save(self, key: str, json: str) -> None:
        if len(json) > _CHUNK:
            await super()._save(f"{key}.part", json[_CHUNK:])
        await super()._save(key, json[:_CHUNK])

    async def load_versioned(self, key: str) -> VersionedJson | None:
        entry = await super().load_versioned(key)
        if entry is not None and len(entry.json) == _CHUNK and (rest := await super().load_versioned(f"{key}.part")):
            return type(entry)(entry.json + rest.json, entry.version)
        return entry


@mutant("listing-shows-bookkeeping", "listing.own-namespace")
class ListsBookkeeping(ReferenceStore):
    """The store keeps an entry of its own among those of its users."""

    async def _save(self, key: str, json: str) -> None:
        await super()._save(".last-save", key)
        await super()._save(key, json)


@mutant("listing-own-index", "listing.other-client")
class ListsOwnIndex(ReferenceStore):
    """A client lists those keys that it has saved itself."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - those of the class above
        super().__init__(*args, **options)
        self._saved: set[str] = set()

    async def _save(self, key: str, json: str) -> None:
        await super()._save(key, json)
        self._saved.add(key)

    async def _list_page(self, prefix: str, after: str) -> tuple[list[str], bool]:
        keys, more = await super()._list_page(prefix, after)
        return [key for key in keys if key in self._saved], more


@mutant("listing-cached", "listing.other-client")
class ListsFromCache(ReferenceStore):
    """A client lists what it found the first time, until it changes something itself."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - those of the class above
        super().__init__(*args, **options)
        self._pages: dict[tuple[str, str], tuple[list[str], bool]] = {}

    async def _write(self, head: dict[str, Any], body: bytes = b"") -> dict[str, Any]:
        self._pages.clear()
        return await super()._write(head, body)

    async def _list_page(self, prefix: str, after: str) -> tuple[list[str], bool]:
        if (prefix, after) not in self._pages:
            self._pages[prefix, after] = await super()._list_page(prefix, after)
        return self._pages[prefix, after]


@mutant("listing-keeps-connection", "listing.abandoned")
class KeepsConnection(ReferenceStore):
    """A listing takes a connection of the pool, and gives it back only when it has come to its end."""

    async def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        self._check_open()
        connection = await self._acquire()
        async for key in super().list_keys(prefix):
            yield key
        self._release(connection)
