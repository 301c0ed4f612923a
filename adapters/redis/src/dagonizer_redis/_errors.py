"""How the errors of redis-py and the error replies of a server become the project's.

AuthenticationError NoPermissionError ReadOnlyError …    StoreAccessError
PermissionError, SSLError but for an end                 StoreAccessError
OutOfMemoryError, replies MISCONF, Protocol error …      StoreLimitError
reply WRONGTYPE                                          StoreCorruptedError
ConnectionError TimeoutError ClusterDownError …          StoreUnavailableError
every other RedisError and OSError                       StoreUnavailableError
"""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from redis import exceptions as driver

from dagonizer.errors import StoreAccessError, StoreCorruptedError, StoreLimitError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dagonizer.errors import StoreError

    Meaning = tuple[type[StoreError], str]

_LOGIN: Meaning = (StoreAccessError, "check the user name and the password")
_PERMISSION: Meaning = (
    StoreAccessError,
    "grant the user the commands and keys that dagonizer-redis names in its README",
)
_READ_ONLY: Meaning = (StoreAccessError, "this server is a replica; name the primary, or use redis+sentinel:")
_TOPOLOGY: Meaning = (StoreAccessError, "this server is a node of a cluster; write redis+cluster:")
_COMMAND: Meaning = (StoreAccessError, "the server does not offer a command that is needed; see the README")
_CERTIFICATE: Meaning = (StoreAccessError, "check tls_ca, tls_verify, tls_cert, tls_key, and that the port speaks TLS")
_SYSTEM: Meaning = (
    StoreAccessError,
    "check the owner and mode of the socket and its directories, or the firewall here",
)
_MEMORY: Meaning = (StoreLimitError, "raise maxmemory, or delete something")
_DISK: Meaning = (StoreLimitError, "the server cannot write to its disk: free space, and see its log")
_SIZE: Meaning = (StoreLimitError, "the value is larger than proto-max-bulk-len of the server, usually 512 MiB")
_TYPE: Meaning = (StoreCorruptedError, "the key holds something other than a string; save or delete it to be rid of it")
_LATER: Meaning = (StoreUnavailableError, "check that the server runs and can be reached, then try again")
_REFUSED: Meaning = (StoreUnavailableError, "nothing was changed; try again later")
_POOL: Meaning = (StoreUnavailableError, "the client's pool has no free connection; raise its max_connections")
_DRIVER: Meaning = (StoreUnavailableError, "the server or the driver did something unexpected")

# Every class of the driver, though those of the last group belong to parts of it that the store does not use.
BY_CLASS: dict[type[Exception], Meaning] = {
    driver.AuthenticationError: _LOGIN,
    driver.AuthenticationWrongNumberOfArgsError: _LOGIN,
    driver.AuthorizationError: _LOGIN,
    driver.ExternalAuthProviderError: _LOGIN,
    driver.NoPermissionError: _PERMISSION,
    driver.ReadOnlyError: _READ_ONLY,
    driver.MovedError: _TOPOLOGY,
    driver.AskError: _TOPOLOGY,
    driver.OutOfMemoryError: _MEMORY,
    driver.BusyLoadingError: _REFUSED,
    driver.ClusterDownError: _REFUSED,
    driver.ExecAbortError: _REFUSED,
    driver.MasterDownError: _REFUSED,
    driver.TryAgainError: _REFUSED,
    driver.MaxConnectionsError: _POOL,
    driver.ConnectionError: _LATER,
    driver.TimeoutError: _LATER,
    TimeoutError: _LATER,
    PermissionError: _SYSTEM,
    OSError: _LATER,
    driver.InvalidResponse: _DRIVER,
    driver.ResponseError: _DRIVER,
    driver.RedisError: _DRIVER,
    driver.ChildDeadlockedError: _DRIVER,
    driver.ClusterCrossSlotError: _DRIVER,
    driver.ClusterError: _DRIVER,
    driver.CrossSlotTransactionError: _DRIVER,
    driver.DataError: _DRIVER,
    driver.IncorrectPolicyType: _DRIVER,
    driver.InvalidPipelineStack: _DRIVER,
    driver.LockError: _DRIVER,
    driver.LockNotOwnedError: _DRIVER,
    driver.ModuleError: _DRIVER,
    driver.NoScriptError: _DRIVER,
    driver.PubSubError: _DRIVER,
    driver.RedisClusterException: _DRIVER,
    driver.SlotNotCoveredError: _DRIVER,
    driver.WatchError: _DRIVER,
}

