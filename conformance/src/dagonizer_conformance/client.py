"""A client of the store under test: it records every call, bounds its time, and checks whatever a load returns."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagonizer import InvalidKeyError
from dagonizer.keys import key_bytes
from dagonizer_conformance.certificate import CERTIFIED, label, read_certificate
from dagonizer_conformance.harness import PrefixedStore
from dagonizer_conformance.interruption import Steps, within
from dagonizer_conformance.outcomes import Violation, expect_text, shown
from dagonizer_conformance.results import Capability

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator

    from dagonizer import VersionedJson
    from dagonizer_conformance.harness import Harness

METHODS = {
    Capability.CLOSE: ("aclose",),
    Capability.LISTING: ("list_keys",),
    Capability.COMPARE_AND_SWAP: ("load_versioned", "save_if"),
}
"""The methods that make up each optional capability."""


@dataclass(slots=True)
class Call:
    """One call as its client saw it. Times are of ``time.monotonic_ns``; ``ended`` is None while nothing came back."""

    client: str
    name: str
    namespace: str
    key: str
    argument: str | None
    started: int
    ended: int | None = None
    returned: Any = None
    raised: BaseException | None = None

    def __str__(self) -> str:
        key = "" if self.name in {"aclose", "close"} else shown(self.key)
        return f"{self.name}({key}) of {self.client}"


class Record:
    """What the clients of one case have done: their calls, the texts that they gave to the store, and its errors."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.errors: list[BaseException] = []
        self.keys: dict[str, set[str]] = {}
        self.deleted: set[tuple[str, str]] = set()
        """What was deleted at some time; it may have been saved again."""
        self._texts: dict[tuple[str, str], set[str]] = {}
        self._last: dict[tuple[str, str], str] = {}

    def will_save(self, namespace: str, key: str, text: str) -> None:
        """Remember that from now on a load of ``key`` may return ``text``."""
        # What is no key is left to the case that tried it.
        with suppress(InvalidKeyError):
            key_bytes(key)
            self.keys.setdefault(namespace, set()).add(key)
        self._texts.setdefault((namespace, key), set()).add(text)
        self._last[namespace, key] = text

    def check(self, namespace: str, key: str, text: object, what: str) -> None:
        """Raise ``Violation`` if ``text`` is not one that was given to the store under this key of this namespace."""
        if text is None or text in self._texts.get((namespace, key), ()):
            return
        if not isinstance(text, str):
            raise Violation(f"{what} returned {shown(text)}, neither a str nor None")
        last = self._last.get((namespace, key), CERTIFIED)
        if not text.startswith(CERTIFIED) and not last.startswith(CERTIFIED):
            expect_text(text, last, f"what {what} returned")
        try:
            certificate = read_certificate(text)
        except ValueError as exc:
            raise Violation(f"{what} returned a text that {exc}: {shown(text)}") from None
        if (certificate.namespace, certificate.key) != (namespace, key):
            raise Violation(
                f"{what} returned {certificate}, which was saved under {shown(certificate.key)}"
                + ("" if certificate.namespace == namespace else f" of the namespace {certificate.namespace}")
            )


