"""Drives a store and a dictionary with the same random calls, and shortens whatever tells them apart."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, NamedTuple

from hypothesis import HealthCheck, Phase, Verbosity, configuration, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from hypothesis.strategies import booleans, sampled_from

from dagonizer_conformance.outcomes import Violation, expect_text, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

    from dagonizer_conformance.client import Client
    from dagonizer_conformance.context import Context

    Method = Literal["save", "load", "delete", "reopen"]

_NAMES = ("a", "A", "a/b", "\u00e9")
_TEXTS = ("", "null", "0", "1", " 1", "\u00e9", "e\u0301", "x" * 300)
_METHODS: tuple[Method, ...] = ("save", "load", "delete", "reopen")

_SECONDS_TO_SHORTEN = 5.0


class Step(NamedTuple):
    """A call of a program: of one of two clients, on the key called ``name``."""

    client: int
    method: Method
    name: str
    text: str

    def __str__(self) -> str:
        match self.method:
            case "save":
                call = f"save({shown(self.name)}, {shown(self.text)})"
            case "reopen":
                call = "close, and open again"
            case method:
                call = f"{method}({shown(self.name)})"
        return f"client {self.client + 1}: {call}"


class Failure(NamedTuple):
    """A program, up to the step that failed if one did, and what went wrong."""

    program: list[Step]
    error: Exception


async def expect_like_dictionary(context: Context, *, programs: int, steps: int) -> None:
    """Play random programs of ``steps`` steps, or a few more, that two clients share.

    Raises ``Violation`` with the shortest program found after which the store is not like a dictionary.
    """
    numbers = itertools.count(1)

    async def play(program: list[Step]) -> Failure | None:
        return await _play(context, f"{next(numbers)}", program)

    failure = await _search(context, play, programs, steps)
    if failure is None:
        return
    deadline = time.monotonic() + _SECONDS_TO_SHORTEN
    for step in range(len(failure.program) - 1, -1, -1):
        shorter = failure.program[:step] + failure.program[step + 1 :]
        if time.monotonic() < deadline:
            failure = await play(shorter) or failure
    program, error = failure
    calls = "\n  ".join(map(str, program))
    reason = str(error) if isinstance(error, Violation) else f"{type(error).__name__} was raised: {error}"
    raise Violation(
        f"after both clients had looked at every key, and after these calls:\n  {calls}\n{reason}"
    ) from error


async def _play(context: Context, prefix: str, program: list[Step]) -> Failure | None:
    """Look at everything before and after the steps, and return what went wrong.

    Every play has a ``prefix`` of its own for its keys: a broken store need not forget those of the one before.
    """
    pair = _Pair(context, prefix, [await context.open(), await context.open()])
    done: list[Step] = []
    try:
        await pair.look_at_everything()
        for step in program:
            done.append(step)
            await pair.do(step)
        await pair.look_at_everything()
    except Exception as exc:  # noqa: BLE001 - a stranger's store can raise anything
        return Failure(done, exc)
    finally:
        for client in pair.clients:
            await context.close(client)
    return None


class _Pair:
    """Two clients, and what the store should hold."""

    def __init__(self, context: Context, prefix: str, clients: list[Client]) -> None:
        self.clients = clients
        self._context = context
        self._prefix = prefix
        self._expected: dict[str, str] = {}

    async def do(self, step: Step) -> None:
        client, key = self.clients[step.client], self._key(step.name)
        match step.method:
            case "save":
                await client.save(key, step.text)
                self._expected[step.name] = step.text
            case "load":
                await self._look(step.client, step.name)
            case "delete":
                await client.delete(key)
                self._expected.pop(step.name, None)
            case "reopen":
                await self._context.close(client)
                self.clients[step.client] = await self._context.open()

    async def look_at_everything(self) -> None:
        for number in range(len(self.clients)):
            for name in _NAMES:
                await self._look(number, name)

    async def _look(self, number: int, name: str) -> None:
        text = await self.clients[number].load(self._key(name))
        expect_text(text, self._expected.get(name), f"what client {number + 1} loaded from {shown(name)}")

    def _key(self, name: str) -> str:
        return self._context.key(f"{self._prefix}/{name}")


async def _search(
    context: Context, play: Callable[[list[Step]], Coroutine[Any, Any, Failure | None]], programs: int, steps: int
) -> Failure | None:
    """Let Hypothesis make programs until one fails."""
    loop = asyncio.get_running_loop()
    abandoned = threading.Event()
    failures: list[Failure] = []
    playing: list[asyncio.Task[Failure | None]] = []

    async def attempt(program: list[Step]) -> None:
        playing[:] = [asyncio.create_task(play(program))]
        failure = await playing[0]
        failures.extend([failure] if failure else [])

    def finish(program: list[Step]) -> None:
        if not abandoned.is_set():
            asyncio.run_coroutine_threadsafe(attempt(program), loop).result()
        if abandoned.is_set() or failures:
            raise _Enough

    def search() -> None:
        machine = seed(context.random.getrandbits(64))(lambda: _Machine(finish))
        with suppress(_Enough):
            run_state_machine_as_test(
                machine,  # type: ignore[arg-type] # its documentation allows a function, too
                settings=settings(
                    max_examples=programs,
                    stateful_step_count=steps,
                    database=None,
                    deadline=None,
                    derandomize=False,
                    print_blob=False,
                    verbosity=Verbosity.quiet,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType] - its metaclass is typed so
                ),
            )

    # Hypothesis calls, and cannot await: it gets a thread, while the store stays in the event loop of the harness.
    with _nothing_written(), ThreadPoolExecutor(1) as thread:
        searching = loop.run_in_executor(thread, search)
        try:
            await asyncio.wait({searching})
        finally:
            abandoned.set()
            for task in playing:
                task.cancel()
            await asyncio.wait({searching})
            await asyncio.gather(*playing, return_exceptions=True)
    searching.result()
    return failures[0] if failures else None


class _Machine(RuleBasedStateMachine):
    """Makes a program, and has it played at the end."""

    def __init__(self, finish: Callable[[list[Step]], None]) -> None:
        super().__init__()
        self._finish = finish
        self._program: list[Step] = []

    # One rule: of several, Hypothesis leaves out some in most programs, and few would have all that it takes.
    @rule(
        client=sampled_from((0, 1)),
        method=sampled_from(_METHODS),
        name=sampled_from(_NAMES),
        text=sampled_from(_TEXTS),
        other_looks=booleans(),
    )
    def call(self, client: int, method: Method, name: str, text: str, *, other_looks: bool) -> None:
        self._program.append(Step(client, method, name, text))
        if other_looks:
            self._program.append(Step(1 - client, "load", name, ""))

    def teardown(self) -> None:
        self._finish(self._program)


class _Enough(BaseException):
    """Ends Hypothesis's search at once; it goes on after an ``Exception``."""


@contextmanager
def _nothing_written() -> Iterator[None]:
    """Keep Hypothesis from making a folder .hypothesis where the kit is run, for what it has found in source files."""
    home = getattr(configuration, "__hypothesis_home_directory", None)
    configuration.set_hypothesis_home_dir(os.devnull)
    try:
        yield
    finally:
        configuration.set_hypothesis_home_dir(home)
