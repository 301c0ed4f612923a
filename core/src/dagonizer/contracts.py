"""What a store is: three async methods, and the optional protocols beside them.

Nothing here needs to be inherited or imported by a store; structure is enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType
    from typing import Self

OPTIONAL_METHODS = ("list_keys", "load_versioned", "save_if")
"""The operations that a store may have beside ``save``, ``load`` and ``delete``."""


@runtime_checkable
class CheckpointStore(Protocol):
    """Keeps texts under keys.

    A key is any non-empty string of at most 1,024 UTF-8 bytes; a value is any string, JSON or not. Neither may contain
    U+0000 or a lone surrogate: ``InvalidKeyError`` (from every method), ``InvalidValueError``. Both are opaque: two
    different keys never meet, and a value comes back code point for code point.
    """

    async def save(self, key: str, json: str) -> None:
        """Put ``json`` under ``key``, replacing what is there atomically.

        Returns once the backend has acknowledged at its configured durability; from then on every other client sees
        it. A save that is cancelled or raises has left the old text or the new one, never a mixture.
        """
        ...

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``, or None when there is no entry. Anything else raises a ``StoreError``."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the entry under ``key``. Without an entry this does nothing.

        Returns once the backend has acknowledged, like ``save``; if it raises a ``StoreError`` the outcome is unknown.
        """
        ...


@runtime_checkable
class SupportsListing(Protocol):
    """A store that can list its keys."""

    def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield every key that starts with ``prefix`` exactly once, in any order, fetched in pages.

        ``prefix`` is literal text, never a pattern. Keys saved or deleted meanwhile may or may not be seen. Raises
        ``InvalidKeyError`` for a prefix that no key can have, or another ``StoreError``.
        """
        ...


class VersionedJson(msgspec.Struct, frozen=True):
    """A stored text, and the opaque version that identifies it for ``save_if`` of the same store."""

    json: str
    version: str


@runtime_checkable
class SupportsCompareAndSwap(Protocol):
    """A store that can replace an entry only if nobody else has changed it."""

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version, or None when there is no entry."""
        ...

    async def save_if(self, key: str, json: str, *, expected: str | None) -> str:
        """Save if the entry still has the version ``expected`` (None: if there is no entry); return the new version.

        A version is never valid for a different text, deletion and re-creation included; equal texts may share one.
        Raises ``StoreConflictError``, and changes nothing, when the entry is not as expected.
        """
        ...


@runtime_checkable
class SupportsClose(Protocol):
    """A store that holds resources. After ``aclose`` every call raises ``StoreClosedError``."""

    async def aclose(self) -> None:
        """Release what the store holds. Closing twice is allowed."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...


@runtime_checkable
class ClosableStore(CheckpointStore, SupportsClose, Protocol):
    """What ``open_store`` returns: a store for ``async with``."""
