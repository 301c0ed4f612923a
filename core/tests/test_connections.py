"""One connection for each event loop, and operations that are bounded, ordered and waited for."""

from __future__ import annotations

import asyncio
import gc
import select
import threading
import weakref
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial

import pytest

from dagonizer.connections import Connections, in_thread, is_stale, reset
from dagonizer.errors import StoreClosedError


class Server:
    """Counts connections; its writes wait until they are let through."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.refusing = False
        self.done: list[str] = []

    @asynccontextmanager
    async def connect(self):
        await asyncio.sleep(0)
        if self.refusing:
            raise ConnectionRefusedError
        self.opened += 1
        try:
            yield self.opened
        finally:
            await asyncio.sleep(0)
            self.closed += 1

    def connections(self, timeout: float = 5, **options) -> Connections[int]:
        return Connections(self.connect, timeout=timeout, owner=Server, **options)


async def identity(connection: int) -> int:
    await asyncio.sleep(0)
    return connection


async def test_operations_of_one_event_loop_share_one_connection():
    server = Server()
    connections = server.connections()
    assert set(await asyncio.gather(*(connections.read(identity) for _ in range(20)))) == {1}
    assert await connections.write("key", identity) == 1
    await connections.aclose()
    assert (server.opened, server.closed) == (1, 1)


async def test_who_waits_for_a_connection_that_fails_tries_one_itself():
    server = Server()
    connections = server.connections()
    server.refusing = True
    outcomes = await asyncio.gather(*(connections.read(identity) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConnectionRefusedError] * 3
    server.refusing = False
    assert await connections.read(identity) == 1


async def test_a_cancelled_first_operation_does_not_take_the_connection_from_the_others():
    server = Server()
    connections = server.connections()
    first, second = (asyncio.create_task(connections.read(identity)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 1
    await connections.aclose()
    assert server.opened == server.closed


def test_each_event_loop_has_its_own_connection_and_closes_it_when_it_ends():
    server = Server()
    connections = server.connections()
    assert asyncio.run(connections.read(identity)) == 1
    assert server.closed == 1
    assert asyncio.run(connections.read(identity)) == 2
    assert server.closed == 2
    asyncio.run(connections.aclose())
    assert (server.opened, server.closed) == (2, 2)
    assert len(connections._by_loop) == 1, "event loops that have ended are forgotten"


async def test_closing_closes_the_connections_of_other_running_loops_in_those_loops():
    server = Server()
    connections = server.connections()
    used, leave = threading.Event(), threading.Event()

    def run() -> None:
        async def use() -> None:
            await connections.read(identity)
            used.set()
            await asyncio.to_thread(leave.wait)

        asyncio.run(use())

    thread = threading.Thread(target=run)
    thread.start()
    await asyncio.to_thread(used.wait)
    await connections.aclose()
    assert (server.opened, server.closed) == (1, 1)
    leave.set()
    await asyncio.to_thread(thread.join)


async def test_closing_waits_for_what_is_under_way_and_refuses_what_comes_later():
    server = Server()
    connections = server.connections()
    go_on = asyncio.Event()

    async def slow(connection: int) -> int:
        await go_on.wait()
        assert server.closed == 0
        return connection

    operations = [asyncio.create_task(connections.read(slow)), asyncio.create_task(connections.write("key", slow))]
    just_begun = asyncio.create_task(connections.write("other", slow))
    await asyncio.sleep(0)
    closing = asyncio.create_task(connections.aclose())
    await asyncio.sleep(0)
    with pytest.raises(StoreClosedError, match="this Server is closed"):
        await connections.read(identity)
    with pytest.raises(StoreClosedError):
        await connections.write("key", identity)
    go_on.set()
    assert await asyncio.gather(*operations, just_begun) == [1, 1, 1]
    await closing
    await connections.aclose()
    assert (server.opened, server.closed) == (1, 1)


async def test_every_operation_is_bounded_and_so_is_closing():
    server = Server()
    connections = server.connections(timeout=0.01)

    async def never(_connection: int) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await connections.read(never)
    with pytest.raises(TimeoutError):
        await connections.write("key", never)

    async def deaf(_connection: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await leave.wait()

    leave = asyncio.Event()
    stuck = asyncio.create_task(connections.read(deaf))
    await asyncio.sleep(0)
    await connections.aclose()
    assert server.closed == 1
    leave.set()
    await asyncio.wait({stuck})


async def test_a_connection_is_distrusted_after_an_operation_that_took_too_long_and_no_other():
    server = Server()
    distrusted: list[int] = []

    async def distrust(connection: int) -> None:
        distrusted.append(connection)

    async def never(_connection: int) -> None:
        await asyncio.Event().wait()

    async def broken(_connection: int) -> None:
        raise ConnectionResetError

    connections = server.connections(timeout=0.3, distrust=distrust)
    await connections.read(identity)
    await connections.write("key", identity)
    for operate in (connections.read, lambda operation: connections.write("key", operation)):
        with pytest.raises(ConnectionResetError):
            await operate(broken)
        assert not distrusted
        with pytest.raises(TimeoutError):
            await operate(never)
        assert distrusted == [1]
        distrusted.clear()
    patient = server.connections(distrust=distrust)
    cancelled = asyncio.create_task(patient.read(never))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait({cancelled})
    assert not distrusted
    for each in (connections, patient):
        await each.aclose()


async def test_an_operation_that_has_waited_for_others_only_says_nothing_of_the_connection():
    distrusted: list[int] = []
    leave = asyncio.Event()

    async def distrust(connection: int) -> None:
        distrusted.append(connection)

    async def deaf(_connection: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await leave.wait()
            raise

    connections = Server().connections(timeout=0.01, limit=1, distrust=distrust)
    stuck = asyncio.create_task(connections.read(deaf))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await connections.read(identity)
    assert not distrusted
    leave.set()
    with pytest.raises(TimeoutError):
        await stuck
    assert distrusted == [1]


async def test_an_operation_that_has_failed_is_gone_with_its_error():
    class Used:
        pass

    def operation(until: asyncio.Event):
        used = Used()
        uses.add(used)

        async def use(_connection: int) -> None:
            await until.wait()
            raise ConnectionResetError(used)

        return use

    uses: weakref.WeakSet[Used] = weakref.WeakSet()
    connections = Server().connections(timeout=0.3)
    now, never = asyncio.Event(), asyncio.Event()
    now.set()
    gc.collect()
    gc.disable()
    try:
        for until, error in ((now, ConnectionResetError), (never, TimeoutError)):
            for operate in (connections.read, lambda operation: connections.write("key", operation)):
                # Not by pytest.raises, which keeps what was raised.
                with suppress(error):
                    await operate(operation(until))
                # The event loop has the step that has ended it, until the next one.
                await asyncio.sleep(0)
                assert not uses
    finally:
        gc.enable()
    await connections.aclose()


async def test_what_is_not_connected_yet_is_not_distrusted():
    @asynccontextmanager
    async def connect():
        await asyncio.Event().wait()
        yield

    connections: Connections[None] = Connections(connect, timeout=0.01, owner=Server, distrust=identity)
    with pytest.raises(TimeoutError):
        await connections.read(identity)
    await connections.aclose()


async def test_a_cancelled_read_is_cancelled():
    connections = Server().connections()
    cancelled = asyncio.Event()

    async def read(_connection: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.create_task(connections.read(read))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()


async def test_a_cancelled_write_that_has_begun_is_finished_before_the_next_one_of_its_key_and_no_other_begins():
    connections = Server().connections()
    await connections.read(identity)
    done: list[str] = []
    gates = {name: asyncio.Event() for name in ("first", "second")}

    def write(name: str):
        async def operation(_connection: int) -> str:
            await gates.get(name, finished).wait()
            done.append(name)
            return name

        return operation

    finished = asyncio.Event()
    finished.set()
    cancelled = [asyncio.create_task(connections.write("key", write(name))) for name in gates]
    for _ in range(3):
        await asyncio.sleep(0)
    for task in cancelled:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    third = asyncio.create_task(connections.write("key", write("third")))
    assert await connections.write("other", write("other")) == "other"
    gates["second"].set()
    await asyncio.sleep(0.01)
    assert done == ["other"], "the third waits for the first"
    gates["first"].set()
    assert await third == "third"
    assert done == ["other", "first", "third"], "of the second nothing was sent, and it must not come later"


async def test_operations_beyond_the_limit_are_done_in_the_order_in_which_they_came():
    connections = Server().connections(limit=1)
    done: list[int] = []

    async def user(name: int) -> None:
        for _ in range(3):
            await connections.read(partial(operation, name))

    async def operation(name: int, _connection: int) -> None:
        await asyncio.sleep(0)
        done.append(name)

    await asyncio.gather(*map(user, range(3)))
    assert done == [0, 1, 2] * 3


async def test_a_limit_of_zero_is_none():
    connections = Server().connections(limit=0, timeout=10)
    assert await connections.read(identity) == await connections.write("key", identity) == 1


async def test_nobody_who_writes_a_key_again_and_again_overtakes_who_waits_for_it():
    connections = Server().connections()
    done: list[int] = []

    async def user(name: int) -> None:
        for _ in range(3):
            await connections.write("key", partial(operation, name))

    async def operation(name: int, _connection: int) -> None:
        await asyncio.sleep(0)
        done.append(name)

    await asyncio.gather(*map(user, range(3)))
    assert done == [0, 1, 2] * 3


async def test_a_write_that_is_cancelled_at_once_does_not_wait_for_itself():
    connections = Server().connections(timeout=60)
    await connections.read(identity)
    first = asyncio.create_task(connections.write("key", identity))
    await asyncio.sleep(0)
    first.cancel()
    second = asyncio.create_task(connections.write("key", identity))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait({first, second})
    async with asyncio.timeout(5):
        assert await connections.write("key", identity) == 1


async def test_a_cancelled_write_that_fails_later_leaves_no_complaint():
    connections = Server().connections()
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))

    begun = asyncio.Event()

    async def fail(_connection: int) -> None:
        begun.set()
        await asyncio.sleep(0)
        raise ValueError

    task = asyncio.create_task(connections.write("key", fail))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await connections.write("key", identity)
    await connections.aclose()
    gc.collect()
    assert complaints == []


async def test_who_is_cancelled_after_the_write_has_failed_and_before_it_is_told_leaves_no_complaint():
    connections = Server().connections()
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))

    async def fail(_connection: int) -> None:
        # Between the failure, which follows at once, and the next turn of the caller.
        asyncio.get_running_loop().call_soon(writing.cancel)
        raise ValueError

    await connections.read(identity)
    writing = asyncio.create_task(connections.write("key", fail))
    with pytest.raises(asyncio.CancelledError):
        await writing
    await connections.aclose()
    gc.collect()
    assert complaints == []


async def test_a_write_whose_task_is_cancelled_cancels_its_caller_and_nobody_waits_for_it():
    connections = Server().connections(timeout=60)
    await connections.read(identity)
    for turns in range(3):
        before = asyncio.all_tasks()
        writing = asyncio.create_task(connections.write("key", identity))
        await asyncio.sleep(0)
        (task,) = asyncio.all_tasks() - before - {writing}
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(5):
            await asyncio.wait({writing})
        assert writing.cancelled() == (turns < 2)
    async with asyncio.timeout(5):
        await connections.aclose()


async def test_a_function_in_a_thread_gets_arguments_and_context_and_returns_or_raises():
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("of the caller")

    def function(*args: int, **kwargs: int) -> tuple[object, ...]:
        return args, kwargs, variable.get(), threading.current_thread() is threading.main_thread()

    assert await in_thread(function, 1, 2, three=3) == ((1, 2), {"three": 3}, "of the caller", False)
    with pytest.raises(ValueError, match="invalid literal"):
        await in_thread(int, "one")


class Slow:
    """A function that begins, and ends when it is let through."""

    def __init__(self, error: type[Exception] | None = None) -> None:
        self.begun, self.leave, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.error = error

    def __call__(self) -> None:
        self.begun.set()
        assert self.leave.wait(10)
        self.ended.set()
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_function_in_a_thread_is_waited_for_however_often_its_caller_is_cancelled(times):
    slow = Slow()
    task = asyncio.create_task(in_thread(slow))
    await asyncio.to_thread(slow.begun.wait)
    for time in range(times):
        task.cancel(f"for the {time}th time")
        # Until it has had its turn, and more.
        await asyncio.wait({task}, timeout=0.01)
        assert not task.done()
    slow.leave.set()
    with pytest.raises(asyncio.CancelledError, match="for the 0th time"):
        await task
    assert slow.ended.is_set()


async def test_a_function_in_a_thread_that_fails_after_the_cancellation_leaves_no_complaint():
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    slow = Slow(ValueError)
    task = asyncio.create_task(in_thread(slow))
    await asyncio.to_thread(slow.begun.wait)
    task.cancel()
    await asyncio.wait({task}, timeout=0.01)
    slow.leave.set()
    # Not by pytest.raises, which keeps what was raised.
    with suppress(asyncio.CancelledError):
        await task
    del task
    await asyncio.sleep(0)
    gc.collect()
    assert complaints == []


def test_a_function_in_a_thread_is_waited_for_when_the_event_loop_ends():
    slow = Slow()
    ended_before: list[bool] = []

    async def use() -> None:
        try:
            await in_thread(slow)
        finally:
            ended_before.append(slow.ended.is_set())

    async def leave() -> None:
        using.append(asyncio.create_task(use()))
        await asyncio.to_thread(slow.begun.wait)
        # After asyncio.run has cancelled what is left.
        asyncio.get_running_loop().call_later(0.1, slow.leave.set)

    using: list[asyncio.Task[None]] = []
    asyncio.run(leave())
    assert ended_before == [True]


async def test_a_write_in_a_thread_that_takes_too_long_does_not_come_after_the_next():
    connections = Server().connections(timeout=0.2)
    slow = Slow()
    done: list[str] = []

    def write(name: str) -> None:
        if name == "first":
            slow()
        done.append(name)

    def writing(name: str) -> asyncio.Task[None]:
        return asyncio.create_task(connections.write("key", lambda _connection: in_thread(write, name)))

    first = writing("first")
    await asyncio.to_thread(slow.begun.wait)
    # Without the thread it would be over now.
    await asyncio.wait({first}, timeout=0.4)
    assert not first.done()
    slow.leave.set()
    with pytest.raises(TimeoutError):
        await first
    await writing("second")
    assert done == ["first", "second"]
    await connections.aclose()


async def test_a_function_in_a_thread_that_has_failed_is_gone_with_its_error():
    class Used:
        pass

    def fail(used: Used) -> None:
        raise ConnectionResetError(used)

    used = Used()
    uses = weakref.WeakSet([used])
    gc.collect()
    gc.disable()
    try:
        with suppress(ConnectionResetError):
            await in_thread(fail, used)
        del used
        # The thread has it until it waits for the next, and the event loop as in the test above.
        await in_thread(int)
        await asyncio.sleep(0)
        assert not uses
    finally:
        gc.enable()


class Acceptor:
    """A server that keeps what comes in, and its connections."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.ended = asyncio.Event()
        self.error: Exception | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while await reader.read(1 << 16):
                pass
        except ConnectionError as exc:
            self.error = exc
        self.ended.set()
        writer.close()


