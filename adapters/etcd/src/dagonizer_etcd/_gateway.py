"""etcd over its JSON gateway, through etcd3-py, whose models of replies are passed by: they cost more than the call."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler
from etcd3.aio_client import AioClient  # type: ignore[import-untyped]  # it has no types

from dagonizer.connections import reset
from dagonizer_etcd._config import address
from dagonizer_etcd._errors import Code, Failure
from dagonizer_etcd._transport import (
    Alarm,
    Cluster,
    KeyValue,
    Member,
    RangeReply,
    Status,
    TxnReply,
    decoded,
    is_cancelled,
    range_body,
    tls_context,
    txn_body,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from dagonizer_etcd._config import EtcdConfig
    from dagonizer_etcd._transport import Range, Txn

T = TypeVar("T")

_BAD_REQUEST = 400
_LARGE = 1 << 20
_PIECE = 1 << 18
# What a failure may say of itself; a proxy in between has other codes, or none.
_CODES = frozenset(Code) - {Code.OK}
# What a proxy says, which knows nothing of etcd.
_BY_STATUS = {
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    405: Code.UNIMPLEMENTED,
    407: Code.UNAUTHENTICATED,
    413: Code.RESOURCE_EXHAUSTED,
    501: Code.UNIMPLEMENTED,
}
# By the nearest class: what it is, and whether anything may have reached a server.
BY_CLASS: dict[type[Exception], tuple[Code, bool]] = {
    aiohttp.ClientError: (Code.UNAVAILABLE, True),
    aiohttp.ClientConnectionError: (Code.UNAVAILABLE, True),
    aiohttp.ClientConnectionResetError: (Code.UNAVAILABLE, True),
    aiohttp.ClientOSError: (Code.UNAVAILABLE, True),
    aiohttp.ClientPayloadError: (Code.UNAVAILABLE, True),
    aiohttp.ClientResponseError: (Code.UNAVAILABLE, True),
    aiohttp.ServerConnectionError: (Code.UNAVAILABLE, True),
    aiohttp.ServerDisconnectedError: (Code.UNAVAILABLE, True),
    aiohttp.ServerTimeoutError: (Code.UNAVAILABLE, True),
    aiohttp.SocketTimeoutError: (Code.UNAVAILABLE, True),
    aiohttp.ConnectionTimeoutError: (Code.UNAVAILABLE, False),
    aiohttp.ClientConnectorError: (Code.UNAVAILABLE, False),
    aiohttp.ClientConnectorDNSError: (Code.UNAVAILABLE, False),
    aiohttp.InvalidURL: (Code.UNAVAILABLE, False),
    aiohttp.InvalidUrlClientError: (Code.UNAVAILABLE, False),
    aiohttp.NonHttpUrlClientError: (Code.UNAVAILABLE, False),
    aiohttp.ClientSSLError: (Code.UNAUTHENTICATED, False),
    aiohttp.ClientConnectorSSLError: (Code.UNAUTHENTICATED, False),
    aiohttp.ClientConnectorCertificateError: (Code.UNAUTHENTICATED, False),
    aiohttp.ServerFingerprintMismatch: (Code.UNAUTHENTICATED, False),
}


class _Header(msgspec.Struct):
    cluster_id: int = 0
    member_id: int = 0
    revision: int = 0


class _KeyValue(msgspec.Struct):
    key: bytes
    value: bytes = b""
    mod_revision: int = 0


class _RangeReply(msgspec.Struct):
    header: _Header
    kvs: list[_KeyValue] = []
    more: bool = False


class _TxnReply(msgspec.Struct):
    header: _Header
    succeeded: bool = False


class _Lease(msgspec.Struct):
    ID: int


class _Token(msgspec.Struct):
    token: str


class _Status(msgspec.Struct):
    header: _Header
    version: str
    leader: int = 0
    dbSize: int = 0  # noqa: N815 - as it is in the answer
    dbSizeInUse: int = 0  # noqa: N815


class _Member(msgspec.Struct):
    ID: int
    name: str = ""
    isLearner: bool = False  # noqa: N815


class _Members(msgspec.Struct):
    members: list[_Member] = []


class _Alarm(msgspec.Struct):
    memberID: int  # noqa: N815
    alarm: str


class _Alarms(msgspec.Struct):
    alarms: list[_Alarm] = []


class _Error(msgspec.Struct):
    code: int
    message: str


class _Handler(ResponseHandler):
    """A connection that takes back what was not sent yet when it is closed, as it is if a request is given up."""

    def close(self) -> None:
        if self.transport is not None:
            reset(self.transport)
        super().close()


class _Client(AioClient):  # type: ignore[misc]  # AioClient has no types
    """A client whose constructor asks the server nothing, and which takes back what it gives up.

    Its own asks for the version, by a blocking request, to know where the gateway is: under /v3 since etcd 3.4.
    """

    def __init__(self, host: str, port: int, protocol: str) -> None:
        super().__init__(host, port, protocol)
        # aiohttp has no other way to say what its connections are made of.
        connector: Any = self.session.connector
        connector._factory = partial(_Handler, asyncio.get_running_loop())  # noqa: SLF001

    def _retrieve_version(self) -> None:
        pass

    def _verify_version(self) -> None:
        pass

    def _get_prefix(self) -> None:
        self.api_prefix = "/v3"


@asynccontextmanager
async def connect(config: EtcdConfig, client: Any = None) -> AsyncIterator[Cluster]:  # noqa: ANN401 - no types
    """Make a client for every host, or use the caller's ``etcd3.AioClient``, which is not closed."""
    if client is not None:
        yield Cluster([_GatewayEndpoint(client, f"{client.host}:{client.port}", {})], config)
        return
    options = _options(config, await asyncio.to_thread(tls_context, config) if config.tls else None)
    protocol = "https" if config.tls else "http"
    async with AsyncExitStack() as stack:
        endpoints = []
        for where in map(address, config.hosts):
            name, port = where.rsplit(":", 1)
            opened: Any = await stack.enter_async_context(_Client(name, int(port), protocol))
            endpoints.append(_GatewayEndpoint(opened, where, options))
        yield Cluster(endpoints, config)


