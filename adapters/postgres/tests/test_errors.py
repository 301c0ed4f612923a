"""The table of errors, which must name all that the driver has."""

from __future__ import annotations

import inspect
import ssl
from typing import TYPE_CHECKING

import asyncpg
import pytest
from asyncpg.exceptions import _base

from dagonizer.errors import (
    StoreAccessError,
    StoreCorruptedError,
    StoreError,
    StoreLimitError,
    StoreUnavailableError,
)
from dagonizer_postgres._config import TableConfig
from dagonizer_postgres._errors import BY_CLASS, BY_SQLSTATE, kind_of, translated

if TYPE_CHECKING:
    from collections.abc import Iterator

A, C, L, U = StoreAccessError, StoreCorruptedError, StoreLimitError, StoreUnavailableError

# What each class of SQLSTATEs becomes, and then the codes that become something else.
EXPECTED = {
    "01": U, "02": U, "03": U, "08": U, "09": A, "0A": A, "0B": U, "0F": A, "0L": A, "0P": A, "0Z": A, "10": A,
    "20": A, "21": A, "22": A, "23": A, "24": U, "25": U, "26": U, "27": A, "28": A, "2B": A, "2D": U, "2F": A,
    "34": U, "38": A, "39": A, "3B": U, "3D": A, "3F": A, "40": U, "42": A, "44": A, "53": L, "54": L, "55": U,
    "57": U, "58": U, "72": U, "F0": U, "HV": A, "P0": A, "XX": U,
    "22001": L, "42P05": U, "53300": U, "57P04": A, "XX001": C, "XX002": C,
}  # fmt: skip

# The driver's errors that are not the server's.
CLIENT = {
    "ClientConfigurationError": A,
    "DataError": U,
    "InterfaceError": U,
    "InternalClientError": U,
    "OutdatedSchemaCacheError": U,
    "ProtocolError": U,
    "TargetServerAttributeNotMatched": U,
    "UnsupportedClientFeatureError": A,
    "UnsupportedServerFeatureError": A,
}


def all_classes() -> Iterator[type[BaseException]]:
    """Find every exception of the driver, wherever it is defined."""
    modules = [asyncpg, asyncpg.exceptions, _base, asyncpg.pool, asyncpg.connection, asyncpg.connect_utils]
    seen = {
        found
        for module in modules
        for found in vars(module).values()
        if inspect.isclass(found) and issubclass(found, BaseException) and found.__module__.startswith("asyncpg")
    }
    yield from sorted(seen, key=lambda found: (found.__module__, found.__name__))


def expected(code: str) -> type[StoreError]:
    return EXPECTED.get(code) or EXPECTED[code[:2]]


def test_every_exception_of_the_driver_becomes_what_the_table_says() -> None:
    servers = 0
    for found in all_classes():
        # A log message can be one as well, and is never raised; signals stay inside of the driver's connect.
        if issubclass(found, Warning) or found.__name__.startswith("_"):
            continue
        if issubclass(found, asyncpg.PostgresError):
            code = getattr(found, "sqlstate", None)
            if code is None:
                assert found.__name__ in {"PostgresError", "FatalPostgresError", "UnknownPostgresError"}
                assert kind_of(found("x"))[0] is U
                continue
            servers += 1
            assert code[:2] in BY_SQLSTATE, f"{found.__name__} is of a class of SQLSTATEs that the table lacks"
            assert kind_of(found("x"))[0] is expected(code), found
        else:
            assert found.__name__ in CLIENT, f"{found.__name__} has no place in the table"
            assert kind_of(found("x"))[0] is CLIENT[found.__name__], found  # type: ignore[arg-type]
    assert servers > 200


def test_every_entry_of_the_table_is_known_to_the_driver() -> None:
    codes = {getattr(found, "sqlstate", None) or "" for found in all_classes()}
    for entry in BY_SQLSTATE:
        assert any(code.startswith(entry) for code in codes), entry
    assert set(EXPECTED) == {code for code in BY_SQLSTATE if len(code) == 2} | {
        code for code, (error, _) in BY_SQLSTATE.items() if error is not BY_SQLSTATE[code[:2]][0]
    }


def test_a_code_that_is_newer_than_the_driver_is_known_by_its_class() -> None:
    exc = asyncpg.PostgresError.new({"C": "53999", "M": "quota"})
    assert type(exc) is asyncpg.exceptions.UnknownPostgresError
    assert kind_of(exc)[0] is L
    assert kind_of(asyncpg.PostgresError.new({"C": "ZZ001", "M": "?"}))[0] is U


@pytest.mark.parametrize(
    ("exc", "error"),
    [
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), C),
        (ssl.SSLCertVerificationError("self-signed"), A),
        (ssl.SSLError("wrong version number"), A),
        (ssl.SSLEOFError("eof"), U),
        (ssl.SSLZeroReturnError("closed"), U),
        (ssl.SSLSyscallError("gone"), U),
        (PermissionError(13, "denied"), A),
        (ConnectionRefusedError(111, "refused"), U),
        (TimeoutError(), U),
        (OSError("no such host"), U),
    ],
)
def test_what_is_not_the_drivers_own(exc: Exception, error: type[StoreError]) -> None:
    assert kind_of(exc)[0] is error
    message = r"^could not save in \"public\"\.\"checkpoints\" at h:1/d: .+; .+"
    with pytest.raises(error, match=message) as caught, translated("save", TableConfig(), "h:1/d"):
        raise exc
    assert type(caught.value) is error
    assert caught.value.__cause__ is exc


def test_other_errors_pass_untouched() -> None:
    for exc in (StoreAccessError("as it is"), KeyError("k")):
        with pytest.raises(type(exc)) as caught, translated("save", TableConfig(), "h"):
            raise exc
        assert caught.value is exc
    assert all(issubclass(cls, Exception) for cls, _ in BY_CLASS)


def test_the_message_says_what_where_why_and_what_to_do() -> None:
    with pytest.raises(StoreAccessError) as caught, translated("load 'k'", TableConfig(table="t"), "h:5432/d"):
        raise asyncpg.UndefinedTableError('relation "public.t" does not exist')
    assert str(caught.value) == (
        'could not load \'k\' in "public"."t" at h:5432/d: relation "public.t" does not exist (SQLSTATE 42P01); '
        f"create what is missing, or have it created by create=auto. This makes the table: {TableConfig(table='t').ddl}"
    )


def test_a_save_that_got_no_connection_has_not_happened() -> None:
    with pytest.raises(StoreUnavailableError) as caught, translated("save", TableConfig(), "h:1/d", changes=True):
        raise asyncpg.TooManyConnectionsError("sorry, too many clients already")
    assert "raise max_connections" in str(caught.value)
    assert "may have happened" not in str(caught.value)
