# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "langgraph-checkpoint-sqlite==3.1.2",
#     "langgraph-checkpoint==4.3.2",
#     "aiosqlite==0.22.1",
# ]
# ///
"""LangGraph's checkpointer in an SQLite file, through aiosqlite with the one connection that it makes by itself.

Durability: a commit in WAL mode, which the saver sets, with ``synchronous`` as SQLite was built, by default FULL: the
log is flushed to the disk at each commit, so no weaker than ours.

A value is msgpack in a BLOB: integers beyond 64 bits are refused, and lone surrogates become question marks. A key is a
column of text, unaltered. One operation is in flight at a time, for the saver holds a lock.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph_subject import LangGraph
from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[LangGraph]:
    """Use ``checkpoints.sqlite`` in the directory of ``file:///DIRECTORY``."""
    directory = Path(url2pathname(urlsplit(url).path))
    directory.mkdir(parents=True, exist_ok=True)
    async with AsyncSqliteSaver.from_conn_string(str(directory / "checkpoints.sqlite")) as saver:
        yield LangGraph(saver)


if __name__ == "__main__":
    serve(opened)
