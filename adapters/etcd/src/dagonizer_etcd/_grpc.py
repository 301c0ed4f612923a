"""etcd over gRPC: the stubs that aetcd has generated, on channels of our own.

aetcd's own client has no TLS, knows one host, and does not renew its token.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc  # type: ignore[import-untyped]  # it has no types
from aetcd import rpc  # type: ignore[import-untyped]  # the same

from dagonizer_etcd._config import address
from dagonizer_etcd._errors import FORKED, Code, Failure
from dagonizer_etcd._transport import (
    Alarm,
    Cluster,
    KeyValue,
    Member,
    RangeReply,
    Status,
    TxnReply,
    is_cancelled,
    range_body,
    tls_context,
    txn_body,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from dagonizer_etcd._config import EtcdConfig
    from dagonizer_etcd._transport import Range, Txn

# What gRPC says when it has not got as far as sending anything.
_NEVER_SENT = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "DNS resolution failed",
    "errors resolving",
)
# gRPC has no code for it, and says "unavailable" of a certificate that will not do tomorrow either.
_UNTRUSTED = ("certificate", "verification")


@asynccontextmanager
async def connect(config: EtcdConfig, channel: grpc.aio.Channel | None = None) -> AsyncIterator[Cluster]:
    """Open a channel to every host, or use the caller's ``channel``, which is not closed."""
    _expect_no_fork(config.where)
    if channel is not None:
        yield Cluster([_GrpcEndpoint(channel, "the caller's channel")], config)
        return
    credentials = await asyncio.to_thread(_credentials, config) if config.tls else None
    async with AsyncExitStack() as stack:
        endpoints = []
        for where in map(address, config.hosts):
            reopen = partial(_open, where, _options(config), credentials)
            endpoint = _GrpcEndpoint(reopen(), where, reopen)
            stack.push_async_callback(endpoint.aclose)
            endpoints.append(endpoint)
        yield Cluster(endpoints, config)


