"""What a PostgreSQL store is configured by, and how a URL says it."""

from __future__ import annotations

import math
import re

# msgspec reads the annotations at run time, so Annotated and Literal cannot move under TYPE_CHECKING.
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from dagonizer.errors import StoreURLError
from dagonizer.url import Host, parameter, parameters_of

if TYPE_CHECKING:
    from typing import Self

    from dagonizer.url import StoreURL

_FORM = "a PostgreSQL URL is postgresql://user:password@host:port,host:port/database"
_PORT = 5432
# Longer names are cut by the server, without a word, and then two of them may be one (NAMEDATALEN - 1).
_MAX_NAME_BYTES = 63
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Which table a ``PostgresCheckpointStore`` uses, and how long it may take.

    ``timeout`` is in seconds. Raises ``ValueError`` for a name that PostgreSQL cannot hold, or a timeout that is not
    finite and above 0.
    """

    schema: str = parameter("public", "schema of the table")
    table: str = parameter("checkpoints", "name of the table")
    create: Literal["auto", "never"] = parameter("auto", "whether a missing table is created, with its schema")
    timeout: Annotated[float, msgspec.Meta(gt=0)] = parameter(30.0, "seconds that an operation may take")

    def __post_init__(self) -> None:
        _check_name("schema", self.schema)
        _check_name("table", self.table)
        if self.create not in {"auto", "never"}:
            raise ValueError(f"create must be 'auto' or 'never', not {self.create!r}")
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout must be a finite number of seconds above 0, not {self.timeout!r}")

    @property
    def qualified_table(self) -> str:
        """The table with its schema, as SQL."""
        return f"{quoted(self.schema)}.{quoted(self.table)}"

    @property
    def ddl(self) -> str:
        """The SQL statement that creates the table, in a schema that exists."""
        # PostgreSQL's own compression is slower than a disk.
        return self._table_ddl("text COMPRESSION lz4")

    @property
    def ddl_without_lz4(self) -> str:
        """The same for a server that has no LZ4: PostgreSQL 13, or one that was built without it."""
        return self._table_ddl("text")

    @property
    def schema_ddl(self) -> str:
        """The SQL statement that creates the schema."""
        return f"CREATE SCHEMA IF NOT EXISTS {quoted(self.schema)}"

    def _table_ddl(self, text: str) -> str:
        return f"""CREATE TABLE IF NOT EXISTS {self.qualified_table} (
    key text COLLATE "C" PRIMARY KEY,
    json {text} NOT NULL,
    revision uuid NOT NULL DEFAULT gen_random_uuid(),
    saved_at timestamptz NOT NULL DEFAULT now()
)"""


@dataclass(frozen=True, kw_only=True)
class PostgresConfig(TableConfig):
    """Where a ``PostgresCheckpointStore`` finds its server and its table, and how it connects.

    ``hosts`` are names, addresses, or absolute directories of Unix sockets; the first that accepts writes is used. A
    port of None is 5432, a ``user`` of None the operating system's, and a ``password`` of None is looked for in
    ``PGPASSWORD`` and the password file. No other environment variable and no other file has a say.

    Raises ``ValueError`` for what makes no sense.
    """

    hosts: tuple[Host, ...]
    database: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = parameter(
        "prefer", "whether TLS is used, and what of the server's certificate is verified, as in libpq"
    )
    sslrootcert: str | None = parameter(None, "file of the certificates to trust, or 'system'")
    sslcert: str | None = parameter(None, "file of the client's certificate")
    sslkey: str | None = parameter(None, "file of the client's key, if it is not in sslcert")
    sslpassword: str | None = field(
        default=None, repr=False, metadata={"description": "password of the client's key, if it is encrypted"}
    )
    statement_cache_size: Annotated[int, msgspec.Meta(ge=0)] | None = parameter(
        None, "prepared statements kept for each connection; the default is 100, or 0 behind a pooler"
    )
    pool_size: Annotated[int, msgspec.Meta(ge=1)] = parameter(10, "connections at most, for each event loop")
    application_name: str = parameter("dagonizer", "name of the client in pg_stat_activity and the server's log")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hosts:
            raise ValueError(f"a host is missing; {_FORM}, and /directory is percent-encoded for a Unix socket")
        for host in self.hosts:
            _check_host(host.name)
        _check_name("database", self.database)
        for name, text in (
            ("user", self.user),
            ("password", self.password),
            ("sslpassword", self.sslpassword),
            ("application_name", self.application_name),
        ):
            if text is not None:
                _check_text(name, text)
        if self.statement_cache_size is not None and self.statement_cache_size < 0:
            raise ValueError(f"statement_cache_size must be at least 0, not {self.statement_cache_size}")
        if self.pool_size < 1:
            raise ValueError(f"pool_size must be at least 1, not {self.pool_size}")
        self._check_tls()

    def _check_tls(self) -> None:
        if self.sslmode not in _SSL_MODES:
            raise ValueError(f"sslmode must be one of {', '.join(_SSL_MODES)}, not {self.sslmode!r}")
        if self.sslrootcert is not None and self.sslmode in {"disable", "allow", "prefer"}:
            raise ValueError(
                f"sslrootcert has no effect with sslmode={self.sslmode}; write sslmode=verify-full, which verifies the "
                "server's certificate and host name"
            )
        if self.sslrootcert is None and self.sslmode in {"verify-ca", "verify-full"}:
            raise ValueError(
                f"sslmode={self.sslmode} needs sslrootcert=/path/to/ca.pem, or sslrootcert=system for the certificates "
                "that this machine trusts"
            )
        if self.sslrootcert == "system" and self.sslmode != "verify-full":
            raise ValueError("sslrootcert=system needs sslmode=verify-full, for anybody can have such a certificate")
        if self.sslcert is not None and self.sslmode == "disable":
            raise ValueError("sslcert has no effect with sslmode=disable")
        if self.sslcert is None and (self.sslkey is not None or self.sslpassword is not None):
            raise ValueError("sslkey and sslpassword need sslcert, the file of the client's certificate")

    @property
    def address(self) -> str:
        """Where the table's database is, for messages."""
        hosts = ",".join(
            host.name if host.name.startswith("/") else f"{host.name}:{host.port or _PORT}" for host in self.hosts
        )
        return f"{hosts}/{self.database}"

    @classmethod
    def from_url(cls, url: StoreURL) -> Self:
        """Return the configuration that ``postgresql://user:password@host:port,host:port/database?…`` says.

        A host may be a percent-encoded directory of a Unix socket (``%2Frun%2Fpostgresql``). Raises ``StoreURLError``
        for an unknown or ill-typed parameter, a missing host or database, and values that make no sense.
        """
        values = url.read_parameters(PARAMETERS)
        database = url.path.removeprefix("/")
        if not database:
            raise StoreURLError(f"{url}: the database is missing; {_FORM}")
        try:
            return cls(hosts=url.hosts, database=database, user=url.username, password=url.password, **values)
        except ValueError as exc:
            raise StoreURLError(f"{url}: {exc}") from exc


PARAMETERS = parameters_of(PostgresConfig)


def _check_name(what: str, name: str) -> None:
    _check_text(f"the name of the {what}", name)
    size = len(name.encode())
    if not 0 < size <= _MAX_NAME_BYTES:
        raise ValueError(f"the name of the {what} must have 1 to {_MAX_NAME_BYTES} UTF-8 bytes; it has {size} bytes")


def _check_host(name: str) -> None:
    _check_text("a host", name)
    try:
        # As the socket module does; a directory has no labels.
        size = len(name if name.startswith("/") else name.encode("idna"))
    except UnicodeError:
        size = 0
    if not size:
        raise ValueError(f"the host {name!r} must have labels of 1 to 63 characters, with a dot between two")


def _check_text(what: str, text: str) -> None:
    # Not by encoding it, for the error would hold the text, which may be secret.
    if _NOT_TEXT.search(text):
        raise ValueError(f"{what} must not contain U+0000 or a lone surrogate")


def quoted(name: str) -> str:
    """Return ``name`` as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'
