"""The plugin for ``acme:`` URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagonizer.hookspecs import StoreDescription, hookimpl
from dagonizer_acme._config import PARAMETERS, AcmeConfig
from dagonizer_acme._store import AcmeCheckpointStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dagonizer.diagnosis import Finding
    from dagonizer.url import StoreURL


@hookimpl
def dagonizer_describe_store() -> StoreDescription:
    """Describe ``acme:`` URLs."""
    return StoreDescription(schemes=("acme",), summary="in Acme", parameters=PARAMETERS)


@hookimpl
def dagonizer_open_store(url: StoreURL) -> AcmeCheckpointStore:
    """Open ``acme://user:password@host:port/path``."""
    return AcmeCheckpointStore(AcmeConfig.from_url(url))


@hookimpl
def dagonizer_diagnose_store(url: StoreURL) -> AsyncIterator[Finding]:
    """Examine the server of an ``acme:`` URL."""
    from dagonizer_acme._diagnosis import diagnose  # noqa: PLC0415 - only the doctor needs it

    return diagnose(AcmeConfig.from_url(url))