class _GrpcEndpoint:
    """One server, on ``channel``, or on one from ``reopen`` when that is out of step.

    What grpc and aetcd return has no types, so it is ``Any`` until a reply is made of it.
    """

    def __init__(
        self, channel: grpc.aio.Channel, where: str, reopen: Callable[[], grpc.aio.Channel] | None = None
    ) -> None:
        self.where = where
        self._reopen = reopen
        self._token, self._metadata = "", _metadata("")
        self._use(channel)

    async def aclose(self) -> None:
        """Close the channel, and leave one in its place that is closed as well, for calls that are still under way."""
        await self._drop(self._channel)
        await self._channel.close()

    async def range(self, request: Range, token: str) -> RangeReply:
        reply = await self._call(self._kv.Range, rpc.RangeRequest(**range_body(request)), token)
        found = [KeyValue(kv.key, kv.value, kv.mod_revision) for kv in reply.kvs]
        return RangeReply(found, reply.more, reply.header.revision)

    async def txn(self, request: Txn, token: str) -> TxnReply:
        # From plain values: protobuf would encode and decode a message to put it into another.
        reply = await self._call(self._kv.Txn, rpc.TxnRequest(**txn_body(request)), token)
        return TxnReply(reply.succeeded, reply.header.revision)

    async def grant(self, seconds: int, token: str) -> int:
        reply = await self._call(self._lease.LeaseGrant, rpc.LeaseGrantRequest(TTL=seconds), token)
        lease: int = reply.ID
        return lease

    async def authenticate(self, username: str, password: str) -> str:
        message = rpc.AuthenticateRequest(name=username, password=password)
        reply = await self._call(self._auth.Authenticate, message, "")
        token: str = reply.token
        return token

    async def status(self, token: str) -> Status:
        said = await self._call(self._maintenance.Status, rpc.StatusRequest(), token)
        header = said.header
        return Status(header.cluster_id, header.member_id, said.leader, said.version, said.dbSize, said.dbSizeInUse)

    async def members(self, token: str) -> list[Member]:
        reply = await self._call(self._cluster.MemberList, rpc.MemberListRequest(), token)
        return [Member(member.ID, member.name, member.isLearner) for member in reply.members]

    async def alarms(self, token: str) -> list[Alarm]:
        reply = await self._call(self._maintenance.Alarm, rpc.AlarmRequest(action="GET"), token)
        return [Alarm(alarm.memberID, rpc.AlarmType.Name(alarm.alarm)) for alarm in reply.alarms]

    async def distrust(self, seconds: float) -> None:
        # gRPC itself would find out by its pings, which a server wants to be rare.
        if time.monotonic() - self._answered > seconds:
            await self._drop(self._channel)

    def _use(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._answered = time.monotonic()
        self._kv: Any = rpc.KVStub(channel)
        self._lease: Any = rpc.LeaseStub(channel)
        self._auth: Any = rpc.AuthStub(channel)
        self._maintenance: Any = rpc.MaintenanceStub(channel)
        self._cluster: Any = rpc.ClusterStub(channel)

    async def _call(self, method: Any, message: Any, token: str) -> Any:  # noqa: ANN401 - see the class
        if token != self._token:
            self._token, self._metadata = token, _metadata(token)
        channel = self._channel
        try:
            reply = await _forgotten(method(message, metadata=self._metadata))
        except grpc.aio.AioRpcError as exc:
            if exc.code() is grpc.StatusCode.INTERNAL:
                await self._drop(channel)
            raise self._failure(exc) from exc
        except grpc.aio.BaseError as exc:
            raise Failure(Code.UNAVAILABLE, str(exc), self.where) from exc
        except asyncio.CancelledError as exc:
            # A channel that is closed cancels its calls.
            if is_cancelled():
                raise
            raise Failure(Code.CANCELLED, "the channel was closed", self.where) from exc
        else:
            if channel is self._channel:
                self._answered = time.monotonic()
            return reply
        finally:
            # As in _forgotten.
            del channel, method

    async def _drop(self, channel: grpc.aio.Channel) -> None:
        """Leave a channel whose two ends do not understand each other any more; gRPC itself would keep it."""
        if self._reopen is not None and channel is self._channel:
            self._use(self._reopen())
            await channel.close()

    def _failure(self, exc: grpc.aio.AioRpcError) -> Failure:
        details = exc.details() or ""
        code = int(exc.code().value[0])
        never_sent = code == Code.UNAVAILABLE and details.startswith(_NEVER_SENT)
        if never_sent and any(text in details.lower() for text in _UNTRUSTED):
            code = Code.UNAUTHENTICATED
        return Failure(code, details, self.where, sent=not never_sent)


_first_user: int | None = None


def _expect_no_fork(where: str) -> None:
    """Raise ``Failure`` where gRPC would end the process by a segmentation fault."""
    global _first_user  # noqa: PLW0603 - the process that used gRPC first
    if _first_user is None:
        _first_user = os.getpid()
    elif _first_user != os.getpid():
        raise Failure(Code.FAILED_PRECONDITION, FORKED, where, sent=False)


async def _forgotten(call: grpc.aio.UnaryUnaryCall) -> Any:  # noqa: ANN401 - a message of protobuf, as below
    """Return the reply, or raise an exception through which nothing refers to the call and its channel.

    gRPC disconnects a channel that is closed only when nothing refers to it, and the frames of a traceback would.
    """
    try:
        return await call
    except BaseException as exc:
        traceback.clear_frames(exc.__traceback__)
        raise
    finally:
        del call


def _metadata(token: str) -> grpc.aio.Metadata:
    # A member that has lost its leader then says so, instead of letting the request wait for one.
    return grpc.aio.Metadata(("hasleader", "true"), *((("token", token),) if token else ()))


def _open(
    where: str, options: list[tuple[str, str | int]], credentials: grpc.ChannelCredentials | None
) -> grpc.aio.Channel:
    # Else "unix" and other names would not be taken for those of hosts.
    target = "dns:///" + quote(where, safe="[]:")
    if credentials is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, credentials, options)


def _options(config: EtcdConfig) -> list[tuple[str, str | int]]:
    # gRPC's numbers have 32 bits.
    keepalive = int(min(config.keepalive, 1_000_000) * 1000)
    options: list[tuple[str, str | int]] = [
        # Else stores of one process would share connections, and their troubles.
        ("grpc.use_local_subchannel_pool", 1),
        # The record of a name server could tell gRPC to repeat writes.
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.keepalive_time_ms", keepalive),
        ("grpc.keepalive_timeout_ms", keepalive),
        # gRPC also pings to measure the bandwidth, and while it waits for that, which is a minute, it sends no other.
        ("grpc.http2.ping_timeout_ms", keepalive),
        # A server that is back is to be found soon.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # In spite of its name, how long an attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", int(config.connect_timeout * 1000)),
    ]
    if config.tls_server_name is not None:
        options += [
            ("grpc.ssl_target_name_override", config.tls_server_name),
            ("grpc.default_authority", config.tls_server_name),
        ]
    return options


def _credentials(config: EtcdConfig) -> grpc.ChannelCredentials:
    # gRPC would only log what is wrong with the files.
    tls_context(config)
    authorities, key, certificate = (
        None if path is None else Path(path).read_bytes() for path in (config.tls_ca, config.tls_key, config.tls_cert)
    )
    return grpc.ssl_channel_credentials(authorities, key, certificate)