if hasattr(driver, "NoSuchFieldsetError"):  # The driver before 8.1 has no such class.
    BY_CLASS[driver.NoSuchFieldsetError] = _DRIVER

# How error replies begin for which the driver has no class, or none when EXEC gives them. It takes "ERR " away.
_BY_REPLY: tuple[tuple[str, Meaning], ...] = (
    ("WRONGTYPE", _TYPE),
    ("NOPERM", _PERMISSION),
    ("OOM", _MEMORY),
    ("READONLY", _READ_ONLY),
    ("MISCONF", _DISK),
    ("Protocol error: invalid bulk length", _SIZE),
    # So it says to a large value from somebody who has not logged in.
    ("Protocol error: unauthenticated", _LOGIN),
    ("NOREPLICAS", _REFUSED),
    ("BUSY", _REFUSED),
    ("UNKILLABLE", _REFUSED),
    ("max number of clients", _REFUSED),
    ("DENIED", (StoreAccessError, "the server is in protected mode; set a password or bind address there")),
    ("DB index is out of range", (StoreAccessError, "name a database that the server has")),
    ("invalid DB index", (StoreAccessError, "name a database that the server has")),
    ("unknown command", _COMMAND),
    ("unknown subcommand", _COMMAND),
    ("This instance has cluster support disabled", (StoreAccessError, "this server is no cluster; write redis:")),
)

# What follows it in the refusal of an unknown command are the words of the command: of AUTH, the password.
_ARGUMENTS = ", with args beginning with"

# Before the reason for which EXEC is refused, though the driver knows only that it is.
_DISCARDED = "Transaction discarded because of: "

# What TLS raises when a connection breaks, and not for a certificate or a wrong protocol.
_BROKEN_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


@contextmanager
def translated(action: str, where: str, *, sent: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raise what the block raises of the driver's as the ``StoreError`` that says so of ``action`` and ``where``.

    ``sent`` tells afterwards whether anything was sent that may have made a change all the same.
    """
    try:
        yield
    except tuple(BY_CLASS) as exc:
        meaning = error, advice = _meaning(exc)
        if meaning in {_LATER, _DRIVER} and sent():
            advice += "; it may have happened"
        raise error(f"could not {action} at {where}: {_said(exc)}; {advice}") from exc


def hide_arguments(exc: driver.ResponseError) -> None:
    """Take the words of the command out of a refusal, before anything can show them."""
    exc.args = tuple(str(argument).partition(_ARGUMENTS)[0] for argument in exc.args)


def _meaning(exc: Exception) -> Meaning:
    # The driver raises its own from inside the handler of the other, without ``from``.
    cause = exc.__cause__ or exc.__context__
    if isinstance(cause, PermissionError):
        return _SYSTEM
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, _BROKEN_TLS):
        return _CERTIFICATE
    if isinstance(exc, (driver.ResponseError, driver.ConnectionError)):
        reply = str(exc).removeprefix(_DISCARDED)
        for beginning, meaning in _BY_REPLY:
            if reply.startswith(beginning):
                return meaning
    return next(BY_CLASS[cls] for cls in type(exc).__mro__ if cls in BY_CLASS)


def is_access(exc: Exception) -> bool:
    """Return whether ``exc`` means that the caller is refused, so that asking again is in vain."""
    return _meaning(exc)[0] is StoreAccessError


def _said(exc: Exception) -> str:
    return str(exc).rstrip(".") or (
        "no answer within the timeout" if isinstance(exc, TimeoutError) else type(exc).__name__
    )
