"""A store whose operations are observed, whoever observes them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from dagonizer.contracts import OPTIONAL_METHODS
from dagonizer.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Self

    from dagonizer.contracts import CheckpointStore, VersionedJson


class Outcome:
    """What came of an operation."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """How long the store has worked on it."""
        self.document: object = None
        """What was to be saved, or was loaded."""
        self.raised: type[BaseException] | None = None
        """The class of what was raised; what was raised itself would refer to this by its traceback."""
        self.message = ""
        """The message of a ``StoreError``, which may name the key; others may hold secrets."""

    def document_bytes(self) -> int | None:
        """Return the size of the document in UTF-8, or None when there is none."""
        if not isinstance(self.document, str):
            return None
        # What is refused for its lone surrogates has a size as well.
        return len(self.document) if self.document.isascii() else len(self.document.encode(errors="surrogatepass"))


class Observation(Protocol):
    """One operation, while it is under way."""

    def working(self) -> AbstractContextManager[object]:
        """Return what is entered whenever the store works on it."""
        ...

    def ended(self, outcome: Outcome) -> None:
        """Tell what came of it."""
        ...


class Observed:
    """A store whose operations are observed. It has ``aclose`` and the optional methods if the store has them.

    ``begin`` is called with an operation's name, and its key or prefix.
    """

    def __init__(self, store: CheckpointStore, begin: Callable[[str, str], Observation]) -> None:
        self._store: Any = store
        self._begin = begin
        for name in OPTIONAL_METHODS:
            if hasattr(store, name):
                setattr(self, name, getattr(self, f"_{name}"))
        close = getattr(store, "aclose", None)
        if close is not None:
            self.aclose = close

    async def save(self, key: str, json: str) -> None:
        """Put ``json`` under ``key``."""
        with self._observed("save", key) as outcome:
            outcome.document = json
            await self._store.save(key, json)

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``, or None."""
        with self._observed("load", key) as outcome:
            text: str | None = await self._store.load(key)
            outcome.document = text
        return text

    async def delete(self, key: str) -> None:
        """Remove the entry under ``key``, if there is one."""
        with self._observed("delete", key):
            await self._store.delete(key)

    async def _load_versioned(self, key: str) -> VersionedJson | None:
        with self._observed("load_versioned", key) as outcome:
            entry: VersionedJson | None = await self._store.load_versioned(key)
            outcome.document = None if entry is None else entry.json
        return entry

    async def _save_if(self, key: str, json: str, *, expected: str | None) -> str:
        with self._observed("save_if", key) as outcome:
            outcome.document = json
            version: str = await self._store.save_if(key, json, expected=expected)
        return version

    async def _list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        observation, outcome = self._begin("list_keys", prefix), Outcome()
        keys: AsyncIterator[str] | None = None
        try:
            with _working(observation, outcome):
                keys = aiter(self._store.list_keys(prefix))
            while True:
                # Not around the yield, where the caller works.
                with _working(observation, outcome):
                    key = await anext(keys, None)
                if key is None:
                    break
                yield key
        finally:
            try:
                if isinstance(keys, AsyncGenerator):
                    with _working(observation, outcome):
                        await keys.aclose()
            finally:
                observation.ended(outcome)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        if hasattr(self, "aclose"):
            await self.aclose()

    @contextmanager
    def _observed(self, operation: str, key: str) -> Iterator[Outcome]:
        observation, outcome = self._begin(operation, key), Outcome()
        try:
            with _working(observation, outcome):
                yield outcome
        finally:
            observation.ended(outcome)


@contextmanager
def _working(observation: Observation, outcome: Outcome) -> Iterator[None]:
    begun = time.perf_counter()
    try:
        with observation.working():
            yield
    except BaseException as exc:
        outcome.raised = type(exc)
        outcome.message = str(exc) if isinstance(exc, StoreError) else ""
        raise
    finally:
        outcome.seconds += time.perf_counter() - begun