@pytest.fixture
async def connected():
    acceptor = Acceptor()
    server = await asyncio.start_server(acceptor.serve, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    while not acceptor.writers:
        await asyncio.sleep(0)
    yield acceptor, writer.transport
    writer.transport.abort()
    server.close()
    await server.wait_closed()


async def test_an_idle_connection_is_stale_once_something_has_come_or_it_has_ended(connected):
    acceptor, transport = connected
    assert not is_stale(transport)
    transport.pause_reading()
    acceptor.writers[0].write(b"unasked for")
    await acceptor.writers[0].drain()
    # Blocking, for what the event loop has not read is what counts.
    assert select.select([transport.get_extra_info("socket")], [], [], 5)[0]
    assert is_stale(transport)
    transport.abort()
    assert is_stale(transport)
    await asyncio.sleep(0)
    assert is_stale(transport)
    assert is_stale(None)


async def test_a_reset_connection_takes_back_what_was_not_sent(connected):
    acceptor, transport = connected
    reset(transport)
    await acceptor.ended.wait()
    assert isinstance(acceptor.error, ConnectionResetError)
    reset(transport)


async def test_a_connection_of_another_loop_that_cannot_be_closed_is_told():
    used, leave = threading.Event(), threading.Event()

    @asynccontextmanager
    async def connect():
        yield 1
        raise ConnectionResetError

    connections = Connections(connect, timeout=5, owner=Server)

    async def use() -> None:
        await connections.read(identity)
        used.set()
        await asyncio.to_thread(leave.wait)

    thread = threading.Thread(target=lambda: asyncio.run(use()))
    thread.start()
    await asyncio.to_thread(used.wait)
    with pytest.raises(ConnectionResetError):
        await connections.aclose()
    leave.set()
    await asyncio.to_thread(thread.join)


async def test_closing_that_is_cancelled_comes_to_its_end():
    leaving, leave, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def connect():
        yield 1
        leaving.set()
        await leave.wait()
        closed.set()

    connections = Connections(connect, timeout=5, owner=Server)
    await connections.read(identity)
    closing = asyncio.create_task(connections.aclose())
    await leaving.wait()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    leave.set()
    async with asyncio.timeout(5):
        await closed.wait()
