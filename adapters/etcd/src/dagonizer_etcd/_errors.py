"""How etcd's errors become the project's.

Both transports raise ``Failure``, which carries one of gRPC's status codes: the gateway's JSON has them too. A table
of codes says what a failure is, and a shorter one of etcd's own messages, which go before, where its codes mislead.
"""

from __future__ import annotations

from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

from dagonizer.errors import (
    StoreAccessError,
    StoreCorruptedError,
    StoreError,
    StoreLimitError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class Code(IntEnum):
    """The status codes of gRPC, which both transports know."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_AWAY = "check that the hosts are right and the cluster has a leader, then try again"
_UNKNOWN = "; whether it was done is not known"
_ACCESS = "check user and password, certificates, and that the role may read and write the prefix"
_REFUSED = "check that every host of the URL is a client endpoint of etcd 3.4 or later"
_LIMIT = "raise the server's quota or compact and defragment it, or write smaller entries"

_BY_CODE: dict[Code, tuple[type[StoreError], str]] = {
    Code.OK: (StoreUnavailableError, _AWAY),
    Code.CANCELLED: (StoreUnavailableError, _AWAY),
    Code.UNKNOWN: (StoreUnavailableError, _AWAY),
    Code.INVALID_ARGUMENT: (StoreError, _REFUSED),
    Code.DEADLINE_EXCEEDED: (StoreUnavailableError, _AWAY),
    Code.NOT_FOUND: (StoreError, _REFUSED),
    Code.ALREADY_EXISTS: (StoreError, _REFUSED),
    Code.PERMISSION_DENIED: (StoreAccessError, _ACCESS),
    Code.RESOURCE_EXHAUSTED: (StoreLimitError, _LIMIT),
    Code.FAILED_PRECONDITION: (StoreError, _REFUSED),
    Code.ABORTED: (StoreUnavailableError, _AWAY),
    Code.OUT_OF_RANGE: (StoreError, _REFUSED),
    Code.UNIMPLEMENTED: (StoreError, _REFUSED),
    Code.INTERNAL: (StoreUnavailableError, _AWAY),
    Code.UNAVAILABLE: (StoreUnavailableError, _AWAY),
    Code.DATA_LOSS: (StoreCorruptedError, "check the cluster for a corrupt member (etcdctl alarm list)"),
    Code.UNAUTHENTICATED: (StoreAccessError, _ACCESS),
}

AUTH_DISABLED = "etcdserver: authentication is not enabled"
COMPACTED = "etcdserver: mvcc: required revision has been compacted"
NO_LEADER = "etcdserver: no leader"
NO_SPACE = "etcdserver: mvcc: database space exceeded"
NO_USER = "etcdserver: user name is empty"
FORKED = "gRPC cannot be used in a process that was forked from one which had used it"
# Each says that the request was refused before anything was done, for want of a valid token.
_WANTS_TOKEN = (
    "etcdserver: invalid auth token",
    "etcdserver: revision of auth store is old",
    NO_USER,
)
_BY_MESSAGE: dict[str, tuple[type[StoreError], str]] = {
    "etcdserver: authentication failed, invalid user ID or password": (StoreAccessError, _ACCESS),
    NO_USER: (StoreAccessError, "the server wants a user: etcd://user:password@host"),
    "etcdserver: revision of auth store is old": (StoreUnavailableError, "users or roles are being changed; try again"),
    "etcdserver: too many requests": (StoreUnavailableError, "the server is overloaded; try again later"),
    "etcdserver: request is too large": (
        StoreLimitError,
        "write smaller requests (?chunk_bytes=), or raise the server's --max-request-bytes",
    ),
    COMPACTED: (StoreUnavailableError, "the server was compacted during a load; try again"),
    FORKED: (StoreError, "start processes by spawn or forkserver, or use etcd+http:"),
}


class Failure(Exception):  # noqa: N818 - internal: what reaches a caller is a StoreError
    """A call that failed at one endpoint. ``__cause__`` is the driver's exception, if there is one.

    ``sent`` is False only if it is certain that nothing of the request has reached a server.
    """

    def __init__(self, code: int, details: str, where: str, *, sent: bool = True) -> None:
        super().__init__(code, details, where)
        # A code that gRPC may add one day is as good as unknown.
        self.code = Code(code) if code in _BY_CODE else Code.UNKNOWN
        self.details = details
        self.where = where
        # A member without a leader says so before it looks at the request.
        self.sent = sent and not details.startswith(NO_LEADER)

    def again(self) -> Failure:
        """Return the same, for somebody else to raise."""
        return Failure(self.code, self.details, self.where, sent=self.sent)

    @property
    def verdict(self) -> tuple[type[StoreError], str]:
        """What to raise, and what to advise."""
        return next((found for text, found in _BY_MESSAGE.items() if text in self.details), _BY_CODE[self.code])

    @property
    def is_unavailability(self) -> bool:
        """Whether another endpoint, or the same one later, may have an answer; what is compacted no one has."""
        return self.verdict[0] is StoreUnavailableError and COMPACTED not in self.details

    @property
    def wants_token(self) -> bool:
        """Whether the request was refused, and nothing done, because its token was missing or has expired."""
        return any(text in self.details for text in _WANTS_TOKEN)


@contextmanager
def translated(action: str, where: str, *, write: bool = False) -> Iterator[None]:
    """Raise what the block raises as a ``Failure`` or ``TimeoutError`` as the ``StoreError`` that says so.

    A ``write`` that nobody has acknowledged may have been done, and the message says so.
    """
    try:
        yield
    except Failure as failure:
        error, advice = failure.verdict
        said = failure.details or "no reason was given"
        doubt = _UNKNOWN if write and failure.sent and failure.is_unavailability else ""
        raise error(f"could not {action} at {failure.where}: {said} ({failure.code.name}){doubt}; {advice}") from (
            failure.__cause__ or failure
        )
    except TimeoutError as exc:
        doubt = _UNKNOWN if write else ""
        raise StoreUnavailableError(f"could not {action} at {where}: no answer in time{doubt}; {_AWAY}") from exc