class Client:
    """One store of the kit's, with its methods. ``store`` is the store itself."""

    def __init__(self, store: Any, *, name: str, namespace: str, record: Record, patience: float | None) -> None:  # noqa: ANN401 - a stranger's class
        self.store = store
        self.name = name
        self.namespace = namespace
        self.max_key_bytes = store.max_key_bytes if isinstance(store, PrefixedStore) else 1024
        self.patience = patience
        """How long one call may take, in seconds."""
        self.chance: random.Random | None = None
        """Lets other clients run at random whenever a call of this one could go on."""
        self._record = record

    def has(self, capability: Capability) -> bool:
        """Return whether the store has the methods of ``capability``."""
        return all(callable(getattr(self.store, name, None)) for name in METHODS[capability])

    def unbounded(self) -> Client:
        """Return the same client with calls that run in the task of who awaits them, to be cancelled there."""
        return Client(self.store, name=self.name, namespace=self.namespace, record=self._record, patience=None)

    async def save(self, key: str, text: str) -> object:
        """Save, and return whatever the store returns."""
        self._will_save(key, text)
        return await self._call("save", key, text, lambda: self.store.save(key, text))

    async def load(self, key: str) -> str | None:
        """Load. Raises ``Violation`` if the text was never given to the store under this key."""
        text: str | None = await self._call("load", key, None, lambda: self.store.load(key))
        self._record.check(self.namespace, key, text, f"load({shown(key)}) of {self.name}")
        return text

    async def delete(self, key: str) -> object:
        """Delete, and return whatever the store returns."""
        returned = await self._call("delete", key, None, lambda: self.store.delete(key))
        self._record.deleted.add((self.namespace, key))
        return returned

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Load with the version. Raises ``Violation`` like ``load``, and for a result of another shape."""
        found = await self._call("load_versioned", key, None, lambda: self.store.load_versioned(key))
        if found is None:
            return None
        what = f"load_versioned({shown(key)}) of {self.name}"
        if not isinstance(getattr(found, "version", None), str) or not isinstance(getattr(found, "json", None), str):
            raise Violation(f"{what} returned {shown(found)}, which has no json and version that are str")
        self._record.check(self.namespace, key, found.json, what)
        versioned: VersionedJson = found
        return versioned

    async def save_if(self, key: str, text: str, *, expected: str | None) -> str:
        """Save if the entry is as expected; return the new version."""
        self._will_save(key, text)
        version = await self._call("save_if", key, text, lambda: self.store.save_if(key, text, expected=expected))
        if not isinstance(version, str):
            raise Violation(
                f"save_if({shown(key)}) of {self.name} returned {shown(version)}, not a version that is a str"
            )
        return version

    async def list_keys(self, prefix: str = "") -> list[str]:
        """Return the listed keys in the order in which they came, duplicates included."""

        async def collect() -> list[str]:
            listed: AsyncIterator[str] = self.store.list_keys(prefix)
            return [key async for key in listed]

        keys: list[str] = await self._call("list_keys", prefix, None, collect)
        for key in keys:
            if not isinstance(key, str):
                raise Violation(f"list_keys({shown(prefix)}) of {self.name} yielded {shown(key)}, not a str")
        return keys

    async def aclose(self) -> None:
        """Close the store by its own method."""
        await self._call("aclose", "", None, self.store.aclose)

    async def close(self, harness: Harness) -> None:
        """Close the store by its harness."""
        await self._call("close", "", None, lambda: harness.close(self.store))

    def _will_save(self, key: str, text: str) -> None:
        if not isinstance(key, str) or not isinstance(text, str):
            return
        if len(key.encode(errors="surrogatepass")) <= self.max_key_bytes:
            self._record.will_save(self.namespace, key, text)

    async def _call(self, name: str, key: str, text: str | None, start: Any) -> Any:  # noqa: ANN401 - whatever a stranger's method returns
        call = Call(self.name, name, self.namespace, key, text, time.monotonic_ns())

        async def timed() -> Any:  # noqa: ANN401
            call.started = time.monotonic_ns()
            self._record.calls.append(call)
            try:
                call.returned = await (Steps(start(), chance=self.chance) if self.chance else start())
            except (Exception, asyncio.CancelledError) as exc:
                call.raised = exc
                self._record.errors.append(exc)
                raise
            except SystemExit as exc:
                call.raised = exc
                raise Violation(f"{call} raised {exc!r}, which would end the program") from exc
            finally:
                call.ended = time.monotonic_ns()
            return call.returned

        if self.patience is None:
            return await timed()
        return await within(self.patience, timed(), str(call))


def shown_call(call: Call) -> tuple[str | None, str]:
    """Return short labels of what ``call`` was given and how it came out."""
    argument = None if call.argument is None else label(call.argument)
    if call.ended is None:
        return argument, "unknown"
    if call.raised is not None:
        return argument, type(call.raised).__name__
    return argument, label(call.returned) if isinstance(call.returned, str) else shown(call.returned)
