"""aioboto3, with one client and as many connections as our store has."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aioboto3
from aiobotocore.config import AioConfig
from s3_url import S3Url
from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class RawS3:
    """PutObject and GetObject."""

    def __init__(self, client: Any, bucket: str) -> None:  # noqa: ANN401 - it has no types
        self._client = client
        self._bucket = bucket

    async def save(self, key: str, text: str) -> None:
        """Put the object."""
        await self._client.put_object(Bucket=self._bucket, Key=f"raw/{key}", Body=text.encode())

    async def load(self, key: str) -> str | None:
        """Get the object."""
        answer = await self._client.get_object(Bucket=self._bucket, Key=f"raw/{key}")
        async with answer["Body"] as body:
            content: bytes = await body.read()
        return content.decode()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RawS3]:
    """Connect to the S3 server of the URL."""
    location = S3Url.parse(url)
    session = aioboto3.Session(location.access_key, location.secret_key, region_name=location.region)
    config = AioConfig(max_pool_connections=50)
    async with session.client("s3", endpoint_url=location.endpoint_url, config=config) as client:
        yield RawS3(client, location.bucket)


if __name__ == "__main__":
    serve(opened)
