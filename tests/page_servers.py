"""The servers that pages of the documentation name by URL."""

import asyncio
import re
from contextlib import ExitStack
from urllib.parse import urlsplit

import asyncpg
from pages import ROOT

from dagonizer_test_servers import etcd, postgres, redis

# What SQL on a page takes for granted.
PREPARATION = """
CREATE ROLE worker;
CREATE TABLE IF NOT EXISTS public.checkpoints (key text PRIMARY KEY, json text, revision uuid, saved_at timestamptz);
"""


class Servers:
    """The tests' servers, one of each kind; what scales out is started when a page first asks for it."""

    def __init__(self, shared):
        self.shared = shared
        self.stack = ExitStack()
        self.scaled = {}

    def url(self, page, scheme, hosts, path, query):
        name = re.sub(r"[^a-z0-9]+", "_", page.lower())
        path, query = path or "", (query or "").removeprefix("?")
        base = urlsplit(self.base(scheme, several="," in hosts))
        own = ""
        match scheme:
            case "postgresql":
                path, own = base.path, f"table={name}"
            case "s3" | "etcd" | "etcd+http":
                path = f"/{name}{path}"
            case _:
                own = f"prefix={name}"
        if re.match(r"(table|prefix)=", query):
            own = ""
        query = "&".join(filter(None, (base.query, query, own)))
        return f"{scheme}://{base.netloc}{path}" + (f"?{query}" if query else "")

    def base(self, scheme, *, several):
        match scheme:
            case "redis+cluster" | "redis+sentinel":
                return self.scaled_out(scheme).url
            case "postgresql":
                return self.scaled_out(scheme) if several else self.shared("postgres").url
            case "etcd":
                return self.scaled_out(scheme).url if several else self.shared("etcd").url
            case "etcd+http":
                return self.shared("etcd").url
            case _:
                return self.shared(scheme).url

    def scaled_out(self, scheme):
        if scheme not in self.scaled:
            self.scaled[scheme] = self.start(scheme)
        return self.scaled[scheme]

    def start(self, scheme):
        match scheme:
            case "redis+cluster":
                return self.stack.enter_context(redis.Cluster(replicas=1))
            case "redis+sentinel":
                return self.stack.enter_context(redis.Replicated(replicas=2, sentinels=3))
            case "etcd":
                return self.stack.enter_context(etcd.EtcdCluster())
            case _:
                primary = self.stack.enter_context(postgres.Postgres())
                standby = self.stack.enter_context(postgres.Postgres(primary=primary))
                return primary.url.replace(f":{primary.port}", f":{primary.port},127.0.0.1:{standby.port}")

    def execute(self, sql):
        async def run():
            connection = await asyncpg.connect(self.shared("postgres").url)
            try:
                transaction = connection.transaction()
                await transaction.start()
                await connection.execute(PREPARATION)
                await connection.execute(sql)
                await transaction.rollback()
            finally:
                await connection.close()

        asyncio.run(run())

    def variables(self, page):
        if "etcdctl" not in (ROOT / page).read_text(encoding="utf-8"):
            return {}
        # Users and roles are of the whole server, so it is one of its own.
        server = self.stack.enter_context(etcd.Etcd())
        return {"ETCDCTL_ENDPOINTS": server.client_url, "ETCDCTL_API": "3"}
