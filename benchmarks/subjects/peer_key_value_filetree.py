# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "py-key-value-aio[filetree]==0.5.0",
#     "aiofile==3.12.3",
# ]
# ///
"""py-key-value-aio in a directory, a file for each key.

Durability: the temporary file is flushed to the disk, twice, and renamed to the key's. The directory is not flushed, so
after a power failure the file may hold what it held before: weaker than ours.

A value is JSON in ASCII with sorted keys, in an envelope with the time. A key is the name of its file before ``.json``,
by default as it is, so that one with a slash needs a directory that nobody makes, and one with ``..`` leaves the
collection, if not the directory. The second flush blocks the event loop. The thread of the kernel that caio has for
io_uring keeps a core busy until 100 ms after the last operation.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from key_value.aio.stores.filetree import FileTreeStore
from key_value_subject import KeyValue
from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[KeyValue]:
    """Use the directory of ``file:///DIRECTORY``."""
    yield KeyValue(FileTreeStore(data_directory=url2pathname(urlsplit(url).path)))


if __name__ == "__main__":
    serve(opened)
