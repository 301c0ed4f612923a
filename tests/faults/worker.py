"""A worker in a process of its own, which does one durable run after the other.

The first line of its input says who it is and what store it uses, each further one what to run, as JSON: ``key``, the
``ledger`` that tells what it does, and where it is to suspend itself: in a node, after the checkpoint of a step, the
number of nodes that were executed, or while it saves that of a step or a later one, after a share of the time that saves
usually take. Its output gets a line for each run: how it ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import time
from dataclasses import dataclass, field

from dagonizer import Dagonizer, DagonizerError, NodeStateBase, durable, node, open_store

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


class Suspension:
    """Where a worker suspends itself in a run, at most once. ``durations`` are those of the saves so far."""

    def __init__(self, how=None, where=None, share=0.0, *, durations):
        self._place = (how, where)
        self._share = share
        self._durations = durations

    def at(self, *place):
        if place == self._place:
            self._suspend()

    async def in_save(self, step, save):
        """Wait for ``save``, suspended before it is done if this is the step, and it is not done by then."""
        began = time.monotonic()
        how, where = self._place
        if how != "saving" or step < where:
            saved = await save
            self._durations.append(time.monotonic() - began)
            return saved
        until = began + self._share * statistics.median(self._durations or [0.0])
        # Not one sleep: that would take longer than a save.
        await asyncio.sleep(0)
        while not save.done() and time.monotonic() < until:
            await asyncio.sleep(0)
        if not save.done():
            self._suspend()
        return await save

    def _suspend(self):
        self._place = (None, None)
        os.kill(os.getpid(), signal.SIGSTOP)


class Plain:
    """A store of three methods, which notes the beginning of each call, and the end of one that was acknowledged."""

    def __init__(self, store, notes, suspension):
        self._store = store
        self._notes = notes
        self._suspension = suspension

    async def save(self, key, json):
        await self._saved(json, self._store.save(key, json))

    async def load(self, key):
        return await self._loaded(self._store.load(key))

    async def delete(self, key):
        self._notes.add("deleting")
        await self._store.delete(key)
        self._notes.add("deleted")

    async def _loaded(self, load):
        self._notes.add("loading")
        loaded = await load
        self._notes.add("loaded")
        return loaded

    async def _saved(self, text, save):
        step = len(json.loads(text)["executedNodes"])
        self._notes.add("saving", step)
        saved = await self._suspension.in_save(step, asyncio.ensure_future(save))
        self._notes.add("saved", step)
        self._suspension.at("after", step)
        return saved


class Comparing(Plain):
    """One that compares and swaps."""

    async def load_versioned(self, key):
        return await self._loaded(self._store.load_versioned(key))

    async def save_if(self, key, json, *, expected):
        return await self._saved(json, self._store.save_if(key, json, expected=expected))


def dispatcher(name, suspension):
    """Return one that knows the DAG, each node of which this worker adds itself to."""
    dispatcher = Dagonizer()
    for place in NODES:

        async def work(state, context, place=place):
            suspension.at("in", place)
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
    durations = []
    async with open_store(plan["url"]) as store:
        while line := await asyncio.to_thread(sys.stdin.readline):
            task = json.loads(line)
            notes = Notes(task["ledger"])
            suspension = Suspension(*task["suspend"], durations=durations)
            try:
                result = await durable.run(
                    dispatcher(plan["name"], suspension),
                    "run",
                    Work,
                    store=wrapper(store, notes, suspension),
                    key=task["key"],
                    restore_state=Work.restore,
                )
            except DagonizerError as exc:
                outcome = [type(exc).__name__, None]
            else:
                outcome = [result.state.lifecycle.kind, result.state.done]
            notes.add("over")
            notes.close()
            sys.stdout.write(f"{json.dumps(outcome)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
