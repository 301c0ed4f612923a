"""The process that a subject is measured in, which does one turn after the other as its standard input says.

It uses the standard library only, for each peer has an environment of its own. A line of input is a ``Turn`` as JSON,
and one with what was measured answers it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager


class Subject(Protocol):
    """What is measured: a store, a driver or a peer, as people would use it."""

    async def save(self, key: str, text: str) -> None:
        """Store ``text``, and return when it is as durable as this subject makes it."""
        ...

    async def load(self, key: str) -> object:
        """Return the text that was saved last, or what its users get of it: the document, or the state in it."""
        ...


@dataclass(frozen=True)
class Turn:
    """``in_flight`` tasks that each repeat one operation on a key of their own for about ``seconds``.

    ``document`` is the path of the text. A task does at least one operation, and begins none after ``seconds``.
    """

    operation: str
    document: str
    key: str
    in_flight: int
    seconds: float


def serve(opened: Callable[[str], AbstractAsyncContextManager[Subject]]) -> None:
    """Open the subject at the URL of the command line, and measure until the input ends."""
    asyncio.run(_serve(opened, sys.argv[1]))


async def _serve(opened: Callable[[str], AbstractAsyncContextManager[Subject]], url: str) -> None:
    async with opened(url) as subject:
        print(json.dumps("ready"), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await _measured(subject, Turn(**json.loads(line)))), flush=True)


async def _measured(subject: Subject, turn: Turn) -> dict[str, object]:
    text = Path(turn.document).read_text(encoding="utf-8")
    latencies: list[float] = []
    loaded: object = None
    # The peak begins anew: proc(5), clear_refs.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _memory("VmRSS")
    cpu, started = time.process_time(), time.perf_counter()
    end = started + turn.seconds

    async def repeat(key: str) -> None:
        nonlocal loaded
        while True:
            begun = time.perf_counter()
            if turn.operation == "save":
                await subject.save(key, text)
            else:
                loaded = await subject.load(key)
            done = time.perf_counter()
            latencies.append(done - begun)
            if done > end:
                return

    await asyncio.gather(*(repeat(f"{turn.key}-{task}") for task in range(turn.in_flight)))
    measured = {
        "latencies": latencies,
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "memory": _memory("VmHWM") - before,
    }
    if turn.operation == "load":
        document = json.loads(text)
        assert loaded in (text, document, document["state"]), f"{turn.key} does not hold what was saved"
    return measured


def _memory(field: str) -> int:
    """Return a figure of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
