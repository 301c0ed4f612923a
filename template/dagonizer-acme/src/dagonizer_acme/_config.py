"""What an Acme store is configured by, and how a URL says it."""

from __future__ import annotations

import math

# msgspec reads the annotations at run time, so Annotated cannot move under TYPE_CHECKING.
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import msgspec

from dagonizer.errors import StoreURLError
from dagonizer.url import Host, parameter, parameters_of

if TYPE_CHECKING:
    from typing import Self

    from dagonizer.url import StoreURL


@dataclass(frozen=True, kw_only=True)
class AcmeConfig:
    """Where an ``AcmeCheckpointStore`` keeps its entries, and how.

    A host's port of None is the usual one. ``timeout`` is in seconds. Raises ``ValueError`` for what makes no sense.
    """

    hosts: tuple[Host, ...] = ()
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    path: str = ""
    prefix: str = parameter("dagonizer", "name that stands, with a colon, before every key")
    timeout: Annotated[float, msgspec.Meta(gt=0)] = parameter(30.0, "seconds that any operation may take")

    def __post_init__(self) -> None:
        # Written so that NaN fails too.
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout must be a finite number of seconds above 0, not {self.timeout!r}")
        try:
            self.prefix.encode()
        except UnicodeEncodeError as exc:
            raise ValueError("the prefix has a lone surrogate") from exc

    @classmethod
    def from_url(cls, url: StoreURL) -> Self:
        """Return the configuration that ``acme://user:password@host:port/path?prefix=…&timeout=…`` says.

        Raises ``StoreURLError`` for an unknown or ill-typed parameter, and for a part that makes no sense.
        """
        # Refuse as well what the URL of another store has and this one's does not: see url.hosts, url.path and so on.
        values = url.read_parameters(PARAMETERS)
        try:
            return cls(hosts=url.hosts, username=url.username, password=url.password, path=url.path, **values)
        except ValueError as exc:
            raise StoreURLError(f"{url}: {exc}") from exc

    @property
    def where(self) -> str:
        """What messages call the server."""
        return ",".join(host.name if host.port is None else f"{host.name}:{host.port}" for host in self.hosts) or "Acme"


PARAMETERS = parameters_of(AcmeConfig)
