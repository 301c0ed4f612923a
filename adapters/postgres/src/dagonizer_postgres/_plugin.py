"""The plugin for ``postgresql:`` and ``postgres:`` URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagonizer.hookspecs import StoreDescription, hookimpl
from dagonizer_postgres._config import PARAMETERS, PostgresConfig
from dagonizer_postgres._store import PostgresCheckpointStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dagonizer.diagnosis import Finding
    from dagonizer.url import Host, StoreURL


@hookimpl
def dagonizer_describe_store() -> StoreDescription:
    """Describe ``postgresql:`` URLs."""
    return StoreDescription(
        schemes=("postgresql", "postgres"), summary="in a PostgreSQL table, one row a key", parameters=PARAMETERS
    )


@hookimpl
def dagonizer_open_store(url: StoreURL) -> PostgresCheckpointStore:
    """Open ``postgresql://user:password@host:port,host:port/database``."""
    return PostgresCheckpointStore(PostgresConfig.from_url(url))


@hookimpl
def dagonizer_store_endpoints(url: StoreURL) -> tuple[Host, ...]:
    """Return the hosts of ``url``, except directories of Unix sockets."""
    return tuple(host for host in PostgresConfig.from_url(url).hosts if not host.name.startswith("/"))


@hookimpl
def dagonizer_diagnose_store(url: StoreURL) -> AsyncIterator[Finding]:
    """Examine the servers of ``url`` and the table."""
    from dagonizer_postgres._diagnosis import diagnose  # noqa: PLC0415 - only the doctor needs it

    return diagnose(PostgresConfig.from_url(url))
