# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "py-key-value-aio[s3]==0.5.0",
#     "aiobotocore==3.10.0",
# ]
# ///
"""py-key-value-aio on S3, through aiobotocore with the ten connections that it has by default.

Durability: the server's, of one PutObject, so no weaker than ours.

A value is JSON in ASCII with sorted keys, in an envelope with the time, in one request whatever its size. A key becomes
``COLLECTION/KEY``, and is neither checked nor shortened.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from key_value.aio.stores.s3 import S3Store
from key_value_subject import KeyValue
from s3_url import S3Url
from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[KeyValue]:
    """Connect to the S3 server of the URL; the prefix is the collection."""
    location = S3Url.parse(url)
    async with S3Store(
        bucket_name=location.bucket,
        default_collection=location.prefix or None,
        endpoint_url=location.endpoint_url,
        region_name=location.region,
        aws_access_key_id=location.access_key,
        aws_secret_access_key=location.secret_key,
    ) as store:
        yield KeyValue(store)


if __name__ == "__main__":
    serve(opened)
