"""What is at the other end, and connections to it: one server, the server that sentinels name, or a cluster.

Commands go through the driver's connections, not through its clients, for those repeat by themselves what they cannot
know to have failed. Here a command is sent again only after a reply that it was not executed, or if nothing of it was
sent. A connection is used by one operation at a time, and again only if that has ended with the last of its replies.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    InvalidResponse,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from dagonizer.connections import is_stale, reset
from dagonizer.errors import StoreAccessError, StoreUnavailableError
from dagonizer.url import Host
from dagonizer_redis._config import shown
from dagonizer_redis._errors import hide_arguments, is_access

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from redis.asyncio import ConnectionPool

    from dagonizer_redis._config import RedisConfig

T = TypeVar("T")
Command = tuple[bytes | int, ...]

_SLOTS = 16_384
_MOST_REDIRECTIONS = 16
# What is larger is sent by itself, for together with the rest of its command it would be copied.
_LARGE = 1 << 18
# What is larger than this even in pieces, for what the operating system does not take at once is copied.
_PIECE = 1 << 22
# How many bytes of a reply may wait for their reader. With asyncio's 64 KiB one of 1 MiB would stop four times.
_READ_AHEAD = 1 << 20
_REFUSED_WITHIN = 1.0


class Link:
    """A connection that one operation has to itself. With ``asking``, to a node that just receives the key's slot."""

    def __init__(self, connection: AbstractConnection, *, asking: bool = False) -> None:
        self._connection = connection
        self._asking = asking

    async def run(self, *commands: Command) -> list[Any]:
        """Send ``commands`` together and return the reply to each. Raises the first that is an error."""
        if not self._asking:
            return await self._exchange(commands)
        replies = await self._exchange([sent for command in commands for sent in ((b"ASKING",), command)])
        return replies[1::2]

    async def run_atomically(self, *commands: Command) -> bool:
        """Run ``commands`` unless what an earlier command watches has changed, and return whether they were run."""
        asking = [(b"ASKING",)] if self._asking else []
        # Before the commands are sent, which would be run at once if this were refused.
        await self._exchange([*asking, (b"MULTI",)])
        *_, executed = await self._exchange([*commands, (b"EXEC",)])
        for reply in executed or ():
            if isinstance(reply, Exception):
                raise reply
        return executed is not None

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        if not any(map(_is_large, commands)):
            replies = await self._exchange_together(commands)
        else:
            replies = []
            for command in commands:
                large = _is_large(command)
                replies += [await self._exchange_large(command)] if large else await self._exchange_together([command])
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise reply
        return replies

    async def _exchange_together(self, commands: Sequence[Command]) -> list[Any]:
        await self._send(self._connection.pack_commands(commands))
        return [await self._reply() for _ in commands]

    async def _exchange_large(self, command: Command) -> Any:  # noqa: ANN401 - what the server answers
        beginning, *rest = self._connection.pack_command(*command)
        try:
            await self._send([beginning])
            for part in rest:
                for start in range(0, len(part), _PIECE):
                    await self._send([part[start : start + _PIECE]])
            return await self._reply()
        except RedisConnectionError as exc:
            refusal = await self._refusal(beginning)
            if refusal is None:
                raise
            raise refusal from exc

    async def _refusal(self, beginning: bytes) -> ResponseError | None:
        """Return what the server says to the beginning of a command already, which has the length of its value.

        A server that refuses a value for its length disconnects, and then what it said is lost behind what was sent.
        """
        with suppress(TimeoutError, RedisConnectionError):
            await _connect(self._connection)
            await self._send([beginning])
            async with asyncio.timeout(_REFUSED_WITHIN):
                reply = await self._reply()
            if isinstance(reply, ResponseError):
                return reply
        return None

    async def _send(self, parts: list[bytes]) -> None:
        cancellations = _cancellations()
        if not self._connection.is_connected:
            # It would connect again, and send the rest of a value as if it were commands, or what needs a watch.
            raise RedisConnectionError("the connection was closed by somebody else")
        await self._connection.send_packed_command(parts, check_health=False)
        _expect_no_more(cancellations)

    async def _reply(self) -> Any:  # noqa: ANN401 - what the server answers
        try:
            return await self._connection.read_response(disable_decoding=True)
        except ResponseError as exc:
            hide_arguments(exc)
            return exc
        except ValueError as exc:
            # From a number or a line that is none.
            raise InvalidResponse(f"the reply is not of the Redis protocol: {exc}") from exc


