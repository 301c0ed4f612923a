"""The plugin for ``file:`` URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagonizer.hookspecs import StoreDescription, hookimpl
from dagonizer_file._config import PARAMETERS, FileConfig
from dagonizer_file._store import FileCheckpointStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dagonizer.diagnosis import Finding
    from dagonizer.url import StoreURL


@hookimpl
def dagonizer_describe_store() -> StoreDescription:
    """Describe ``file:`` URLs."""
    return StoreDescription(schemes=("file",), summary="in a directory, one file a key", parameters=PARAMETERS)


@hookimpl
def dagonizer_open_store(url: StoreURL) -> FileCheckpointStore:
    """Open ``file:///absolute/directory`` or ``file:relative/directory``."""
    return FileCheckpointStore(FileConfig.from_url(url))


@hookimpl
def dagonizer_diagnose_store(url: StoreURL) -> AsyncIterator[Finding]:
    """Examine the directory of a file URL and its file system."""
    from dagonizer_file._diagnosis import diagnose  # noqa: PLC0415 - only the doctor needs it

    return diagnose(FileConfig.from_url(url))
