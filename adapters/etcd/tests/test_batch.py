"""Requests that go together: few for many, and none the worse for the others."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import pytest

from dagonizer import open_store
from dagonizer.errors import StoreAccessError, StoreConflictError, StoreUnavailableError
from dagonizer.url import StoreURL
from dagonizer_conformance.proxy import FaultProxy
from dagonizer_etcd import EtcdCheckpointStore, EtcdConfig
from dagonizer_etcd._batch import Batch
from dagonizer_etcd._errors import Code, Failure
from dagonizer_etcd._transport import Cluster
from dagonizer_test_servers.etcd import Etcd

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from dagonizer_test_servers.shared import Server

SCHEMES = ("etcd", "etcd+http")
MANY = 100
FULL = Failure(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", "a")


class Numbers:
    """Doubles numbers, alone or together, once it may answer, and remembers how."""

    def __init__(self, *, most: int = 10, refuses: int | None = None, failure: Failure | None = None) -> None:
        self.requests: list[list[int]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self._refuses, self._failure = refuses, failure
        self.batch = Batch(self.alone, self.together, size=lambda _: 1, most=most, timeout=30)

    async def alone(self, number: int) -> int:
        self.requests.append([number])
        await self.answer()
        return 2 * number

    async def together(self, numbers: Sequence[int]) -> list[int] | None:
        self.requests.append(list(numbers))
        await self.answer()
        if self._failure is not None:
            raise self._failure
        return None if self._refuses in numbers else [2 * number for number in numbers]

    async def answer(self) -> None:
        await asyncio.sleep(0)
        await self.may_answer.wait()

    async def all_of(self, numbers: Sequence[int]) -> list[int | BaseException]:
        return await asyncio.gather(*map(self.batch.send, numbers), return_exceptions=True)


async def test_the_first_goes_alone_and_the_others_together_in_their_order() -> None:
    numbers = Numbers(most=10)
    assert await numbers.all_of(range(25)) == [2 * number for number in range(25)]
    assert numbers.requests == [[0], [*range(1, 11)], [*range(11, 21)], [*range(21, 25)]]


async def test_one_after_the_other_goes_alone() -> None:
    numbers = Numbers()
    for number in range(3):
        assert await numbers.batch.send(number) == 2 * number
    assert numbers.requests == [[0], [1], [2]]


async def test_each_goes_alone_if_one_is_refused() -> None:
    numbers = Numbers(refuses=3)
    assert await numbers.all_of(range(5)) == [0, 2, 4, 6, 8]
    assert numbers.requests == [[0], [1, 2, 3, 4], [1], [2], [3], [4]]


async def test_what_is_larger_than_the_most_goes_alone() -> None:
    numbers = Numbers(most=0)
    assert await numbers.all_of(range(4)) == [0, 2, 4, 6]
    assert sorted(numbers.requests) == [[0], [1], [2], [3]]


async def test_a_failure_is_everybodys_each_with_an_exception_of_its_own() -> None:
    numbers = Numbers(failure=FULL)
    first, *others = await numbers.all_of(range(4))
    assert first == 0
    assert {(type(other), str(other)) for other in others} == {(Failure, str(FULL))}
    assert len({*map(id, others), id(FULL)}) == 4
    assert numbers.requests == [[0], [1, 2, 3]]


async def test_what_nobody_waits_for_any_more_is_not_sent() -> None:
    numbers = Numbers(most=2)
    numbers.may_answer.clear()
    # Alone, and in the two requests that may be on the way.
    waiting = [asyncio.create_task(numbers.batch.send(number)) for number in range(5)]
    while len(numbers.requests) < 2:
        await asyncio.sleep(0)
    waiting += [asyncio.create_task(numbers.batch.send(number)) for number in range(5, 9)]
    await asyncio.sleep(0)
    waiting[6].cancel()
    numbers.may_answer.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [answer for answer in answers if not isinstance(answer, BaseException)] == [0, 2, 4, 6, 8, 10, 14, 16]
    assert sorted(number for request in numbers.requests for number in request) == [0, 1, 2, 3, 4, 5, 7, 8]


@pytest.mark.parametrize("most", [1, 2, 10])
@pytest.mark.parametrize("pauses", [0, 1, 2, 3])
async def test_none_waits_for_ever_however_senders_end(most: int, pauses: int) -> None:
    numbers = Numbers(most=most)

    async def repeat(number: int) -> None:
        for turn in range(20):
            assert await numbers.batch.send(number) == 2 * number
            for _ in range((number + turn) % 4 if pauses == 3 else pauses):
                await asyncio.sleep(0)

    async with asyncio.timeout(10):
        await asyncio.gather(*map(repeat, range(7)))


async def test_one_that_is_given_up_on_the_way_takes_none_with_it() -> None:
    numbers = Numbers()
    numbers.may_answer.clear()
    waiting = [asyncio.create_task(numbers.batch.send(number)) for number in range(4)]
    while len(numbers.requests) < 2:
        await asyncio.sleep(0)
    waiting[2].cancel()
    numbers.may_answer.set()
    first, second, third, fourth = await asyncio.gather(*waiting, return_exceptions=True)
    assert (first, second, fourth) == (0, 2, 6)
    assert isinstance(third, asyncio.CancelledError)


@pytest.fixture(params=SCHEMES)
def url(request: pytest.FixtureRequest, etcd_server: Server) -> str:
    return f"{etcd_server.url.replace('etcd', request.param, 1)}/test-{secrets.token_hex(8)}"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What clusters are asked for, each of which is one request to a server that does not fail."""
    requests: list[object] = []
    call = Cluster._call

    async def counted(self: Cluster, *args: object, **kwargs: object) -> object:
        requests.append(args)
        return await call(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Cluster, "_call", counted)
    return requests


