"""Stores whose compare-and-swap loses somebody's work."""

from __future__ import annotations

import asyncio
import hashlib
from typing import ClassVar

from dagonizer.contracts import VersionedJson
from dagonizer.errors import StoreConflictError, StoreUnavailableError
from dagonizer_conformance.mutants.mutant import mutant
from dagonizer_conformance.mutants.reference import ReferenceStore


@mutant("swap-ignores-expected", "compare-and-swap.stale-version", "compare-and-swap.bogus-version")
class IgnoresExpected(ReferenceStore):
    """A save_if saves whatever the version is, unless it is to create the entry."""

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        entry = await self.load_versioned(key)
        return await super()._save_if(key, json, expected if expected is None or entry is None else entry.version)


@mutant("swap-lies", "compare-and-swap.stale-version", "compare-and-swap.absent")
class LiesOnConflict(ReferenceStore):
    """The backend's answer is thrown away, so that a lost compare-and-swap reports success."""

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        try:
            return await super()._save_if(key, json, expected)
        except StoreConflictError:
            return expected or ""


@mutant("swap-overwrites-then-raises", "compare-and-swap.stale-version", "compare-and-swap.create-race")
class OverwritesThenRaises(ReferenceStore):
    """A conflict is found out only after the text was saved."""

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        try:
            return await super()._save_if(key, json, expected)
        except StoreConflictError:
            await self._save(key, json)
            raise


@mutant("swap-conflict-is-outage", "compare-and-swap.stale-version", "compare-and-swap.absent")
class ConflictIsOutage(ReferenceStore):
    """A conflict is reported as if the backend were unavailable."""

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        try:
            return await super()._save_if(key, json, expected)
        except StoreConflictError as exc:
            raise StoreUnavailableError("the transaction failed") from exc


@mutant("swap-none-means-any", "compare-and-swap.absent", "compare-and-swap.create-race")
class NoneMeansAny(ReferenceStore):
    """Expecting no entry is taken for expecting nothing in particular."""

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        entry = await self.load_versioned(key)
        return await super()._save_if(key, json, entry.version if expected is None and entry else expected)


@mutant("swap-creates-despite-version", "compare-and-swap.absent", "compare-and-swap.stale-version")
class CreatesDespiteVersion(ReferenceStore):
    """A save_if with a version creates the entry when it is absent."""

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        return await super()._save_if(key, json, expected if await self.load_versioned(key) else None)


@mutant("swap-empty-means-none", "compare-and-swap.bogus-version")
class EmptyMeansNone(ReferenceStore):
    """An empty version is taken for None."""

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        return await super()._save_if(key, json, expected or None)


@mutant("swap-parses-version", "compare-and-swap.bogus-version")
class ParsesVersion(ReferenceStore):
    """A version is parsed as a number, and what is none crashes the client."""

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        return await super()._save_if(key, json, None if expected is None else str(int(expected)))


@mutant("swap-star-means-any", "compare-and-swap.bogus-version")
class StarMeansAny(ReferenceStore):
    """A version goes into an If-Match header as it is, where an asterisk means any."""

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        entry = await self.load_versioned(key)
        return await super()._save_if(key, json, entry.version if expected == "*" and entry else expected)


@mutant("swap-save-keeps-version", "compare-and-swap.version-moves", faults=("save-keeps-version",))
class SaveKeepsVersion(ReferenceStore):
    """Only save_if counts the version up; a plain save leaves it."""


@mutant("swap-versions-restart", "compare-and-swap.aba", "compare-and-swap.version-moves", faults=("versions-restart",))
class VersionsRestart(ReferenceStore):
    """Each key's versions are counted from 1, and again from 1 after a deletion."""


@mutant("swap-version-of-backend", "compare-and-swap.unchanged-entry", faults=("version-of-backend",))
class VersionOfBackend(ReferenceStore):
    """An entry's version is that of the whole backend, so that any change elsewhere is a conflict."""


