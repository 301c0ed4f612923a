# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "langgraph-checkpoint-postgres==3.2.0",
#     "langgraph-checkpoint==4.3.2",
#     "psycopg[binary]==3.3.9",
# ]
# ///
"""LangGraph's checkpointer on PostgreSQL, through psycopg with the one connection that it makes by itself.

Durability: the server's commit, of blob and checkpoint in one pipeline and one transaction, so no weaker than ours.

A value is msgpack in a BYTEA: integers beyond 64 bits are refused, and lone surrogates become question marks. A key is
a column of text, unaltered. One operation is in flight at a time, also with a pool, for the saver holds a lock.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph_subject import LangGraph
from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[LangGraph]:
    """Connect to ``postgresql://USER@HOST:PORT/DB``."""
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        await saver.setup()
        yield LangGraph(saver)


if __name__ == "__main__":
    serve(opened)
