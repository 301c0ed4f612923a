"""Counts what this process holds, to see whether a store gives back what it takes."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dagonizer_conformance.outcomes import Violation

if TYPE_CHECKING:
    from typing import Self

_SLACK = 5
_PAUSE = 0.01
# Neither is there on Windows, where descriptors go uncounted.
_DESCRIPTORS = next((path for path in (Path("/proc/self/fd"), Path("/dev/fd")) if path.is_dir()), None)


class Holdings(NamedTuple):
    """What a store can leak."""

    tasks: int
    threads: int
    descriptors: int

    @classmethod
    def now(cls) -> Self:
        """Count what is held at the moment."""
        # What was dropped in cycles is not held, and must not go unnoticed later, when it would make up for a leak.
        gc.collect()
        descriptors = sum(1 for _ in _DESCRIPTORS.iterdir()) if _DESCRIPTORS is not None else 0
        return cls(len(asyncio.all_tasks()), threading.active_count(), descriptors)


async def expect_given_back(before: Holdings, what: str, *, seconds: float) -> None:
    """Raise ``Violation`` unless the counts are back near those ``before`` within ``seconds``."""
    deadline = time.monotonic() + seconds
    while leaked := _more(before, Holdings.now()):
        if time.monotonic() > deadline:
            raise Violation(f"{what} left {leaked} more than before, {seconds:g} s later still")
        await asyncio.sleep(_PAUSE)


def _more(before: Holdings, now: Holdings) -> str:
    names = ("tasks", "threads", "file descriptors")
    differences = zip(names, before, now, strict=True)
    return " and ".join(f"{b - a} {name}" for name, a, b in differences if b - a > _SLACK)
