"""Client processes, from the side of the test that starts them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from faults.ledger import Recorder, calls_in

from dagonizer import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

_TESTS = Path(__file__).parents[1]
_PATIENCE = 60.0
_PAUSE = 0.05
SIZES = (0, 0, 0, 3_000, 60_000)


class Clients:
    """Processes that use ``urls`` in turn, each with keys of its own and one that all share, until the context ends.

    ``folder`` gets their ledgers. A client that ends by itself is a failure of the test.
    """

    def __init__(
        self, folder: Path, urls: Sequence[str], number: int, *, prefix: str, seed: str, sizes: Sequence[int] = SIZES
    ) -> None:
        self.keys: list[str] = []
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._plans = []
        shared = f"{prefix}-shared"
        for client in range(number):
            own = [f"{prefix}-{client}-{n}" for n in range(3)]
            self.keys += own
            plan = {
                "url": urls[client % len(urls)],
                "ledger": str(folder / f"client{client}"),
                "keys": [*own, shared],
                "sizes": list(sizes),
                "seed": f"{seed} {client}",
            }
            self._plans.append(plan)
        self.keys.append(shared)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._end)
            for plan in self._plans:
                process = subprocess.Popen([sys.executable, "-m", "faults.client"], stdin=subprocess.PIPE, cwd=_TESTS)
                self._processes.append(process)
                process.stdin.write(json.dumps(plan).encode() + b"\n")
                process.stdin.flush()
            self.wait_for_acknowledgements()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def wait_for_acknowledgements(self, number: int = 1) -> None:
        """Return once each client has had ``number`` more calls acknowledged, all begun from now on."""
        deadline = time.monotonic() + _PATIENCE
        waiting = {ledger: _size(ledger) for ledger in map(Path, (plan["ledger"] for plan in self._plans))}
        while waiting := {ledger: size for ledger, size in waiting.items() if _acknowledged(ledger, size) < number}:
            assert time.monotonic() < deadline, (
                f"no answer for {_PATIENCE:g} s: {sorted(path.stem for path in waiting)}"
            )
            assert all(process.poll() is None for process in self._processes), "a client has ended"
            time.sleep(_PAUSE)

    def _end(self) -> None:
        for process in self._processes:
            process.stdin.close()
        try:
            statuses = [process.wait(_PATIENCE) for process in self._processes]
        finally:
            for process in self._processes:
                process.kill()
                process.wait()
        assert not any(statuses), statuses


def _size(ledger: Path) -> int:
    return ledger.stat().st_size if ledger.exists() else 0


def _acknowledged(ledger: Path, offset: int) -> int:
    """Return how many calls were begun behind ``offset`` and have succeeded."""
    return sum(call.acknowledged for call in calls_in(ledger, offset)) if ledger.exists() else 0


async def look(url: str, keys: Iterable[str], ledger: Path) -> None:
    """Load every one of ``keys`` with a new client, in a ledger of its own, and then remove them."""
    async with open_store(url) as store:
        recorder = Recorder(store, ledger)
        for key in keys:
            assert await recorder.load(key)
        recorder.close()
        for key in keys:
            await store.delete(key)