class _GatewayEndpoint:
    """One server. ``options`` are what aiohttp is given with every request."""

    def __init__(self, client: Any, where: str, options: dict[str, Any]) -> None:  # noqa: ANN401 - no types
        self.where = where
        self._client = client
        self._options = options
        # aiohttp gives a connection to whoever asks first after it was given back, and not to who waits longest.
        # A session that is closed has none.
        connector = client.session.connector
        limit = 0 if connector is None else connector.limit
        self._turn = asyncio.Semaphore(limit) if limit else nullcontext()

    async def range(self, request: Range, token: str) -> RangeReply:
        reply = await self._call("/kv/range", range_body(request), token, _RangeReply)
        found = [KeyValue(kv.key, kv.value, kv.mod_revision) for kv in reply.kvs]
        return RangeReply(found, reply.more, reply.header.revision)

    async def txn(self, request: Txn, token: str) -> TxnReply:
        reply = await self._call("/kv/txn", txn_body(request), token, _TxnReply)
        return TxnReply(reply.succeeded, reply.header.revision)

    async def grant(self, seconds: int, token: str) -> int:
        return (await self._call("/lease/grant", {"TTL": seconds}, token, _Lease)).ID

    async def authenticate(self, username: str, password: str) -> str:
        return (await self._call("/auth/authenticate", {"name": username, "password": password}, "", _Token)).token

    async def status(self, token: str) -> Status:
        said = await self._call("/maintenance/status", {}, token, _Status)
        header = said.header
        return Status(header.cluster_id, header.member_id, said.leader, said.version, said.dbSize, said.dbSizeInUse)

    async def members(self, token: str) -> list[Member]:
        reply = await self._call("/cluster/member/list", {}, token, _Members)
        return [Member(member.ID, member.name, member.isLearner) for member in reply.members]

    async def alarms(self, token: str) -> list[Alarm]:
        reply = await self._call("/maintenance/alarm", {"action": "GET"}, token, _Alarms)
        return [Alarm(alarm.memberID, alarm.alarm) for alarm in reply.alarms]

    async def distrust(self, seconds: float) -> None:
        if not isinstance(self._client, _Client):
            return
        # aiohttp has no other way; it passes over those that are closed.
        connector: Any = self._client.session.connector
        for connections in connector._conns.values():  # noqa: SLF001
            for connection, since in connections:
                if time.monotonic() - since > seconds:
                    connection.close()

    async def _call(self, method: str, body: dict[str, Any], token: str, reply: type[T]) -> T:
        async with self._turn:
            return await self._request(method, body, token, reply)

    async def _request(self, method: str, body: dict[str, Any], token: str, reply: type[T]) -> T:
        # The first lets the event loop look at its sockets, the second lets it act on what it saw: so connections that
        # the server has closed leave the pool before one is taken from it.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if self._client.session.closed:
            raise Failure(Code.UNAVAILABLE, "the client was closed", self.where, sent=False)
        # A member that has lost its leader then says so, instead of letting the request wait for one.
        headers = {"Content-Type": "application/json", "Grpc-Metadata-hasleader": "true"}
        if token:
            headers["Authorization"] = token
        # Bytes become base64, as the gateway wants them.
        data = msgspec.json.encode(body)
        try:
            # aiohttp warns of a large body, unless it comes in pieces.
            payload = data if len(data) < _LARGE else _pieces(data)
            async with self._client.call_rpc(method, payload, raw=True, headers=headers, **self._options) as response:
                status, content = response.status, await response.read()
        except aiohttp.ClientError as exc:
            code, sent = next(BY_CLASS[cls] for cls in type(exc).__mro__ if cls in BY_CLASS)
            raise Failure(code, f"{type(exc).__name__}: {exc}", self.where, sent=sent) from exc
        except asyncio.CancelledError as exc:
            if is_cancelled():
                raise
            raise Failure(Code.CANCELLED, "aiohttp gave up the request", self.where) from exc
        by_status = _BY_STATUS.get(status, Code.UNAVAILABLE)
        try:
            if status < _BAD_REQUEST:
                # Numbers of 64 bits are strings there.
                return decoded(content, reply, strict=False)
            error = decoded(content, _Error)
        except msgspec.DecodeError as exc:
            raise Failure(by_status, f"HTTP status {status}, and no answer of an etcd gateway", self.where) from exc
        raise Failure(error.code if error.code in _CODES else by_status, error.message, self.where)


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _PIECE):
        yield data[start : start + _PIECE]


def _options(config: EtcdConfig, context: ssl.SSLContext | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=config.connect_timeout),
        "allow_redirects": False,
    }
    if context is not None:
        options |= {"ssl": context, "server_hostname": config.tls_server_name}
    return options
