"""Another server takes the place of one that was killed, and the stores of the clients go on with it."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from itertools import pairwise

from faults.clients import Clients, look
from faults.ledger import calls_in, judge
from faults.report import Row

from dagonizer_test_servers.etcd import EtcdCluster
from dagonizer_test_servers.postgres import Postgres
from dagonizer_test_servers.redis import Cluster, Replicated, until

CLIENTS = 4
SIZES = (3_000, 60_000)
TIMEOUT = 4
# A process that shares the machine with the others may be told late that the time is over.
NOISE = 2
_PATIENCE = 60.0
_PAUSE = 0.05


class Failover:
    """Clients of ``urls``, which go on through all that is done to the servers, and what their ledgers tell in the end.

    They keep their processes and stores. ``linearizable`` is that of ``judge``.
    """

    def __init__(self, faults, folder, *urls, linearizable=True):
        self._faults = faults
        self._folder = folder
        self._urls = urls
        self._linearizable = linearizable
        self._clients = Clients(
            folder, urls, CLIENTS, prefix=f"failover-{faults.random.getrandbits(32):08x}", seed=faults.seed, sizes=SIZES
        )

    def __enter__(self):
        self._clients.__enter__()
        return self

    def __exit__(self, *exc):
        self._clients.__exit__(*exc)

    def pause(self):
        """Let the clients work for a random time."""
        time.sleep(self._faults.random.uniform(0.2, 0.7))

    def wait_for_answers(self):
        """Return once each client has had another call acknowledged."""
        self._clients.wait_for_acknowledgements()

    def wait_for_saves(self):
        """Return once each client has begun another save and had it acknowledged."""
        self._clients.wait_for_acknowledgements(name="save")

    def wait_for_refused_saves(self):
        """Return once each client has begun another save and had an error, and nobody another acknowledgement."""
        deadline = time.monotonic() + _PATIENCE
        begun = {path: path.stat().st_size for path in self._folder.iterdir()}
        while True:
            saves = [[call for call in calls_in(*ledger) if call.name == "save"] for ledger in begun.items()]
            assert not any(save.acknowledged for each in saves for save in each)
            if all(any(save.error for save in each) for each in saves):
                return
            assert time.monotonic() < deadline, f"not all were refused a save within {_PATIENCE:g} s"
            time.sleep(_PAUSE)

    def look(self):
        """Judge what there is after all, when the clients have ended."""
        asyncio.run(look(self._urls[0], self._clients.keys, self._folder / "afterwards"))
        return judge(self._folder, linearizable=self._linearizable)

    def judge(self, fault, store, *, injected, notes=""):
        """Do the same, and tell of it."""
        notes = f"longest outage of a client {self._outage():.1f} s, of its saves {self._outage('save'):.1f} s{notes}"
        if not self._linearizable:
            notes += "; linearizability not judged, as a load may show what a failover takes back"
        judgement = self.look()
        self._faults.tell(Row.of(judgement, fault, store, injected=injected, notes=notes))
        return judgement

    def _outage(self, *names):
        """Return the longest time in seconds between two acknowledged calls of one client, or such with a name."""
        longest = 0
        for path in self._folder.iterdir():
            ends = [call.ended for call in calls_in(path) if call.acknowledged and (not names or call.name in names)]
            longest = max([longest, *(later - earlier for earlier, later in pairwise(ends))])
        return longest / 1e9


def expect_followed(judgement):
    """Raise ``AssertionError`` if anything was lost, or a caller saw more than that the store is unavailable."""
    judgement.expect_nothing_lost()
    assert set(judgement.errors) <= {"StoreUnavailableError"}
    assert judgement.longest_wait < TIMEOUT + NOISE


# etcd.


def test_etcd_elects_another_leader_and_takes_in_a_member_whose_disk_was_lost(faults, tmp_path):
    rounds = faults.scale(short=1, whole=3)
    with EtcdCluster() as cluster:
        urls = [f"{url}?timeout={TIMEOUT}" for url in (cluster.url, cluster.url.replace("etcd", "etcd+http", 1))]
        with Failover(faults, tmp_path, *urls) as clients:
            for _ in range(rounds):
                clients.pause()
                first = cluster.leader()
                first.down()
                clients.wait_for_saves()
                first.up()
                clients.pause()
                first.down()
                cluster.replace(first)
                clients.wait_for_saves()
                # Without it there is no majority now.
                second = next(member for member in (cluster.leader(), *cluster.members) if member is not first)
                second.down()
                clients.wait_for_saves()
                second.up()
        judgement = clients.judge(
            "leader killed (SIGKILL), its disk lost, the next one killed", "etcd", injected=3 * rounds
        )
    expect_followed(judgement)


# Redis. A value may be read there before a replica has it, and be lost with the primary, so a history need not be
# linearizable. What was acknowledged after a replica had it must be there all the same.


def is_primary(server):
    return "role:master" in server.ask("INFO", "replication")


def has_its_primary(server):
    return "master_link_status:up" in server.ask("INFO", "replication")


def test_replicas_take_over_in_a_redis_cluster(faults, tmp_path):
    kills = faults.scale(short=1, whole=5)
    with Cluster(replicas=1) as cluster:
        with Failover(faults, tmp_path, f"{cluster.url}?wait=1&timeout={TIMEOUT}", linearizable=False) as clients:
            for _ in range(kills):
                clients.pause()
                killed = faults.random.choice([node for node in cluster.nodes if is_primary(node)])
                others = [node for node in cluster.nodes if node is not killed]
                killed.down()
                until(lambda others=others: sum(map(is_primary, others)) == 3)
                clients.wait_for_answers()
                killed.up()
                until(lambda killed=killed: has_its_primary(killed))
                clients.wait_for_saves()
        judgement = clients.judge("primary killed (SIGKILL)", "redis+cluster, wait=1", injected=kills)
    expect_followed(judgement)


def sentinels_agree_on(server, servers):
    answers = {sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", servers.service) for sentinel in servers.sentinels}
    return len(answers) == 1 and servers.named() == server.port


def sentinels_see_a_replica(servers):
    answers = [sentinel.ask("SENTINEL", "REPLICAS", servers.service) for sentinel in servers.sentinels]
    return all("\r\nslave\r\n" in answer and "\r\nok\r\n" in answer for answer in answers)


def test_sentinels_promote_the_replica(faults, tmp_path):
    kills = faults.scale(short=1, whole=5)
    # They ask a new primary for the first time after a second, and must not take it for dead until then.
    patient = f"sentinel down-after-milliseconds {Replicated.service} 1500"
    with Replicated(sentinels=3, sentinel_options=(patient,)) as servers:
        primary, replica = servers.primary, *servers.replicas
        for sentinel in servers.sentinels:
            # Else it waits ten seconds and more until it makes a replica of one that has come back.
            assert sentinel.ask("SENTINEL", "DEBUG", "INFO-PERIOD", "500", "PUBLISH-PERIOD", "200") == "+OK\r\n"
        with Failover(faults, tmp_path, f"{servers.url}?wait=1&timeout={TIMEOUT}", linearizable=False) as clients:
            for _ in range(kills):
                clients.pause()
                primary.down()
                # One that comes back earlier is still taken for the primary by some.
                until(lambda replica=replica: sentinels_agree_on(replica, servers))
                clients.wait_for_answers()
                primary.up()
                until(lambda primary=primary: has_its_primary(primary))
                clients.wait_for_saves()
                until(lambda: sentinels_see_a_replica(servers))
                primary, replica = replica, primary
        judgement = clients.judge("primary killed (SIGKILL)", "redis+sentinel, wait=1", injected=kills)
    expect_followed(judgement)


def test_a_failover_to_a_replica_that_lagged_behind_is_found(faults, tmp_path):
    with Replicated() as servers:
        (replica,) = servers.replicas
        with Failover(faults, tmp_path, f"{servers.url}?timeout={TIMEOUT}", linearizable=False) as clients:
            assert replica.ask("REPLICAOF", "NO", "ONE") == "+OK\r\n"
            clients.wait_for_saves()
            servers.primary.down()
            until(lambda: sentinels_agree_on(replica, servers))
            clients.wait_for_answers()
        assert clients.look().lost


# PostgreSQL.

SYNCHRONOUS = "synchronous_standby_names = 'walreceiver'"


def url_of(*servers):
    account, _, place = servers[0].url.rpartition("@")
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"{account}@{hosts}/{place.partition('/')[2]}?timeout={TIMEOUT}"


def test_a_synchronous_standby_of_postgres_is_promoted(faults, tmp_path):
    with Postgres(SYNCHRONOUS) as primary, Postgres(primary=primary) as standby:
        with Failover(faults, tmp_path, url_of(primary, standby)) as clients:
            clients.pause()
            primary.down()
            standby.promote()
            # It needs no standby of its own, so from now on the loss of this one is that of everything.
            clients.wait_for_saves()
        judgement = clients.judge(
            "primary killed (SIGKILL), synchronous standby promoted",
            "postgresql",
            injected=1,
            notes="; the new primary acknowledges alone",
        )
    expect_followed(judgement)


def test_a_promoted_standby_of_postgres_acknowledges_once_it_has_a_standby_itself(faults, tmp_path):
    kills = faults.scale(short=1, whole=5)
    with ExitStack() as stack:
        primary = stack.enter_context(Postgres(SYNCHRONOUS))
        standby = stack.enter_context(Postgres(SYNCHRONOUS, primary=primary))
        with Failover(faults, tmp_path, url_of(primary, standby)) as clients:
            for _ in range(kills):
                clients.pause()
                primary.down()
                standby.promote()
                clients.wait_for_refused_saves()
                primary, standby = (
                    standby,
                    stack.enter_context(Postgres(SYNCHRONOUS, primary=standby, port=primary.port)),
                )
                clients.wait_for_saves()
        judgement = clients.judge(
            "primary killed (SIGKILL), synchronous standby promoted",
            "postgresql",
            injected=kills,
            notes="; each new primary acknowledges nothing until it has a standby",
        )
    expect_followed(judgement)
