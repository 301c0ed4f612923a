"""What the subjects of py-key-value-aio have in common."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from key_value.aio.protocols import AsyncKeyValue

_parsed = cache(json.loads)


class KeyValue:
    """``put`` and ``get`` of the dict that the store takes and gives, with the store's own JSON in them.

    Its user has the dict, so only the first save of a text parses it.
    """

    def __init__(self, store: AsyncKeyValue) -> None:
        self._store = store

    async def save(self, key: str, text: str) -> None:
        """Put the document."""
        await self._store.put(key, _parsed(text))

    async def load(self, key: str) -> dict[str, Any] | None:
        """Get the document."""
        return await self._store.get(key)
