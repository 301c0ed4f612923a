"""Client processes, from the side of the test that starts them."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from faults.child import Child
from faults.ledger import Recorder, calls_in

from dagonizer import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Self

    import pytest

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
        self._processes: list[Child] = []
        self._ledgers: list[Path] = []
        shared = f"{prefix}-shared"
        for client in range(number):
            own = [f"{prefix}-{client}-{n}" for n in range(3)]
            self.keys += own
            ledger = folder / f"client{client}"
            plan = {
                "url": urls[client % len(urls)],
                "ledger": str(ledger),
                "keys": [*own, shared],
                "sizes": list(sizes),
                "seed": f"{seed} {client}",
            }
            self._processes.append(Child("faults.client", plan))
            self._ledgers.append(ledger)
        self.keys.append(shared)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for process in self._processes:
                stack.enter_context(process)
            self.wait_for_acknowledgements()
            self._running = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._running:
            statuses = [process.finish(patience=_PATIENCE) for process in self._processes]
        assert not any(statuses), statuses

    def wait_for_acknowledgements(self, number: int = 1, *, name: str | None = None) -> None:
        """Return once each client has had ``number`` more calls acknowledged, all begun from now on.

        ``name`` is that of the calls which count, if not all do.
        """
        deadline = time.monotonic() + _PATIENCE
        waiting = {ledger: _size(ledger) for ledger in self._ledgers}
        while waiting := {
            ledger: offset for ledger, offset in waiting.items() if _acknowledged(ledger, offset, name) < number
        }:
            assert time.monotonic() < deadline, (
                f"no answer for {_PATIENCE:g} s: {sorted(path.stem for path in waiting)}"
            )
            assert not any(process.ended for process in self._processes), "a client has ended"
            time.sleep(_PAUSE)


def store_url(store: str, folder: Path, request: pytest.FixtureRequest) -> str:
    """Return the URL of a store by its scheme, on the shared server, or in ``folder`` if it has none."""
    if store == "file":
        return f"file://{folder}/store"
    return request.getfixturevalue("server").url.replace("etcd:", f"{store}:", 1)


def _size(ledger: Path) -> int:
    return ledger.stat().st_size if ledger.exists() else 0


def _acknowledged(ledger: Path, offset: int, name: str | None) -> int:
    """Return how many calls were begun behind ``offset`` and have succeeded, only those of ``name`` if it is given."""
    calls = calls_in(ledger, offset) if ledger.exists() else ()
    return sum(call.acknowledged and name in (None, call.name) for call in calls)


async def look(url: str, keys: Iterable[str], ledger: Path) -> None:
    """Load every one of ``keys`` with a new client, in a ledger of its own, and then remove them."""
    async with open_store(url) as store:
        recorder = Recorder(store, ledger)
        for key in keys:
            assert await recorder.load(key)
        recorder.close()
        for key in keys:
            await store.delete(key)
