"""The plugin for ``s3:`` URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagonizer.hookspecs import StoreDescription, hookimpl
from dagonizer_s3._config import PARAMETERS, S3Config
from dagonizer_s3._store import S3CheckpointStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dagonizer.diagnosis import Finding
    from dagonizer.url import Host, StoreURL


@hookimpl
def dagonizer_describe_store() -> StoreDescription:
    """Describe ``s3:`` URLs."""
    return StoreDescription(
        schemes=("s3",), summary="in a bucket of S3 or what speaks its protocol", parameters=PARAMETERS
    )


@hookimpl
def dagonizer_open_store(url: StoreURL) -> S3CheckpointStore:
    """Open ``s3://bucket/prefix``."""
    return S3CheckpointStore(S3Config.from_url(url))


@hookimpl
def dagonizer_store_endpoints(url: StoreURL) -> tuple[Host, ...]:
    """Return the endpoint's host: what stands where other URLs have a host is the bucket."""
    return (S3Config.from_url(url).endpoint,)


@hookimpl
def dagonizer_diagnose_store(url: StoreURL) -> AsyncIterator[Finding]:
    """Examine the bucket of ``url``."""
    # Whoever only opens a store has no need of it.
    from dagonizer_s3._diagnosis import diagnose  # noqa: PLC0415

    return diagnose(S3Config.from_url(url))