class Links(Protocol):
    """Links to one server, for one event loop."""

    def link(self, *, asking: bool = False) -> AbstractAsyncContextManager[Link]:
        """Lend a link, to be used again only if the block ends normally."""
        ...

    async def disconnect(self) -> None:
        """Disconnect what is idle."""
        ...

    async def aclose(self) -> None:
        """Disconnect what is ours."""
        ...


class OwnLinks:
    """Links over connections that ``connect`` makes, at most ``limit`` at a time."""

    def __init__(self, connect: Callable[[], Awaitable[AbstractConnection]], limit: int) -> None:
        self._connect = connect
        self._idle: list[AbstractConnection] = []
        self._free = asyncio.Semaphore(limit)
        self._closed = False

    @asynccontextmanager
    async def link(self, *, asking: bool = False) -> AsyncIterator[Link]:
        """Lend a link."""
        async with self._free:
            connection = await self._live_one() or await self._connect()
            transport = _transport(connection)
            try:
                yield Link(connection, asking=asking)
            except BaseException:
                await _abandon(connection, transport)
                raise
            if self._closed:
                await _abandon(connection, transport)
            else:
                self._idle.append(connection)

    async def disconnect(self) -> None:
        """Disconnect what is idle, all of it although the caller is cancelled."""
        while self._idle:
            connection = self._idle.pop()
            _transport(connection).abort()
            # This does not wait for the event loop, which closes what is aborted in its next turn.
            await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Disconnect all, what is in use as soon as it is given back."""
        self._closed = True
        await self.disconnect()

    async def _live_one(self) -> AbstractConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not is_stale(_transport(connection)):
                return connection
            await _abandon(connection, _transport(connection))
        return None


class BorrowedLinks:
    """Links over the connections of a caller's pool, in the event loop that is the first to use them."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def link(self, *, asking: bool = False) -> AsyncIterator[Link]:
        """Lend a link."""
        self._loop = self._loop or asyncio.get_running_loop()
        if self._loop is not asyncio.get_running_loop():
            raise StoreUnavailableError(
                "the client belongs to another event loop; make one in this loop, or give the store a RedisConfig, "
                "which serves all loops"
            )
        cancellations = _cancellations()
        try:
            connection: AbstractConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # it has no annotations
        except ResponseError as exc:
            hide_arguments(exc)
            raise
        transport = None
        try:
            if is_stale(_transport(connection)):
                await connection.disconnect(nowait=True)
                await _connect(connection)
            transport = _transport(connection)
            _expect_no_more(cancellations)
            yield Link(connection, asking=asking)
        except BaseException:
            await _abandon(connection, transport)
            raise
        finally:
            # A pool that is interrupted here would count the connection as used for ever.
            await asyncio.shield(asyncio.ensure_future(self._pool.release(connection)))

    async def disconnect(self) -> None:
        """Disconnect what is idle."""
        # The pool's own way would wait until each server has said goodbye to TLS.
        for connection in tuple(self._pool._available_connections):  # noqa: SLF001
            if connection.is_connected:
                await _abandon(connection, _transport(connection))

    async def aclose(self) -> None:
        """Do nothing: who made the pool closes it."""


class Topology(Protocol):
    """Finds the server that has a key."""

    async def perform(self, key: bytes, operation: Callable[[Link], Awaitable[T]], /) -> T:
        """Return what ``operation`` makes of a link to the server that has ``key``.

        It is called again only if nothing was sent, or the server has refused a command so that nothing was written.
        """
        ...

    async def servers(self) -> Sequence[Links]:
        """Return the servers that together have all keys."""
        ...

    async def disconnect(self) -> None:
        """Disconnect what is idle."""
        ...

    async def aclose(self) -> None:
        """Disconnect."""
        ...


