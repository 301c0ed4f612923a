"""Stores that hide, or make worse, what fails beneath them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dagonizer.errors import InvalidKeyError, StoreCorruptedError, StoreUnavailableError
from dagonizer_conformance.mutants.mutant import mutant
from dagonizer_conformance.mutants.reference import Connection, ReferenceStore

if TYPE_CHECKING:
    from dagonizer.contracts import VersionedJson


@mutant("outage-is-none", "errors.backend-down")
class OutageIsNone(ReferenceStore):
    """What cannot be loaded is taken for absent."""

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version."""
        try:
            return await super().load_versioned(key)
        except StoreUnavailableError:
            return None


@mutant("outage-ignored", "errors.backend-down")
class OutageIgnored(ReferenceStore):
    """A save that does not reach the backend is logged, perhaps, and reports success."""

    async def _save(self, key: str, json: str) -> None:
        with suppress(StoreUnavailableError):
            await super()._save(key, json)


@mutant("cached-in-outage", "errors.backend-down")
class CachedInOutage(ReferenceStore):
    """With the backend down a load returns what it returned the last time."""

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``."""
        seen = self.__dict__.setdefault("_seen", {})
        with suppress(StoreUnavailableError):
            seen[key] = await super().load(key)
        if key not in seen:
            raise StoreUnavailableError("nothing was loaded yet")
        text: str | None = seen[key]
        return text


@mutant("outage-blames-key", "errors.backend-down")
class OutageBlamesKey(ReferenceStore):
    """Whatever the backend has against a request is taken for a fault of the key."""

    async def _delete(self, key: str) -> None:
        try:
            await super()._delete(key)
        except StoreUnavailableError as exc:
            raise InvalidKeyError(str(exc)) from exc


@mutant("outage-lists-nothing", "errors.backend-down")
class OutageListsNothing(ReferenceStore):
    """With the backend down there are no keys."""

    async def _list_page(self, prefix: str, after: str) -> tuple[list[str], bool]:
        try:
            return await super()._list_page(prefix, after)
        except StoreUnavailableError:
            return [], False


@mutant("saves-dropped-in-outage", "errors.backend-down")
class SavesDroppedInOutage(ReferenceStore):
    """After two saves in a row have failed a breaker drops the next ones, which report success."""

    _failures = 0

    async def _save(self, key: str, json: str) -> None:
        try:
            await super()._save(key, json)
        except StoreUnavailableError:
            self._failures += 1
            if self._failures > 2:  # noqa: PLR2004
                return
            raise
        self._failures = 0


@mutant("loads-nothing-in-outage", "errors.backend-down")
class LoadsNothingInOutage(ReferenceStore):
    """After two loads in a row have failed a breaker answers in the place of the backend: nothing is there."""

    _failures = 0

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``."""
        try:
            text = await super().load(key)
        except StoreUnavailableError:
            self._failures += 1
            if self._failures > 2:  # noqa: PLR2004
                return None
            raise
        self._failures = 0
        return text


@mutant("saves-replayed", "errors.recovery")
class SavesReplayed(ReferenceStore):
    """A save that fails raises, and is made again behind the next one that does not."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self._queue: list[tuple[str, str]] = []

    async def _save(self, key: str, json: str) -> None:
        try:
            await super()._save(key, json)
        except StoreUnavailableError:
            self._queue.append((key, json))
            raise
        while self._queue:
            await super()._save(*self._queue.pop(0))


@mutant("never-reconnects", "errors.recovery", "errors.connection-reset")
class NeverReconnects(ReferenceStore):
    """A connection that has broken is used again and again."""

    def _discard(self, connection: Connection) -> None:
        self._release(connection)

    def _is_stale(self, connection: Connection) -> bool:  # noqa: ARG002
        return False


@mutant("gives-up-for-good", "errors.recovery")
class GivesUpForGood(ReferenceStore):
    """A backend that could not be reached once is never asked again."""

    _given_up = False

    async def _connect(self) -> Connection:
        if self._given_up:
            raise StoreUnavailableError("the backend is down")
        try:
            return await super()._connect()
        except OSError:
            self._given_up = True
            raise


@mutant("miss-keeps-connection", "errors.misses")
class MissKeepsConnection(ReferenceStore):
    """A load that finds nothing returns without giving its connection back."""

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version."""
        entry = await super().load_versioned(key)
        if entry is None:
            await self._slots().acquire()
        return entry


@mutant("miss-then-raises", "errors.misses")
class MissThenRaises(ReferenceStore):
    """After many misses in a row a breaker takes the backend for broken."""

    _misses = 0

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version."""
        if self._misses > 30:  # noqa: PLR2004
            raise StoreUnavailableError("too many failures")
        entry = await super().load_versioned(key)
        self._misses = 0 if entry is not None else self._misses + 1
        return entry


@mutant("decoding-replaces", "errors.corrupt")
class DecodingReplaces(ReferenceStore):
    """Bytes that are not UTF-8 are replaced by question marks."""

    def _decode_value(self, key: str, stored: bytes) -> str:  # noqa: ARG002
        return stored.decode(errors="replace")


@mutant("decoding-ignores", "errors.corrupt")
class DecodingIgnores(ReferenceStore):
    """Bytes that are not UTF-8 are passed over."""

    def _decode_value(self, key: str, stored: bytes) -> str:  # noqa: ARG002
        return stored.decode(errors="ignore")


@mutant("corrupt-is-none", "errors.corrupt")
class CorruptIsNone(ReferenceStore):
    """An entry that cannot be read is taken for absent."""

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version."""
        try:
            return await super().load_versioned(key)
        except StoreCorruptedError:
            return None


