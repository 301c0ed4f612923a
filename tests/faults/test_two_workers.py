"""Two workers have one run; one is suspended until the other has completed it, goes on, and changes nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import pytest
from faults.child import Child
from faults.clients import store_url
from faults.report import Row
from faults.worker import NODES

from dagonizer import open_store

if TYPE_CHECKING:
    import random
    from pathlib import Path

    Outcome = tuple[str, list[tuple[str, str]] | None]

STEPS = range(len(NODES) + 1)
_PATIENCE = 60.0
_PAUSE = 0.01
_ATTEMPTS = 5
_CALLS = ("loading", "saving", "deleting")
_ACKNOWLEDGED = ("loaded", "saved", "deleted")
# What is raised for an entry that is no checkpoint of this run.
_DAMAGE = ("StoreCorruptedError", "ValidationError", "DAGError")
_CONFLICT = ("StoreConflictError", None)
_KEPT_OUT = ("StoreUnavailableError", None)


class Moment(NamedTuple):
    """When a worker is suspended: "in" a node, "after" the checkpoint of a step, or while "saving" it or a later one."""

    how: str
    where: str | int
    # Of the time that a save takes.
    share: float = 0.0


class Worker(Child):
    """A process that does durable runs, until the context ends. An outcome is a lifecycle or an error, and a state."""

    def __init__(self, name: str, url: str, folder: Path, *, compares: bool = True) -> None:
        super().__init__("faults.worker", {"name": name, "url": url, "compares": compares})
        self.name = name
        self._folder = folder
        self._runs = 0

    def run(self, key: str) -> Outcome:
        """Start or resume the run under ``key``, and return how it ended."""
        self._begin(key)
        return self.outcome()

    def begin_until(self, key: str, moment: Moment) -> None:
        """Start the run under ``key``, and return once it is suspended, or over if its saves were too fast for that."""
        self._begin(key, *moment)
        deadline = time.monotonic() + _PATIENCE
        while not (self._is_suspended() or self.noted("over")):
            assert not self.ended, f"the worker {self.name!r} has ended"
            assert time.monotonic() < deadline, f"the worker {self.name!r} does not get there"
            time.sleep(_PAUSE)

    def _is_suspended(self) -> bool:
        state = ["ps", "-o", "stat=", "-p", str(self.pid)]
        return subprocess.run(state, check=True, capture_output=True).stdout.startswith(b"T")

    def go_on(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)

    def outcome(self) -> Outcome:
        """Return how the run ended."""
        how, done = self.told()
        return how, done and [tuple(step) for step in done]

    def noted(self, *what: str) -> list[int | None]:
        """Return what the ledger of this run says under these headings."""
        return [of for heading, of, _ in self.notes() if heading in what]

    def notes(self) -> list[tuple[str, int | None, float]]:
        """Return the ledger of this run: headings, what they are of, and times in seconds."""
        return [json.loads(line) for line in self._ledger.read_bytes().splitlines()]

    def _begin(self, key: str, *suspend: str | float) -> None:
        self._runs += 1
        self._ledger = self._folder / f"{self.name}-{self._runs}"
        self._ledger.touch()
        self.tell({"key": key, "ledger": str(self._ledger), "suspend": suspend})


class Round:
    """One run under ``key``, on which one worker is suspended until the other has completed it."""

    def __init__(self, suspended: Worker, other: Worker, key: str, moment: Moment) -> None:
        self._suspended = suspended
        self._other = other
        self._moment = moment
        self._won: dict[str, list[int]] = {suspended.name: [], other.name: []}
        self._outcomes: dict[str, Outcome] = {}
        self.acknowledged = 0
        self.longest_wait = 0.0
        self.errors: Counter[str] = Counter()
        self._play(key)

    def _play(self, key: str) -> None:
        self._suspended.begin_until(key, self._moment)
        before = self._suspended.notes()
        self.injected = before[-1][0] != "over"
        self.in_save = before[-1][0] == "saving"
        # It may still send its first save, or have sent the deletion; then the other may have a run of its own.
        self._may_be_alone = not self._suspended.noted("saved") or bool(self._suspended.noted("deleting"))
        for _ in range(_ATTEMPTS):
            outcome = self._other.run(key)
            self._take(self._other, outcome)
            # A save that was under way when the first one was suspended is its own, though it does not know yet.
            if outcome != _CONFLICT:
                break
        self._suspended.go_on()
        self._take(self._suspended, self._suspended.outcome(), suspended_at=len(before) - 1)

    def _take(self, worker: Worker, outcome: Outcome, *, suspended_at: int | None = None) -> None:
        self._won[worker.name] += worker.noted("saved")
        self._outcomes[worker.name] = outcome
        self.acknowledged += len(worker.noted(*_ACKNOWLEDGED))
        # A call has not waited while its process was suspended.
        waits = [
            following[2] - note[2]
            for number, (note, following) in enumerate(pairwise(worker.notes()))
            if note[0] in _CALLS and number != suspended_at
        ]
        self.longest_wait = max([self.longest_wait, *waits])
        if outcome[1] is None:
            self.errors[outcome[0]] += 1

    @property
    def torn(self) -> int:
        """How often an entry was damaged."""
        return sum(self.errors[name] for name in _DAMAGE)

    @property
    def double(self) -> bool:
        """Whether each has had a run of its own: the first had not claimed it yet, or had sent the deletion already."""
        return self._may_be_alone and all(0 in steps for steps in self._won.values())

    def wrong(self, *, locks: bool) -> str | None:
        """Describe what is wrong, if anything is. ``locks`` is whether one who is suspended may keep the other out."""
        both = [self._suspended.name, self._other.name]
        if all(self._is_right(names, locks=locks) for names in ([[both[0]], [both[1]]] if self.double else [both])):
            return None
        return f"{self._moment}: acknowledged {self._won}, ended {self._outcomes}"

    def _is_right(self, names: list[str], *, locks: bool) -> bool:
        """Return whether these have shared one run: who wins a step has done its node, and who wins the last ends."""
        winner = {step: name for name in names for step in self._won[name]}
        if sorted(step for name in names for step in self._won[name]) != list(STEPS):
            return False
        completed = ("completed", [(node, winner[step]) for step, node in enumerate(NODES, start=1)])
        expected = {name: [completed] for name in names}
        if winner[STEPS[-1]] != self._suspended.name:
            expected[self._suspended.name] = [_CONFLICT]
        elif locks:
            expected[self._other.name] = [completed, _KEPT_OUT]
        return all(self._outcomes[name] in expected[name] for name in names)


def moments(chance: random.Random, *, saves: int) -> list[Moment]:
    """Return each node, the end of the last save, and ``saves`` random moments in saves of all steps."""
    steps = [step for _ in range(saves) for step in STEPS][:saves]
    return [
        *(Moment("in", node) for node in NODES),
        Moment("after", STEPS[-1]),
        *(Moment("saving", step, chance.random()) for step in steps),
    ]


async def look(url: str, keys: list[str]) -> list[str]:
    """Return those under which there is an entry."""
    async with open_store(url) as store:
        return [key for key in keys if await store.load(key) is not None]


def rounds(url: str, folder: Path, when: list[Moment], prefix: str, *, compares: bool = True) -> list[Round]:
    """Play a round for each moment, all with the same two processes."""
    with (
        Worker("suspended", url, folder, compares=compares) as suspended,
        Worker("other", url, folder, compares=compares) as other,
    ):
        return [Round(suspended, other, f"{prefix}-{n}", moment) for n, moment in enumerate(when)]


@pytest.fixture
def url(store, tmp_path, request):
    # A process that is suspended while it holds the lock of the directory keeps all others out.
    return store_url(store, tmp_path, request) + ("?timeout=2" if store == "file" else "")


@pytest.mark.parametrize("store", ["file", "postgresql", "redis", "s3", "etcd", "etcd+http"])
def test_a_worker_that_was_suspended_until_another_has_completed_the_run_changes_nothing(store, url, faults, tmp_path):
    first, *others = moments(faults.random, saves=16)
    when = [first, *faults.scale(short=[faults.random.choice(others)], whole=others)]
    prefix = f"two-{faults.random.getrandbits(32):08x}"
    played = rounds(url, tmp_path, when, prefix)
    wrong = [what for what in (round_.wrong(locks=store == "file") for round_ in played) if what]
    left = asyncio.run(look(url, [f"{prefix}-{n}" for n in range(len(when))]))
    errors = sum((round_.errors for round_ in played), Counter())
    torn = sum(round_.torn for round_ in played)
    in_save = sum(round_.in_save for round_ in played)
    double = sum(round_.double for round_ in played)
    saves = sum(moment.how == "saving" for moment in when)
    faults.tell(
        Row(
            fault="one of two workers suspended (SIGSTOP) until the other was done",
            store=store,
            injected=sum(round_.injected for round_ in played),
            acknowledged=sum(round_.acknowledged for round_ in played),
            lost=len(wrong) + len(left),
            torn=torn,
            longest_wait=max(round_.longest_wait for round_ in played),
            errors=errors,
            notes=f"{in_save} of {saves} meant to be in mid-save were; in {double}, each had a run of its own",
        )
    )
    assert not wrong, "\n".join(wrong)
    assert not left
    assert not torn
    assert errors["StoreConflictError"]
    assert in_save >= faults.scale(short=0, whole=1)


@pytest.mark.parametrize("store", ["file"])
def test_a_worker_that_overwrites_what_another_has_done_is_found(url, tmp_path):
    (played,) = rounds(url, tmp_path, [Moment("in", NODES[1])], "overwritten", compares=False)
    assert "'suspended': [0, 1, 2, 3], 'other': [2, 3]" in played.wrong(locks=True)
