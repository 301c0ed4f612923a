"""The plugin for the five schemes of Redis URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagonizer.hookspecs import StoreDescription, hookimpl
from dagonizer.url import Host
from dagonizer_redis._config import CLUSTER, PARAMETERS, SCHEMES, SENTINEL, UNIX, RedisConfig
from dagonizer_redis._store import RedisCheckpointStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dagonizer.diagnosis import Finding
    from dagonizer.url import StoreURL


@hookimpl
def dagonizer_describe_store() -> StoreDescription:
    """Describe Redis URLs."""
    return StoreDescription(schemes=SCHEMES, summary="in Redis or Valkey, one string a key", parameters=PARAMETERS)


@hookimpl
def dagonizer_open_store(url: StoreURL) -> RedisCheckpointStore:
    """Open a URL of any of the five schemes."""
    return RedisCheckpointStore(RedisConfig.from_url(url))


@hookimpl
def dagonizer_store_endpoints(url: StoreURL) -> tuple[Host, ...]:
    """Return the hosts of the URL: without their ports where the servers themselves say where to connect."""
    if url.scheme == UNIX:
        return ()
    if url.scheme in {CLUSTER, SENTINEL}:
        return tuple(Host(host.name, None) for host in url.hosts)
    return url.hosts


@hookimpl
def dagonizer_diagnose_store(url: StoreURL) -> AsyncIterator[Finding]:
    """Examine the server, the sentinels and their primary, or every primary of the cluster."""
    from dagonizer_redis._diagnosis import diagnose  # noqa: PLC0415 - only the doctor needs it

    return diagnose(RedisConfig.from_url(url))