@mutant(
    "swap-version-is-second", "compare-and-swap.aba", "compare-and-swap.version-moves", faults=("version-is-second",)
)
class VersionIsSecond(ReferenceStore):
    """An entry's version is the second of its last change, like a file's time."""


@mutant("swap-returns-version-before", "compare-and-swap.returned-version")
class ReturnsVersionBefore(ReferenceStore):
    """A save_if returns the version that it has replaced."""

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        version = await super()._save_if(key, json, expected)
        return expected or version


class _ComparesHere(ReferenceStore):
    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        entry = await self.load_versioned(key)
        if (None if entry is None else entry.version) != expected:
            raise StoreConflictError(f"the entry under {key!r} is not at version {expected!r}")
        await self._save(key, json)
        entry = await self.load_versioned(key)
        return "" if entry is None else entry.version


@mutant("swap-compares-in-client", "compare-and-swap.counter", "compare-and-swap.create-race", faults=("slow",))
class ComparesInClient(_ComparesHere):
    """The client loads, compares and saves; between these steps others save too."""


@mutant(
    "swap-compares-in-its-process", "compare-and-swap.processes", "compare-and-swap.unconditional", faults=("slow",)
)
class ComparesInItsProcess(_ComparesHere):
    """The client loads, compares and saves under a lock, which only the save_ifs of its process share."""

    _lock: ClassVar[asyncio.Lock] = asyncio.Lock()

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        async with self._lock:
            return await super()._save_if(key, json, expected)


@mutant("swap-lies-in-a-race", "compare-and-swap.counter", "compare-and-swap.create-race", faults=("slow",))
class LiesInRace(ReferenceStore):
    """What the client can see in advance is refused, but when the backend finds a conflict this is passed over."""

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        entry = await self.load_versioned(key)
        if (None if entry is None else entry.version) != expected:
            raise StoreConflictError(f"the entry under {key!r} is not at version {expected!r}")
        try:
            return await super()._save_if(key, json, expected)
        except StoreConflictError:
            return expected or ""


class _VersionFromText(ReferenceStore):
    """Makes an entry's version from its text, and compares atomically: correct, with a hash of the whole text."""

    async def load_versioned(self, key: str) -> VersionedJson | None:
        entry = await super().load_versioned(key)
        return None if entry is None else VersionedJson(entry.json, self._version(entry.json))

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        entry = await super().load_versioned(key)
        if entry is not None and self._version(entry.json) == expected:
            expected = entry.version
        await super()._save_if(key, json, expected)
        return self._version(json)

    def _version(self, json: str) -> str:
        return hashlib.sha256(json.encode()).hexdigest()


@mutant("swap-version-is-length", "compare-and-swap.aba", "compare-and-swap.version-moves")
class VersionIsLength(_VersionFromText):
    """An entry's version is the length of its text."""

    def _version(self, json: str) -> str:
        return str(len(json))


@mutant("swap-version-is-constant", "compare-and-swap.aba", "compare-and-swap.stale-version")
class VersionIsConstant(_VersionFromText):
    """Every entry has the same version, so that only existence is compared."""

    def _version(self, json: str) -> str:  # noqa: ARG002 - that is the fault
        return "1"


@mutant("swap-version-of-beginning", "compare-and-swap.aba")
class VersionOfBeginning(_VersionFromText):
    """An entry's version is a hash of the first 2,000 characters of its text."""

    def _version(self, json: str) -> str:
        return hashlib.sha256(json[:2000].encode()).hexdigest()


@mutant("swap-version-of-ends", "compare-and-swap.aba")
class VersionOfEnds(_VersionFromText):
    """An entry's version is a hash of both ends of its text, and of its length."""

    def _version(self, json: str) -> str:
        return hashlib.sha256(f"{len(json)} {json[:64]}{json[-64:]}".encode()).hexdigest()
