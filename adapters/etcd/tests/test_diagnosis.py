"""What is found of a cluster, each on servers that are so configured."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import aclosing, asynccontextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import pytest
import trustme
from aetcd import rpc
from aiohttp import web

from dagonizer import StoreURL, open_store
from dagonizer.diagnosis import DURABILITY, Finding
from dagonizer.errors import StoreAccessError, StoreLimitError, StoreUnavailableError
from dagonizer_etcd import EtcdConfig, _diagnosis
from dagonizer_etcd._plugin import dagonizer_diagnose_store
from dagonizer_etcd._transport import Status
from dagonizer_test_servers import Process, free_port
from dagonizer_test_servers.etcd import Etcd, EtcdCluster
from dagonizer_test_servers.process import answers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from dagonizer import ClosableStore

CHECKS = [
    *("tls", "hosts", "version", "leader", "members", "failover", "alarms", "auth", "permissions", "request-limit"),
    *("compaction", "quota", "fragmentation", DURABILITY),
]  # fmt: skip
# Of the server of the tests.
ALWAYS = {"version": "warning", "auth": "note", "compaction": "note"}
SECRET = "ThisIsTheSecret"


@pytest.fixture(params=["etcd", "etcd+http"])
def scheme(request: pytest.FixtureRequest) -> str:
    scheme: str = request.param
    return scheme


async def examined(url: str) -> list[Finding]:
    findings = dagonizer_diagnose_store(StoreURL.parse(url))
    assert findings is not None
    async with aclosing(findings):  # type: ignore[type-var]
        return [finding async for finding in findings]


async def found(url: str, check: str) -> list[Finding]:
    found = [finding for finding in await examined(url) if finding.check == check]
    for finding in found:
        assert (finding.remedy is None) == (finding.verdict == "good")
    return found


async def only(url: str, check: str) -> Finding:
    (finding,) = await found(url, check)
    return finding


# Clusters.


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdCluster]:
    with EtcdCluster("--strict-reconfig-check=false") as cluster:
        cluster.leader()
        yield cluster


async def test_a_sound_cluster(cluster: EtcdCluster, scheme: str) -> None:
    findings = await examined(cluster.url.replace("etcd", scheme, 1))
    assert [finding.check for finding in findings] == CHECKS
    for finding in findings:
        assert finding.verdict == ALWAYS.get(finding.check, "good"), finding
        assert (finding.remedy is None) == (finding.verdict == "good")
    by_check = {finding.check: finding.message for finding in findings}
    assert "3 members, and works without 1" in by_check["members"]
    assert "of its quota of 2.0 GiB (0%)" in by_check["quota"]
    assert by_check[DURABILITY].startswith("an acknowledged save is flushed to the disks of at least 2 of 3 members")
    assert by_check[DURABILITY].endswith("the loss of any 1 of them")


async def test_a_url_that_names_one_member_of_three(cluster: EtcdCluster, scheme: str) -> None:
    findings = {finding.check: finding for finding in await examined(cluster.members[0].url.replace("etcd", scheme, 1))}
    assert findings["failover"].verdict == "note"
    assert "names 1 of 3 members" in findings["failover"].message
    assert findings[DURABILITY].verdict == "good"
    assert findings[DURABILITY].message.startswith("unless members run with --unsafe-no-fsync")


async def test_a_member_that_does_not_answer(cluster: EtcdCluster, scheme: str) -> None:
    member = cluster.members[1]
    member.down()
    try:
        findings = await examined(cluster.url.replace("etcd", scheme, 1))
    finally:
        member.up()
    (finding,) = [finding for finding in findings if finding.check == "hosts"]
    assert finding.verdict == "warning"
    assert f"127.0.0.1:{member.port} does not answer" in finding.message
    assert findings[-1].check == DURABILITY
    assert findings[-1].verdict == "good"


async def test_an_even_number_of_members_and_one_that_was_never_started(cluster: EtcdCluster, scheme: str) -> None:
    member = cluster.leader()
    added = member.ctl("member", "add", "fourth", f"--peer-urls=http://127.0.0.1:{free_port()}").split()[1]
    try:
        size, unstarted = await found(cluster.url.replace("etcd", scheme, 1), "members")
    finally:
        member.ctl("member", "remove", added)
    assert size.verdict == "note"
    assert "4 members, and works without 1 of them, as it would with 3" in size.message
    assert unstarted.verdict == "warning"
    assert f"{added} was added and never started, but counts" in unstarted.message
    assert unstarted.remedy == f"start it, or: etcdctl member remove {added}"


@pytest.fixture(scope="module")
def alone() -> Iterator[Etcd]:
    with Etcd() as server:
        yield server


async def test_one_member(alone: Etcd, scheme: str) -> None:
    findings = {finding.check: finding for finding in await examined(alone.url.replace("etcd", scheme, 1))}
    assert findings["members"].verdict == "note"
    assert "has one member" in findings["members"].message
    assert findings["failover"].verdict == "good"
    assert findings[DURABILITY].verdict == "note"
    assert "is flushed to the one member's disk, and outlives" in findings[DURABILITY].message
    assert "but not the loss of that disk" in findings[DURABILITY].message


async def test_two_members_and_then_one_of_them_without_a_leader(scheme: str) -> None:
    with EtcdCluster("--strict-reconfig-check=false") as cluster:
        one, other, third = cluster.members
        leader = cluster.leader()
        identity = next(
            line.partition(",")[0] for line in leader.ctl("member", "list").splitlines() if third.peer_url in line
        )
        one.ctl("member", "remove", identity)
        url = f"{scheme}://127.0.0.1:{one.port},127.0.0.1:{other.port}?timeout=4"
        findings = {finding.check: finding for finding in await eventually_examined(url)}
        assert findings["members"].verdict == "warning"
        assert "two members" in findings["members"].message
        assert findings[DURABILITY].verdict == "note"
        assert "the disks of both members" in findings[DURABILITY].message
        other.down()
        deadline = time.monotonic() + 30
        while True:
            # Until it has noticed, it knows a leader, and lets writes wait.
            try:
                findings = {finding.check: finding for finding in await examined(url)}
                break
            except StoreUnavailableError:
                assert time.monotonic() < deadline
        assert findings["leader"].verdict == "bad"
        assert f"127.0.0.1:{one.port} has no leader" in findings["leader"].message
        assert findings[DURABILITY].verdict == "bad"


async def eventually_examined(url: str) -> list[Finding]:
    """Examine a cluster that may still be choosing its leader."""
    deadline = time.monotonic() + 30
    while True:
        try:
            findings = await examined(url)
            if findings[-1].verdict != "bad":
                return findings
        except StoreUnavailableError:
            pass
        assert time.monotonic() < deadline


async def test_a_learner_that_the_url_names(scheme: str) -> None:
    with Etcd() as server:
        peer = free_port()
        server.ctl("member", "add", "late", "--learner", f"--peer-urls=http://127.0.0.1:{peer}")
        url = server.url.replace("etcd", scheme, 1)
        size, unstarted = await found(url, "members")
        assert "one member" in size.message
        assert unstarted.verdict == "note"
        assert "never started, and does not count" in unstarted.message
        both = f"{server.name}={server.peer_url},late=http://127.0.0.1:{peer}"
        late = Etcd("--initial-cluster-state=existing", name="late", peer=peer, cluster=both)
        # A learner calls itself unhealthy, and has a name when it has started.
        ready = lambda: answers(late.port) and "late" in server.ctl("member", "list")  # noqa: E731
        process = Process(late._command, log=late.directory / "log", ready=ready)
        process.start()
        try:
            _, learner = await found(url, "members")
            assert learner.verdict == "note"
            assert "'late' is a learner: it counts for no majority" in learner.message
            _, learner = await found(f"{url},127.0.0.1:{late.port}", "members")
            assert learner.verdict == "warning"
            assert f"127.0.0.1:{late.port} of the URL refuses" in learner.message
        finally:
            process.kill()
            late.stop()


async def test_hosts_of_two_clusters(cluster: EtcdCluster, alone: Etcd, scheme: str) -> None:
    url = f"{cluster.members[0].url},{alone.url.removeprefix('etcd://')}".replace("etcd", scheme, 1)
    finding = await only(url, "hosts")
    assert finding.verdict == "bad"
    assert "not members of one cluster" in finding.message


async def test_nobody_answers(scheme: str) -> None:
    with pytest.raises(StoreUnavailableError, match="could not examine the cluster at 127"):
        await examined(f"{scheme}://127.0.0.1:{free_port()}?timeout=5")


# What the server is configured to.


async def test_a_smaller_request_limit_and_a_chunk_that_is_accepted(scheme: str) -> None:
    with Etcd("--max-request-bytes=200000") as server:
        url = server.url.replace("etcd", scheme, 1)
        finding = await only(url, "request-limit")
        assert finding.verdict == "bad"
        assert "refuses requests with chunk_bytes=1433600" in finding.message
        assert finding.remedy is not None
        assert finding.remedy.startswith("?chunk_bytes=179200, ")
        assert finding.remedy.endswith("--max-request-bytes=1536000")
        async with open_store(url) as store:
            with pytest.raises(StoreLimitError):
                await store.save("k", "v" * 400_000)
        mended = f"{url}?chunk_bytes=179200"
        async with open_store(mended) as store:
            await store.save("k", "v" * 400_000)
        assert (await only(mended, "request-limit")).verdict == "good"
    with Etcd("--max-request-bytes=500") as server:
        finding = await only(server.url.replace("etcd", scheme, 1), "request-limit")
        assert finding.remedy == "start the members with --max-request-bytes=1536000"


async def until_it_fails(store: ClosableStore) -> None:
    for _ in range(100):
        await store.save("k", "v" * 90_000)


async def test_a_server_that_fills(scheme: str) -> None:
    # It knows its size by what it has committed.
    with Etcd("--quota-backend-bytes=4194304", "--backend-batch-limit=1") as server:
        url = f"{server.url.replace('etcd', scheme, 1)}?chunk_bytes=102400"
        async with open_store(url) as store:
            number = 0
            while (finding := await only(url, "quota")).verdict == "good":
                assert "of its quota of 4.0 MiB" in finding.message
                number += 1
                await store.save("k", f"{number:03}" * 30_000)
            assert finding.verdict == "warning"
            assert number > 10
            # A value of the default chunk_bytes would not fit in any more, and raise an alarm.
            assert (await only(server.url.replace("etcd", scheme, 1), "request-limit")).verdict == "good"
            assert (await only(url, "alarms")).verdict == "good"
            with pytest.raises(StoreLimitError):
                await until_it_fails(store)
            findings = {finding.check: finding for finding in await examined(url)}
            assert findings["alarms"].verdict == "bad"
            assert "NOSPACE" in findings["alarms"].message
            assert findings["quota"].verdict == "warning"
            assert DURABILITY in findings


async def test_a_corrupt_member() -> None:
    with Etcd() as server:
        target = server.url.removeprefix("etcd://")
        async with grpc.aio.insecure_channel(target) as channel:
            maintenance: Any = rpc.MaintenanceStub(channel)
            member = (await maintenance.Status(rpc.StatusRequest())).header.member_id
            await maintenance.Alarm(rpc.AlarmRequest(action="ACTIVATE", memberID=member, alarm="CORRUPT"))
        findings = {finding.check: finding for finding in await examined(server.url)}
        assert findings["alarms"].verdict == "bad"
        assert f"CORRUPT of the member {member:x}" in findings["alarms"].message
        assert findings[DURABILITY].verdict == "bad"


async def test_a_server_without_a_quota(scheme: str) -> None:
    with Etcd("--quota-backend-bytes=-1") as server:
        finding = await only(server.url.replace("etcd", scheme, 1), "quota")
        assert finding.verdict == "note"
        assert "has no quota" in finding.message


async def test_old_revisions_and_the_holes_that_they_leave() -> None:
    with Etcd("--backend-batch-limit=1", "--unsafe-no-fsync") as server:
        url = server.url
        async with open_store(url) as store:
            for number in range(50):
                await store.save("k", f"{number:02}" * 500_000)
            findings = {finding.check: finding for finding in await examined(url)}
            assert findings["compaction"].verdict == "note"
            assert "none of the revisions up to 51 was compacted" in findings["compaction"].message
            assert findings["fragmentation"].verdict == "good"
            server.ctl("compact", "--physical", "51")
            # What is free is told after the next commits.
            for number in range(3):
                await store.save("k", f"{number}")
        findings = {finding.check: finding for finding in await examined(url)}
        assert findings["compaction"].verdict == "good"
        assert findings["fragmentation"].verdict == "note"
        server.ctl("defrag")
        assert (await only(url, "fragmentation")).verdict == "good"


async def test_many_revisions_without_compaction() -> None:
    with Etcd("--unsafe-no-fsync") as server:
        async with grpc.aio.insecure_channel(server.url.removeprefix("etcd://")) as channel:
            kv: Any = rpc.KVStub(channel)
            for _ in range(100):
                await asyncio.gather(*(kv.Put(rpc.PutRequest(key=b"k")) for _ in range(101)))
        assert (await only(server.url, "compaction")).verdict == "warning"


async def test_a_server_that_does_not_flush(scheme: str) -> None:
    with Etcd("--unsafe-no-fsync") as server:
        finding = await only(server.url.replace("etcd", scheme, 1), DURABILITY)
        assert finding.verdict == "warning"
        assert "acknowledges without flushing its log" in finding.message
        assert finding.remedy == "start the members without --unsafe-no-fsync"


def test_what_is_said_of_versions() -> None:
    def verdict(*versions: str) -> str:
        return _diagnosis._version([_diagnosis._Told("h", Status(1, 1, 1, each, 1, 1)) for each in versions]).verdict

    verdicts = {
        "bad": ("3.3.27",),
        "warning": ("3.5.0", "3.5.2"),
        "note": ("3.4.0", "3.4.22", "3.5.3", "3.5.6"),
        "good": ("3.4.23", "3.4.37", "3.5.7", "3.5.21", "3.6.0-rc.1"),
    }
    for expected, versions in verdicts.items():
        assert {version: verdict(version) for version in versions} == dict.fromkeys(versions, expected)
    assert verdict("3.5.17", "3.6.1") == "note"
    assert verdict("3.3.27", "3.6.1") == "bad"
    assert verdict() == "note"


# Who may see and do what.


@pytest.fixture(scope="module")
def guarded() -> Iterator[Etcd]:
    """A server with a root and users who may do what the store needs, only read, only write, and nothing."""
    with Etcd() as server:
        for user in ("root", "all", "reader", "writer", "nobody"):
            server.ctl("user", "add", f"{user}:{SECRET}")
        server.ctl("user", "grant-role", "root", "root")
        for user, permission in (("all", "readwrite"), ("reader", "read"), ("writer", "write")):
            server.ctl("role", "add", user)
            server.ctl("role", "grant-permission", user, permission, "--prefix", "/dagonizer//")
            server.ctl("user", "grant-role", user, user)
        server.ctl("auth", "enable")
        yield server


def url_of(server: Etcd, scheme: str, user: str) -> str:
    return f"{scheme}://{user}:{SECRET}@127.0.0.1:{server.port}?timeout=10"


async def test_a_user_who_may_do_what_the_store_needs(guarded: Etcd, scheme: str) -> None:
    for user in ("root", "all"):
        findings = await examined(url_of(guarded, scheme, user))
        assert [finding.check for finding in findings] == CHECKS
        by_check = {finding.check: finding for finding in findings}
        assert by_check["auth"].verdict == by_check["permissions"].verdict == "good"


@pytest.mark.parametrize(("user", "verb"), [("nobody", "read"), ("writer", "read"), ("reader", "write")])
async def test_a_user_who_may_not(guarded: Etcd, scheme: str, user: str, verb: str) -> None:
    findings = await examined(url_of(guarded, scheme, user))
    (finding,) = [finding for finding in findings if finding.check == "permissions"]
    assert finding.verdict == "bad"
    assert f"may not {verb} below /dagonizer//: etcdserver: permission denied" in finding.message
    assert finding.remedy == "etcdctl role grant-permission ROLE readwrite --prefix /dagonizer//"
    assert findings[-1].check == DURABILITY


async def test_nobody_at_a_server_that_asks_for_a_user(guarded: Etcd, scheme: str) -> None:
    findings = {finding.check: finding for finding in await examined(f"{scheme}://127.0.0.1:{guarded.port}")}
    assert findings["auth"].verdict == "good"
    assert findings["permissions"].verdict == "bad"
    assert findings["permissions"].remedy == "the server wants a user: etcd://user:password@host"


async def test_a_wrong_password_ends_it(guarded: Etcd, scheme: str) -> None:
    with pytest.raises(StoreAccessError, match="authentication failed"):
        await examined(f"{scheme}://all:wrong@127.0.0.1:{guarded.port}")


async def test_no_finding_holds_the_password(guarded: Etcd, scheme: str) -> None:
    for user in ("root", "all", "reader", "nobody"):
        for finding in await examined(url_of(guarded, scheme, user)):
            assert SECRET not in repr(finding)
    config = EtcdConfig.from_url(StoreURL.parse(f"{scheme}://u:{SECRET}@etcd.example"))
    finding = _diagnosis._tls(config)
    assert finding.verdict == "warning"
    assert SECRET not in repr(finding)


@asynccontextmanager
async def behind_a_proxy(server: Etcd, *refused: str, others: Sequence[Etcd] = ()) -> AsyncIterator[str]:
    """Give the URL of a proxy to the gateway which refuses some paths, as one may.

    The metrics are those of the server and the others, one after the other, as if it stood for all of them.
    """
    turns = itertools.cycle([server, *others])

    async def forward(request: web.BaseRequest) -> web.StreamResponse:
        if request.path in refused:
            return web.Response(status=403)
        body = b"".join([piece async for piece in request.content.iter_any()])
        member = next(turns) if request.path == "/metrics" else server
        async with session.request(request.method, member.client_url + request.path, data=BytesIO(body)) as said:
            return web.Response(status=said.status, body=await said.read(), content_type=said.content_type)

    runner = web.ServerRunner(web.Server(forward))
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        async with aiohttp.ClientSession() as session:
            yield f"etcd+http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def test_what_is_kept_back_is_a_note(alone: Etcd) -> None:
    refused = ("/v3/maintenance/status", "/v3/maintenance/alarm", "/v3/cluster/member/list", "/metrics")
    async with behind_a_proxy(alone, *refused) as url:
        findings = await examined(url)
    by_check = {finding.check: finding for finding in findings}
    for check in ("hosts", "version", "members", "alarms", "quota", "fragmentation"):
        assert by_check[check].verdict == "note", check
        assert by_check[check].message.startswith("the server does not tell")
    assert by_check["request-limit"].verdict == "good"
    assert "unless members run with --unsafe-no-fsync" in by_check[DURABILITY].message
    assert by_check[DURABILITY].verdict == "note"
    async with behind_a_proxy(alone) as url:
        assert (await only(url, "alarms")).verdict == "good"
        assert "unless" not in (await only(url, DURABILITY)).message


async def test_members_behind_one_address_are_not_compared_with_each_other() -> None:
    with EtcdCluster() as cluster:
        cluster.leader()
        older, younger, _ = cluster.members
        async with open_store(older.url) as store:
            for number in range(100):
                await store.save("k", f"{number}")
        # Its counts begin again.
        younger.down()
        younger.up()
        cluster.leader()
        async with behind_a_proxy(older, others=[younger]) as url:
            finding = await only(url, DURABILITY)
    assert finding.verdict == "good"
    assert finding.message.startswith("unless members run with --unsafe-no-fsync")


# TLS.


@pytest.mark.parametrize(
    ("url", "verdict"),
    [
        ("etcd://127.0.0.1,localhost,[::1]", "good"),
        ("etcd://127.0.0.1,etcd.example", "warning"),
        ("etcd+http://10.0.0.1", "warning"),
        ("etcds://10.0.0.1", "good"),
        ("etcd+https://etcd.example", "good"),
    ],
)
def test_what_leaves_the_machine_unencrypted(url: str, verdict: str) -> None:
    finding = _diagnosis._tls(EtcdConfig.from_url(StoreURL.parse(url)))
    assert finding.verdict == verdict
    if verdict == "warning":
        assert "127.0.0.1" not in finding.message
        assert finding.remedy is not None
        assert finding.remedy.endswith("write etcd+https:" if "+" in url else "write etcds:")


@pytest.mark.parametrize("scheme", ["etcds", "etcd+https"])
async def test_everything_is_asked_through_tls(tmp_path: Path, scheme: str) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("etcd.example")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    with Etcd(f"--cert-file={tmp_path}/server.pem", f"--key-file={tmp_path}/server.key") as server:
        url = f"{scheme}://127.0.0.1:{server.port}?tls_ca={tmp_path}/ca.pem&tls_server_name=etcd.example"
        findings = {finding.check: finding for finding in await examined(url)}
        assert findings["tls"].verdict == "good"
        assert findings["quota"].verdict == "good"
        assert "unless" not in findings[DURABILITY].message


# What it leaves.


async def test_nothing_is_changed(alone: Etcd, scheme: str) -> None:
    def content() -> tuple[str, str]:
        # What is there, with the revisions of its changes; and the cluster's own.
        return alone.ctl("get", "--prefix", "", "--write-out=fields"), alone.ctl("lease", "list")

    url = alone.url.replace("etcd", scheme, 1)
    async with open_store(url) as store:
        await store.save("k", "v")
        before = content()
        assert {finding.check for finding in await examined(url)} == set(CHECKS)
        after = content()
        await store.delete("k")

    def without_raft(text: str) -> list[str]:
        return [line for line in text.splitlines() if "RaftTerm" not in line and "MemberID" not in line]

    assert without_raft(after[0]) == without_raft(before[0])
    assert '"Revision"' in before[0]
    assert after[1] == before[1]


async def test_an_examination_may_end_early(alone: Etcd, scheme: str) -> None:
    findings: Any = dagonizer_diagnose_store(StoreURL.parse(alone.url.replace("etcd", scheme, 1)))
    assert (await anext(findings)).check == "tls"
    assert (await anext(findings)).check == "hosts"
    await findings.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(findings)
