"""What the subjects of LangGraph have in common."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.base import Checkpoint
from langgraph.checkpoint.base.id import uuid6

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver

_CHANNEL = "document"
_parsed = cache(json.loads)


class LangGraph:
    """``aput`` and ``aget_tuple`` of the dict that a graph has, with the saver's own msgpack in them.

    Each save is a new checkpoint of the thread that the key names, with a new version of the one channel that holds the
    document, as a graph makes one after each step, and a load is of the thread's latest; all are kept. Only the first
    save of a text parses it.
    """

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self._saver = saver
        self._version: Any = None

    async def save(self, key: str, text: str) -> None:
        """Put a new checkpoint of the thread."""
        self._version = self._saver.get_next_version(self._version, None)
        versions = {_CHANNEL: self._version}
        checkpoint = Checkpoint(
            v=4,
            id=str(uuid6()),
            ts=datetime.now(UTC).isoformat(),
            channel_values={_CHANNEL: _parsed(text)},
            channel_versions=versions,
            versions_seen={},
            updated_channels=[_CHANNEL],
        )
        await self._saver.aput({"configurable": {"thread_id": key, "checkpoint_ns": ""}}, checkpoint, {}, versions)

    async def load(self, key: str) -> dict[str, Any] | None:
        """Get the document of the thread's latest checkpoint."""
        latest = await self._saver.aget_tuple({"configurable": {"thread_id": key}})
        if latest is None:
            return None
        document: dict[str, Any] = latest.checkpoint["channel_values"][_CHANNEL]
        return document
