"""What a case works with: clients of the store, values that certify themselves, chance, processes and faults."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import random
import sys
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from dagonizer import StoreURL
from dagonizer.registry import store_endpoints
from dagonizer_conformance.certificate import Certificate, certify
from dagonizer_conformance.client import Client, Record
from dagonizer_conformance.harness import URLHarness, has_hook, is_url
from dagonizer_conformance.interruption import Steps, within
from dagonizer_conformance.outcomes import Inconclusive, TargetError, Unverified, Violation
from dagonizer_conformance.process import ClientProcess
from dagonizer_conformance.proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
    from typing import Self

    from dagonizer.url import Host
    from dagonizer_conformance.client import Call
    from dagonizer_conformance.harness import Harness

    Script = Callable[[Client], Awaitable[None]]

T = TypeVar("T")

_ENOUGH_OVERLAPS = 3
_TO_SEE_IT_LATE = 0.5
_NOT_SHARED = "another process finds nothing of what is saved here: the data live in one process"
_GIVE_WAY = 0.05
_CLEANERS = 16
_MOST = 10


class Budget(StrEnum):
    """How much a run may do: ``smoke`` takes seconds, ``default`` a minute, ``soak`` as long as it takes."""

    SMOKE = "smoke"
    DEFAULT = "default"
    SOAK = "soak"


@dataclass(frozen=True)
class Bystander:
    """An entry of another namespace, saved before the first case and deleted after the last."""

    namespace: str
    key: str
    text: str
    saved: float
    """When, by ``time.monotonic``."""

    @classmethod
    def of(cls, namespace: str) -> Self:
        """Return a bystander of the run that uses ``namespace``."""
        namespace = f"{namespace}-bystander"
        text = certify(Certificate(namespace, "bystander", "bystander", 1))
        return cls(namespace, "bystander", text, time.monotonic())


class Outage(Protocol):
    """Takes a backend away from its clients, and gives it back."""

    async def down(self) -> None:
        """Let the backend stop answering."""

    async def up(self) -> None:
        """Let it answer again."""


@dataclass
class Run:
    """What all cases of a run share."""

    harness: Harness
    seed: int
    budget: Budget
    patience: float
    """How long, in seconds, any one operation may take."""
    namespace: str
    bystander: Bystander
    gives_way: bool | None = None
    """Whether the store's methods ever give way to the event loop, once that is known."""
    shared: bool | None = None
    """Whether another process finds the data, once that is known."""
    idle_processes: list[ClientProcess] = field(default_factory=list)
    """Client processes that a case has started, for the next one that needs some."""

    async def stop_processes(self) -> None:
        """Stop the idle client processes: after an outage their stores need not know that connections are gone."""
        await asyncio.gather(*(process.stop() for process in self.idle_processes))
        self.idle_processes.clear()


