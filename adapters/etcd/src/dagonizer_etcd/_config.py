"""What an etcd store is configured by, and how a URL says it."""

from __future__ import annotations

import math
import re

# msgspec reads the annotations at run time, so Annotated cannot move under TYPE_CHECKING.
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Annotated

import msgspec

from dagonizer.compression import SUMMARY, Compression, check_compression
from dagonizer.errors import StoreURLError
from dagonizer.url import Host, parameter, parameters_of

if TYPE_CHECKING:
    from typing import Self

    from dagonizer.url import StoreURL

SCHEMES = ("etcd", "etcds", "etcd+http", "etcd+https")

_PORT = 2379
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_HOST = re.compile(rf"({_LABEL}\.)*{_LABEL}\.?")
_MAX_PREFIX_BYTES = 1024
_SMALLEST_CHUNK = 1024
_LONGEST_CONNECT = 5.0
_FORMS = "an etcd URL is etcd://user:password@host:port,host:port/prefix (etcds, etcd+http and etcd+https alike)"


@dataclass(frozen=True, kw_only=True)
class EtcdConfig:
    """Which etcd an ``EtcdCheckpointStore`` uses, and how.

    ``hosts`` are members of one cluster, each with its client port (None: 2379); one that fails is left for the next.
    ``prefix`` begins with a slash; stores with different prefixes share nothing. ``gateway`` chooses the JSON gateway
    instead of gRPC, ``tls`` an encrypted connection. ``username`` and ``password`` are those of an etcd user. Raises
    ``ValueError`` for what cannot be used together, or at all.
    """

    hosts: tuple[Host, ...] = (Host("127.0.0.1", _PORT),)
    prefix: str = "/dagonizer"
    gateway: bool = False
    tls: bool = False
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    timeout: Annotated[float, msgspec.Meta(gt=0)] = parameter(30.0, "seconds for an operation, connecting included")
    chunk_bytes: Annotated[int, msgspec.Meta(ge=_SMALLEST_CHUNK)] = parameter(
        1400 << 10, "largest value of one request; leave etcd's --max-request-bytes (1.5 MiB) a few KiB beside it"
    )
    compression: Compression = parameter("none", SUMMARY)  # noqa: RUF009 - its default is immutable
    keepalive: Annotated[float, msgspec.Meta(gt=0)] = parameter(
        10.0, "seconds without an answer until gRPC pings, and until it gives up; from 5 on, or etcd hangs up"
    )
    tls_ca: str | None = parameter(None, "PEM file of the authorities to trust; default: those of gRPC or the system")
    tls_cert: str | None = parameter(None, "PEM file of the client certificate")
    tls_key: str | None = parameter(None, "PEM file of the client certificate's key")
    tls_server_name: str | None = parameter(None, "name that the server's certificate must have; default: the host")

    def __post_init__(self) -> None:
        if not self.hosts:
            raise ValueError("the host is missing")
        for host in self.hosts:
            _check_host(host.name)
        if self.tls_server_name is not None:
            _check_host(self.tls_server_name)
        object.__setattr__(self, "hosts", tuple(Host(host.name, host.port or _PORT) for host in self.hosts))
        _check_prefix(self.prefix)
        if (self.username is None) != (self.password is None):
            raise ValueError("etcd wants a user name and a password, or neither")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("'tls_cert' and 'tls_key' are needed together")
        if not self.tls and any((self.tls_ca, self.tls_cert, self.tls_server_name)):
            raise ValueError("parameters that begin with 'tls_' need TLS: write etcds: or etcd+https:")
        # Written so that NaN fails too.
        for name in ("timeout", "keepalive"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number of seconds above 0, not {getattr(self, name)!r}")
        if self.chunk_bytes < _SMALLEST_CHUNK:
            raise ValueError(f"chunk_bytes must be at least {_SMALLEST_CHUNK}, not {self.chunk_bytes!r}")
        check_compression(self.compression)

    @classmethod
    def from_url(cls, url: StoreURL) -> Self:
        """Return the configuration that ``etcd://user:password@host:port,host:port/prefix?timeout=…&…`` says.

        Without a path the prefix is ``/dagonizer``. Raises ``StoreURLError`` for an unknown or ill-typed parameter, no
        host, a prefix with an empty part, and parameters that do not go together.
        """
        values = url.read_parameters(PARAMETERS)
        prefix = url.path.removesuffix("/")
        if prefix:
            values["prefix"] = prefix
        try:
            return cls(
                hosts=url.hosts,
                gateway=url.scheme.startswith("etcd+"),
                tls=url.scheme.endswith("s"),
                username=url.username,
                password=url.password,
                **values,
            )
        except ValueError as exc:
            raise StoreURLError(f"{url}: {exc}; {_FORMS}") from exc

    @property
    def connect_timeout(self) -> float:
        """Seconds until a host that neither accepts nor refuses is given up, which leaves time for the next."""
        return min(_LONGEST_CONNECT, self.timeout / len(self.hosts) / 2)

    @property
    def where(self) -> str:
        """The hosts and ports, for messages."""
        return ",".join(address(host) for host in self.hosts)


def address(host: Host) -> str:
    """Return ``name:port``, with an IPv6 address in brackets."""
    return f"[{host.name}]:{host.port}" if ":" in host.name else f"{host.name}:{host.port}"


def _check_host(name: str) -> None:
    # An address of one link is followed by the name of an interface. One that is none raises a ValueError of its own.
    rest = IPv6Address(name).scope_id if ":" in name else name
    if rest is not None and not _HOST.fullmatch(rest):
        raise ValueError(f"{name!r} is no name or address of a host (if it is not ASCII, write it as xn--…)")


def _check_prefix(prefix: str) -> None:
    # Keys follow after two slashes. So no prefix may have those, or end in one, for the first two to be its end.
    if not prefix.startswith("/") or "//" in prefix or prefix.endswith("/"):
        raise ValueError(f"the prefix {prefix!r} must be written /part/part, and no part be empty")
    try:
        encoded = prefix.encode()
    except UnicodeEncodeError as exc:
        raise ValueError("the prefix has a lone surrogate") from exc
    if 0 in encoded:
        raise ValueError("the prefix must not contain U+0000")
    if len(encoded) > _MAX_PREFIX_BYTES:
        raise ValueError(f"the prefix has {len(encoded)} UTF-8 bytes, more than {_MAX_PREFIX_BYTES}")


PARAMETERS = parameters_of(EtcdConfig)
