"""Two workers have one run; one is suspended until the other has completed it, goes on, and changes nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from faults.report import Row
from faults.worker import NODES

from dagonizer import open_store

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from typing import Self

    Outcome = tuple[str, list[tuple[str, str]] | None]

STEPS = range(len(NODES) + 1)
_TESTS = Path(__file__).parents[1]
_PATIENCE = 60.0
_PAUSE = 0.001
_SAVE = 0.005
_ATTEMPTS = 5
_CONFLICT = ("StoreConflictError", None)
_KEPT_OUT = ("StoreUnavailableError", None)


class Moment(NamedTuple):
    """When a worker is suspended: "in" a node, "after" the checkpoint of a step, or while "saving" it."""

    how: str
    where: str | int
    delay: float = 0.0


class Worker:
    """A process that does durable runs, until the context ends. An outcome is a lifecycle or an error, and a state."""

    def __init__(self, name: str, url: str, folder: Path, *, compares: bool = True) -> None:
        self.name = name
        self._folder = folder
        self._runs = 0
        self._plan = {"name": name, "url": url, "compares": compares}

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "faults.worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_TESTS)
        self._tell(self._plan)
        return self

    def __exit__(self, *_: object) -> None:
        # A process that is suspended ends by this, too.
        self._process.kill()
        self._process.communicate()

    def run(self, key: str) -> Outcome:
        """Start or resume the run under ``key``, and return how it ended."""
        self._begin(key)
        return self.outcome()

    def begin_until(self, key: str, moment: Moment) -> None:
        """Start the run under ``key``, and return once it is suspended."""
        if moment.how == "saving":
            self._begin(key)
            self._until(lambda: moment.where in self.noted("saving"))
            time.sleep(moment.delay)
            self._process.send_signal(signal.SIGSTOP)
        else:
            self._begin(key, moment.how, moment.where)
        state = ["ps", "-o", "stat=", "-p", str(self._process.pid)]
        self._until(lambda: subprocess.run(state, check=True, capture_output=True).stdout.startswith(b"T"))

    def go_on(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def outcome(self) -> Outcome:
        """Return how the run ended."""
        line = self._process.stdout.readline()
        assert line, f"the worker {self.name!r} has ended"
        how, done = json.loads(line)
        return how, done and [tuple(step) for step in done]

    def noted(self, what: str) -> list[int | None]:
        """Return what the ledger of this run says under that heading."""
        return [of for heading, of, _ in self._notes() if heading == what]

    def longest_wait(self) -> float:
        """Return how long one save took, of those that were acknowledged in this run."""
        notes = self._notes()
        return max((b[2] - a[2] for a, b in pairwise(notes) if (a[0], b[0]) == ("saving", "saved")), default=0.0)

    def _notes(self) -> list[tuple[str, int | None, float]]:
        return [json.loads(line) for line in self._ledger.read_bytes().splitlines()]

    def _begin(self, key: str, *suspend: str | int) -> None:
        self._runs += 1
        self._ledger = self._folder / f"{self.name}-{self._runs}"
        self._ledger.touch()
        self._tell({"key": key, "ledger": str(self._ledger), "suspend": suspend})

    def _tell(self, line: object) -> None:
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        self._process.stdin.flush()

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            assert self._process.poll() is None, f"the worker {self.name!r} has ended"
            assert time.monotonic() < deadline, f"the worker {self.name!r} does not get there"
            time.sleep(_PAUSE)


class Round:
    """One run under ``key``, on which one worker is suspended until the other has completed it."""

    def __init__(self, suspended: Worker, other: Worker, key: str, moment: Moment) -> None:
        self._suspended = suspended
        self._other = other
        self._moment = moment
        self._won: dict[str, list[int]] = {suspended.name: [], other.name: []}
        self._outcomes: dict[str, Outcome] = {}
        self.longest_wait = 0.0
        self.errors: Counter[str] = Counter()
        self._play(key)

    def _play(self, key: str) -> None:
        self._suspended.begin_until(key, self._moment)
        self.injected = not self._suspended.noted("over")
        # It may still send its first save, or have sent the deletion; then the other may have a run of its own.
        self._may_be_alone = not self._suspended.noted("saved") or bool(self._suspended.noted("deleting"))
        for _ in range(_ATTEMPTS):
            outcome = self._other.run(key)
            self._take(self._other, outcome)
            self.longest_wait = max(self.longest_wait, self._other.longest_wait())
            # A save that was under way when the first one was suspended is its own, though it does not know yet.
            if outcome != _CONFLICT:
                break
        self._suspended.go_on()
        self._take(self._suspended, self._suspended.outcome())

    def _take(self, worker: Worker, outcome: Outcome) -> None:
        self._won[worker.name] += worker.noted("saved")
        self._outcomes[worker.name] = outcome
        if outcome[1] is None:
            self.errors[outcome[0]] += 1

    @property
    def acknowledged(self) -> int:
        """How many checkpoints were acknowledged."""
        return sum(map(len, self._won.values()))

    def wrong(self, *, locks: bool) -> str | None:
        """Describe what is wrong, if anything is. ``locks`` is whether one who is suspended may keep the other out."""
        alone = self._may_be_alone and all(0 in steps for steps in self._won.values())
        both = [self._suspended.name, self._other.name]
        if all(self._is_right(names, locks=locks) for names in ([[both[0]], [both[1]]] if alone else [both])):
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
        *(Moment("saving", step, chance.uniform(0.0, _SAVE)) for step in steps),
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
    if store == "file":
        return f"file://{tmp_path}/store?timeout=2"
    return request.getfixturevalue("server").url.replace("etcd:", f"{store}:", 1)


@pytest.mark.parametrize("store", ["file", "postgresql", "redis", "s3", "etcd", "etcd+http"])
def test_a_worker_that_was_suspended_until_another_has_completed_the_run_changes_nothing(store, url, faults, tmp_path):
    first, *others = moments(faults.random, saves=16)
    when = [first, *faults.scale(short=[faults.random.choice(others)], whole=others)]
    prefix = f"two-{faults.random.getrandbits(32):08x}"
    played = rounds(url, tmp_path, when, prefix)
    wrong = [what for what in (round_.wrong(locks=store == "file") for round_ in played) if what]
    left = asyncio.run(look(url, [f"{prefix}-{n}" for n in range(len(when))]))
    errors = sum((round_.errors for round_ in played), Counter())
    faults.tell(
        Row(
            fault="one of two workers suspended (SIGSTOP) until the other was done",
            store=store,
            injected=sum(round_.injected for round_ in played),
            acknowledged=sum(round_.acknowledged for round_ in played),
            lost=len(wrong) + len(left),
            longest_wait=max(round_.longest_wait for round_ in played),
            errors=errors,
        )
    )
    assert not wrong, "\n".join(wrong)
    assert not left
    assert errors["StoreConflictError"]


@pytest.mark.parametrize("store", ["file"])
def test_a_worker_that_overwrites_what_another_has_done_is_found(url, tmp_path):
    (played,) = rounds(url, tmp_path, [Moment("in", NODES[1])], "overwritten", compares=False)
    assert "'suspended': [0, 1, 2, 3], 'other': [2, 3]" in played.wrong(locks=True)
