"""The S3 URL that a subject gets, in its parts."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit


class S3Url(NamedTuple):
    """``s3://NAME:SECRET@BUCKET/PREFIX?endpoint_url=URL&region=NAME``.

    The credentials may also be parameters, ``access_key`` and ``secret_key``.
    """

    bucket: str
    prefix: str
    endpoint_url: str
    region: str
    access_key: str
    secret_key: str

    @classmethod
    def parse(cls, url: str) -> S3Url:
        """Return the parts. Raises ``TypeError`` for a parameter that is missing or unknown."""
        split = urlsplit(url)
        parameters = dict(parse_qsl(split.query, strict_parsing=True))
        if split.username is not None and split.password is not None:
            parameters |= {"access_key": unquote(split.username), "secret_key": unquote(split.password)}
        return cls(split.netloc.rpartition("@")[2], unquote(split.path).strip("/"), **parameters)
