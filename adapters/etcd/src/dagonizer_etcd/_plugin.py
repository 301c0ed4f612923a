"""The plugin for ``etcd:``, ``etcds:``, ``etcd+http:`` and ``etcd+https:`` URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagonizer.hookspecs import StoreDescription, hookimpl
from dagonizer_etcd._config import PARAMETERS, SCHEMES, EtcdConfig
from dagonizer_etcd._store import EtcdCheckpointStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from dagonizer.diagnosis import Finding
    from dagonizer.url import Host, StoreURL


@hookimpl
def dagonizer_describe_store() -> StoreDescription:
    """Describe the URLs of etcd."""
    return StoreDescription(
        schemes=SCHEMES, summary="in etcd, over gRPC (etcd, etcds) or its JSON gateway", parameters=PARAMETERS
    )


@hookimpl
def dagonizer_open_store(url: StoreURL) -> EtcdCheckpointStore:
    """Open ``etcd://host:port,host:port/prefix``, or the same with ``etcds``, ``etcd+http`` or ``etcd+https``."""
    return EtcdCheckpointStore(EtcdConfig.from_url(url))


@hookimpl
def dagonizer_store_endpoints(url: StoreURL) -> Sequence[Host]:
    """Return the hosts of ``url``, each with its port."""
    return EtcdConfig.from_url(url).hosts


@hookimpl
def dagonizer_diagnose_store(url: StoreURL) -> AsyncIterator[Finding]:
    """Examine the cluster of ``url``."""
    # Whoever only opens a store has no need of it.
    from dagonizer_etcd._diagnosis import diagnose  # noqa: PLC0415

    return diagnose(EtcdConfig.from_url(url))
