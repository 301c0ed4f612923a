"""Clients that are killed in the middle of a save, one after another, each forked where everything is imported already.

The first line of the input says what to do, as JSON. Every other line is a number: so many clients are killed, or fewer
if a call fails. Then a line of JSON tells how many, how many there were, for some had just saved when they were killed,
and how long the slowest took to load everything.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import statistics
import sys
import time
import traceback
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from faults.ledger import Recorder, calls_in

from dagonizer import open_store

if TYPE_CHECKING:
    from dagonizer import CheckpointStore

_PATIENCE = 60.0
_MANY = 1 << 16
_FIRST_GUESS = 0.01
# A client is killed in one of its first saves, or just after it.
_SAVES = 3
_SHARE = 1.2
_MOST_CLIENTS = 10


class Announced:
    """A store that tells over a pipe when a save begins, by a byte that goes with the size."""

    def __init__(self, store: CheckpointStore, pipe: int) -> None:
        self._pipe = pipe
        self._save = store.save
        self.load = store.load

    async def save(self, key: str, json: str) -> None:
        """Save."""
        os.write(self._pipe, bytes([len(json).bit_length()]))
        await self._save(key, json)


class Killer:
    """Starts a client, kills it at a random moment of its saves, and starts the next."""

    def __init__(self, plan: dict) -> None:
        self._plan = plan
        self._ledger = Path(plan["ledger"])
        self._chance = random.Random(plan["seed"])
        self._process = os.getpid()
        self._seed = 0.0
        self._failed = False
        # By the byte that announces a save.
        self._durations: defaultdict[int, list[float]] = defaultdict(list)

    def kill(self, number: int) -> dict[str, float]:
        """Kill ``number`` clients in the middle of a save."""
        clients, killed, slowest = 0, 0, 0.0
        while killed < number and not self._failed:
            if clients == _MOST_CLIENTS * number:
                raise RuntimeError(f"only {killed} of {clients} clients were killed in the middle of a save")
            was_saving, seconds = self._one()
            clients += 1
            killed += was_saving
            slowest = max(slowest, seconds)
        return {"killed": killed, "clients": clients, "slowest": slowest}

    def _one(self) -> tuple[bool, float]:
        """Let one client live; return whether it was killed in a save, and how long it took to load everything."""
        offset = self._ledger.stat().st_size if self._ledger.exists() else 0
        self._seed = self._chance.random()
        started = time.monotonic()
        pipe, of_client = os.pipe()
        client = os.fork()
        if client == 0:
            os.close(pipe)
            self._be_client(of_client)
        os.close(of_client)
        try:
            _next(pipe)
            seconds = time.monotonic() - started
            begun = [_next(pipe) for _ in range(self._chance.randint(1, _SAVES))]
            durations = self._durations[begun[-1]]
            usual = statistics.fmean(durations) if durations else _FIRST_GUESS
            time.sleep(self._chance.uniform(0, _SHARE * usual))
        finally:
            os.kill(client, signal.SIGKILL)
            _, status = os.waitpid(client, 0)
        begun += os.read(pipe, _MANY)
        os.close(pipe)
        if not os.WIFSIGNALED(status):
            raise RuntimeError("a client has ended by itself")
        calls = list(calls_in(self._ledger, offset))
        self._failed = any(call.error for call in calls)
        saves = [call for call in calls if call.name == "save"]
        for size, call in zip(begun, saves, strict=False):
            if call.ended is not None:
                self._durations[size].append((call.ended - call.started) / 1e9)
        return saves[-1].ended is None, seconds

    def _be_client(self, pipe: int) -> NoReturn:
        try:
            asyncio.run(self._use(pipe))
        except Exception:  # noqa: BLE001 - whatever it is, the child must not go on as a second parent
            traceback.print_exc()
        finally:
            os._exit(1)

    async def _use(self, pipe: int) -> None:
        """Load everything, and save for as long as the parent lives."""
        plan = self._plan
        chance = random.Random(self._seed)
        async with open_store(plan["url"]) as store:
            recorder = Recorder(Announced(store, pipe), self._ledger)
            for key in plan["keys"]:
                await recorder.load(key)
            os.write(pipe, b".")
            while os.getppid() == self._process:
                await recorder.save(chance.choice(plan["keys"]), chance.choice(plan["sizes"]))


def _next(pipe: int) -> int:
    """Return the next byte that the client sends."""
    if not select.select([pipe], [], [], _PATIENCE)[0]:
        raise RuntimeError(f"the client has done nothing for {_PATIENCE:g} s")
    (byte,) = os.read(pipe, 1) or (None,)
    if byte is None:
        raise RuntimeError("the client has ended by itself")
    return byte


def main() -> None:
    """Kill as many as is asked for."""
    plan = json.loads(sys.stdin.readline())
    # It only imports what the clients need.
    open_store(plan["url"])
    killer = Killer(plan)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(killer.kill(int(line))) + "\n")
        sys.stdout.flush()


main()
