"""A server is killed again and again while eight processes use it, and has everything that it had acknowledged."""

from __future__ import annotations

import asyncio
import time

import pytest
from faults.clients import Clients, look
from faults.ledger import judge
from faults.report import Row

from dagonizer_test_servers.redis import Valkey

CLIENTS = 8


def urls(store, server):
    """Half of etcd's clients use its gateway."""
    return [server.url, server.url.replace("etcd", "etcd+http", 1)] if store == "etcd" else [server.url]


@pytest.mark.parametrize("store", ["postgresql", "redis", "s3", "etcd"])
def test_a_server_that_is_killed_has_what_it_acknowledged(store, server, faults, tmp_path):
    kills = faults.scale(short=1, whole=20)
    prefix = f"killed-{faults.random.getrandbits(32):08x}"
    with Clients(tmp_path, urls(store, server), CLIENTS, prefix=prefix, seed=faults.seed) as clients:
        for _ in range(kills):
            time.sleep(faults.random.uniform(0.05, 0.5))
            server.down()
            server.up()
            clients.wait_for_acknowledgements()
    asyncio.run(look(server.url, clients.keys, tmp_path / "afterwards"))
    judgement = judge(tmp_path)
    faults.tell(Row.of(judgement, "server killed (SIGKILL)", store, injected=kills))
    judgement.expect_nothing_lost()


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
