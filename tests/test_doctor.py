"""The doctor on every kind of store: well ones, and servers that accept connections and never say a word."""

import json
import socket
import subprocess
import sys

import pytest

from dagonizer import open_store
from dagonizer.doctor import PROBE_PREFIX

SECRET = "p4ssw0rd"
SILENT = {
    "postgresql": f"postgresql://user:{SECRET}@{{host}}/database?timeout=0.5",
    "redis": f"redis://user:{SECRET}@{{host}}?timeout=0.5",
    "s3": f"s3://user:{SECRET}@bucket/prefix?endpoint_url=http://{{host}}&region=x&timeout=0.5",
    "etcd": f"etcd://user:{SECRET}@{{host}}?timeout=0.5",
    "etcd+http": f"etcd+http://user:{SECRET}@{{host}}?timeout=0.5",
}


def doctor(url):
    ran = subprocess.run(
        [sys.executable, "-m", "dagonizer.cli", "doctor", url, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stderr == ""
    assert SECRET not in ran.stdout
    return ran.returncode, json.loads(ran.stdout)["findings"]


@pytest.mark.parametrize("scheme", ["file", "postgresql", "redis", "s3", "etcd", "etcd+http"])
async def test_a_store_that_is_well_is_found_so_and_left_as_it_was(scheme, store_urls):
    url = store_urls[scheme]
    code, findings = doctor(url)
    assert [finding for finding in findings if finding["verdict"] == "bad"] == []
    assert code in {0, 1}
    contract = {finding["check"]: finding["verdict"] for finding in findings[:7]}
    checks = ("connection", "text", "round-trip", "absence", "compare-and-swap", "listing", "clean-up")
    # A machine may be slow.
    assert contract | {"round-trip": "good"} == dict.fromkeys(checks, "good")
    assert findings[-1]["check"] == "durability"
    async with open_store(url) as store:
        assert [key async for key in store.list_keys(PROBE_PREFIX)] == []


@pytest.mark.parametrize("scheme", SILENT)
def test_a_server_that_says_nothing_ends_in_a_finding(scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        code, findings = doctor(SILENT[scheme].format(host=f"127.0.0.1:{server.getsockname()[1]}"))
    assert code == 3
    first = findings[0]
    assert (first["check"], first["verdict"]) == ("connection", "bad")
    assert first["message"].startswith("StoreUnavailableError: ")
    assert "not examined: text, round-trip, absence, compare-and-swap, listing" in first["message"]
