"""What a Redis store is configured by, and how a URL says it."""

from __future__ import annotations

import math

# msgspec reads the annotations at run time, so Annotated and Literal cannot move under TYPE_CHECKING.
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from dagonizer.compression import SUMMARY, Compression, check_compression
from dagonizer.errors import StoreURLError
from dagonizer.url import Host, parameter, parameters_of

if TYPE_CHECKING:
    from typing import Self

    from dagonizer.url import StoreURL

REDIS, REDISS, UNIX, CLUSTER, SENTINEL = SCHEMES = (
    "redis", "rediss", "redis+unix", "redis+cluster", "redis+sentinel",
)  # fmt: skip

_FORMS = {
    REDIS: "redis://user:password@host:port/database",
    REDISS: "rediss://user:password@host:port/database",
    UNIX: "redis+unix:///path/to/socket?db=database",
    CLUSTER: "redis+cluster://user:password@host:port,host:port",
    SENTINEL: "redis+sentinel://user:password@host:port,host:port/service/database",
}
_PORT = 6379
_SENTINEL_PORT = 26379


@dataclass(frozen=True, kw_only=True)
class RedisConfig:
    """Where a ``RedisCheckpointStore`` keeps its entries, and how.

    ``hosts`` is the server, or nodes of the cluster (``cluster``), or the sentinels of ``service``; a port of None is
    the usual one. ``path`` is a Unix socket instead. ``timeout`` is in seconds. Raises ``ValueError`` for what
    contradicts itself.
    """

    hosts: tuple[Host, ...] = (Host("localhost", None),)
    path: str | None = None
    cluster: bool = False
    service: str | None = None
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    prefix: str = parameter("dagonizer", "the name that stands, with a colon, before every key in the database")
    db: Annotated[int, msgspec.Meta(ge=0)] = parameter(0, "number of the database, if the path does not say it")
    wait: Annotated[int, msgspec.Meta(ge=0)] = parameter(0, "replicas that must acknowledge a save or deletion")
    timeout: Annotated[float, msgspec.Meta(gt=0)] = parameter(30.0, "seconds that any operation may take")
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = parameter(32, "connections to one server at most")
    compression: Compression = parameter("none", SUMMARY)  # noqa: RUF009 - its default is immutable
    tls: bool = parameter(False, "whether to use TLS with a cluster or with sentinels and their servers")
    tls_ca: str | None = parameter(None, "file of the certificate authorities, if not the system's")
    tls_cert: str | None = parameter(None, "file of the client's certificate")
    tls_key: str | None = parameter(None, "file of the client's private key, if not in tls_cert")
    tls_verify: Literal["full", "ca", "none"] = parameter(
        "full", "what is checked of the server's certificate: authority and name, authority only, nothing"
    )
    sentinel_username: str | None = field(
        default=None, repr=False, metadata={"description": "user name for the sentinels themselves"}
    )
    sentinel_password: str | None = field(
        default=None, repr=False, metadata={"description": "password for the sentinels themselves"}
    )

    def __post_init__(self) -> None:
        mistakes = self._mistakes()
        if mistakes:
            raise ValueError(mistakes[0])
        check_compression(self.compression)

    @classmethod
    def from_url(cls, url: StoreURL) -> Self:
        """Return the configuration that a URL of one of the five schemes says.

        Raises ``StoreURLError`` for an unknown or ill-typed parameter, and for a part that the scheme does not have.
        """
        values = url.read_parameters(PARAMETERS)
        try:
            return cls(username=url.username, password=url.password, **_places(url, values), **values)
        except ValueError as exc:
            raise StoreURLError(f"{url}: {exc}; the form is {_FORMS[url.scheme]}") from exc

    @property
    def addresses(self) -> tuple[Host, ...]:
        """The hosts, each with its port; none with a socket."""
        if self.path is not None:
            return ()
        usual = _PORT if self.service is None else _SENTINEL_PORT
        return tuple(Host(host.name, usual if host.port is None else host.port) for host in self.hosts)

    @property
    def where(self) -> str:
        """What messages call the server."""
        hosts = ",".join(map(shown, self.addresses))
        return self.path or (hosts if self.service is None else f"{self.service} (sentinels {hosts})")

    @property
    def beginning(self) -> bytes:
        """How the names of entries begin in the database."""
        return self.prefix.replace("%", "%25").replace(":", "%3A").encode() + b":"

    def _mistakes(self) -> list[str]:
        several = self.cluster or self.service is not None
        tls_options = self.tls_ca or self.tls_cert or self.tls_key or self.tls_verify != "full"
        rules = (
            (self.path is not None and not self.path.strip("/"), "the path of the socket is missing"),
            (self.path is not None and (several or self.tls), "a socket has neither cluster, sentinels nor TLS"),
            (not self.hosts, "the host is missing"),
            (len(self.hosts) > 1 and not several, "one host, or several with redis+cluster: or redis+sentinel:"),
            (self.cluster and self.service is not None, "a cluster has no sentinels"),
            (self.cluster and self.db != 0, "a cluster has database 0 only"),
            (self.service == "", "the name of the service is missing"),
            (self.username is not None and self.password is None, "the user name needs a password"),
            (self.sentinel_username and not self.sentinel_password, "sentinel_username needs sentinel_password"),
            (self.sentinel_password and self.service is None, "sentinel_password is for sentinels only"),
            (tls_options and not self.tls, "tls_ca, tls_cert, tls_key and tls_verify need rediss: or tls=true"),
            (self.tls_key and not self.tls_cert, "tls_key needs tls_cert"),
            (not _is_utf8(self.prefix), "the prefix has a lone surrogate"),
            (self.db < 0, f"db must be at least 0, not {self.db!r}"),
            (self.wait < 0, f"wait must be at least 0, not {self.wait!r}"),
            (self.max_connections < 1, f"max_connections must be at least 1, not {self.max_connections!r}"),
            # Written so that NaN fails too.
            (
                not 0 < self.timeout < math.inf,
                f"timeout must be a finite number of seconds above 0, not {self.timeout!r}",
            ),
        )
        return [message for wrong, message in rules if wrong]


def shown(host: Host) -> str:
    """Return ``name:port``."""
    return f"[{host.name}]:{host.port}" if ":" in host.name else f"{host.name}:{host.port}"


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _places(url: StoreURL, values: dict[str, Any]) -> dict[str, Any]:
    """Return what the parts of ``url`` before its query say. Raises ``ValueError``."""
    if url.scheme == UNIX:
        if url.hosts:
            raise ValueError("a socket has no host (two slashes begin a host, three a path)")
        return {"path": url.path}
    if "tls" in values and url.scheme in {REDIS, REDISS}:
        raise ValueError("tls is for clusters and sentinels; write redis: or rediss: instead")
    places: dict[str, Any] = {"hosts": url.hosts, "cluster": url.scheme == CLUSTER}
    if url.scheme == REDISS:
        places["tls"] = True
    database = url.path.removeprefix("/")
    if url.scheme == SENTINEL:
        places["service"], _, database = database.partition("/")
    if database:
        if not (database.isascii() and database.isdigit()):
            raise ValueError("the database must be a number")
        if "db" in values:
            raise ValueError("the database is given twice, in the path and by db")
        places["db"] = int(database)
    return places


PARAMETERS = parameters_of(RedisConfig)
