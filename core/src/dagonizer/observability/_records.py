"""Log records of operations."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagonizer.observability._observed import Outcome


class Record:
    """One operation, which is logged when it has ended. ``key`` is None if it is not to be told."""

    def __init__(self, logger: logging.Logger, level: int, operation: str, key: str | None) -> None:
        self._logger = logger
        self._level = level
        self._operation = operation
        self._key = key

    def working(self) -> AbstractContextManager[object]:
        """Return a context in which nothing is different."""
        return nullcontext()

    def ended(self, outcome: Outcome) -> None:
        """Log what came of it."""
        failed = outcome.raised is not None and issubclass(outcome.raised, Exception)
        level = logging.WARNING if failed else self._level
        if not self._logger.isEnabledFor(level):
            return
        told = {
            "operation": self._operation,
            "duration": outcome.seconds,
            "outcome": "ok" if outcome.raised is None else outcome.raised.__qualname__,
            "size": outcome.document_bytes(),
        }
        text = "%(operation)s: %(outcome)s in %(duration).6f s"
        if told["size"] is not None:
            text += ", %(size)d bytes"
        if self._key is not None:
            told["key"] = self._key
            text += ", key %(key)s"
            if outcome.message:
                # A record is one line, whatever the message holds.
                told["error"] = repr(outcome.message)
                text += ", error %(error)s"
        self._logger.log(level, text, told, extra=told)
