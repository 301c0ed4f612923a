"""The pages that need real servers, or an environment of their own, are executed; see pages.py."""

import asyncio
import json
import os
import subprocess
import sys

import botocore.session
import pytest
from botocore.validate import validate_parameters
from page_servers import Servers
from pages import PAGES, TOLD_ELSEWHERE, Story, blocks, needs_servers

from dagonizer import StoreUnavailableError, open_store
from dagonizer_test_servers.etcd import Etcd
from dagonizer_test_servers.postgres import Postgres
from dagonizer_test_servers.redis import Valkey


@pytest.fixture(scope="module")
def servers(request):
    """The servers that pages ask for, started when they do."""
    servers = Servers(lambda kind: request.getfixturevalue(f"{kind}_server"))
    with servers.stack:
        yield servers


@pytest.mark.skipif(os.name == "nt", reason="the sessions are of a POSIX shell")
@pytest.mark.parametrize("page", [p for p in PAGES if p not in TOLD_ELSEWHERE and needs_servers(p)])
def test_the_blocks_of_a_page_do_what_it_says(page, tmp_path, servers, request):
    Story(page, tmp_path / "folder", servers, wheels=lambda: request.getfixturevalue("dist")).tell()


def file_of(page, title):
    (block,) = [block.body for block in blocks(f"docs/how-to/{page}.md") if block.title == title]
    return block


def lines_of(page, title):
    return file_of(page, title).splitlines()


async def keeps_a_text(url):
    async with open_store(url) as store:
        await store.save("key", "text")
        return await store.load("key") == "text"


async def verdicts(url, *checks):
    """What `dagonizer doctor` says of these checks."""
    command = [sys.executable, "-m", "dagonizer.cli", "doctor", url, "--json"]
    ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    found = {finding["check"]: finding["verdict"] for finding in json.loads(ran.stdout)["findings"]}
    return {found[check] for check in checks}


async def test_redis_takes_the_settings_of_the_production_page():
    settings = [line.split() for line in lines_of("production", "redis.conf")]
    with Valkey(*(word for name, value in settings for word in (f"--{name}", value))) as server:
        for name, value in settings:
            assert server.ask("CONFIG", "GET", name).split("\r\n")[4] == value
        assert await keeps_a_text(server.url)
        assert await verdicts(server.url, "eviction", "append-only", "fsync") == {"good"}


async def test_etcd_takes_the_settings_of_the_production_page():
    settings = [line.replace('"', "").split(": ") for line in lines_of("production", "etcd.yaml")]
    with Etcd(*(f"--{name}={value}" for name, value in settings)) as server:
        assert await keeps_a_text(server.url)


async def test_postgresql_takes_the_settings_of_the_pages_and_waits_for_the_standby():
    alone, replicated = lines_of("production", "postgresql.conf"), lines_of("scale-out", "postgresql.conf")
    with Postgres(*alone, *replicated) as primary:
        with pytest.raises(StoreUnavailableError):
            await keeps_a_text(f"{primary.url}?timeout=2")
        with Postgres(primary=primary):
            assert await keeps_a_text(primary.url)
            assert await verdicts(primary.url, "fsync", "full-page-writes", "synchronous-commit") == {"good"}


def test_the_lifecycle_rules_are_what_s3_takes():
    shape = botocore.session.get_session().get_service_model("s3").shape_for("BucketLifecycleConfiguration")
    validate_parameters(json.loads(file_of("production", "lifecycle.json")), shape)
