"""A backend is full: saves say so and change nothing, and go on once there is room."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest
from faults.refusals import READS, SAVES, trial
from faults.sql import administer
from faults.volume import small_volume

from dagonizer import StoreLimitError, StoreUnavailableError, open_store
from dagonizer_test_servers.etcd import Etcd
from dagonizer_test_servers.postgres import Postgres
from dagonizer_test_servers.redis import Valkey

NO_SPACE = "No space left on device"


@pytest.mark.parametrize(
    ("where", "free"), [("in the value", 64 * 1024), ("in the header", 0)], ids=["value", "header"]
)
async def test_a_full_file_system(faults, where, free):
    with small_volume("size=2m") as volume:
        directory = volume.path / "store"
        async with trial(faults, f"disk full {where}", "file", f"file://{directory}", size=200_000) as at:
            for _ in range(faults.scale(short=1, whole=5)):
                with volume.full(leave=free):
                    await at.refused(StoreLimitError, NO_SPACE, *SAVES)
                    await at.intact()
                    await at.done(*READS)
                    assert leftovers(directory) == []
                await at.recovered()


async def test_a_file_system_without_inodes(faults):
    with small_volume("size=2m,nr_inodes=64") as volume:
        directory = volume.path / "store"
        async with trial(faults, "no inode left", "file", f"file://{directory}") as at:
            for _ in range(faults.scale(short=1, whole=5)):
                with volume.without_inodes():
                    await at.refused(StoreLimitError, NO_SPACE, *SAVES)
                    await at.intact()
                    async with open_store(f"file://{volume.path}/another") as store:
                        with pytest.raises(StoreLimitError, match=NO_SPACE):
                            await store.save("k", "v")
                    assert leftovers(directory) == []
                await at.recovered()


async def test_an_entry_can_be_deleted_from_a_full_file_system(faults):
    with small_volume("size=2m") as volume:
        async with open_store(f"file://{volume.path}/store") as store:
            await store.save("k", "x" * 100_000)
            with volume.full():
                with pytest.raises(StoreLimitError):
                    await store.save("l", "x" * 100_000)
                await store.delete("k")
                await store.save("l", "x" * 90_000)


def leftovers(directory):
    return [path.name for path in directory.iterdir() if path.suffix == ".tmp"]


async def test_a_postgres_without_space_for_its_table(faults):
    with small_volume("size=4m") as volume, Postgres() as server:
        space = volume.path / "space"
        space.mkdir()
        server.give(space)
        await administer(
            server,
            f"CREATE TABLESPACE small LOCATION '{space}'",
            "CREATE ROLE worker LOGIN PASSWORD 'only-in-tests'",
            "ALTER ROLE worker SET default_tablespace = 'small'",
            "GRANT CREATE ON SCHEMA public TO worker",
            "GRANT CREATE ON TABLESPACE small TO worker",
        )
        url = f"postgresql://worker:only-in-tests@127.0.0.1:{server.port}/postgres"
        async with trial(faults, "disk full", "postgresql", url, size=400_000, secrets=("only-in-tests",)) as at:
            for _ in range(faults.scale(short=1, whole=5)):
                await administer(server, "VACUUM FULL checkpoints")
                with volume.full():
                    await at.refused(StoreLimitError, NO_SPACE, *SAVES)
                    await at.intact()
                await at.recovered()


async def test_a_postgres_without_space_for_its_log(faults):
    with ExitStack() as stack:
        volume = stack.enter_context(small_volume("size=32m"))
        server = stack.enter_context(Postgres("max_wal_size = 2MB", "wal_recycle = off", wal=volume.path / "wal"))
        async with trial(faults, "disk of the log full", "postgresql", server.url, size=1_200_000) as at:
            at.notes.append("the server ends, and is started again")
            # Else a value takes less of the log than one segment.
            await administer(server, "ALTER TABLE checkpoints ALTER json SET STORAGE EXTERNAL")
            for _ in range(faults.scale(short=1, whole=3)):
                await administer(server, "CHECKPOINT")
                with volume.full():
                    # It has some segments already.
                    await at.fill(1_200_000, StoreUnavailableError, "check that the server is up")
                    await at.refused(StoreUnavailableError, "check that the server is up", *SAVES)
                server.down()
                server.up()
                await at.recovered()


@pytest.mark.parametrize("scheme", ["etcd", "etcd+http"])
async def test_an_etcd_beyond_its_quota(faults, scheme):
    # It knows its size by what it has committed.
    with Etcd("--quota-backend-bytes=4194304", "--backend-batch-limit=1") as server:
        url = f"{server.url.replace('etcd', scheme, 1)}?chunk_bytes=16384"
        async with trial(faults, "quota reached", scheme, url, size=50_000) as at:
            for _ in range(faults.scale(short=1, whole=3)):
                await at.fill(200_000, StoreLimitError, "database space exceeded")
                await at.refused(StoreLimitError, "database space exceeded", *SAVES)
                await at.intact()
                # As the message advises.
                status = json.loads(server.ctl("endpoint", "status", "--write-out=json"))
                server.ctl("compact", "--physical", str(status[0]["Status"]["header"]["revision"]))
                server.ctl("defrag")
                server.ctl("alarm", "disarm")
                await at.make_room()
                await at.recovered()
                assert abandoned(server) == 0


def abandoned(server):
    """Return how many chunked texts no entry refers to, and no later save will remove."""
    names = [name.split("/") for name in server.ctl("get", "--prefix", "/", "--keys-only").split()]
    by_kind = {kind: {name[4] for name in names if name[3] == kind} for kind in ("chunk", "unfinished", "entry")}
    return len(by_kind["chunk"] - by_kind["unfinished"]) - len(by_kind["entry"])


async def test_a_redis_beyond_its_memory(faults):
    with Valkey() as server:
        async with trial(faults, "maxmemory reached", "redis", server.url) as at:
            for _ in range(faults.scale(short=1, whole=5)):
                await at.store.save(at.filler, "")
                server.ask("CONFIG", "SET", "maxmemory", "1mb")
                await at.refused(StoreLimitError, "raise maxmemory", *SAVES)
                await at.make_room()
                await at.intact()
                server.ask("CONFIG", "SET", "maxmemory", "0")
                await at.recovered()


async def test_a_redis_that_evicts_drops_entries_as_its_readme_says():
    with Valkey("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru") as server:
        async with open_store(server.url) as store:
            for number in range(40):
                await store.save(f"{number}", "x" * 100_000)
            assert None in [await store.load(f"{number}") for number in range(40)]


async def test_a_redis_without_space_for_its_log(faults):
    with small_volume("size=8m") as volume, Valkey("--dir", str(volume.path)) as server:
        async with trial(faults, "disk full", "redis", server.url, size=50_000) as at:
            at.notes.append("the server ends, and is started again")
            for _ in range(faults.scale(short=1, whole=5)):
                with volume.full():
                    await at.refused(StoreUnavailableError, "check that the server runs", *SAVES)
                server.down()
                server.up()
                await at.recovered()
