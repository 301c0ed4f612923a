"""What an S3 store is configured by, and how a URL says it."""

from __future__ import annotations

import math
import re

# msgspec reads the annotations at run time, so Annotated and Literal cannot move under TYPE_CHECKING.
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from dagonizer.compression import SUMMARY, Compression, check_compression
from dagonizer.errors import StoreURLError
from dagonizer.url import Host, parameter, parameters_of
from dagonizer_s3._names import MAX_NAME_BYTES, MAX_SEGMENT

if TYPE_CHECKING:
    from typing import Self

    from dagonizer.url import StoreURL

_FORM = "an S3 URL is s3://bucket/prefix; its server is named by ?endpoint_url=http://host:port"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'()@:=+,$&;/-]*")
# What botocore takes: names without '_', and addresses.
_HOST = re.compile(r"((?!-)[A-Za-z0-9-]{1,63}(?<!-)\.)*(?!-)[A-Za-z0-9-]{1,63}(?<!-)|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_PREFIX_BYTES = MAX_NAME_BYTES - MAX_SEGMENT - len("/")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class S3Config:
    """Which bucket an ``S3CheckpointStore`` uses, and how.

    ``prefix`` is what the names of all objects start with, without the ``/`` that ends it. ``access_key_id`` and
    ``secret_access_key`` come together; without them the credentials are those of the usual AWS chain: environment,
    shared files, container, instance. Raises ``ValueError`` for values that no server can accept.
    """

    bucket: str
    prefix: str = ""
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    endpoint_url: str | None = parameter(None, "http://host:port or https://host:port of the server; AWS without it")
    region: str | None = parameter(None, "the bucket's region; from the AWS configuration without it")
    profile: str | None = parameter(None, "the profile of the AWS configuration that has the credentials")
    addressing: Literal["auto", "path", "virtual"] = parameter(
        "auto", "whether the bucket is in the URL's path or in its host; auto: in the path at an endpoint_url"
    )
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = parameter(
        None, "server-side encryption to ask for; the bucket's default without it"
    )
    sse_kms_key_id: str | None = parameter(None, "the KMS key to encrypt with; the account's own without it")
    ca_bundle: str | None = parameter(None, "file of the authorities to trust; the AWS configuration's without it")
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = parameter(50, "connections per event loop; others wait")
    timeout: Annotated[float, msgspec.Meta(gt=0)] = parameter(30.0, "seconds that an operation may take")
    compression: Compression = parameter("none", SUMMARY)  # noqa: RUF009 - its default is immutable

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            raise ValueError(f"a bucket is 3 to 63 letters, digits, inner '.', '-' and '_', not {self.bucket!r}")
        _check_prefix(self.prefix)
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key must be given together")
        if self.access_key_id is not None and self.profile is not None:
            raise ValueError("credentials and a profile exclude each other")
        if self.endpoint_url is not None:
            _endpoint(self.endpoint_url)
        if self.sse_kms_key_id is not None and self.sse not in {"aws:kms", "aws:kms:dsse"}:
            raise ValueError("sse_kms_key_id needs sse=aws:kms or sse=aws:kms:dsse")
        if self.max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, not {self.max_connections!r}")
        # Written so that NaN fails too.
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout must be a finite number of seconds above 0, not {self.timeout!r}")
        check_compression(self.compression)

    @property
    def endpoint(self) -> Host:
        """The host and port that the store connects to; a bucket in the host's name is left out."""
        if self.endpoint_url is not None:
            return _endpoint(self.endpoint_url)
        region = f".{self.region}" if self.region else ""
        suffix = ".cn" if region.startswith(".cn-") else ""
        return Host(f"s3{region}.amazonaws.com{suffix}", _PORTS["https"])

    @property
    def place(self) -> str:
        """Bucket and server, for messages."""
        return f"the bucket {self.bucket!r} at {self.endpoint_url or self.endpoint.name}"

    @classmethod
    def from_url(cls, url: StoreURL) -> Self:
        """Return the configuration that ``s3://access:secret@bucket/prefix?endpoint_url=…`` says.

        Raises ``StoreURLError`` for an unknown or ill-typed parameter, and for a URL without a bucket, with several,
        with a port, or with half of the credentials.
        """
        values = url.read_parameters(PARAMETERS)
        if len(url.hosts) != 1:
            raise StoreURLError(f"{url}: {'one bucket only' if url.hosts else 'the bucket is missing'}; {_FORM}")
        bucket = url.hosts[0]
        if bucket.port is not None:
            raise StoreURLError(f"{url}: a bucket has no port; {_FORM}")
        try:
            return cls(
                bucket=bucket.name,
                prefix=url.path.removeprefix("/").removesuffix("/"),
                access_key_id=url.username,
                secret_access_key=url.password or None,
                **values,
            )
        except ValueError as exc:
            raise StoreURLError(f"{url}: {exc}") from exc


def _check_prefix(prefix: str) -> None:
    if not _PREFIX.fullmatch(prefix):
        raise ValueError("the prefix must consist of ASCII letters, digits and !_.*'()@:=+,$&;/-")
    if prefix and any(segment in {"", ".", ".."} for segment in prefix.split("/")):
        raise ValueError("the prefix must not have '.', '..' or nothing between two '/', nor begin or end with '/'")
    if len(prefix) > _PREFIX_BYTES:
        raise ValueError(f"the prefix has {len(prefix)} characters, more than {_PREFIX_BYTES}")


def _endpoint(endpoint_url: str) -> Host:
    # Without a cause and without the text, either of which may hold credentials.
    wrong = ValueError("endpoint_url must be http://host:port or https://host:port, without credentials and parameters")
    try:
        parts = urlsplit(endpoint_url)
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in _PORTS or "@" in parts.netloc or parts.query or parts.fragment:
        raise wrong
    if parts.hostname is None or not _HOST.fullmatch(parts.hostname):
        raise wrong
    return Host(parts.hostname, _PORTS[parts.scheme] if port is None else port)


PARAMETERS = parameters_of(S3Config)
