"""What the store asks of etcd, whichever way it goes there.

An endpoint is one server, reached over gRPC or the JSON gateway. A cluster is all of them, with failover and the
token of the user, and is what the store talks to.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, Protocol, TypeVar

import msgspec

from dagonizer.errors import StoreAccessError
from dagonizer_etcd._batch import Batch
from dagonizer_etcd._errors import AUTH_DISABLED, Code, Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from dagonizer_etcd._config import EtcdConfig

T = TypeVar("T")

# A request that finds its connection broken has one more attempt, if it may.
_FEWEST_ATTEMPTS = 2
# etcd takes a transaction of 128 conditions and 128 operations by default; a change has two operations at most.
_CHANGES = 64
_OPERANDS = {"CREATE": "create_revision", "MOD": "mod_revision", "VALUE": "value"}
# Of several changes, nothing was done. A server that is full says so although it has made them.
_FAULT_OF_ONE = frozenset({Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED})
# Of the time that a call has waited in vain: a connection over which nothing has come for as long is given up.
_SILENCE = 0.5


class Condition(NamedTuple):
    """What a transaction asks about a key: the revision of its creation or last change (0: absent), or its value."""

    key: bytes
    field: Literal["CREATE", "MOD", "VALUE"]
    relation: Literal["EQUAL", "GREATER"]
    operand: int | bytes


class Put(NamedTuple):
    """Put ``value`` under ``key``, to be removed when ``lease`` ends unless that is 0."""

    key: bytes
    value: bytes
    lease: int = 0


class Delete(NamedTuple):
    """Delete ``key``, or every key from ``key`` up to but not including ``end``."""

    key: bytes
    end: bytes = b""


class Range(NamedTuple):
    """Read ``key``, or every key from ``key`` up to but not including ``end``, in order.

    At most ``limit`` of them unless that is 0, and as they were at ``revision`` unless that is 0.
    """

    key: bytes
    end: bytes = b""
    limit: int = 0
    revision: int = 0
    keys_only: bool = False


class Txn(NamedTuple):
    """Do ``then``, which is not empty, if all ``conditions`` hold.

    It has no reads: an etcd before 3.4.23 and 3.5.7 ends with a panic when the client of a transaction that only reads
    is gone before its answer (https://github.com/etcd-io/etcd/issues/14110 and 14891).
    """

    conditions: tuple[Condition, ...]
    then: tuple[Put | Delete, ...]


class KeyValue(NamedTuple):
    """What is under a key. ``revision`` is that of its last change."""

    key: bytes
    value: bytes
    revision: int


class RangeReply(NamedTuple):
    """What was read, whether there is ``more``, and the store's ``revision`` at that time."""

    found: list[KeyValue]
    more: bool
    revision: int


class TxnReply(NamedTuple):
    """Whether the conditions held, and the store's revision afterwards, which is that of every key put."""

    succeeded: bool
    revision: int


class Status(NamedTuple):
    """What a server says of itself: the numbers of its cluster, of itself and of its leader (0: none), and its version.

    ``size`` is that of its file in bytes, of which ``used`` are in use.
    """

    cluster: int
    member: int
    leader: int
    version: str
    size: int
    used: int


class Member(NamedTuple):
    """A member of the cluster. One that was never started has no ``name`` yet; a learner does not count."""

    number: int
    name: str
    is_learner: bool


class Alarm(NamedTuple):
    """An alarm that ``member`` has raised: ``NOSPACE`` or ``CORRUPT``."""

    member: int
    kind: str


class Endpoint(Protocol):
    """One server. Every method makes one request, and raises ``Failure``."""

    where: str

    async def range(self, request: Range, token: str) -> RangeReply:
        """Read, linearizably."""
        ...

    async def txn(self, request: Txn, token: str) -> TxnReply:
        """Carry out a transaction."""
        ...

    async def grant(self, seconds: int, token: str) -> int:
        """Return a new lease that ends after ``seconds``."""
        ...

    async def authenticate(self, username: str, password: str) -> str:
        """Return a token."""
        ...

    async def status(self, token: str) -> Status:
        """Return what the server says of itself."""
        ...

    async def members(self, token: str) -> list[Member]:
        """Return the members of the cluster."""
        ...

    async def alarms(self, token: str) -> list[Alarm]:
        """Return the alarms that are on."""
        ...

    async def distrust(self, seconds: float) -> None:
        """Leave the connections of ours over which nothing has come for that long, and which may be silent for ever."""
        ...


class Cluster:
    """The endpoints of one cluster, one of which is used until it fails.

    A read that failed is repeated elsewhere, or once more where there is no elsewhere. A write is repeated only if it
    is certain that no server has acted on it: nothing was sent, or it was refused for want of a leader or a token.
    """

    def __init__(self, endpoints: Sequence[Endpoint], config: EtcdConfig) -> None:
        self._endpoints = endpoints
        self._preferred = 0
        self._username, self._password = config.username, config.password
        self._token: str | None = None
        self._authenticating = asyncio.Lock()
        # So that time is left for the others; the whole operation is bounded elsewhere.
        self._patience = config.timeout / len(endpoints) if len(endpoints) > 1 else None
        self._timeout = config.timeout
        most = config.chunk_bytes
        self._changes = Batch(
            self.txn,
            self._change_all,
            size=lambda request: max(_bytes(request), most // _CHANGES),
            most=most,
            timeout=config.timeout,
        )

    async def range(self, request: Range) -> RangeReply:
        """Read, linearizably."""
        return await self._call(lambda endpoint, token: endpoint.range(request, token), repeatable=True)

    async def txn(self, request: Txn) -> TxnReply:
        """Carry out a transaction."""
        return await self._call(lambda endpoint, token: endpoint.txn(request, token), repeatable=False)

    async def change(self, request: Txn) -> TxnReply:
        """Carry out a transaction that is likely to succeed, maybe in one request with others.

        Each of those that are under way must be about another key.
        """
        return await self._changes.send(request)

    async def grant(self, seconds: int) -> int:
        """Return a new lease that ends after ``seconds``."""
        # A lease too many ends by itself.
        return await self._call(lambda endpoint, token: endpoint.grant(seconds, token), repeatable=True)

    async def statuses(self) -> list[tuple[str, Status | Failure]]:
        """Return of every host what it says of itself, or why it does not."""
        asked = await asyncio.gather(*map(self._status, self._endpoints))
        return [(endpoint.where, said) for endpoint, said in zip(self._endpoints, asked, strict=True)]

    async def members(self) -> list[Member]:
        """Return the members of the cluster."""
        return await self._call(lambda endpoint, token: endpoint.members(token), repeatable=True)

    async def alarms(self) -> list[Alarm]:
        """Return the alarms that are on."""
        return await self._call(lambda endpoint, token: endpoint.alarms(token), repeatable=True)

    async def has_users(self) -> bool:
        """Return whether the cluster asks who somebody is."""
        name, password = self._username or "", self._password or ""
        try:
            await self._call(lambda endpoint, _: endpoint.authenticate(name, password), repeatable=True)
        except Failure as failure:
            if failure.details == AUTH_DISABLED:
                return False
            # Nobody has no name.
            if name or failure.verdict[0] is not StoreAccessError:
                raise
        return True

    async def _status(self, endpoint: Endpoint) -> Status | Failure:
        try:
            return await self._attempt(endpoint, lambda endpoint, token: endpoint.status(token))
        except Failure as failure:
            return failure

    async def distrust(self) -> None:
        """Leave connections that have gone silent, after an operation that took too long."""
        for endpoint in self._endpoints:
            await endpoint.distrust(self._timeout * _SILENCE)

    async def _change_all(self, requests: Sequence[Txn]) -> list[TxnReply] | None:
        conditions = tuple(condition for request in requests for condition in request.conditions)
        changes = tuple(change for request in requests for change in request.then)
        try:
            reply = await self.txn(Txn(conditions, changes))
        except Failure as failure:
            if failure.code in _FAULT_OF_ONE:
                return None
            raise
        return [reply] * len(requests) if reply.succeeded else None

    async def _call(self, call: Callable[[Endpoint, str], Awaitable[T]], *, repeatable: bool) -> T:
        attempts, renewed = 1, False
        while True:
            index = self._preferred
            try:
                return await self._attempt(self._endpoints[index], call)
            except Failure as failure:
                if failure.wants_token and self._username is not None and not renewed:
                    renewed = True
                    continue
                if not failure.is_unavailability:
                    raise
                if index == self._preferred:
                    self._preferred = (index + 1) % len(self._endpoints)
                if attempts >= max(_FEWEST_ATTEMPTS, len(self._endpoints)) or not (repeatable or not failure.sent):
                    raise
                attempts += 1

    async def _attempt(self, endpoint: Endpoint, call: Callable[[Endpoint, str], Awaitable[T]]) -> T:
        if self._patience is None:
            return await self._authenticated(endpoint, call)
        try:
            async with asyncio.timeout(self._patience):
                return await self._authenticated(endpoint, call)
        except TimeoutError as exc:
            await endpoint.distrust(self._patience * _SILENCE)
            message = f"no answer within {self._patience:g} s"
            raise Failure(Code.DEADLINE_EXCEEDED, message, endpoint.where) from exc

    async def _authenticated(self, endpoint: Endpoint, call: Callable[[Endpoint, str], Awaitable[T]]) -> T:
        if self._username is None or self._password is None:
            return await call(endpoint, "")
        token = await self._current_token(endpoint, self._username, self._password)
        try:
            return await call(endpoint, token)
        except Failure as failure:
            # Somebody else may have a new one already.
            if failure.wants_token and token == self._token:
                self._token = None
            raise

    async def _current_token(self, endpoint: Endpoint, username: str, password: str) -> str:
        async with self._authenticating:
            if self._token is None:
                try:
                    self._token = await endpoint.authenticate(username, password)
                except Failure as failure:
                    if failure.details != AUTH_DISABLED:
                        # What the token was for was not.
                        failure.sent = False
                        raise
                    self._token = ""
            return self._token


def range_body(request: Range) -> dict[str, Any]:
    """Return ``request`` as etcd's API has it, in protobuf and JSON alike."""
    return {
        "key": request.key,
        "range_end": request.end,
        "limit": request.limit,
        "revision": request.revision,
        "keys_only": request.keys_only,
    }


def txn_body(request: Txn) -> dict[str, Any]:
    """Return ``request`` as etcd's API has it, in protobuf and JSON alike."""
    return {
        "compare": [_compare(condition) for condition in request.conditions],
        "success": [_operation(operation) for operation in request.then],
    }


def _compare(condition: Condition) -> dict[str, Any]:
    return {
        "key": condition.key,
        "target": condition.field,
        "result": condition.relation,
        _OPERANDS[condition.field]: condition.operand,
    }


def _operation(operation: Put | Delete) -> dict[str, Any]:
    if isinstance(operation, Put):
        return {"request_put": {"key": operation.key, "value": operation.value, "lease": operation.lease}}
    return {"request_delete_range": {"key": operation.key, "range_end": operation.end}}


def _bytes(request: Txn) -> int:
    """Return about how long ``request`` is."""
    keys = sum(len(part.key) for part in (*request.conditions, *request.then))
    return keys + sum(len(change.value) for change in request.then if isinstance(change, Put))


def is_cancelled() -> bool:
    """Return whether a ``CancelledError`` is meant for the present task, and not just for something in the driver."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def decoded(content: bytes, of: type[T], *, strict: bool = True) -> T:
    """Return what ``content`` says in JSON. Raises ``msgspec.DecodeError``, whatever is wrong with it."""
    try:
        return msgspec.json.decode(content, type=of, strict=strict)
    except (RecursionError, UnicodeDecodeError) as exc:
        # Nested too deeply, or no UTF-8 within a string.
        raise msgspec.DecodeError(str(exc)) from exc


def tls_context(config: EtcdConfig) -> ssl.SSLContext:
    """Return what the files that ``config`` names are good for. Raises ``Failure`` if one cannot be read or used."""

    def refuse() -> NoReturn:
        # Or OpenSSL would ask for the password at the terminal, and wait.
        raise OSError(f"the key in {config.tls_key} is encrypted; store it without a password")

    try:
        context = ssl.create_default_context(cafile=config.tls_ca)
        if config.tls_cert is not None:
            context.load_cert_chain(config.tls_cert, config.tls_key, refuse)
    except OSError as exc:
        message = f"the files of 'tls_ca', 'tls_cert' and 'tls_key' cannot be used: {exc}"
        raise Failure(Code.UNAUTHENTICATED, message, config.where) from exc
    return context