class OneServer:
    """A server that has all keys."""

    def __init__(self, links: Links) -> None:
        self._links = links

    async def perform(self, _key: bytes, operation: Callable[[Link], Awaitable[T]]) -> T:
        """Run the operation there."""
        async with self._links.link() as link:
            return await operation(link)

    async def servers(self) -> Sequence[Links]:
        """Return it."""
        return (self._links,)

    async def disconnect(self) -> None:
        """Disconnect what is idle."""
        await self._links.disconnect()

    async def aclose(self) -> None:
        """Disconnect from it."""
        await self._links.aclose()


class SentinelServer:
    """The server that sentinels name as the primary of a service. They are asked again for every new connection."""

    def __init__(self, config: RedisConfig, connect: Connector) -> None:
        self._config = config
        self._connect = connect
        self._sentinels = list(config.addresses)
        self._links = OwnLinks(self._connect_to_primary, config.max_connections)

    async def perform(self, _key: bytes, operation: Callable[[Link], Awaitable[T]]) -> T:
        """Run the operation at the primary, and once more if that has just become a replica."""
        try:
            async with self._links.link() as link:
                return await operation(link)
        except ReadOnlyError:
            await self._links.disconnect()
        try:
            async with self._links.link() as link:
                return await operation(link)
        except ReadOnlyError as exc:
            raise RedisConnectionError("the primary has become a replica, and no other is known yet") from exc

    async def servers(self) -> Sequence[Links]:
        """Return links to whatever is the primary."""
        return (self._links,)

    async def disconnect(self) -> None:
        """Disconnect what is idle."""
        await self._links.disconnect()

    async def aclose(self) -> None:
        """Disconnect from the primary."""
        await self._links.aclose()

    async def _connect_to_primary(self) -> AbstractConnection:
        failures: list[tuple[Host, Exception]] = []
        for sentinel in tuple(self._sentinels):
            try:
                # So that one that does not answer leaves time for the next.
                async with asyncio.timeout(self._config.timeout / (len(self._sentinels) + 1)):
                    connection = await self._primary_by(sentinel)
            except (RedisError, OSError) as exc:
                failures.append((sentinel, exc))
            else:
                self._sentinels.remove(sentinel)
                self._sentinels.insert(0, sentinel)
                return connection
        raise _worst(failures, "no sentinel leads to a primary")

    async def _primary_by(self, sentinel: Host) -> AbstractConnection:
        """Connect to the primary that ``sentinel`` names, if that itself says that it is one."""
        asked = await self._connect(sentinel, sentinel=True)
        try:
            command = (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", (self._config.service or "").encode())
            (named,) = await Link(asked).run(command)
        finally:
            await _abandon(asked)
        if named is None:
            raise RedisConnectionError(f"it knows no service {self._config.service!r}")
        primary = Host(named[0].decode(), int(named[1]))
        connection = await self._connect(primary)
        try:
            (role,) = await Link(connection).run((b"ROLE",))
        except BaseException:
            await _abandon(connection)
            raise
        if role[0] != b"master":
            await _abandon(connection)
            raise RedisConnectionError(f"{shown(primary)}, which it names, is not a primary")
        return connection


class Cluster:
    """A cluster, in which each slot of keys has its own primary."""

    def __init__(self, config: RedisConfig, connect: Connector) -> None:
        self._config = config
        self._connect = connect
        self._owners: list[Host | None] = []
        self._links: dict[Host, OwnLinks] = {}
        self._lock = asyncio.Lock()

    async def perform(self, key: bytes, operation: Callable[[Link], Awaitable[T]]) -> T:
        """Run the operation at the key's primary, wherever the cluster redirects it to."""
        slot = key_slot(key)
        owner, asking = await self._owner(slot), False
        for _ in range(_MOST_REDIRECTIONS):
            link, unreached = None, None
            try:
                async with self._links_to(owner).link(asking=asking) as link:
                    return await operation(link)
            except MovedError as exc:
                owner, asking = Host(exc.host or owner.name, exc.port), False
                self._owners[slot] = owner
            except AskError as exc:
                owner, asking = Host(exc.host or owner.name, exc.port), True
            except RedisConnectionError as exc:
                # Nothing was sent if there was no link; another node may have the slot by now.
                if link is not None or is_access(exc):
                    raise
                unreached = exc
            if unreached is not None:
                await self._refresh()
                if self._owners[slot] == owner:
                    raise unreached
                owner, asking = await self._owner(slot), False
        raise ClusterDownError(f"the nodes of the cluster redirected a command {_MOST_REDIRECTIONS} times")

    async def servers(self) -> Sequence[Links]:
        """Return links to every primary."""
        primaries, unserved = await self.primaries()
        if unserved:
            raise ClusterDownError(f"no node serves {unserved} of the hash slots")
        return list(primaries.values())

    async def primaries(self) -> tuple[dict[Host, Links], int]:
        """Return links to every primary by its address, and how many hash slots no node serves."""
        await self._refresh()
        owners = dict.fromkeys(owner for owner in self._owners if owner is not None)
        return {owner: self._links_to(owner) for owner in owners}, self._owners.count(None)

    async def disconnect(self) -> None:
        """Disconnect what is idle, from every node."""
        for links in tuple(self._links.values()):
            await links.disconnect()

    async def aclose(self) -> None:
        """Disconnect from every node."""
        for links in tuple(self._links.values()):
            await links.aclose()

    def _links_to(self, node: Host) -> OwnLinks:
        if node not in self._links:
            self._links[node] = OwnLinks(lambda: self._connect(node), self._config.max_connections)
        return self._links[node]

    async def _owner(self, slot: int) -> Host:
        if not self._is_known(slot):
            async with self._lock:
                if not self._is_known(slot):
                    await self._refresh()
        owner = self._owners[slot]
        if owner is None:
            raise ClusterDownError(f"no node serves the hash slot {slot}")
        return owner

    def _is_known(self, slot: int) -> bool:
        return bool(self._owners) and self._owners[slot] is not None

    async def _refresh(self) -> None:
        """Ask one node after another who has which slots, until one knows all, or else believe whoever knows most."""
        nodes = tuple(dict.fromkeys((*self._config.addresses, *self._links)))
        failures: list[tuple[Host, Exception]] = []
        most: list[Host | None] = []
        for node in nodes:
            try:
                async with asyncio.timeout(self._config.timeout / (len(nodes) + 1)):
                    async with self._links_to(node).link() as link:
                        (ranges,) = await link.run((b"CLUSTER", b"SLOTS"))
            except (RedisError, OSError) as exc:
                failures.append((node, exc))
            else:
                known = _owners(ranges, node)
                if not most or known.count(None) < most.count(None):
                    most = known
                if None not in most:
                    break
        if not most:
            raise _worst(failures, "no node of the cluster answers")
        self._owners = most
        if None not in most:
            await self._forget_others()

    async def _forget_others(self) -> None:
        """Disconnect from the nodes that have no slots, such as those that are no longer in the cluster."""
        for node in self._links.keys() - set(self._owners):
            await self._links.pop(node).aclose()


class Connector:
    """Makes connections as a configuration says, with the driver's own repetitions and timeouts turned off."""

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._tls: Any = None

    async def __call__(self, host: Host | None = None, *, sentinel: bool = False) -> AbstractConnection:
        """Connect to ``host``, a server or else a sentinel, or to the socket of the configuration."""
        connection = self._connection(host, sentinel=sentinel)
        try:
            await _connect(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        connection._reader._limit = _READ_AHEAD  # type: ignore[union-attr]  # noqa: SLF001 - no public way
        return connection

    def _connection(self, host: Host | None, *, sentinel: bool) -> AbstractConnection:
        config = self._config
        options: dict[str, Any] = {
            "username": config.sentinel_username if sentinel else config.username,
            "password": config.sentinel_password if sentinel else config.password,
            "db": 0 if sentinel else config.db,
            # It needs no greeting, and nothing arrives that was not asked for.
            "protocol": 2,
            # Connections bounds every operation, and the driver's own timeouts can lose a cancellation.
            "socket_timeout": None,
            "socket_connect_timeout": None,
            "retry": Retry(NoBackoff(), 0),
            # Two more commands for each connection, which the least privileges do not include.
            "driver_info": None,
        }
        if host is None:
            return UnixDomainSocketConnection(path=config.path or "", **options)
        options |= {"host": host.name, "port": host.port}
        if not config.tls:
            return Connection(**options)
        if self._tls is None:
            _check_files(config)
        connection = SSLConnection(
            ssl_ca_certs=config.tls_ca,
            ssl_certfile=config.tls_cert,
            ssl_keyfile=config.tls_key,
            ssl_cert_reqs="none" if config.tls_verify == "none" else "required",
            ssl_check_hostname=config.tls_verify == "full",
            **options,
        )
        # To read the certificates takes longer than to connect.
        self._tls = connection.ssl_context = self._tls or connection.ssl_context
        return connection


def topology(config: RedisConfig) -> Topology:
    """Return what ``config`` says is at the other end, without connecting. Must be called in its event loop."""
    connect = Connector(config)
    if config.cluster:
        return Cluster(config, connect)
    if config.service is not None:
        return SentinelServer(config, connect)
    host = None if config.path is not None else config.addresses[0]
    return OneServer(OwnLinks(lambda: connect(host), config.max_connections))


def _check_files(config: RedisConfig) -> None:
    """Raise ``StoreAccessError`` for a file that cannot be read. TLS does not say which."""
    for parameter in ("tls_ca", "tls_cert", "tls_key"):
        path = getattr(config, parameter)
        try:
            if path is not None:
                Path(path).open("rb").close()
        except OSError as exc:
            raise StoreAccessError(
                f"could not connect to {config.where}: {parameter} is {path!r}, which cannot be read: {exc.strerror}"
            ) from exc


def _owners(ranges: list[Any], asked: Host) -> list[Host | None]:
    """Return the primary of each slot by the reply to CLUSTER SLOTS."""
    owners: list[Host | None] = [None] * _SLOTS
    for first, last, (name, port, *_), *_replicas in ranges:
        # A node that does not know its own name leaves it out.
        known = name not in {None, b"", b"?"}
        owners[first : last + 1] = [Host(name.decode() if known else asked.name, port)] * (last + 1 - first)
    return owners


def _worst(failures: Sequence[tuple[Host, Exception]], what: str) -> Exception:
    """Return the failure that asking again will not mend, or else one that names all."""
    for _, failure in failures:
        if is_access(failure):
            return failure
    said = "; ".join(f"{shown(host)}: {failure or type(failure).__name__}" for host, failure in failures)
    error = RedisConnectionError(f"{what} ({said})")
    error.__cause__ = failures[-1][1]
    return error


def _is_large(command: Command) -> bool:
    return any(not isinstance(word, int) and len(word) > _LARGE for word in command)


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def _expect_no_more(cancellations: int) -> None:
    """Raise the cancellation that Python 3.11 loses when a connection with a socket_timeout, of a caller's, sends."""
    if _cancellations() > cancellations:
        raise asyncio.CancelledError


async def _connect(connection: AbstractConnection) -> None:
    try:
        await connection.connect()  # type: ignore[no-untyped-call]  # it has no annotations
    except ResponseError as exc:
        hide_arguments(exc)
        raise


async def _abandon(connection: AbstractConnection, transport: asyncio.WriteTransport | None = None) -> None:
    """Disconnect so that nothing of what was not sent yet is sent any more.

    ``transport`` is that of the connection, which may have disconnected itself, and would still send the rest.
    """
    if transport is not None:
        reset(transport)
    await connection.disconnect(nowait=True)


def _transport(connection: AbstractConnection) -> asyncio.WriteTransport:
    # The driver shows whether bytes have arrived, but neither a reset nor a way to give up what was not sent.
    writer = connection._writer  # noqa: SLF001 - no public way
    if writer is None:
        raise RedisConnectionError("the connection was closed by somebody else")
    return writer.transport
