"""Every error of the drivers and every refusal of a server has its meaning, and none shows a secret."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import etcd3.errors.go_etcd_rpctypes_error as texts
import grpc
import pytest
from aiohttp import client_exceptions
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from dagonizer import open_store
from dagonizer.errors import (
    StoreAccessError,
    StoreCorruptedError,
    StoreError,
    StoreLimitError,
    StoreUnavailableError,
)
from dagonizer_etcd import EtcdCheckpointStore, EtcdConfig, _gateway
from dagonizer_etcd._errors import _BY_CODE, Code, Failure, translated
from dagonizer_etcd._gateway import BY_CLASS, _GatewayEndpoint
from dagonizer_etcd._grpc import _GrpcEndpoint
from dagonizer_etcd._transport import Range
from dagonizer_test_servers.etcd import Etcd
from dagonizer_test_servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from dagonizer_test_servers.shared import Server

SECRET = "Tr0ub4dor&3"
SCHEMES = ("etcd", "etcd+http")

# What each of gRPC's codes means.
MEANING = {
    "OK": StoreUnavailableError,
    "CANCELLED": StoreUnavailableError,
    "UNKNOWN": StoreUnavailableError,
    "INVALID_ARGUMENT": StoreError,
    "DEADLINE_EXCEEDED": StoreUnavailableError,
    "NOT_FOUND": StoreError,
    "ALREADY_EXISTS": StoreError,
    "PERMISSION_DENIED": StoreAccessError,
    "RESOURCE_EXHAUSTED": StoreLimitError,
    "FAILED_PRECONDITION": StoreError,
    "ABORTED": StoreUnavailableError,
    "OUT_OF_RANGE": StoreError,
    "UNIMPLEMENTED": StoreError,
    "INTERNAL": StoreUnavailableError,
    "UNAVAILABLE": StoreUnavailableError,
    "DATA_LOSS": StoreCorruptedError,
    "UNAUTHENTICATED": StoreAccessError,
}

# What etcd says, where its code would mislead, or leads somewhere special.
SAID = {
    "ErrGRPCAuthFailed": StoreAccessError,
    "ErrGRPCUserEmpty": StoreAccessError,
    "ErrGRPCPermissionDenied": StoreAccessError,
    "ErrGRPCInvalidAuthToken": StoreAccessError,
    "ErrGRPCRequestTooLarge": StoreLimitError,
    "ErrGRPCRequestTooManyRequests": StoreUnavailableError,
    "ErrGRPCNoSpace": StoreLimitError,
    "ErrGRPCCompacted": StoreUnavailableError,
    "ErrGRPCNoLeader": StoreUnavailableError,
    "ErrGRPCNotLeader": StoreError,
    "ErrGRPCStopped": StoreUnavailableError,
    "ErrGRPCTimeout": StoreUnavailableError,
    "ErrGRPCTimeoutDueToLeaderFail": StoreUnavailableError,
    "ErrGRPCTimeoutDueToConnectionLost": StoreUnavailableError,
    "ErrGRPCUnhealthy": StoreUnavailableError,
    "ErrGRPCCorrupt": StoreCorruptedError,
    "ErrGRPCTooManyOps": StoreError,
    "ErrGRPCEmptyKey": StoreError,
}

# They belong to web sockets, proxies, redirects and file bodies, none of which is used; all are ClientErrors but one.
UNUSED = {
    "WSServerHandshakeError",
    "WSMessageTypeError",
    "ClientHttpProxyError",
    "ClientProxyConnectionError",
    "UnixClientConnectorError",
    "TooManyRedirects",
    "RedirectClientError",
    "InvalidUrlRedirectClientError",
    "NonHttpUrlRedirectClientError",
    "ContentTypeError",
    "UploadAbortedError",
}


def test_the_table_has_every_code_of_grpc() -> None:
    assert {code.name: code.value[0] for code in grpc.StatusCode} == {code.name: code.value for code in Code}
    assert set(_BY_CODE) == set(Code)
    assert {code.name: error for code, (error, _) in _BY_CODE.items()} == MEANING


@pytest.mark.parametrize("code", grpc.StatusCode, ids=lambda code: code.name)
async def test_every_code_becomes_what_the_table_says(code: grpc.StatusCode) -> None:
    exc = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="why")
    failure = await raised_by_grpc(exc)
    assert failure.sent
    with pytest.raises(StoreError) as caught, translated("load 'k'", "nowhere"):
        raise failure from exc
    assert type(caught.value) is MEANING[code.name]
    assert caught.value.__cause__ is exc
    assert str(caught.value).startswith(f"could not load 'k' at h:1: why ({code.name}); ")


def test_a_code_that_is_not_known_yet_is_as_good_as_unknown() -> None:
    assert Failure(99, "why", "h:1").code == Code.UNKNOWN


def test_the_table_knows_every_error_of_etcd() -> None:
    said = {name: value for name, value in vars(texts).items() if name.startswith("ErrGRPC")}
    assert set(SAID) <= set(said)
    for name, (code, text) in said.items():
        error, advice = Failure(int(getattr(code, "value", code)), text, "h:1").verdict
        assert error is SAID.get(name, error)
        assert issubclass(error, StoreError), name
        assert advice, name
    # Those that could be taken for an outage, or for an absent entry, are of other requests than the store makes.
    others = set(said) - set(SAID)
    assert all(word in "".join(others) for word in ("Member", "Role", "User", "Lease"))
    assert not [name for name in others if not any(
        part in name for part in ("Member", "Role", "User", "Lease", "Auth", "PeerURL", "Key", "Value", "FutureRev", "NotCapable", "PermissionNotGranted")
    )]  # fmt: skip


async def raised_by_grpc(exc: BaseException) -> Failure:
    async def call(*_: object, **__: object) -> None:
        raise exc

    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        endpoint = _GrpcEndpoint(channel, "h:1")
        endpoint._kv.Range = call
        with pytest.raises(Failure) as caught:
            await endpoint.range(Range(b"k"), "")
    assert caught.value.__cause__ is exc
    return caught.value


async def test_every_exception_of_grpc_is_caught() -> None:
    classes = {cls for _, cls in inspect.getmembers(grpc.aio, inspect.isclass) if issubclass(cls, Exception)}
    for cls in classes - {grpc.aio.AioRpcError}:
        assert (await raised_by_grpc(cls("why"))).is_unavailability, cls
    # The blocking interface has these, which the asynchronous one does not raise.
    blocking = {cls for _, cls in inspect.getmembers(grpc, inspect.isclass) if issubclass(cls, Exception)}
    assert {cls.__name__ for cls in blocking} == {"RpcError", "FutureTimeoutError", "FutureCancelledError"}
    assert issubclass(grpc.aio.AioRpcError, grpc.RpcError)
    # What a call that somebody else has cancelled raises is no cancellation.
    assert (await raised_by_grpc(asyncio.CancelledError())).code == Code.CANCELLED


def of_aiohttp() -> set[type[Exception]]:
    declared = {cls for _, cls in inspect.getmembers(client_exceptions, inspect.isclass) if issubclass(cls, Exception)}
    todo, found = [aiohttp.ClientError], set()
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        found |= {cls} if cls.__module__.startswith("aiohttp.") else set()
    return found | {cls for cls in declared if cls.__module__.startswith("aiohttp.")}


def test_the_table_of_the_gateway_names_every_exception_of_aiohttp() -> None:
    unnamed = of_aiohttp() - set(BY_CLASS)
    assert {cls.__name__ for cls in unnamed} <= UNUSED
    assert all(issubclass(cls, aiohttp.ClientError) for cls in unnamed if cls.__name__ != "WSMessageTypeError")


def made(cls: type[Exception]) -> Exception:
    key: Any = aiohttp.client_reqrep.ConnectionKey(
        "h", 1, is_ssl=False, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None
    )
    url = URL("http://h:1")
    for arguments in (
        ("why",),
        (key, OSError(1, "why")),
        (key, ValueError("why")),
        (b"a", b"b", "h", 1),
        (aiohttp.RequestInfo(url, "POST", CIMultiDictProxy(CIMultiDict()), url), ()),
    ):
        with contextlib.suppress(TypeError, AttributeError):
            exc = cls(*arguments)
            str(exc)
            return exc
    raise AssertionError(cls)


@pytest.mark.parametrize("cls", sorted(BY_CLASS, key=lambda cls: cls.__name__), ids=lambda cls: cls.__name__)
async def test_every_exception_of_aiohttp_becomes_what_the_table_says(cls: type[Exception]) -> None:
    exc = made(cls)

    class Client:
        class session:  # noqa: N801 - an attribute
            closed = False
            connector = None

        def call_rpc(self, *_: object, **__: object) -> object:
            raise exc

    with pytest.raises(Failure) as caught:
        await _GatewayEndpoint(Client(), "h:1", {}).range(Range(b"k"), "")
    assert caught.value.__cause__ is exc
    assert (caught.value.code, caught.value.sent) == BY_CLASS[cls]
    expected = StoreAccessError if caught.value.code == Code.UNAUTHENTICATED else StoreUnavailableError
    with pytest.raises(expected, match=f"could not load at h:1: {cls.__name__}: "), translated("load", "nowhere"):
        raise caught.value


# Real servers.


def calls(store: Any) -> list[Any]:
    return [
        store.load("k"),
        store.save("k", "v"),
        store.delete("k"),
        store.save_if("k", "v", expected=None),
        anext(store.list_keys()),
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_nobody_there(scheme: str) -> None:
    port = free_port()
    for where in (f"127.0.0.1:{port}", f"[::1]:{port}", f"nowhere.invalid:{port}"):
        async with open_store(f"{scheme}://{where}?timeout=20") as store:
            for call in calls(store):
                with pytest.raises(StoreUnavailableError) as caught:
                    await call
                assert f"at {where}: " in str(caught.value)


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """Give the port of a server that says the same to everybody."""
    handlers = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        with contextlib.suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*handlers)


def http(status: int, body: bytes = b"", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status} Said\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (http(400), StoreError),
        (http(403), StoreError),
        (http(404, b"not found"), StoreError),
        (http(502, b"{}"), StoreUnavailableError),
        (http(200, b"[]"), StoreUnavailableError),
        (http(200, b'{"other":' + b"[" * 100_000), StoreUnavailableError),
        (http(301, headers="Location: http://nowhere.invalid/\r\n"), StoreUnavailableError),
        (b"\xff" * 100, StoreUnavailableError),
        (b"", StoreUnavailableError),
    ],
)
async def test_something_else_there(scheme: str, answer: bytes, expected: type[StoreError]) -> None:
    async with answering(answer) as port, open_store(f"{scheme}://127.0.0.1:{port}?timeout=5") as store:
        for call in calls(store):
            with pytest.raises(expected if scheme == "etcd+http" else StoreError):
                await call


PROXY = {
    401: StoreAccessError, 403: StoreAccessError, 404: StoreError, 405: StoreError, 407: StoreAccessError,
    413: StoreLimitError, 501: StoreError, 502: StoreUnavailableError, 503: StoreUnavailableError, 418: StoreUnavailableError,
}  # fmt: skip


@pytest.mark.parametrize("body", ["", '{"code":STATUS,"message":"no"}', '{"code":0,"message":"no"}', '{"code":"no"}'])
@pytest.mark.parametrize("status", PROXY)
async def test_what_a_proxy_in_between_says_is_understood(status: int, body: str) -> None:
    assert set(_gateway._BY_STATUS) <= set(PROXY)
    answer = http(status, body.replace("STATUS", str(status)).encode())
    async with answering(answer) as port, open_store(f"etcd+http://127.0.0.1:{port}?timeout=5") as store:
        for call in calls(store):
            with pytest.raises(StoreError) as caught:
                await call
            assert type(caught.value) is PROXY[status]


async def test_a_connection_that_the_server_has_closed_is_not_used_for_a_save() -> None:
    saves = 0
    answer = http(200, b'{"header":{"revision":"1"},"succeeded":true}')

    def serve() -> None:
        nonlocal saves
        while True:
            connection, _ = listener.accept()
            with connection:
                if not connection.recv(65_536):
                    return
                saves += 1
                connection.sendall(answer)
                time.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = threading.Thread(target=serve)
        server.start()
        async with open_store(f"etcd+http://127.0.0.1:{port}") as store:
            for _ in range(10):
                await store.save("k", "v")
                # The event loop cannot look at its sockets meanwhile.
                time.sleep(0.05)
        socket.create_connection(("127.0.0.1", port)).close()
        server.join()
    assert saves == 10


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_server_that_is_full(scheme: str) -> None:
    # It knows its size by what it has committed.
    with Etcd("--quota-backend-bytes=2097152", "--backend-batch-limit=1") as server:
        async with open_store(f"{server.url.replace('etcd', scheme, 1)}?chunk_bytes=262144") as store:

            async def fill() -> None:
                for number in range(20):
                    await store.save("k", f"{number}" * 400_000)

            await store.save("small", "old")
            version = (await store.load_versioned("small")).version
            with pytest.raises(
                StoreLimitError, match=r"could not save 'k' .*database space exceeded .*compact and defr"
            ):
                await fill()
            before = await store.load("k")
            for call in (
                store.save("small", "new"),
                store.save("k", "x" * 400_000),
                store.save_if("small", "new", expected=version),
                store.save_if("new", "new", expected=None),
            ):
                with pytest.raises(StoreLimitError, match="database space exceeded"):
                    await call
            assert await store.load("small") == "old"
            assert await store.load("k") == before
            assert [key async for key in store.list_keys()] == ["k", "small"]
            # As the message advises.
            status = json.loads(server.ctl("endpoint", "status", "--write-out=json"))
            server.ctl("compact", "--physical", str(status[0]["Status"]["header"]["revision"]))
            server.ctl("defrag")
            server.ctl("alarm", "disarm")
            await store.save("k", "x" * 400_000)
            await store.save("small", "new")
            await store.delete("k")
            assert await store.load("k") is None


# Secrets.


def chain(exc: BaseException | None) -> Iterator[str]:
    while exc is not None:
        yield from (str(exc), repr(exc), *map(repr, exc.args))
        exc = exc.__cause__ or exc.__context__


async def test_no_secret_is_in_an_error_or_a_log(
    etcd_server: Server, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    quoted = SECRET.replace("&", "%26")
    said = []
    with Etcd("--auth-token-ttl=1") as server:
        for user in ("root:root", f"someone:{SECRET}"):
            server.ctl("user", "add", user)
        server.ctl("user", "grant-role", "root", "root")
        server.ctl("auth", "enable")
        shared = etcd_server.url.removeprefix("etcd://")
        for scheme in ("etcd", "etcds", "etcd+http", "etcd+https"):
            for where in (
                f"someone:{quoted}@127.0.0.1:{server.port}/a?timeout=5",
                f"root:{quoted}@127.0.0.1:{server.port}?timeout=5",
                f"{quoted}:{quoted}@127.0.0.1:{server.port}?timeout=5",
                f"root:{quoted}@127.0.0.1:{free_port()}?timeout=5",
                f"root:{quoted}@nowhere.invalid?timeout=5",
                f"root:{quoted}@{shared}/a//b",
                f"root:{quoted}@{shared}?timeout={quoted}",
                f"{quoted}@{shared}",
            ):
                try:
                    async with open_store(f"{scheme}://{where}") as store:
                        said += [repr(store), repr(store._config), str(store._config)]
                        for call in calls(store):
                            with pytest.raises(StoreError) as caught:
                                await call
                            said += chain(caught.value)
                except StoreError as exc:
                    said += chain(exc)
    said += [caplog.text, *capfd.readouterr()]
    assert len(said) > 300
    for text in said:
        assert SECRET not in text
        assert quoted not in text


def test_a_store_shows_nothing_of_its_configuration() -> None:
    assert repr(EtcdCheckpointStore(EtcdConfig(username="u", password=SECRET))).startswith("<dagonizer_etcd._store.")