async def test_many_at_once_are_few_requests(url: str, requests: list[object]) -> None:
    texts = {f"key {number}": f"text {number}" for number in range(MANY)}
    async with open_store(url) as store:
        await asyncio.gather(*map(store.save, texts, texts.values()))
        assert len(requests) <= 1 + 2
        assert await asyncio.gather(*map(store.load, texts)) == list(texts.values())
        requests.clear()
        await asyncio.gather(*map(store.delete, texts))
        assert len(requests) <= 1 + 2
        assert await asyncio.gather(*map(store.load, texts)) == [None] * MANY


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_many_loads_that_are_cut_off_do_not_end_the_server(scheme: str) -> None:
    texts = {f"key {number}": secrets.token_hex(100_000) for number in range(16)}
    with Etcd() as server:
        url = f"{scheme}://127.0.0.1:{server.port}"
        async with (
            FaultProxy("127.0.0.1", server.port) as proxy,
            open_store(url.replace(f"{server.port}", f"{proxy.port}")) as store,
            open_store(url) as witness,
        ):
            await asyncio.gather(*map(witness.save, texts, texts.values()))
            for number in range(200):
                loads = [asyncio.create_task(store.load(key)) for key in texts]
                await asyncio.sleep(number % 20 / 1000)
                await proxy.reset()
                await asyncio.gather(*loads, return_exceptions=True)
                assert await witness.load("key 0") == texts["key 0"]


async def test_one_that_conflicts_conflicts_alone(url: str) -> None:
    config = EtcdConfig.from_url(StoreURL.parse(url))
    async with EtcdCheckpointStore(config) as store, EtcdCheckpointStore(config) as other:
        keys = [f"key {number}" for number in range(10)]
        versions = await asyncio.gather(*(store.save_if(key, "1", expected=None) for key in keys))
        await other.save(keys[7], "other")
        saves = (store.save_if(key, "2", expected=version) for key, version in zip(keys, versions, strict=True))
        outcomes = await asyncio.gather(*saves, return_exceptions=True)
        assert [isinstance(outcome, StoreConflictError) for outcome in outcomes] == [key == keys[7] for key in keys]
        assert [await store.load(key) for key in keys] == ["other" if key == keys[7] else "2" for key in keys]
        # Saves that are not conditional replace what others have saved since.
        await other.save(keys[3], "other")
        await asyncio.gather(*(store.save(key, "3") for key in keys))
        assert [await store.load(key) for key in keys] == ["3"] * 10


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_server_that_takes_fewer_together_is_served_one_by_one(scheme: str) -> None:
    with Etcd("--max-txn-ops=4") as server:
        async with open_store(f"{scheme}://127.0.0.1:{server.port}") as store:
            keys = [f"key {number}" for number in range(20)]
            await asyncio.gather(*(store.save(key, key) for key in keys))
            assert await asyncio.gather(*map(store.load, keys)) == keys
            await asyncio.gather(*map(store.delete, keys))
            assert await asyncio.gather(*map(store.load, keys)) == [None] * 20


@pytest.fixture(scope="module")
def guarded() -> Iterator[Etcd]:
    """A server with a user who may use the keys that begin with "mine"."""
    with Etcd() as server:
        for command in (
            "user add root:root",
            "user grant-role root root",
            "role add mine",
            "role grant-permission mine readwrite /dagonizer//entry/mine /dagonizer//entry/minf",
            "user add me:secret",
            "user grant-role me mine",
            "auth enable",
        ):
            server.ctl(*command.split())
        yield server


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_one_that_is_denied_is_denied_alone(guarded: Etcd, scheme: str) -> None:
    async with open_store(f"{scheme}://me:secret@127.0.0.1:{guarded.port}") as store:
        keys = ["mine 1", "mine 2", "theirs", "mine 3"]
        calls: tuple[Callable[[str], Awaitable[object]], ...] = (
            lambda key: store.save(key, key),
            store.load,
            store.delete,
        )
        expected = (
            [None, None, "denied", None],
            ["mine 1", "mine 2", "denied", "mine 3"],
            [None, None, "denied", None],
        )
        for call, outcomes in zip(calls, expected, strict=True):
            found = await asyncio.gather(*map(call, keys), return_exceptions=True)
            assert ["denied" if isinstance(one, StoreAccessError) else one for one in found] == outcomes


async def test_a_server_that_goes_away_fails_all_and_each_by_its_key(url: str) -> None:
    scheme, _, rest = url.partition("://")
    address, _, prefix = rest.partition("/")
    host, port = address.split(":")
    async with (
        FaultProxy(host, int(port)) as proxy,
        open_store(f"{scheme}://127.0.0.1:{proxy.port}/{prefix}") as store,
    ):
        await store.save("key 0", "text")
        await proxy.refuse()
        outcomes = await asyncio.gather(*(store.save(f"key {n}", "text") for n in range(10)), return_exceptions=True)
        for number, outcome in enumerate(outcomes):
            assert isinstance(outcome, StoreUnavailableError)
            assert f"'key {number}'" in str(outcome)