@mutant("no-timeout", "errors.black-hole")
class NoTimeout(ReferenceStore):
    """A request waits for its reply as long as it takes."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **{**options, "timeout": 3600})


@mutant("timeout-is-none", "errors.black-hole")
class TimeoutIsNone(ReferenceStore):
    """A load that nobody answers returns None."""

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``."""
        try:
            return await super().load(key)
        except StoreUnavailableError as exc:
            if isinstance(exc.__cause__, TimeoutError):
                return None
            raise


@mutant("silent-connections-kept", "errors.half-open")
class SilentConnectionsKept(ReferenceStore):
    """An operation that has waited in vain tells nothing of the other connections."""

    def _distrust(self) -> None:
        """Leave none."""


@mutant("silence-is-none", "errors.half-open")
class SilenceIsNone(ReferenceStore):
    """A breaker takes a second of silence for the answer that nothing is there."""

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``."""
        try:
            async with asyncio.timeout(1):
                return await super().load(key)
        except TimeoutError:
            return None


@mutant("reset-is-none", "errors.connection-reset")
class ResetIsNone(ReferenceStore):
    """An entry whose load a reset interrupts is taken for absent."""

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``."""
        try:
            return await super().load(key)
        except StoreUnavailableError:
            return None


@mutant("reset-ignored", "errors.connection-reset")
class ResetIgnored(ReferenceStore):
    """A save that a reset interrupts reports success, for it has probably arrived."""

    def _is_stale(self, connection: Connection) -> bool:  # noqa: ARG002
        return False

    async def _save(self, key: str, json: str) -> None:
        with suppress(StoreUnavailableError):
            await super()._save(key, json)


class _Hasty(Connection):
    """Takes whatever has come when the connection breaks for all there is."""

    async def _receive(self, length: int) -> bytearray:
        loop = asyncio.get_running_loop()
        received = bytearray()
        with suppress(ConnectionResetError):
            while len(received) < length and (chunk := await loop.sock_recv(self._socket, length - len(received))):
                received += chunk
        return received


@mutant("half-reply-is-whole", "errors.half-reply")
class HalfReplyIsWhole(ReferenceStore):
    """A text ends where the connection ends."""

    async def _connect(self) -> Connection:
        return await _Hasty.open(self._host, self._port)

    def _decode_value(self, key: str, stored: bytes) -> str:  # noqa: ARG002
        return stored.decode(errors="ignore")


@mutant("half-reply-is-none", "errors.half-reply")
class HalfReplyIsNone(ReferenceStore):
    """A reply that breaks off is taken for one that finds nothing."""

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``."""
        try:
            return await super().load(key)
        except StoreUnavailableError:
            return None


@mutant("ends-the-backend", "errors.cut-off-crowd", faults=("slow", "ends-if-cut-off"))
class EndsTheBackend(ReferenceStore):
    """The backend ends when it has an answer for a client that is gone."""


@mutant("save-in-two-requests", "errors.half-request")
class SaveInTwoRequests(ReferenceStore):
    """A save sends its text in two requests, the second of which may never come."""

    async def _save(self, key: str, json: str) -> None:
        await super()._save(key, json[: len(json) // 2])
        await super()._save(key, json)


@mutant("removed-before-sent", "errors.half-request")
class RemovedBeforeSent(ReferenceStore):
    """A save removes the old entry in a request of its own."""

    async def _save(self, key: str, json: str) -> None:
        await self._delete(key)
        await super()._save(key, json)


@mutant("half-request-reported-done", "errors.half-request")
class HalfRequestReportedDone(ReferenceStore):
    """A save that was sent is done, whether a reply comes or not."""

    async def _save(self, key: str, json: str) -> None:
        with suppress(StoreUnavailableError):
            await super()._save(key, json)


@mutant("repeated-blindly", "errors.lost-acknowledgement")
class RepeatedBlindly(ReferenceStore):
    """A save that was not acknowledged is made again, whatever has happened since."""

    async def _save(self, key: str, json: str) -> None:
        try:
            await super()._save(key, json)
        except StoreUnavailableError:
            await super()._save(key, json)


@mutant("slow-reply-misread", "errors.slow-network")
class SlowReplyMisread(ReferenceStore):
    """The connection of a cancelled request is used again, if its reply has not come yet."""

    def _discard(self, connection: Connection) -> None:
        self._release(connection)

    def _check_reply(self, request_id: int, reply: dict[str, Any]) -> None:
        """Check nothing."""


@mutant("slow-is-absent", "errors.slow-network")
class SlowIsAbsent(ReferenceStore):
    """A load whose reply is not there in five milliseconds returns None."""

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``."""
        try:
            async with asyncio.timeout(0.005):
                return await super().load(key)
        except TimeoutError:
            return None