class Context:
    """What one case works with. At its end all that it opened is closed, and all that it saved deleted."""

    def __init__(self, run: Run, case_id: str) -> None:
        self.harness = run.harness
        self.budget = run.budget
        self.namespace = run.namespace
        self.patience = run.patience
        self.bystander = run.bystander
        self.random = random.Random(f"{run.seed}:{case_id}")  # noqa: S311 - chance that a seed repeats
        self.record = Record()
        self.note = ""
        """What a reader of the report should know although the case passes."""
        self._run = run
        self._case_id = case_id
        self._numbers: dict[str, itertools.count[int]] = {}
        self._names = itertools.count(1)
        self._opened: list[Client] = []
        self._processes: list[ClientProcess] = []
        self._proxies: list[FaultProxy] = []

    # What to save.

    def scale(self, *, smoke: int, default: int, soak: int) -> int:
        """Return the number for this run's budget."""
        return {Budget.SMOKE: smoke, Budget.DEFAULT: default, Budget.SOAK: soak}[self.budget]

    def key(self, name: str = "key") -> str:
        """Return a key of this case's own."""
        return f"{self._case_id}/{name}"

    def text(self, key: str, *, writer: str = "writer 1", size: int = 0, namespace: str | None = None) -> str:
        """Return a new certified value for ``key``, the next one of ``writer``, of at least ``size`` UTF-8 bytes."""
        number = next(self._numbers.setdefault(writer, itertools.count(1)))
        return certify(Certificate(namespace or self.namespace, key, writer, number), size)

    def other_namespace(self, suffix: str) -> str:
        """Return the name of another namespace. Only this run uses it."""
        return f"{self.namespace}-{suffix}"

    # Clients.

    async def open(self, namespace: str | None = None) -> Client:
        """Open a store, an independent client of ``namespace``."""
        client = await self._open(namespace or self.namespace)
        self._opened.append(client)
        return client

    async def close(self, client: Client) -> None:
        """Close a client that ``open`` returned, before the end of the case."""
        self._opened.remove(client)
        await self._close(client)

    async def _open(self, namespace: str) -> Client:
        store = await within(self.patience, self.harness.open(namespace), "the harness's open")
        if any(store is client.store for client in self._opened):
            raise TargetError(
                "the harness's open returned a store that it had returned before; each must be another client"
            )
        return self._client(store, namespace, f"client {next(self._names)}")

    def _client(self, store: object, namespace: str, name: str) -> Client:
        return Client(store, name=name, namespace=namespace, record=self.record, patience=self.patience)

    async def _close(self, client: Client) -> None:
        await client.close(self.harness)

    # Concurrency.

    async def concurrently(self, *scripts: Script, overlap: bool = True) -> Sequence[Call]:
        """Run each script with a client of its own, all at once, and return the calls of all.

        The clients are tasks of one event loop. A store whose methods never give way to the loop gets a thread and a
        loop for each client instead, for nothing else makes its operations meet. Raises ``Inconclusive`` unless
        operations met, as ``expect_overlap`` understands it.
        """
        before = len(self.record.calls)
        if await self.gives_way():
            clients = [await self.open() for _ in scripts]
            for client in clients:
                client.chance = self._chance()
            await all_of(*(script(client) for script, client in zip(scripts, clients, strict=True)))
        else:
            await self._in_threads(scripts)
        calls = self.record.calls[before:]
        if overlap:
            expect_overlap(calls)
        return calls

    def until_overlapped(self, times: int) -> Iterator[int]:
        """Count to ``times``, and on, up to ten times as far, while the calls of this case have not ``overlapped``."""
        for number in range(_MOST * times):
            if number and number % times == 0 and overlapped(self.record.calls):
                return
            yield number

    async def together(self, client: Client, *scripts: Script) -> Sequence[Call]:
        """Run the scripts as tasks that share ``client``, and return their calls.

        A store whose methods never give way to the event loop passes, with a note: its tasks cannot meet.
        """
        before = len(self.record.calls)
        await all_of(*(script(client) for script in scripts))
        calls = self.record.calls[before:]
        if not await self.gives_way():
            self.note = "its operations never give way to the event loop, so that tasks cannot meet inside them"
        elif not any(a.started < b.started < (a.ended or 0) for a, b in itertools.pairwise(calls)):
            raise Inconclusive(f"none of {len(calls):,} operations was called while another was under way")
        return calls

    async def meeting(self, parties: int) -> Callable[[], Awaitable[None]]:
        """Return what ``parties`` scripts of ``concurrently`` await in order to go on at the same moment."""
        if await self.gives_way():
            meeting = asyncio.Barrier(parties)

            async def meet() -> None:
                async with asyncio.timeout(self.patience):
                    await meeting.wait()
        else:
            barrier = threading.Barrier(parties, timeout=self.patience)

            async def meet() -> None:
                # Each has an event loop of its own, with nothing else to do.
                barrier.wait()

        return meet

    async def gives_way(self) -> bool:
        """Return whether a save, a load or a delete ever gives way to the event loop."""
        if self._run.gives_way is None:
            client = await self.open()
            key = self.key("probe")
            text = self.text(key, writer="probe")
            client = client.unbounded()
            suspensions = 0
            for call in (partial(client.save, key, text), partial(client.load, key), partial(client.delete, key)):
                steps = Steps(call())
                await within(self.patience, _awaited(steps), "an operation")
                suspensions += steps.suspensions
            self._run.gives_way = suspensions > 0
        return self._run.gives_way

    async def _in_threads(self, scripts: Sequence[Script]) -> None:
        async def alone(script: Script, chance: random.Random) -> None:
            client = await self._open(self.namespace)
            await meet()
            sys.setprofile(lambda *_: _let_others_run(chance))
            try:
                await script(client)
            finally:
                sys.setprofile(None)
                await self._close(client)

        meet = await self.meeting(len(scripts))
        await all_of(*(in_thread(alone(script, self._chance())) for script in scripts))

    def _chance(self) -> random.Random:
        return random.Random(self.random.getrandbits(64))  # noqa: S311 - chance that a seed repeats

    # Other processes.

    async def process(self) -> Client:
        """Start a client in a process of its own; its ``store`` is a ``ClientProcess``.

        Raises ``Unverified`` when no other process can find the data, ``Violation`` when it finds them late.
        """
        address = self.harness.address()
        if address is None:
            raise Unverified("the harness has no address() by which another process finds the data")
        if self._run.shared is False:
            raise Unverified(_NOT_SHARED)
        idle = self._run.idle_processes
        process = idle.pop() if idle else await ClientProcess.start(address, self.namespace)
        self._processes.append(process)
        client = self._client(process, self.namespace, f"process {len(self._processes)}")
        await self._expect_shared(client)
        return client

    async def _expect_shared(self, client: Client) -> None:
        here = await self.open()
        key = self.key(f"seen by {client.name}")
        await here.save(key, text := self.text(key, writer="probe"))
        await self.close(here)
        if await client.load(key) == text:
            self._run.shared = True
            return
        if self._run.shared is None:
            await asyncio.sleep(_TO_SEE_IT_LATE)
            self._run.shared = await client.load(key) == text
        if self._run.shared:
            raise Violation("another process saw a save only some time after it was acknowledged")
        raise Unverified(_NOT_SHARED)

    @property
    def shared(self) -> bool | None:
        """Whether another process finds the data; None while nobody has looked."""
        return self._run.shared

    async def kill(self) -> None:
        """Kill the client processes and the backend, and bring the backend back.

        Raises ``TargetError`` when the harness has killed nothing: a connection to the backend outlives it.
        """
        self.require("kill")
        await self._run.stop_processes()
        for process in self._processes:
            process.kill()
        try:
            _, endpoint = network_endpoint(self.harness)
        except (Unverified, LookupError):
            await self.harness.kill()
            return
        reader, writer = await asyncio.open_connection(endpoint.name, endpoint.port)
        try:
            await self.harness.kill()
            await asyncio.wait_for(reader.read(), self.patience)
        except ConnectionError:
            pass
        except TimeoutError:
            raise TargetError(
                f"after the harness's kill a connection to {endpoint.name} is open: it killed nothing"
            ) from None
        finally:
            writer.close()

    # Faults.

    def require(self, *hooks: str) -> None:
        """Raise ``Unverified`` unless the harness has these hooks."""
        for name in hooks:
            if not has_hook(self.harness, name):
                raise Unverified(f"the harness has no hook {name!r}")

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[tuple[Client, Outage]]:
        """Give a client, and the means to take the backend away from it: the harness's hooks, or a fault proxy."""
        if has_hook(self.harness, "down") and has_hook(self.harness, "up"):
            await self._run.stop_processes()
            outage: Outage = self.harness
            client = await self.open()
        else:
            client, proxy = await self.through_proxy()
            outage = _Refusal(proxy)
        try:
            yield client, outage
        finally:
            await outage.up()

    async def through_proxy(self) -> tuple[Client, FaultProxy]:
        """Return a client that reaches the backend through a fault proxy, and the proxy.

        Raises ``Unverified`` when the harness gives no URL that names a host and a port.
        """
        try:
            address, endpoint = network_endpoint(self.harness)
        except LookupError as exc:
            raise Unverified(f"no fault proxy can stand in front of it: {exc}") from exc
        proxy = FaultProxy(endpoint.name, endpoint.port or 0)
        await proxy.start()
        self._proxies.append(proxy)
        name = f"[{endpoint.name}]" if ":" in endpoint.name else endpoint.name
        behind = URLHarness(address.replace(f"{name}:{endpoint.port}", f"{proxy.host}:{proxy.port}"))
        store = await within(self.patience, behind.open(self.namespace), "open_store")
        client = self._client(store, self.namespace, f"client {next(self._names)}")
        self._opened.append(client)
        return client, proxy

    # The end.

    async def finish(self) -> None:
        """Close, stop and delete everything that the case has left."""
        # To start one costs more than most cases.
        self._run.idle_processes += [process for process in self._processes if process.idle]
        await asyncio.gather(*(process.stop() for process in self._processes if not process.idle))
        try:
            for client in reversed(self._opened):
                await self._close(client)
        finally:
            for proxy in self._proxies:
                await proxy.stop()
            self._opened.clear()
        for namespace, keys in self.record.keys.items():
            await self._delete(namespace, sorted(keys))

    async def _delete(self, namespace: str, keys: Sequence[str]) -> None:
        async def delete_next() -> None:
            for key in remaining:
                # To look costs less than to delete.
                if (namespace, key) not in self.record.deleted or await client.load(key) is not None:
                    await client.delete(key)

        client = await self._open(namespace)
        remaining = iter(keys)
        try:
            await all_of(*(delete_next() for _ in range(_CLEANERS)))
        finally:
            await self._close(client)


