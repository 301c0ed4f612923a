# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "py-key-value-aio[redis]==0.5.0",
#     "redis==8.1.0",
# ]
# ///
"""py-key-value-aio on Redis, through redis-py with the pool that it makes by itself.

Durability: the server's, of one SET, so no weaker than ours.

A value is JSON in ASCII with sorted keys, in an envelope with key, collection and time. One that cannot be read is
taken for absent. A key becomes ``default_collection::KEY``.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from key_value.aio.stores.redis import RedisStore
from key_value_subject import KeyValue
from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[KeyValue]:
    """Connect to ``redis://HOST:PORT/DB``."""
    async with RedisStore(url=url) as store:
        yield KeyValue(store)


if __name__ == "__main__":
    serve(opened)
