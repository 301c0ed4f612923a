"""What the doctor finds, on servers that are so; and that its remedies are ones."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import resource
import shlex
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dagonizer.diagnosis import DURABILITY, Finding
from dagonizer.errors import StoreAccessError, StoreError, StoreLimitError, StoreUnavailableError
from dagonizer.url import StoreURL
from dagonizer_conformance.proxy import FaultProxy
from dagonizer_redis import RedisCheckpointStore, RedisConfig, _diagnosis
from dagonizer_redis._plugin import dagonizer_diagnose_store
from dagonizer_test_servers import free_port
from dagonizer_test_servers.findings import expect, trouble
from dagonizer_test_servers.redis import Cluster, Node, Replicated, Sentinel, Valkey, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CHECKS = [
    "prefix",
    "version",
    "role",
    "grants",
    "eviction",
    "memory",
    "append-only",
    "fsync",
    "disk",
    "replicas",
    "min-replicas",
    "clients",
    DURABILITY,
]
ELSEWHERE = {"sentinels", "slots", "primaries", "cluster", "info", "config"}
SECRET = "Tr0ub4dor&3"


async def rest_of(found: AsyncIterator[Finding]) -> list[Finding]:
    return [finding async for finding in found]


async def findings_of(url: str) -> list[Finding]:
    found = dagonizer_diagnose_store(StoreURL.parse(url))
    assert found is not None
    return await rest_of(found)


async def diagnosed(url: str) -> dict[str, Finding]:
    """Return the worst finding of each check."""
    order = ["good", "note", "warning", "bad"]
    found = sorted(await findings_of(url), key=lambda finding: order.index(finding.verdict))
    return {finding.check: finding for finding in found}


def do(server: Valkey, remedy: str) -> None:
    """Type what the remedy says first."""
    command = re.split(r", |; ", remedy)[0].removesuffix(" while it runs").removesuffix(" there")
    assert server.ask(*shlex.split(command)) == "+OK\r\n", command


def configure(server: Valkey, **settings: object) -> None:
    for name, value in settings.items():
        assert server.ask("CONFIG", "SET", name.replace("_", "-"), str(value)) == "+OK\r\n"


def info(server: Valkey, name: str) -> str:
    return re.findall(rf"^{name}:(.*)\r$", server.ask("INFO"), re.MULTILINE)[0]


def opened(url: str) -> RedisCheckpointStore:
    return RedisCheckpointStore(RedisConfig.from_url(StoreURL.parse(url)))


@pytest.fixture
def server() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


# A server that is as it should be.


async def test_where_all_is_well_every_check_says_so(server: Valkey) -> None:
    found = await findings_of(server.url)
    assert [finding.check for finding in found] == CHECKS
    assert {finding.check for finding in found if finding.verdict != "good"} == {"memory"}
    said = {finding.check: finding.message for finding in found}
    assert re.fullmatch(r"it is Valkey \d+\.\d+\.\d+", said["version"])
    assert said["eviction"].startswith("maxmemory-policy is noeviction")
    assert "maxmemory is 0" in said["memory"]
    assert "flushed to the primary's disk" in said[DURABILITY]
    assert "not the loss of the disk" in said[DURABILITY]


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="Redis is not installed; the other tests use Valkey")
async def test_redis_is_told_from_valkey() -> None:
    with Valkey(program=shutil.which("redis-server")) as server:
        found = await findings_of(server.url)
        assert [finding.check for finding in found] == CHECKS
        assert {finding.check: finding.message for finding in found}["version"].startswith("it is Redis ")


def test_a_server_that_is_old_is_told_by_its_version() -> None:
    # None of these tests is: they run on one of today.
    assert _diagnosis.version_finding("Redis", "6.2.14").verdict == "note"
    assert _diagnosis.version_finding("Redis", "7.0.15").verdict == "good"
    assert _diagnosis.version_finding("Redis", "?").verdict == "good"
    assert _diagnosis.version_finding("Valkey", "8.1.0").verdict == "note"


def test_the_readme_names_every_check(readme: str) -> None:
    section = readme.partition("## Doctor")[2]
    named = set(re.findall(r"^\| ([a-z-]+) \| ", section, re.MULTILINE)) - {"check"}
    assert named == {*CHECKS, *ELSEWHERE}


async def test_a_socket_is_examined_as_well() -> None:
    with Valkey("--unixsocket", "here.sock") as server:
        assert not trouble(await diagnosed(f"redis+unix://{server.directory}/here.sock"))


async def test_the_prefix_and_what_else_is_in_the_database(server: Valkey) -> None:
    async with opened(f"{server.url}/3?prefix=a:b") as store:
        await store.save("k", "v")
    server.ask("SET", "elsewhere", "v")
    expect(await diagnosed(f"{server.url}/3?prefix=a:b"), "prefix", "good", "a%3Ab:… of database 3, which has 1 key")
    server.ask("SET", "other", "v", "EX", "100")
    found = await diagnosed(server.url)
    expect(found, "prefix", "good", "dagonizer:… of database 0, which has 2 keys; those that expire, 1, are none")


# Memory.


async def test_a_policy_that_evicts_checkpoints_is_told_and_changed(server: Valkey) -> None:
    configure(server, maxmemory_policy="allkeys-lru")
    remedy = expect(await diagnosed(server.url), "eviction", "note", "allkeys-lru", "once maxmemory is set, it is 0")
    configure(server, maxmemory=100_000_000)
    found = await diagnosed(server.url)
    assert expect(found, "eviction", "bad", "allkeys-lru: checkpoints are evicted", "no keys since") == remedy
    expect(found, DURABILITY, "bad", "it is evicted")
    do(server, remedy)
    assert not trouble(await diagnosed(server.url))
    configure(server, maxmemory_policy="volatile-lru")
    expect(await diagnosed(server.url), "eviction", "good", "only keys with an expiry")


async def test_a_memory_that_is_nearly_or_quite_full_is_told(server: Valkey) -> None:
    server.ask("SET", "elsewhere", "x" * 20_000_000)
    used = int(info(server, "used_memory"))
    configure(server, maxmemory=used * 10)
    expect(await diagnosed(server.url), "memory", "good", "of maxmemory is used")
    configure(server, maxmemory=int(used * 1.06))
    expect(await diagnosed(server.url), "memory", "warning", "soon saves are refused")
    configure(server, maxmemory_policy="allkeys-lru")
    expect(await diagnosed(server.url), "memory", "warning", "soon checkpoints are evicted")
    configure(server, maxmemory_policy="noeviction")
    configure(server, maxmemory=used // 2)
    found = await diagnosed(server.url)
    expect(found, "memory", "bad", ": saves are refused")
    expect(found, "grants", "good")
    async with opened(server.url) as store:
        with pytest.raises(StoreLimitError):
            await store.save("k", "v")


# The disk.


async def test_a_server_without_a_log_is_told_and_given_one() -> None:
    with Valkey("--appendonly", "no") as server:
        found = await diagnosed(server.url)
        expect(found, "append-only", "bad", "appendonly is no and save is empty")
        expect(found, DURABILITY, "bad", "in memory only")
        assert "fsync" not in found
        configure(server, save="3600 1 60 1000")
        found = await diagnosed(server.url)
        said = "3600 s after 1 change or 60 s after 1000 changes"
        remedy = expect(found, "append-only", "warning", "the last snapshot", said)
        expect(found, DURABILITY, "warning", "once it is in a snapshot")
        server.ask("ACL", "SETUSER", "r", "on", ">pw", "~*", "+@all", "-config")
        found = await diagnosed(server.url.replace("//", "//r:pw@"))
        expect(found, "append-only", "warning", "what no snapshot has")
        do(server, remedy)
        found = await diagnosed(server.url)
        expect(found, "append-only", "good")
        expect(found, DURABILITY, "good")


@pytest.mark.parametrize(("policy", "said"), [("everysec", "about a second"), ("no", "half a minute")])
async def test_a_log_that_is_not_flushed_at_once_is_told_and_changed(server: Valkey, policy: str, said: str) -> None:
    configure(server, appendfsync=policy)
    found = await diagnosed(server.url)
    remedy = expect(found, "fsync", "warning", f"appendfsync is {policy}", said)
    expect(found, DURABILITY, "warning", f"once it is flushed ({policy})")
    do(server, remedy)
    assert not trouble(await diagnosed(server.url))


async def test_a_log_that_is_not_flushed_while_it_is_rewritten_is_told_and_changed(server: Valkey) -> None:
    configure(server, no_appendfsync_on_rewrite="yes")
    found = await diagnosed(server.url)
    expect(found, DURABILITY, "warning", "but during a rewrite")
    do(server, expect(found, "fsync", "warning", "no-appendfsync-on-rewrite is yes"))
    assert not trouble(await diagnosed(server.url))


async def test_a_snapshot_that_cannot_be_written_is_told(server: Valkey) -> None:
    (server.directory / "dump.rdb").mkdir()
    server.ask("SET", "k", "v")
    assert server.ask("BGSAVE").startswith("+")
    until(lambda: info(server, "rdb_last_bgsave_status") == "err")
    expect(await diagnosed(server.url), "disk", "warning", "rdb_last_bgsave_status is err")
    configure(server, save="3600 1")
    expect(await diagnosed(server.url), "disk", "bad", "saves are refused (stop-writes-on-bgsave-error)")
    async with opened(server.url) as store:
        with pytest.raises(StoreLimitError, match="MISCONF"):
            await store.save("k", "v")
    configure(server, stop_writes_on_bgsave_error="no")
    expect(await diagnosed(server.url), "disk", "warning")
    (server.directory / "dump.rdb").rmdir()
    server.ask("BGSAVE")
    until(lambda: info(server, "rdb_last_bgsave_status") == "ok")
    expect(await diagnosed(server.url), "disk", "good")


async def test_a_log_that_cannot_be_rewritten_is_told(server: Valkey) -> None:
    # Of the same name as the one that the rewrite makes.
    for number in range(2, 5):
        (server.directory / "appendonlydir" / f"appendonly.aof.{number}.base.rdb").mkdir()
    assert server.ask("BGREWRITEAOF").startswith("+")
    until(lambda: info(server, "aof_last_bgrewrite_status") == "err")
    expect(await diagnosed(server.url), "disk", "warning", "aof_last_bgrewrite_status is err")


async def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    # Where a limit of files is an error, not a signal that ends the server.
    program = tmp_path / "valkey-server"
    with Valkey() as other:
        real = Path(f"/proc/{other.pid}/exe").resolve()
    program.write_text(f'#!/bin/sh\ntrap "" XFSZ\nexec {shlex.quote(str(real))} "$@"\n')
    program.chmod(0o755)
    with Valkey("--appendfsync", "everysec", program=str(program)) as server:
        server.ask("SET", "k", "v" * 10_000)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        server.ask("SET", "k", "v")
        until(lambda: info(server, "aof_last_write_status") == "err")
        expect(await diagnosed(server.url), "disk", "bad", "aof_last_write_status is err", "saves are refused")
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


# Replicas.


async def test_replicas_and_how_many_of_them_a_save_waits_for() -> None:
    with Replicated(replicas=2, sentinels=0) as servers:
        primary, url = servers.primary, servers.primary.url
        found = await diagnosed(url)
        remedy = expect(found, "replicas", "note", "2 replicas are in step, and ?wait=0")
        assert remedy.startswith("write ?wait=2; ")
        assert expect(found, DURABILITY, "warning", "a failover loses") == remedy
        expect(found, "min-replicas", "good", "min-replicas-to-write is 0")
        found = await diagnosed(f"{url}?wait=1")
        expect(found, "replicas", "good", "a save waits for 1 of them")
        expect(found, DURABILITY, "note", "the 1 of 2 replicas that have it")
        found = await diagnosed(f"{url}?wait=2")
        expect(found, DURABILITY, "good", "all 2 replicas have received it before a failover")
        assert not trouble(found)
        found = await diagnosed(f"{url}?wait=3")
        assert "?wait=2" in expect(found, "replicas", "bad", "2 replicas are in step, but ?wait=3")
        expect(found, DURABILITY, "bad", "no save is acknowledged")
        configure(primary, min_replicas_to_write=3)
        found = await diagnosed(url)
        remedy = expect(found, "min-replicas", "bad", "min-replicas-to-write is 3, and 2 replicas are in step")
        do(primary, remedy.partition("or ")[2])
        expect(await diagnosed(url), "min-replicas", "good", "min-replicas-to-write is 2")
        # What is saved nowhere is a failover away from being lost, whatever replicas there are.
        configure(primary, appendfsync="no", min_replicas_to_write=0)
        found = await diagnosed(f"{url}?wait=2")
        expect(found, DURABILITY, "warning", "only once it is flushed (no)", "all 2 replicas have received")


async def test_a_replica_is_no_place_to_save() -> None:
    with Replicated(sentinels=0) as servers:
        replica = servers.replicas[0]
        found = await diagnosed(replica.url)
        remedy = expect(found, "role", "bad", f"a replica of 127.0.0.1:{servers.primary.port}, and no place to save")
        assert f"name 127.0.0.1:{servers.primary.port} in the URL" in remedy
        expect(found, DURABILITY, "bad", "it is no primary")
        assert not trouble({"grants": found["grants"]})
        configure(replica, replica_read_only="no")
        expect(await diagnosed(replica.url), "role", "bad", "what is saved there is lost")
        expect(await diagnosed(servers.primary.url), "role", "good")


# Sentinels.


async def test_sentinels_that_can_fail_over_and_their_primary() -> None:
    with Replicated(sentinels=3) as servers:
        for sentinel in servers.sentinels:
            until(lambda sentinel=sentinel: "num-other-sentinels\r\n$1\r\n2" in sentinel.state())
        found = await diagnosed(f"{servers.url}?wait=1")
        expect(found, "sentinels", "good", "knows of 3 sentinels, and quorum is 2: a failover needs 2")
        remedy = expect(found, "min-replicas", "warning", "cut off from its sentinels")
        for server in (servers.primary, *servers.replicas):
            do(server, remedy)
        found = await diagnosed(f"{servers.url}?wait=1")
        assert not trouble(found)
        expect(found, DURABILITY, "good", "its replica has received it")
        dead = free_port()
        account, slash, service = servers.url.rpartition("/")
        found = await diagnosed(f"{account},127.0.0.1:{dead}{slash}{service}")
        expect(found, "sentinels", "warning", f"127.0.0.1:{dead}", "cannot be asked")
        first, second, third = servers.sentinels
        for sentinel in (second, third):
            await asyncio.to_thread(sentinel.down)
        until(lambda: "NOQUORUM" in first.ask("SENTINEL", "CKQUORUM", servers.service))
        remedy = expect(await diagnosed(servers.url), "sentinels", "bad", "no failover now: NOQUORUM 1 usable")
        assert remedy == "start the sentinels that are down"
        for sentinel in (second, third):
            await asyncio.to_thread(sentinel.up)
        until(lambda: first.ask("SENTINEL", "CKQUORUM", servers.service).startswith("+OK"))
        expect(await diagnosed(servers.url), "sentinels", "good")
        # More than there are never agree.
        for sentinel in servers.sentinels:
            sentinel.ask("SENTINEL", "SET", servers.service, "quorum", "4")
        remedy = expect(await diagnosed(servers.url), "sentinels", "bad", "quorum is 4: they never agree")
        assert "the quorum to 2" in remedy


async def test_one_sentinel_alone_and_no_replica() -> None:
    with Replicated(sentinels=1, replicas=0) as servers:
        found = await diagnosed(servers.url)
        expect(found, "sentinels", "warning", "knows of 1 sentinel,", "without one of them there is no failover")
        expect(found, "replicas", "warning", "no replicas are in step", "take over")
        found = await diagnosed(servers.sentinels[0].url)
        remedy = expect(found, "role", "bad", "is a sentinel, which keeps no keys")
        assert remedy == f"write redis+sentinel://127.0.0.1:{servers.sentinels[0].port}/service"
        expect(found, DURABILITY, "bad")
        expect(
            await diagnosed(f"{remedy.removeprefix('write ').removesuffix('service')}{servers.service}"), "role", "good"
        )


async def test_a_sentinel_that_knows_nothing_of_the_service_is_told_before_the_error(server: Valkey) -> None:
    with Sentinel(server.port, 1, "s", ()) as sentinel:
        found: Any = dagonizer_diagnose_store(StoreURL.parse(f"redis+sentinel://127.0.0.1:{sentinel.port}/x"))
        first = await anext(found)
        assert (first.check, first.verdict) == ("sentinels", "warning")
        assert "knows nothing of x" in first.message
        with pytest.raises(StoreUnavailableError, match="it knows no service 'x'"):
            await anext(found)


async def test_sentinels_that_disagree_are_told(server: Valkey) -> None:
    with Valkey() as another, Sentinel(server.port, 1, "s", ()) as one, Sentinel(another.port, 1, "s", ()) as two:
        found = await findings_of(f"redis+sentinel://127.0.0.1:{one.port},127.0.0.1:{two.port}/s")
        (said,) = (finding.message for finding in found if finding.verdict == "bad")
        assert f"127.0.0.1:{server.port} by 127.0.0.1:{one.port}; 127.0.0.1:{another.port} by" in said


async def test_a_primary_that_is_down_is_told_before_the_error(server: Valkey) -> None:
    with Sentinel(server.port, 1, "s", ()) as sentinel:
        os.kill(server.pid, signal.SIGSTOP)
        until(lambda: "s_down" in sentinel.state())
        found: Any = dagonizer_diagnose_store(StoreURL.parse(f"redis+sentinel://127.0.0.1:{sentinel.port}/s?timeout=1"))
        first = await anext(found)
        assert (first.check, first.verdict) == ("sentinels", "bad")
        assert "takes the primary for down" in first.message
        with pytest.raises(StoreUnavailableError):
            await anext(found)
        os.kill(server.pid, signal.SIGCONT)


async def test_a_sentinel_that_tells_only_the_primary_is_asked_for_no_more(
    server: Valkey, grants: dict[str, str]
) -> None:
    watcher = f"user watcher on >sentinelpw resetchannels {grants['at the sentinels themselves']}"
    with Sentinel(server.port, 1, "s", (watcher,)) as sentinel:
        account = "sentinel_username=watcher&sentinel_password=sentinelpw"
        found = await diagnosed(f"redis+sentinel://127.0.0.1:{sentinel.port}/s?{account}")
        do(sentinel, expect(found, "sentinels", "note", "does not tell watcher"))
        expect(found, "role", "good")
        found = await diagnosed(f"redis+sentinel://127.0.0.1:{sentinel.port}/s?{account}")
        expect(found, "sentinels", "warning", "knows of 1 sentinel,")


# Clusters.


async def test_every_primary_of_a_cluster_is_examined() -> None:
    with Cluster() as cluster:
        first, second, third = cluster.nodes
        found = await findings_of(cluster.url)
        assert len(found) == len(CHECKS) + 2, "what is the same everywhere is said once"
        found = {finding.check: finding for finding in found}
        expect(found, "slots", "good", "by 3 primaries")
        expect(found, "cluster", "good", "cluster_state is ok")
        expect(found, "grants", "good")
        expect(found, "replicas", "warning", "no replicas are in step", "take over")
        configure(second, maxmemory=100_000_000, maxmemory_policy="allkeys-lru")
        found = await findings_of(cluster.url)
        evictions = [finding for finding in found if finding.check == "eviction"]
        assert [(finding.verdict, finding.message.split(": ")[0]) for finding in evictions] == [
            ("good", f"127.0.0.1:{first.port}"),
            ("bad", f"127.0.0.1:{second.port}"),
            ("good", f"127.0.0.1:{third.port}"),
        ]
        configure(second, maxmemory=0)
        # As one server it is no place for all keys.
        assert expect(await diagnosed(first.url), "cluster", "bad", "one node of a cluster") == "write redis+cluster:"
        # Without rights beyond the store's it cannot be seen.
        for node in cluster.nodes:
            node.ask("ACL", "SETUSER", "r", "on", ">pw", "~*", "+@all", "-cluster", "+cluster|slots")
        account = cluster.url.replace("//", "//r:pw@")
        remedy = expect(await diagnosed(account), "cluster", "note", "CLUSTER INFO is refused to r")
        for node in cluster.nodes:
            do(node, remedy)
        expect(await diagnosed(account), "cluster", "good")
        # One of them is gone, and its slots with it, which the others learn later.
        await asyncio.to_thread(second.down)
        found = await diagnosed(f"{cluster.url}?timeout=5")
        expect(found, "primaries", "bad", f"127.0.0.1:{second.port}")
        until(lambda: "cluster_state:fail" in first.ask("CLUSTER", "INFO"))
        expect(await diagnosed(f"{cluster.url}?timeout=5"), "cluster", "bad", "cluster_state is fail")


async def test_a_cluster_with_replicas_is_well() -> None:
    with Cluster(replicas=1) as cluster:
        found = await diagnosed(f"{cluster.url}?wait=1")
        assert not trouble(found)
        expect(found, "replicas", "good", "1 replica is in step, and ?wait=1")


async def test_a_cluster_without_all_slots_and_one_of_one_node() -> None:
    with Node() as node:
        node.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        until(lambda: "cluster_state:ok" in node.ask("CLUSTER", "INFO"))
        expect(await diagnosed(node.url), "cluster", "note", "the only primary of a cluster")
        url = f"redis+cluster://127.0.0.1:{node.port}"
        expect(await diagnosed(url), "slots", "good")
        node.ask("CLUSTER", "DELSLOTS", "7", "8")
        expect(await diagnosed(url), "slots", "bad", "no node serves 2 of the 16384 hash slots")


# Rights.


def user(*rights: str) -> tuple[str, ...]:
    return ("--user", "r", "on", ">pw", "resetchannels", *rights)


async def test_the_least_privileges_suffice_and_say_what_they_hide(grants: dict[str, str]) -> None:
    commands = f"{grants['always']} {grants['to list keys']} {grants['with `wait`']}".split()
    with Valkey(*user("~dagonizer:*", *commands)) as server:
        url = server.url.replace("//", "//r:pw@")
        found = await diagnosed(f"{url}?wait=0")
        assert not trouble(found)
        expect(found, "grants", "good", "r may run all commands")
        do(server, expect(found, "config", "note", "CONFIG GET is refused", "config|get").replace("of a", ", of a"))
        found = await diagnosed(url)
        assert "config" not in found
        expect(found, "fsync", "good")
        server.ask("ACL", "SETUSER", "r", "-info")
        found = await diagnosed(url)
        expect(found, "grants", "warning", "r may not run INFO, which a listing needs")
        expect(found, DURABILITY, "note", "cannot be seen")
        do(server, expect(found, "info", "note", "INFO is refused to r"))
        expect(await diagnosed(url), DURABILITY, "good")


@pytest.mark.parametrize(
    ("rights", "said"),
    [
        (("~dagonizer:*", "+info"), "GET, WATCH, UNWATCH, SCAN, WAIT, MULTI"),
        (("~dagonizer:*", "+@all", "-set"), "may not run SET"),
        (("~dagonizer:*", "+@all", "-del"), "may not run DEL"),
        (("~dagonizer:*", "+@all", "-exec"), "may not run EXEC"),
        (("~dagonizer:*", "+@all", "-discard", "-set"), "may not run SET"),
        (("~dagonizer:*", "+@all", "-wait"), "may not run WAIT"),
        (("~other:*", "+@all"), "keys that begin with dagonizer:"),
        (("%R~dagonizer:*", "+@all"), "may not run SET, DEL, or not on keys"),
    ],
)
async def test_what_a_user_may_not_is_named_and_granted_by_the_remedy(rights: tuple[str, ...], said: str) -> None:
    with Valkey(*user(*rights)) as server:
        url = f"{server.url.replace('//', '//r:pw@')}?wait=1"
        do(server, expect(await diagnosed(url), "grants", "bad", said))
        expect(await diagnosed(url), "grants", "good")
        async with opened(url.partition("?")[0]) as store:
            version = await store.save_if("k", "v", expected=None)
            await store.save_if("k", "w", expected=version)
            assert [key async for key in store.list_keys()] == ["k"]
            await store.delete("k")


async def test_a_user_whose_name_is_a_word_of_refusals_gets_no_other_remedy(server: Valkey) -> None:
    for name in ("monkey", "key"):
        server.ask("ACL", "SETUSER", name, "on", ">pw", "~dagonizer:*", "+@all", "-set")
        url = server.url.replace("//", f"//{name}:pw@")
        found = await diagnosed(url)
        remedy = expect(found, "grants", "bad", f"{name} may not run SET")
        assert "keys that begin" not in found["grants"].message
        assert remedy == f"ACL SETUSER {name} +set"
        server.ask("ACL", "SETUSER", name, "resetkeys")
        do(server, expect(await diagnosed(url), "grants", "bad", "keys that begin with dagonizer:"))
        expect(await diagnosed(url), "grants", "good")


async def test_a_prefix_of_another_form_is_granted_by_the_remedy() -> None:
    with Valkey(*user("~other:*", "+@all")) as server:
        url = server.url.replace("//", "//r:pw@")
        query = "?prefix=it%27s+%5Ba%5D*:"
        do(server, expect(await diagnosed(url + query), "grants", "bad"))
        expect(await diagnosed(url + query), "grants", "good")
        expect(await diagnosed(f"{url}?prefix=it%27s+a:"), "grants", "bad")


async def test_a_command_that_the_server_does_not_offer() -> None:
    with Valkey("--rename-command", "WATCH", "") as server:
        expect(await diagnosed(server.url), "grants", "bad", "offers no WATCH")
    with Valkey("--rename-command", "SCAN", "") as server:
        expect(await diagnosed(server.url), "grants", "warning", "offers no SCAN")


async def test_who_may_not_enter_gets_the_error(server: Valkey) -> None:
    configure(server, requirepass=SECRET)
    with pytest.raises(StoreAccessError, match="check the user name and the password"):
        await findings_of(server.url)


# Connections.


async def test_a_server_with_few_connections_is_told_and_given_more(server: Valkey) -> None:
    configure(server, maxclients=20)
    expect(await diagnosed(server.url), "clients", "warning", "of maxclients 20", "leaves 20", "max_connections is 32")
    expect(await diagnosed(f"{server.url}?max_connections=20"), "clients", "good")
    configure(server, maxclients=40)
    expect(await diagnosed(server.url), "clients", "good")


# What a diagnosis leaves alone.


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Let nothing be closed by the garbage collector that was not closed before."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
async def test_nothing_is_left_behind_or_changed(server: Valkey) -> None:
    async with opened(server.url) as store:
        await store.save("k", "v")
    for rights in ((), ("-discard",), ("-exec",), ("-multi",)):
        server.ask("ACL", "SETUSER", "r", "reset", "on", ">pw", "~*", "+@all", *rights)
        await findings_of(f"{server.url.replace('//', '//r:pw@')}?wait=1")
    assert server.ask("KEYS", "*") == "*1\r\n$11\r\ndagonizer:k\r\n"
    assert info(server, "rdb_changes_since_last_save") == "1"
    until(lambda: info(server, "connected_clients") == "1")


@pytest.mark.usefixtures("uncollected")
async def test_whoever_stops_listening_is_left_with_nothing(server: Valkey) -> None:
    found: Any = dagonizer_diagnose_store(StoreURL.parse(server.url))
    assert (await anext(found)).check == "prefix"
    await found.aclose()
    until(lambda: info(server, "connected_clients") == "1")
    assert len(asyncio.all_tasks()) == 1


async def test_a_diagnosis_can_be_cancelled_and_does_not_wait_for_ever(server: Valkey) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        url = server.url.replace(f":{server.port}", f":{proxy.port}")
        await proxy.black_hole()
        with pytest.raises(StoreUnavailableError, match="no answer within the timeout"):
            await findings_of(f"{url}?timeout=0.5")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(findings_of(url), 0.2)
    until(lambda: info(server, "connected_clients") == "1")
    assert len(asyncio.all_tasks()) == 1


async def test_no_finding_holds_a_password() -> None:
    quoted = SECRET.replace("&", "%26")
    said: list[str] = []
    with Replicated("--user", "r", "on", f">{SECRET}", "~*", "+info", sentinels=1) as servers:
        primary = servers.primary
        primary.ask("CONFIG", "SET", "requirepass", SECRET)
        sentinel = f"127.0.0.1:{servers.sentinels[0].port}"
        for url in (
            f"redis://:{quoted}@127.0.0.1:{primary.port}",
            f"redis://r:{quoted}@127.0.0.1:{primary.port}",
            f"redis://:{quoted}x@127.0.0.1:{primary.port}",
            f"redis://:{quoted}@127.0.0.1:{free_port()}",
            f"redis+cluster://:{quoted}@127.0.0.1:{primary.port}",
            f"redis+sentinel://:{quoted}@{sentinel},127.0.0.1:{free_port()}/x?sentinel_password={quoted}",
            f"redis+sentinel://:{quoted}@{sentinel}/{servers.service}?sentinel_password={quoted}",
        ):
            found: Any = dagonizer_diagnose_store(StoreURL.parse(url))
            told: list[Finding] = []
            try:
                told += [finding async for finding in found]
            except StoreError as exc:
                said += [str(exc), repr(exc)]
            said += map(repr, told)
    assert len(said) > 25
    assert not [text for text in said if SECRET in text or quoted in text]
