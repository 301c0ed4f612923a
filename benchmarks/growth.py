"""What grows, and what must not: operations among many keys, listings, runs of many nodes, and the first save.

Each store is filled with several numbers of keys in namespaces of their own, and then measured in turns, so that what
disturbs the machine disturbs all of them alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from documents import checkpoint
from rich.console import Console

from dagonizer import Checkpoint, Dagonizer, MemoryCheckpointStore, NodeStateBase, durable, node, open_store
from dagonizer_test_servers.shared import shared

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dagonizer import CheckpointStore, NodeContext, SupportsListing

COUNTS = (10, 10_000, 200_000)
_IN_FLIGHT = 64
_ROUNDS = 7
_SECONDS = 0.5
_STARTS = 7
_NODES = 10_000
_MILESTONES = 10

_console = Console()


def namespaces(kind: str, directory: Path) -> Callable[[int], str]:
    """Return what tells the URL of the namespace for a number of keys."""
    if kind == "file":
        return lambda count: f"file://{directory}/{count}"
    url = shared(kind).url
    match kind:
        case "postgres":
            return lambda count: f"{url}?table=growth_{count}"
        case "s3":
            return lambda count: url.replace("/?", f"/growth-{count}?")
        case "etcd":
            return lambda count: f"{url}/growth-{count}"
        case _:
            return lambda count: f"{url}?prefix=growth-{count}"


async def measure_counts(kind: str, counts: list[int], directory: Path) -> dict[str, Any]:
    """Return the operations a second with so many keys, and how long the keys take to list."""
    url_of = namespaces(kind, directory)
    text = Checkpoint.to_json(checkpoint(1 << 10))
    stores = {count: await _filled(url_of(count), count, text) for count in counts}
    rates: dict[str, dict[int, list[float]]] = {operation: {n: [] for n in counts} for operation in ("save", "load")}
    for _ in range(_ROUNDS):
        for count, store in stores.items():
            rates["save"][count].append(await _rate(lambda key, store=store: store.save(key, text), count))
        for count, store in stores.items():
            rates["load"][count].append(await _rate(store.load, count))
    listing = {}
    for count, store in stores.items():
        started = time.perf_counter()
        listed = [key async for key in _listing(store)]
        listing[count] = time.perf_counter() - started
        assert len(listed) == count, f"{len(listed)} of {count} keys were listed"
    for store in stores.values():
        await store.aclose()  # type: ignore[attr-defined]
    few, many = min(counts), max(counts)
    return {
        "store": kind,
        "rates": {name: {count: median(of) for count, of in by.items()} for name, by in rates.items()},
        "cost at the most keys, of that at the fewest": {
            name: median(a / b for a, b in zip(by[few], by[many], strict=True)) for name, by in rates.items()
        },
        "seconds to list": listing,
    }


async def _filled(url: str, count: int, text: str) -> CheckpointStore:
    # As many saves as it takes to fill a directory are not what is measured.
    filling = open_store(f"{url}?fsync=false" if url.startswith("file:") else url)
    numbers = iter(range(count))

    async def fill() -> None:
        for number in numbers:
            await filling.save(_key(number), text)

    async with filling:
        await asyncio.gather(*(fill() for _ in range(_IN_FLIGHT)))
    return open_store(url)


def _key(number: int) -> str:
    return f"run-{number:06}"


async def _rate(operation: Callable[[str], Awaitable[object]], count: int) -> float:
    """Return how often a second the operation is done, one at a time, on keys that are there."""
    number, done = random.Random(1), 0  # noqa: S311 - repeatable, no secret
    started = time.perf_counter()
    while time.perf_counter() - started < _SECONDS:
        await operation(_key(number.randrange(count)))
        done += 1
    return done / (time.perf_counter() - started)


def _listing(store: SupportsListing | Any) -> AsyncIterator[str]:  # noqa: ANN401 - a store that lists
    keys: AsyncIterator[str] = store.list_keys("run-")
    return keys


@dataclass
class _Clocked:
    """A store that notes when it was given a document of which size."""

    inner: CheckpointStore
    saved: list[tuple[float, int]] = field(default_factory=list)

    async def save(self, key: str, json: str) -> None:
        await self.inner.save(key, json)
        self.saved.append((time.perf_counter(), len(json)))

    async def load(self, key: str) -> str | None:
        return await self.inner.load(key)

    async def delete(self, key: str) -> None:
        await self.inner.delete(key)


@node(outputs=("success",))
async def _step(state: NodeStateBase, context: NodeContext) -> None:
    """Do nothing, so that the rest is what is measured."""


async def measure_run(store: CheckpointStore, nodes: int) -> list[dict[str, float]]:
    """Return for each tenth of a run what a node cost, in seconds, and the mean size of the document."""
    dispatcher: Dagonizer[NodeStateBase] = Dagonizer()
    dispatcher.register_node(_step)
    names = [f"step-{number:05}" for number in range(nodes)]
    following = (*names[1:], None)
    placements = [
        {"type": "single", "name": name, "node": "_step", "outputs": {"success": after}}
        for name, after in zip(names, following, strict=True)
    ]
    dispatcher.register_dag({"name": "long", "version": "1", "entrypoint": names[0], "nodes": placements})
    clocked = _Clocked(store)
    await durable.run(dispatcher, "long", NodeStateBase, store=clocked, key="long", restore_state=NodeStateBase.restore)
    tenth = len(clocked.saved) // _MILESTONES
    parts = [clocked.saved[start : start + tenth + 1] for start in range(0, tenth * _MILESTONES, tenth)]
    return [
        {
            "seconds": median(after - before for (before, _), (after, _) in pairwise(part)),
            "bytes": sum(size for _, size in part) / len(part),
        }
        for part in parts
    ]


def measure_starts(kinds: list[str], directory: Path) -> dict[str, float]:
    """Return the seconds that a new process takes, less those of an interpreter that does nothing."""
    first_save = (
        "import asyncio, sys; from dagonizer import open_store; asyncio.run(open_store(sys.argv[1]).save('k', '1'))"
    )
    programs = {"nothing": ("", ""), "import dagonizer": ("import dagonizer", "")}
    for kind in kinds:
        programs[f"first save, {kind}"] = (first_save, namespaces(kind, directory)(0))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(_STARTS):
        for name, (code, url) in programs.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-I", "-c", code, url], check=True)  # noqa: S603 - code of ours
            seconds[name].append(time.perf_counter() - started)
    nothing = median(seconds.pop("nothing"))
    return {name: median(times) - nothing for name, times in seconds.items()}


def main() -> None:
    """Measure, print, and write everything into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", default="file,postgres,redis,s3,etcd", help="which stores, separated by commas")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), help="numbers of keys, separated by commas")
    parser.add_argument("--nodes", type=int, default=_NODES, help="how many nodes the long run has")
    parser.add_argument("--report", type=Path, default=Path("bench-report/growth.json"), help="where to write")
    options = parser.parse_args()
    kinds, counts = options.stores.split(","), [int(count) for count in options.counts.split(",")]
    with tempfile.TemporaryDirectory(prefix="dagonizer-bench-") as name:
        directory = Path(name)
        figures: dict[str, Any] = {"first": measure_starts(kinds, directory), "keys": [], "runs": {}}
        _console.print(figures["first"])
        for store in (MemoryCheckpointStore(), open_store(f"file://{directory}/long")):
            part = figures["runs"][type(store).__name__] = asyncio.run(measure_run(store, options.nodes))
            _console.print(type(store).__name__, part)
        for kind in kinds:
            figures["keys"].append(asyncio.run(measure_counts(kind, counts, directory)))
            _console.print(figures["keys"][-1])
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