class _Refusal:
    """An outage by a fault proxy that refuses connections."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy

    async def down(self) -> None:
        await self._proxy.refuse()

    async def up(self) -> None:
        await self._proxy.pass_through()


def network_endpoint(harness: Harness) -> tuple[str, Host]:
    """Return the harness's URL and the one host and port in it that a fault proxy can stand before.

    Raises ``Unverified`` when there is none to be found, and ``LookupError`` when the store has no network at all.
    """
    address = harness.address()
    if address is None or not is_url(address):
        raise Unverified("the harness has no address() that is a URL, to put a fault proxy in front of")
    endpoints = store_endpoints(StoreURL.parse(address.replace("{namespace}", "namespace")))
    if not endpoints:
        raise LookupError("the store connects to no host")
    endpoint, *more = endpoints
    if more or endpoint.port is None:
        raise Unverified("the URL must name one host with its port, to put a fault proxy in front of it")
    return address, endpoint


def expect_overlap(calls: Sequence[Call]) -> None:
    """Raise ``Inconclusive`` unless ``overlapped``."""
    if not overlapped(calls):
        raise Inconclusive(
            f"hardly any of {len(calls):,} operations ran while another one was under way: the store or its harness "
            "makes them wait for each other"
        )


def overlapped(calls: Sequence[Call]) -> bool:
    """Return whether some of ``calls`` ran from beginning to end while another was under way, and some met on a key.

    Operations that merely queue behind each other overlap at their ends, and prove nothing.
    """
    within_another, on_one_key = 0, 0
    under_way: list[Call] = []
    for call in sorted(calls, key=lambda call: call.started):
        under_way = [other for other in under_way if other.ended is None or other.ended > call.started]
        within_another += any(
            call.ended is not None and (other.ended is None or other.ended > call.ended) for other in under_way
        )
        on_one_key += any((call.namespace, call.key) == (other.namespace, other.key) for other in under_way)
        under_way.append(call)
    return min(within_another, on_one_key) >= _ENOUGH_OVERLAPS


async def all_of(*operations: Awaitable[T]) -> list[T]:
    """Await all to their ends, and return their results; raise the first failure, a violation before anything else.

    What goes on after its case, as with ``asyncio.gather``, would meet the next one.
    """
    outcomes = await asyncio.gather(*operations, return_exceptions=True)
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    if failures:
        # A missed meeting is what comes of another's failure.
        raise min(failures, key=_rank)
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


def _rank(failure: BaseException) -> int:
    match failure:
        case Violation():
            return 0
        case TimeoutError() | threading.BrokenBarrierError():
            return 2
        case _:
            return 1


def _let_others_run(chance: random.Random) -> None:
    # Threads change places every 5 ms, which is more than a whole operation of a store in memory takes.
    if chance.random() < _GIVE_WAY:
        time.sleep(0.000001)


async def in_thread(coroutine: Coroutine[object, object, None]) -> None:
    """Run ``coroutine`` in a thread and an event loop of its own."""
    finished: concurrent.futures.Future[None] = concurrent.futures.Future()

    def run() -> None:
        try:
            finished.set_result(asyncio.run(coroutine))
        except BaseException as exc:  # noqa: BLE001 - it goes to whoever waits
            finished.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    await asyncio.wrap_future(finished)


async def _awaited(awaitable: Awaitable[object]) -> object:
    return await awaitable
