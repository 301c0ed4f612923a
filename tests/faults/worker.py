"""A worker in a process of its own, which does one durable run after the other.

The first line of its input says who it is and what store it uses, each further one what to run, as JSON: ``key``, the
``ledger`` that tells what it saves, and where it is to suspend itself: in a node, or after the checkpoint of a step, the
number of nodes that were executed. Its output gets a line for each run: how it ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field

from dagonizer import Dagonizer, NodeStateBase, StoreError, durable, node, open_store

NODES = ("fetch", "compute", "publish")
_WORK = 0.02


@dataclass
class Work(NodeStateBase):
    """Who has done each of the nodes."""

    done: list[tuple[str, str]] = field(default_factory=list)


class Notes:
    """What a worker does, written down before the next."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def add(self, what: str, of: object = None) -> None:
        os.write(self._file, json.dumps([what, of, time.monotonic()]).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


class Plain:
    """A store of three methods, which notes the checkpoints that were acknowledged."""

    def __init__(self, store, notes, suspend):
        self._store = store
        self._notes = notes
        self._suspend = suspend

    async def save(self, key, json):
        await self._noted(json, self._store.save(key, json))

    async def load(self, key):
        return await self._store.load(key)

    async def delete(self, key):
        self._notes.add("deleting")
        await self._store.delete(key)

    async def _noted(self, text, saving):
        step = len(json.loads(text)["executedNodes"])
        self._notes.add("saving", step)
        saved = await saving
        self._notes.add("saved", step)
        if self._suspend == ["after", step]:
            os.kill(os.getpid(), signal.SIGSTOP)
        return saved


class Comparing(Plain):
    """One that compares and swaps."""

    async def load_versioned(self, key):
        return await self._store.load_versioned(key)

    async def save_if(self, key, json, *, expected):
        return await self._noted(json, self._store.save_if(key, json, expected=expected))


def dispatcher(name, notes, suspend):
    """Return one that knows the DAG, each node of which this worker adds itself to."""
    dispatcher = Dagonizer()
    for place in NODES:

        async def work(state, context, place=place):
            if suspend == ["in", place]:
                os.kill(os.getpid(), signal.SIGSTOP)
            await asyncio.sleep(_WORK)
            state.done.append((place, name))

        dispatcher.register_node(node(name=place)(work))
    placements = [
        {"type": "single", "name": place, "node": place, "outputs": {"success": following}}
        for place, following in zip(NODES, (*NODES[1:], None), strict=True)
    ]
    dispatcher.register_dag({"name": "run", "version": "1", "entrypoint": NODES[0], "nodes": placements})
    return dispatcher


async def main() -> None:
    """Be the worker."""
    plan = json.loads(sys.stdin.readline())
    wrapper = Comparing if plan["compares"] else Plain
    async with open_store(plan["url"]) as store:
        while line := await asyncio.to_thread(sys.stdin.readline):
            task = json.loads(line)
            notes = Notes(task["ledger"])
            try:
                result = await durable.run(
                    dispatcher(plan["name"], notes, task["suspend"]),
                    "run",
                    Work,
                    store=wrapper(store, notes, task["suspend"]),
                    key=task["key"],
                    restore_state=Work.restore,
                )
            except StoreError as exc:
                outcome = [type(exc).__name__, None]
            else:
                outcome = [result.state.lifecycle.kind, result.state.done]
            notes.add("over")
            notes.close()
            sys.stdout.write(f"{json.dumps(outcome)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
