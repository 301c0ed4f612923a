# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "langgraph-checkpoint-objectstorage[s3]==0.1.15",
#     "langgraph-checkpoint==4.3.2",
#     "s3fs==2026.9.0",
#     "aiobotocore==3.10.0",
# ]
# ///
"""A checkpointer of LangGraph's on S3, of another author, through s3fs with the ten connections that it has by default.

Durability: the server's, of one PutObject, or above 100 MiB of a multipart upload, so no weaker than ours.

A value is msgpack, not compressed by default: integers beyond 64 bits are refused, and lone surrogates become question
marks. A key is a part of the object's path, and it may hold only letters, digits, dots, colons, hyphens and
underscores. A save asks for the bucket first, and a load lists the thread's checkpoints, which takes the longer the
more there are, and then the writes of the latest.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from langgraph_checkpoint_objectstorage import ObjectStorageSaver
from langgraph_subject import LangGraph
from s3_url import S3Url
from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[LangGraph]:
    """Connect to the S3 server of the URL; without a prefix there, it is ``langgraph``."""
    location = S3Url.parse(url)
    saver = ObjectStorageSaver.from_conn_string(
        f"s3://{location.bucket}/{location.prefix or 'langgraph'}",
        key=location.access_key,
        secret=location.secret_key,
        client_kwargs={"endpoint_url": location.endpoint_url, "region_name": location.region},
        asynchronous=True,
    )
    session = await saver.fs.set_session()
    try:
        yield LangGraph(saver)
    finally:
        await session.close()


if __name__ == "__main__":
    serve(opened)
