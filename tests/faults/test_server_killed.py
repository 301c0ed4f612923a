"""A server is killed again and again while eight processes use it, and has everything that it had acknowledged."""

from __future__ import annotations

import asyncio
import time

import pytest
from faults.clients import Clients, look
from faults.ledger import calls_in, judge
from faults.report import Row

from dagonizer_test_servers.etcd import ROOM, EtcdCluster
from dagonizer_test_servers.redis import Valkey

CLIENTS = 8
TIMEOUT = 5
# A process that shares the machine with the others may be told late that the time is over.
NOISE = 3


def urls(store, server):
    """Half of etcd's clients use its gateway."""
    url = f"{server.url}{'&' if '?' in server.url else '?'}timeout={TIMEOUT}"
    return [url, url.replace("etcd", "etcd+http", 1)] if store == "etcd" else [url]


def kill(server):
    """Return when it was killed, in nanoseconds: not before the one time, nor after the other."""
    before = time.monotonic_ns()
    server.down()
    return before, time.monotonic_ns()


def interrupted(kills, folder):
    """Return how many of ``kills`` came in the middle of a call."""
    calls = [call for path in folder.iterdir() for call in calls_in(path)]
    count = 0
    for before, after in kills:
        # PostgreSQL's processes are looked for and killed one after the other, and answer until then.
        last_answer = max([before, *(call.ended for call in calls if call.acknowledged and call.ended < after)])
        count += any(call.started < last_answer and call.ended > (before if call.error else after) for call in calls)
    return count


@pytest.mark.parametrize("store", ["postgresql", "redis", "s3"])
def test_a_server_that_is_killed_has_what_it_acknowledged(store, killable_server, faults, tmp_path):
    killed_again_and_again(store, killable_server, faults, tmp_path)


def test_a_cluster_of_etcd_that_is_killed_has_what_it_acknowledged(faults, tmp_path):
    # An etcd of one member may acknowledge before it has written, https://github.com/etcd-io/etcd/issues/14370.
    with EtcdCluster(*ROOM) as cluster:
        killed_again_and_again("etcd", cluster, faults, tmp_path, "all three members, ")


def killed_again_and_again(store, server, faults, tmp_path, notes=""):
    kills = []
    prefix = f"killed-{faults.random.getrandbits(32):08x}"
    with Clients(tmp_path, urls(store, server), CLIENTS, prefix=prefix, seed=faults.seed) as clients:
        for _ in range(faults.scale(short=1, whole=20)):
            time.sleep(faults.random.uniform(0.05, 0.5))
            kills.append(kill(server))
            server.up()
            clients.wait_for_acknowledgements()
    asyncio.run(look(server.url, clients.keys, tmp_path / "afterwards"))
    judgement = judge(tmp_path)
    in_calls = interrupted(kills, tmp_path)
    notes += f"{in_calls} of them in the middle of a call"
    faults.tell(Row.of(judgement, "server killed (SIGKILL)", store, injected=len(kills), notes=notes))
    judgement.expect_nothing_lost()
    assert set(judgement.errors) <= {"StoreUnavailableError"}
    assert judgement.longest_wait < TIMEOUT + NOISE
    assert in_calls > len(kills) / 2


def test_a_server_that_forgets_is_found(faults, tmp_path):
    with Valkey("--appendonly", "no") as server:
        with Clients(tmp_path, [server.url], 2, prefix="forgotten", seed=faults.seed) as clients:
            server.down()
            server.up()
            clients.wait_for_acknowledgements()
        asyncio.run(look(server.url, clients.keys, tmp_path / "afterwards"))
    judgement = judge(tmp_path)
    assert judgement.lost
    assert judgement.impossible
