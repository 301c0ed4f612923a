# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "py-key-value-aio[postgresql]==0.5.0",
#     "asyncpg==0.32.0",
# ]
# ///
"""py-key-value-aio on PostgreSQL, through asyncpg with the pool of at most ten connections that it makes by itself.

Durability: the server's commit, of one upsert outside of any other transaction, so no weaker than ours.

A value is JSONB: the order of keys, repeated keys and the spelling of numbers are lost, and U+0000 and lone surrogates
are refused. A key is a column of text, unaltered.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from key_value.aio.stores.postgresql import PostgreSQLStore
from key_value_subject import KeyValue
from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[KeyValue]:
    """Connect to ``postgresql://USER@HOST:PORT/DB``."""
    async with PostgreSQLStore(url=url) as store:
        yield KeyValue(store)


if __name__ == "__main__":
    serve(opened)
