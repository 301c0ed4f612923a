"""How asyncpg's errors become the project's.

The server's, by SQLSTATE: first the code, then its class.

28 3D 3F 42 …  StoreAccessError        credentials, permissions, a missing database or table, a table that is not ours
53 54 22001    StoreLimitError         space, memory, sizes
XX001 XX002    StoreCorruptedError     a damaged page or index
everything else StoreUnavailableError  shutdown, failover, too many connections, a statement that was cancelled

The client's:

UnicodeDecodeError                         StoreCorruptedError
SSLError, PermissionError, configuration   StoreAccessError
every other OSError, and asyncpg's own     StoreUnavailableError
"""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING

import asyncpg  # type: ignore[import-untyped]  # it has no types

from dagonizer.errors import (
    StoreAccessError,
    StoreCorruptedError,
    StoreLimitError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dagonizer.errors import StoreError
    from dagonizer_postgres._config import TableConfig

_Kind = tuple[type["StoreError"], str]

_AGAIN = "check that the server is up and can be reached, then try again"
_SETUP = "check that the table is the one that this store needs, and the constraints and triggers on it"

_UNAVAILABLE: _Kind = (StoreUnavailableError, _AGAIN)
_CREDENTIALS: _Kind = (StoreAccessError, "check the user name, the password, and the server's pg_hba.conf")
_PERMISSION: _Kind = (
    StoreAccessError,
    "grant the role USAGE on the schema and SELECT, INSERT, UPDATE, DELETE on the table",
)
_REFUSED: _Kind = (StoreAccessError, _SETUP)
_MISSING: _Kind = (StoreAccessError, "create what is missing, or have it created by create=auto")
_ENCODING: _Kind = (StoreAccessError, "use a database with ENCODING 'UTF8'")
_DATABASE: _Kind = (StoreAccessError, "create the database, or name another one")
_POOLER: _Kind = (
    StoreUnavailableError,
    "if there is a pooler in transaction mode before the server, add ?statement_cache_size=0",
)
_READ_ONLY: _Kind = (StoreUnavailableError, "the server accepts no writes: name the hosts that can be the primary")
_NO_SLOT: _Kind = (
    StoreUnavailableError,
    "nothing was changed; lower pool_size, or raise max_connections of the server, then try again",
)
_LIMIT: _Kind = (StoreLimitError, "free space on the server, raise its limit, or save less")
_DAMAGED: _Kind = (StoreCorruptedError, "the server found its own files damaged: restore them from a backup")

BY_SQLSTATE: dict[str, _Kind] = {
    # Codes.
    "22001": _LIMIT,
    "22021": _ENCODING,
    "22P05": _ENCODING,
    "25006": _READ_ONLY,
    "42501": _PERMISSION,
    "42P01": _MISSING,
    "42P05": _POOLER,
    "53300": _NO_SLOT,
    "57P04": _DATABASE,
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
    # Classes.
    "01": _UNAVAILABLE,
    "02": _UNAVAILABLE,
    "03": _UNAVAILABLE,
    "08": _UNAVAILABLE,
    "09": _REFUSED,
    "0A": _REFUSED,
    "0B": _UNAVAILABLE,
    "0F": _REFUSED,
    "0L": _PERMISSION,
    "0P": _CREDENTIALS,
    "0Z": _REFUSED,
    "10": _REFUSED,
    "20": _REFUSED,
    "21": _REFUSED,
    "22": _REFUSED,
    "23": _REFUSED,
    "24": _UNAVAILABLE,
    "25": _UNAVAILABLE,
    "26": _POOLER,
    "27": _REFUSED,
    "28": _CREDENTIALS,
    "2B": _REFUSED,
    "2D": _UNAVAILABLE,
    "2F": _REFUSED,
    "34": _UNAVAILABLE,
    "38": _REFUSED,
    "39": _REFUSED,
    "3B": _UNAVAILABLE,
    "3D": _DATABASE,
    "3F": _MISSING,
    "40": _UNAVAILABLE,
    "42": _REFUSED,
    "44": _REFUSED,
    "53": _LIMIT,
    "54": _LIMIT,
    "55": _UNAVAILABLE,
    "57": _UNAVAILABLE,
    "58": _UNAVAILABLE,
    "72": _UNAVAILABLE,
    "F0": _UNAVAILABLE,
    "HV": _REFUSED,
    "P0": _REFUSED,
    "XX": _UNAVAILABLE,
}

_CONFIGURATION: _Kind = (StoreAccessError, "check how the store and the server are configured")
_CERTIFICATE: _Kind = (StoreAccessError, "check sslmode, sslrootcert, sslcert and sslkey, and the server's certificate")
_SOCKET: _Kind = (StoreAccessError, "check the owner and mode of the socket's directory")
_NOT_TEXT: _Kind = (
    StoreCorruptedError,
    "what is stored is not UTF-8 text: restore it from a backup, or save or delete its key to be rid of it",
)

# The first that fits counts.
BY_CLASS: tuple[tuple[type[Exception], _Kind], ...] = (
    (UnicodeDecodeError, _NOT_TEXT),
    (ssl.SSLEOFError, _UNAVAILABLE),
    (ssl.SSLZeroReturnError, _UNAVAILABLE),
    (ssl.SSLSyscallError, _UNAVAILABLE),
    (ssl.SSLError, _CERTIFICATE),
    (PermissionError, _SOCKET),
    (OSError, _UNAVAILABLE),
    (asyncpg.ClientConfigurationError, _CONFIGURATION),
    (asyncpg.UnsupportedClientFeatureError, _CONFIGURATION),
    (asyncpg.exceptions.UnsupportedServerFeatureError, _CONFIGURATION),
    (asyncpg.InterfaceError, _UNAVAILABLE),
    (asyncpg.InternalClientError, _UNAVAILABLE),
)

DRIVER_ERRORS = (asyncpg.PostgresError, *(cls for cls, _ in BY_CLASS))


@contextmanager
def translated(action: str, config: TableConfig, address: str, *, changes: bool = False) -> Iterator[None]:
    """Raise what the block raises as an error of the driver as the ``StoreError`` that says so of ``action``.

    ``changes`` says whether the action changes anything, for then it may have done so all the same.
    """
    try:
        yield
    except DRIVER_ERRORS as exc:
        kind = error, advice = kind_of(exc)
        if kind in {_MISSING, _REFUSED, _PERMISSION}:
            advice += f". This makes the table: {config.ddl}"
        elif kind is _UNAVAILABLE and changes:
            advice += "; it may have happened"
        where = f"{config.qualified_table} at {address}"
        raise error(f"could not {action} in {where}: {_said(exc, config.timeout)}; {advice}") from exc


def kind_of(exc: Exception) -> _Kind:
    """Return what ``exc`` becomes, and what to do about it."""
    if isinstance(exc, asyncpg.PostgresError):
        # Codes that are newer than the driver are known by their class.
        code = _sqlstate(exc)
        return BY_SQLSTATE.get(code) or BY_SQLSTATE.get(code[:2], _UNAVAILABLE)
    return next(kind for cls, kind in BY_CLASS if isinstance(exc, cls))


def _sqlstate(exc: asyncpg.PostgresError) -> str:
    return getattr(exc, "sqlstate", None) or "unknown"


def _said(exc: Exception, timeout: float) -> str:
    if isinstance(exc, asyncpg.PostgresError):
        return f"{exc.args[0]} (SQLSTATE {_sqlstate(exc)})"
    if isinstance(exc, TimeoutError):
        return f"no answer within the timeout of {timeout:g} s"
    if isinstance(exc, UnicodeDecodeError):
        return f"{exc.reason} at byte {exc.start}"
    return str(exc) or type(exc).__name__
