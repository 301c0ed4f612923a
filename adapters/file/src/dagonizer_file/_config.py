"""What a file store is configured by, and how a URL says it."""

from __future__ import annotations

import os

# msgspec reads the annotations at run time, so Path and Annotated cannot move under TYPE_CHECKING.
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from dagonizer.compression import SUMMARY, Compression, check_compression
from dagonizer.errors import StoreURLError
from dagonizer.url import parameter, parameters_of

if TYPE_CHECKING:
    from typing import Self

    from dagonizer.url import StoreURL

_FORMS = "a file URL is file:///absolute/directory or file:relative/directory"


@dataclass(frozen=True, kw_only=True)
class FileConfig:
    """Where a ``FileCheckpointStore`` keeps its files, and how.

    ``root`` is the directory, made on the first save. ``fsync`` makes saves and deletions survive a power failure.
    ``timeout`` is in seconds. ``compression`` is of what is saved; what is loaded is recognised. Raises ``ValueError``
    for a root that no file system can hold, a timeout not above 0, or a compression that is unknown or not installed.
    """

    root: Path
    fsync: bool = parameter(True, "whether saves and deletions are flushed to the disk before they return")
    timeout: Annotated[float, msgspec.Meta(gt=0)] = parameter(30.0, "seconds to wait for another process's lock")
    compression: Compression = parameter("none", SUMMARY)  # noqa: RUF009 - as for the others; ruff does not see that it is a str

    def __post_init__(self) -> None:
        try:
            encoded = os.fsencode(self.root)
        except UnicodeEncodeError as exc:
            raise ValueError("the directory's name cannot be encoded for the file system") from exc
        if 0 in encoded:
            raise ValueError("the directory's name must not contain U+0000")
        # Written so that NaN fails too.
        if not self.timeout > 0:
            raise ValueError(f"timeout must be a number of seconds above 0, not {self.timeout!r}")
        check_compression(self.compression)

    @classmethod
    def from_url(cls, url: StoreURL) -> Self:
        """Return the configuration that ``file:///absolute/directory?fsync=…&timeout=…&compression=…`` says.

        Raises ``StoreURLError`` for an unknown or ill-typed parameter, and for a URL with credentials, a port, a host
        other than ``localhost``, or no path.
        """
        values = url.read_parameters(PARAMETERS)
        if url.username is not None or url.password is not None:
            raise StoreURLError(f"{url}: a file URL has no user name or password; {_FORMS}")
        for host in url.hosts:
            if host.port is not None or host.name.lower() != "localhost" or len(url.hosts) > 1:
                raise StoreURLError(
                    f"{url}: a file URL names no host but localhost; {_FORMS} "
                    "(two slashes begin a host, three an absolute directory)"
                )
        if not url.path:
            raise StoreURLError(f"{url}: the directory is missing; {_FORMS}")
        try:
            return cls(root=Path(url.path), **values)
        except ValueError as exc:
            raise StoreURLError(f"{url}: {exc}") from exc


PARAMETERS = parameters_of(FileConfig)
