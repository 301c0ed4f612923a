"""Checkpoints go from files to a server and back by ``dagonizer copy``, which is killed half-way each time."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import subprocess
import sys
from collections import Counter

import pytest
from faults.backends import BACKENDS
from faults.clients import store_url

from dagonizer import Checkpoint, CheckpointData, open_store
from dagonizer.cli.transfer import for_each

SERVERS = [store for store in BACKENDS if store != "file"]
_AT_A_TIME = 16

# Begins so many copies of entries and no more. The last of those are still under way when it says so.
STALLED = """
import asyncio, itertools, sys
from dagonizer.cli import main, transfer

number, calls, real = int(sys.argv[1]), itertools.count(), transfer.copy_entry

async def copy_entry(*arguments, **options):
    if next(calls) >= number:
        print("half-way", flush=True)
        await asyncio.Event().wait()
    return await real(*arguments, **options)

transfer.copy_entry = copy_entry
main(sys.argv[2:])
"""


def entry(number):
    """Return a key and a checkpoint, another one for each number."""
    executed = tuple(f"node {step}" for step in range(number % 7))
    text = hashlib.sha256(str(number).encode()).hexdigest() * (number % 50)
    data = CheckpointData(
        dag_name=f"survey {number % 3}",
        cursor=f"node {len(executed)}",
        state={"number": number, "text": text, "é🦆": [None, 1.5, {"deep": True}]},
        executed_nodes=executed,
        skipped_nodes=("none",),
    )
    return f"run/{number} é🦆%2F..", Checkpoint.to_json(data)


@pytest.fixture(scope="module")
def entries(request):
    return dict(map(entry, range(5_000 if request.config.option.faults == "whole" else 300)))


@pytest.fixture(scope="module")
def files(entries, tmp_path_factory):
    """The URL of a directory with all of them."""
    url = f"file://{tmp_path_factory.mktemp('files')}?fsync=false"

    async def save():
        async with open_store(url) as store:
            for key, text in entries.items():
                await store.save(key, text)

    asyncio.run(save())
    return url


@pytest.fixture
def backend(store, faults, tmp_path, request):
    backend = BACKENDS[store](f"copykilled_{faults.random.getrandbits(32):08x}", store_url(store, tmp_path, request))
    yield backend
    asyncio.run(backend.remove())


@pytest.mark.parametrize("store", SERVERS)
def test_a_copy_that_is_killed_and_goes_on_copies_everything_there_and_back(backend, entries, files, tmp_path):
    back = f"file://{tmp_path}/back?fsync=false"
    for source, target in ((files, backend.url), (backend.url, back)):
        there = asyncio.run(copy_and_kill(source, target, half=len(entries) // 2))
        assert 0 < there < len(entries)
        resumed = dagonizer("copy", source, target)
        # What the server was doing when its client was killed may have come later.
        assert there <= resumed["equal"] < len(entries)
        assert resumed["copied"] == len(entries) - resumed["equal"]
        compared = dagonizer("verify", source, target)
        assert compared["equal"] == len(entries)
        assert not compared["extra"]
        assert asyncio.run(texts_in(target)) == entries
    assert asyncio.run(backend.held()) == Counter(entries=len(entries))
    asyncio.run(delete(backend.url, entries))


async def copy_and_kill(source, target, *, half):
    """Begin a copy, kill it when it has begun with ``half`` of the entries, and return how many are there."""
    command = [sys.executable, "-c", STALLED, str(half), "copy", source, target]
    copying = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    line = await copying.stdout.readline()
    if copying.returncode is None:
        copying.kill()
    _, said = await copying.communicate()
    assert line == b"half-way\n", said.decode()
    assert copying.returncode == -signal.SIGKILL
    async with open_store(target) as store:
        return len([key async for key in store.list_keys()])


async def texts_in(url):
    texts = {}

    async def load(key):
        texts[key] = await store.load(key)

    async with open_store(url) as store:
        await for_each([key async for key in store.list_keys()], load, _AT_A_TIME)
    return texts


async def delete(url, keys):
    async with open_store(url) as store:
        await for_each(keys, store.delete, _AT_A_TIME)


def dagonizer(*arguments):
    """Return what a command prints that must succeed."""
    ran = subprocess.run(command(*arguments), capture_output=True, encoding="utf-8", check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(ran.stdout)


def command(*arguments):
    return [sys.executable, "-m", "dagonizer.cli", *arguments, "--json"]
