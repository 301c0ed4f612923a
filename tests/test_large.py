"""A document of 64 MiB goes through every store, and takes at most five times its size."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A process of its own, for the peak of this one says nothing. Text that does not compress, in one byte a character.
PROGRAM = """
import asyncio, random, resource, sys
from dagonizer import open_store

MIB = 1 << 20
UNIT = 1 if sys.platform == "darwin" else 1024

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT

async def main(url):
    async with open_store(url) as store:
        # What a driver loads once is not the document's.
        await store.save("large", "{}")
        assert await store.load("large") == "{}"
        before = peak()
        text = random.Random(0).randbytes(32 * MIB).hex()
        assert len(text) == 64 * MIB
        await store.save("large", text)
        saved = peak() - before
        assert await store.load("large") == text
        loaded = peak() - before
        await store.delete("large")
        assert await store.load("large") is None
        print(saved / len(text), loaded / len(text))

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("scheme", ["file", "postgresql", "redis", "s3", "etcd", "etcd+http"])
def test_64_mib_take_at_most_five_times_their_size(scheme, store_urls):
    command = [sys.executable, "-c", PROGRAM, store_urls[scheme]]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    saved, loaded = map(float, ran.stdout.split())
    assert loaded <= 5, f"peak at {saved:.2f} times the document after the save, {loaded:.2f} times after the load"
