"""``Checkpoint.persist`` and ``Checkpoint.recall`` on a store of ours, which is what people call."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from worker import serve

from dagonizer import Checkpoint, CheckpointData, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dagonizer import CheckpointStore


class Persisted:
    """The document is data before a save, and its state is restored by a load."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._known: tuple[str, CheckpointData] | None = None

    async def save(self, key: str, text: str) -> None:
        """Encode and save."""
        if self._known is None or self._known[0] != text:
            self._known = text, msgspec.json.decode(text, type=CheckpointData)
        await Checkpoint.persist(self._store, key, self._known[1])

    async def load(self, key: str) -> dict[str, Any] | None:
        """Load, validate and restore."""
        recalled = await Checkpoint.recall(self._store, key, lambda state: state)
        return None if recalled is None else recalled.state


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Persisted]:
    """Open the store at ``url``."""
    async with open_store(url) as store:
        yield Persisted(store)


if __name__ == "__main__":
    serve(opened)
