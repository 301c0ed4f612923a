"""Every fault, between real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from dagonizer_conformance.proxy import FaultProxy


class Backend:
    """Answers each line with the line, and the end of the lines with ``bye``."""

    def __init__(self, host="127.0.0.1"):
        self.host = host
        self.received = bytearray()
        self.writers = []
        self.arrived = asyncio.Condition()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, self.host, 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        async with self.arrived:
            await self.arrived.wait_for(lambda: not self.writers)

    async def serve(self, reader, writer):
        self.writers.append(writer)
        begun = b""
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                await self.note(chunk)
                lines, newline, begun = (begun + chunk).rpartition(b"\n")
                writer.write(lines + newline)
                await writer.drain()
            writer.write(b"bye")
        writer.close()
        self.writers.remove(writer)
        await self.note(b"")

    async def note(self, chunk):
        async with self.arrived:
            self.received += chunk
            self.arrived.notify_all()

    async def until_received(self, expected):
        async with self.arrived:
            await self.arrived.wait_for(lambda: bytes(self.received) == expected)

    async def until_left(self):
        async with self.arrived:
            await self.arrived.wait_for(lambda: not self.writers)


class Client:
    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, proxy):
        return cls(*await asyncio.open_connection(proxy.host, proxy.port))

    def send(self, data):
        self.writer.write(data)

    async def ask(self, line):
        self.send(line)
        return await self.reader.readexactly(len(line))

    async def until_reset(self):
        with pytest.raises(ConnectionResetError):
            await self.reader.readexactly(1 << 30)

    async def close(self):
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def proxied(host="127.0.0.1"):
    async with asyncio.timeout(20), Backend(host) as backend, FaultProxy(host, backend.port) as proxy:
        yield proxy, backend


async def until(condition):
    """For what a proxy in another thread has no event for."""
    while not condition():
        await asyncio.sleep(0.001)


def received_by(proxy):
    """Return what grows by all that the proxy receives on connections to come, and it knows before anyone else."""
    received = bytearray()
    loop = proxy._loop
    receive = loop.sock_recv

    async def sock_recv(*arguments):
        chunk = await receive(*arguments)
        received.extend(chunk)
        return chunk

    loop.sock_recv = sock_recv
    return received


@pytest.fixture(autouse=True)
def no_leaks():
    # What other tests have left may go meanwhile.
    gc.collect()
    before = held()
    yield
    deadline = time.monotonic() + 5
    while held() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held() == before


def held():
    return open_descriptors(), set(threading.enumerate())


def open_descriptors():
    links = {}
    for entry in Path("/proc/self/fd").iterdir():
        # The descriptor of this very listing is gone again.
        with contextlib.suppress(FileNotFoundError):
            links[entry.name] = entry.readlink()
    return {name: link for name, link in links.items() if link.parts[1:2] != ("proc",)}


def proxy_test(test):
    """Run a coroutine test in a loop of its own."""

    def run(no_leaks):
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@proxy_test
async def test_it_passes_bytes_and_the_end_of_a_direction():
    async with proxied() as (proxy, backend):
        assert proxy.host == "127.0.0.1"
        client = await Client.connect(proxy)
        assert await client.ask(b"one\n") == b"one\n"
        assert (proxy.connections, proxy.accepted) == (1, 1)
        client.writer.write_eof()
        assert await client.reader.read() == b"bye"
        await client.close()
        await until(lambda: proxy.connections == 0)
        assert proxy.accepted == 1
        assert backend.received == b"one\n"


@proxy_test
async def test_it_passes_the_backends_reset():
    async with proxied() as (proxy, backend):
        client = await Client.connect(proxy)
        await client.ask(b"one\n")
        sock = backend.writers[0].get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        backend.writers[0].transport.abort()
        await client.until_reset()
        await client.close()


@proxy_test
async def test_the_backend_learns_that_a_client_has_left():
    async with proxied() as (proxy, backend):
        client = await Client.connect(proxy)
        await client.ask(b"one\n")
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        await backend.until_left()
        await until(lambda: proxy.connections == 0)


@proxy_test
async def test_it_passes_much():
    async with proxied() as (proxy, _):
        client = await Client.connect(proxy)
        sent = os.urandom(1 << 23).replace(b"\n", b"") + b"\n"
        sent = b"\n".join(sent[at : at + 1000] for at in range(0, len(sent), 1000))
        client.send(sent)
        assert await client.reader.readexactly(len(sent)) == sent
        await client.close()


@proxy_test
async def test_it_holds_back_a_sender_whose_receiver_does_not_read():
    stuck = socket.create_server(("127.0.0.1", 0))
    with stuck:
        async with asyncio.timeout(20), FaultProxy(*stuck.getsockname()) as proxy:
            client = socket.create_connection((proxy.host, proxy.port))
            with client, stuck.accept()[0]:
                client.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    client.sendall(bytes(1 << 28))


@proxy_test
async def test_an_unreachable_backend_resets_the_client():
    with socket.socket() as silent:
        # Bound but not listening, it refuses.
        silent.bind(("127.0.0.1", 0))
        async with asyncio.timeout(20), FaultProxy(*silent.getsockname()) as proxy:
            with pytest.raises(ConnectionResetError), socket.create_connection((proxy.host, proxy.port)) as client:
                client.recv(1)
            await until(lambda: proxy.connections == 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
@proxy_test
async def test_the_backend_may_be_at_an_ipv6_address():
    async with proxied("::1") as (proxy, _):
        client = await Client.connect(proxy)
        assert await client.ask(b"one\n") == b"one\n"
        await client.close()


@proxy_test
async def test_the_backend_may_be_at_the_second_address_of_its_name():
    async with asyncio.timeout(20), Backend() as backend, FaultProxy("localhost", backend.port) as proxy:
        proxy._addresses.insert(0, (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1)))
        client = await Client.connect(proxy)
        assert await client.ask(b"one\n") == b"one\n"
        await client.close()


@proxy_test
async def test_refuse_resets_what_is_open_and_refuses_until_told_otherwise():
    async with proxied() as (proxy, _):
        port = proxy.port
        client = await Client.connect(proxy)
        await client.ask(b"one\n")
        for _ in range(3):
            await proxy.refuse()
            await proxy.refuse()
            assert proxy.connections == 0
            with pytest.raises(ConnectionRefusedError):
                await Client.connect(proxy)
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind((proxy.host, port))
            await client.until_reset()
            await client.close()
            await proxy.pass_through()
            client = await Client.connect(proxy)
            assert await client.ask(b"two\n") == b"two\n"
        assert proxy.port == port
        assert proxy.accepted == 4
        await client.close()


@proxy_test
async def test_refuse_resets_what_was_accepted_a_moment_ago():
    async with proxied() as (proxy, _):
        for _ in range(20):
            clients = [await Client.connect(proxy) for _ in range(5)]
            await proxy.refuse()
            for client in clients:
                await client.until_reset()
                await client.close()
            await proxy.pass_through()


@proxy_test
async def test_a_black_hole_swallows_both_directions_and_keeps_connections():
    async with proxied() as (proxy, backend):
        old = await Client.connect(proxy)
        assert await old.ask(b"one\n") == b"one\n"
        await proxy.black_hole()
        new = await Client.connect(proxy)
        for client in (old, new):
            client.send(b"lost\n")
        backend.writers[0].write(b"lost too")
        reads = [asyncio.create_task(client.reader.read()) for client in (old, new)]
        done, _ = await asyncio.wait(reads, timeout=0.2)
        assert not done
        assert proxy.connections == 2
        assert backend.received == b"one\n"
        await old.close()
        await new.close()
        await until(lambda: proxy.connections == 0)


@proxy_test
async def test_open_connections_come_back_from_a_black_hole():
    async with proxied() as (proxy, backend):
        received = received_by(proxy)
        client = await Client.connect(proxy)
        await proxy.black_hole()
        client.send(bytes(1 << 24))
        await until(lambda: len(received) == 1 << 24)
        await proxy.pass_through()
        assert await client.ask(b"two\n") == b"two\n"
        assert backend.received == b"two\n"
        await client.close()


@proxy_test
async def test_a_client_in_a_black_hole_does_not_learn_that_the_backend_has_gone():
    async with proxied() as (proxy, backend):
        broken = await Client.connect(proxy)
        await broken.ask(b"one\n")
        ended = await Client.connect(proxy)
        await ended.ask(b"one\n")
        await proxy.black_hole()
        sock = backend.writers[0].get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        backend.writers[0].transport.abort()
        backend.writers[1].close()
        backend.server.close()
        unconnected = await Client.connect(proxy)
        reads = [asyncio.create_task(client.reader.read()) for client in (broken, ended, unconnected)]
        done, _ = await asyncio.wait(reads, timeout=0.2)
        assert not done
        await proxy.pass_through()
        results = await asyncio.gather(*reads, return_exceptions=True)
        assert [type(result) for result in results] == [ConnectionResetError, bytes, ConnectionResetError]
        for client in (broken, ended, unconnected):
            await client.close()


@proxy_test
async def test_half_open_connections_are_silent_for_ever_and_new_ones_are_not():
    async with proxied() as (proxy, backend):
        silent = [await Client.connect(proxy) for _ in range(4)]
        for client in silent:
            await client.ask(b"one\n")
        await proxy.half_open()
        broken, ended, *_ = backend.writers
        sock = broken.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        broken.transport.abort()
        ended.close()
        backend.writers[2].write(b"lost too")
        silent[3].send(b"lost\n")
        reads = [asyncio.create_task(client.reader.read()) for client in silent]
        for mode in (proxy.half_open, proxy.pass_through, proxy.black_hole, proxy.pass_through):
            await mode()
            new = await Client.connect(proxy)
            if mode != proxy.black_hole:
                assert await new.ask(b"two\n") == b"two\n"
            await new.close()
            done, _ = await asyncio.wait(reads, timeout=0.05)
            assert not done
        await until(lambda: proxy.connections == len(silent))
        assert b"lost" not in backend.received
        for client in silent:
            await client.close()
        await until(lambda: proxy.connections == 0)
        await backend.until_left()


@proxy_test
async def test_what_is_held_falls_silent_with_its_connection():
    async with proxied() as (proxy, backend):
        received = received_by(proxy)
        client = await Client.connect(proxy)
        await client.ask(b"one\n")
        await proxy.delay(3600)
        client.send(b"lost\n")
        await until(lambda: received.endswith(b"lost\n"))
        await proxy.half_open()
        other = await Client.connect(proxy)
        assert await other.ask(b"two\n") == b"two\n"
        assert backend.received == b"one\ntwo\n"
        for each in (client, other):
            await each.close()


@proxy_test
async def test_half_open_connections_are_reset_like_others():
    async with proxied() as (proxy, _):
        client = await Client.connect(proxy)
        await client.ask(b"one\n")
        await proxy.half_open()
        await proxy.reset()
        await client.until_reset()
        await client.close()


@proxy_test
async def test_reset_ends_open_connections_only():
    async with proxied() as (proxy, backend):
        clients = [await Client.connect(proxy) for _ in range(3)]
        for client in clients:
            await client.ask(b"one\n")
        await proxy.reset()
        assert proxy.connections == 0
        for client in clients:
            await client.until_reset()
            await client.close()
        await backend.until_left()
        client = await Client.connect(proxy)
        assert await client.ask(b"two\n") == b"two\n"
        assert proxy.accepted == 4
        await client.close()


@proxy_test
async def test_delay_holds_both_directions():
    async with proxied() as (proxy, _):
        client = await Client.connect(proxy)
        await proxy.delay(0.6)
        begin = time.monotonic()
        assert await client.ask(b"one\n") == b"one\n"
        assert 1.2 <= time.monotonic() - begin < 2.4
        await client.close()


@proxy_test
async def test_a_delay_without_end_holds_back_the_sender():
    async with proxied() as (proxy, backend):
        client = await Client.connect(proxy)
        await proxy.delay(math.inf)
        sent = b"x" * (1 << 24) + b"\n"
        client.send(sent)
        await asyncio.sleep(0.1)
        assert client.writer.transport.get_write_buffer_size()
        assert not backend.received
        await proxy.pass_through()
        await backend.until_received(sent)
        await client.close()


@proxy_test
async def test_drip_passes_so_many_bytes_a_second_in_both_directions():
    async with proxied() as (proxy, backend):
        client = await Client.connect(proxy)
        await client.ask(b"one\n")
        await proxy.drip(200)
        begin = time.monotonic()
        client.send(bytes(40))
        await backend.until_received(b"one\n" + bytes(40))
        assert 0.2 <= time.monotonic() - begin < 2
        begin = time.monotonic()
        backend.writers[0].write(bytes(40))
        assert await client.reader.readexactly(40) == bytes(40)
        assert 0.2 <= time.monotonic() - begin < 2
        await client.close()


@proxy_test
async def test_what_has_not_dripped_yet_goes_when_the_drip_is_lifted():
    async with proxied() as (proxy, backend):
        client = await Client.connect(proxy)
        await proxy.drip(0.01)
        client.send(b"one\n")
        await asyncio.sleep(0.1)
        assert not backend.received
        await proxy.pass_through()
        assert await client.reader.readexactly(4) == b"one\n"
        await client.close()


@proxy_test
async def test_what_has_not_dripped_yet_falls_into_a_black_hole():
    async with proxied() as (proxy, backend):
        received = received_by(proxy)
        client = await Client.connect(proxy)
        await proxy.drip(0.01)
        client.send(b"lost\n")
        await until(lambda: received == b"lost\n")
        await proxy.black_hole()
        await proxy.pass_through()
        assert await client.ask(b"one\n") == b"one\n"
        assert backend.received == b"one\n"
        await client.close()


@proxy_test
async def test_a_held_chunk_goes_when_the_delay_is_lifted():
    async with proxied() as (proxy, backend):
        client = await Client.connect(proxy)
        await client.ask(b"one\n")
        await proxy.delay(3600)
        client.send(b"two\n")
        await asyncio.sleep(0.1)
        assert backend.received == b"one\n"
        await proxy.pass_through()
        assert await client.reader.readexactly(4) == b"two\n"
        await client.close()


@proxy_test
async def test_a_held_chunk_falls_into_a_black_hole():
    async with proxied() as (proxy, backend):
        received = received_by(proxy)
        client = await Client.connect(proxy)
        await client.ask(b"one\n")
        await proxy.delay(3600)
        client.send(b"two\n")
        await until(lambda: received.endswith(b"two\n"))
        await proxy.black_hole()
        await proxy.pass_through()
        assert await client.ask(b"three\n") == b"three\n"
        assert backend.received == b"one\nthree\n"
        await client.close()


@pytest.mark.parametrize("after", [0, 2, 4])
def test_cut_reply_passes_part_of_the_next_reply_once(after):
    async def main():
        async with proxied() as (proxy, backend):
            open_before = await Client.connect(proxy)
            await open_before.ask(b"one\n")
            other = await Client.connect(proxy)
            await proxy.cut_reply(after)
            open_before.send(b"two\n")
            # The bytes are for the next test: a stream may lose them over the reset.
            await open_before.until_reset()
            assert backend.received == b"one\ntwo\n"
            assert await other.ask(b"three\n") == b"three\n"
            for client in (open_before, other):
                await client.close()

    asyncio.run(main())


@proxy_test
async def test_cut_reply_passes_exactly_so_many_bytes_and_resets():
    async with proxied() as (proxy, _):
        await proxy.cut_reply(6)
        with socket.create_connection((proxy.host, proxy.port)) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, b"abcd\n")
            received = await loop.sock_recv(client, 100)
            await loop.sock_sendall(client, b"efgh\n")
            received += await loop.sock_recv(client, 100)
            with pytest.raises(ConnectionResetError):
                await loop.sock_recv(client, 100)
            assert received == b"abcd\ne"


@proxy_test
async def test_after_a_cut_everything_can_be_held():
    async with proxied() as (proxy, backend):
        client = await Client.connect(proxy)
        await proxy.cut_reply(0, then_delay=60)
        client.send(b"one\n")
        await client.until_reset()
        other = await Client.connect(proxy)
        other.send(b"two\n")
        await asyncio.sleep(0.05)
        assert backend.received == b"one\n"
        await proxy.pass_through()
        assert await other.reader.readexactly(4) == b"two\n"
        for each in (client, other):
            await each.close()


@pytest.mark.parametrize("after", [0, 2, 4])
def test_cut_request_passes_part_of_the_next_request_once(after):
    async def main():
        async with proxied() as (proxy, backend):
            client = await Client.connect(proxy)
            await proxy.cut_request(after)
            client.send(b"two\n")
            await client.until_reset()
            await client.close()
            await backend.until_left()
            assert backend.received == b"two\n"[:after]
            client = await Client.connect(proxy)
            assert await client.ask(b"three\n") == b"three\n"
            await client.close()

    asyncio.run(main())


@proxy_test
async def test_a_cut_is_forgotten_with_the_next_mode():
    async with proxied() as (proxy, _):
        client = await Client.connect(proxy)
        await proxy.cut_request(0)
        await proxy.pass_through()
        assert await client.ask(b"one\n") == b"one\n"
        await client.close()


@proxy_test
async def test_bad_arguments_are_rejected():
    async with proxied() as (proxy, _):
        for call in (proxy.delay, proxy.cut_reply, proxy.cut_request):
            with pytest.raises(ValueError, match="must not be negative, not -1"):
                await call(-1)
        with pytest.raises(ValueError, match="must be positive, not 0"):
            await proxy.drip(0)


@proxy_test
async def test_it_goes_on_while_the_users_loop_is_blocked():
    async with asyncio.timeout(20), FaultProxy("127.0.0.1", 9) as proxy:
        listener = socket.create_server(("127.0.0.1", 0))
        proxy._addresses = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", listener.getsockname())]
        with listener, socket.create_connection((proxy.host, proxy.port)) as client:
            backend, _ = listener.accept()
            with backend:
                client.sendall(b"one")
                assert backend.recv(3) == b"one"
                backend.sendall(b"two")
                assert client.recv(3) == b"two"


def test_it_can_be_used_from_several_loops():
    proxy = FaultProxy("127.0.0.1", 9)
    asyncio.run(proxy.start())
    port = proxy.port
    asyncio.run(proxy.refuse())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((proxy.host, port))
    asyncio.run(proxy.black_hole())
    with socket.create_connection((proxy.host, port)):
        asyncio.run(proxy.stop())
    asyncio.run(proxy.stop())


@proxy_test
async def test_it_says_when_it_is_not_running_and_can_start_again():
    proxy = FaultProxy("127.0.0.1", 9)
    await proxy.stop()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not running"):
            await proxy.reset()
        async with proxy:
            with pytest.raises(RuntimeError, match="already running"):
                await proxy.start()
            await proxy.reset()


@pytest.mark.parametrize("mode", ["pass_through", "black_hole", "half_open", "refuse", "delay", "drip"])
def test_stop_is_quick_and_resets_stuck_connections(mode):
    async def main():
        stuck = socket.create_server(("127.0.0.1", 0))
        proxy = FaultProxy(*stuck.getsockname())
        await proxy.start()
        clients = [socket.create_connection((proxy.host, proxy.port)) for _ in range(10)]
        for client in clients:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(bytes(1 << 20))
        await getattr(proxy, mode)(*{"delay": [3600], "drip": [1]}.get(mode, ()))
        begin = time.monotonic()
        await proxy.stop()
        assert time.monotonic() - begin < 5
        assert proxy.connections == 0
        for client in clients:
            client.setblocking(True)
            with client, pytest.raises(ConnectionResetError):
                client.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((proxy.host, proxy.port))
        stuck.close()

    asyncio.run(main())


@proxy_test
async def test_a_cancelled_stop_stops_all_the_same():
    proxy = FaultProxy("127.0.0.1", 9)
    await proxy.start()
    stopping = asyncio.create_task(proxy.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stopping
    proxy._thread.join(5)
    assert not proxy._thread.is_alive()
