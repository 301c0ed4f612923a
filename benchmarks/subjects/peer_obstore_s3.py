# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "obstore==0.12.1",
# ]
# ///
"""obstore on S3, with the connections that it makes by itself.

Durability: the server's, of one PutObject, or above 5 MiB of a multipart upload, so no weaker than ours.

A value is the UTF-8 of the text. A key is a path: it must have no empty, ``.`` or ``..`` part.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from obstore.store import S3Store
from s3_url import S3Url
from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Obstore:
    """``put_async`` and ``get_async``."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    async def save(self, key: str, text: str) -> None:
        """Put the object."""
        await self._store.put_async(key, text.encode())

    async def load(self, key: str) -> str | None:
        """Get the object."""
        try:
            found = await self._store.get_async(key)
        except FileNotFoundError:
            return None
        return str(await found.bytes_async(), "utf-8")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Obstore]:
    """Connect to the S3 server of the URL; without a prefix there, it is ``obstore``."""
    location = S3Url.parse(url)
    yield Obstore(
        S3Store(
            location.bucket,
            prefix=location.prefix or "obstore",
            endpoint=location.endpoint_url,
            region=location.region,
            access_key_id=location.access_key,
            secret_access_key=location.secret_key,
            client_options={"allow_http": True},
        )
    )


if __name__ == "__main__":
    serve(opened)
