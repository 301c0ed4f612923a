"""The configuration, its URLs and the plugin."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

import dagonizer_etcd
from dagonizer import contracts, open_store
from dagonizer.errors import StoreURLError
from dagonizer.registry import store_endpoints
from dagonizer.url import Host, StoreURL
from dagonizer_etcd import EtcdCheckpointStore, EtcdConfig, _plugin
from dagonizer_etcd._config import SCHEMES

ONE = (Host("h", 2379),)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("etcd://h", EtcdConfig(hosts=ONE)),
        ("etcd://h/", EtcdConfig(hosts=ONE)),
        ("etcd://[fe80::1%25eth0]", EtcdConfig(hosts=(Host("fe80::1%eth0", 2379),))),
        ("etcd://a_b.xn--c.", EtcdConfig(hosts=(Host("a_b.xn--c.", 2379),))),
        ("etcd://h:1,h2,[::1]:3", EtcdConfig(hosts=(Host("h", 1), Host("h2", 2379), Host("::1", 3)))),
        ("etcd://h/a", EtcdConfig(hosts=ONE, prefix="/a")),
        ("etcd://h/a/b%20%C3%A9/", EtcdConfig(hosts=ONE, prefix="/a/b é")),
        ("etcd://u%40:p%2Fw@h", EtcdConfig(hosts=ONE, username="u@", password="p/w")),
        ("etcd://h?timeout=2.5", EtcdConfig(hosts=ONE, timeout=2.5)),
        ("etcd://h?chunk_bytes=1024", EtcdConfig(hosts=ONE, chunk_bytes=1024)),
        ("etcd://h?compression=zstd", EtcdConfig(hosts=ONE, compression="zstd")),
        ("etcd://h?keepalive=7", EtcdConfig(hosts=ONE, keepalive=7.0)),
        ("etcds://h", EtcdConfig(hosts=ONE, tls=True)),
        ("etcds://h?tls_ca=/ca.pem", EtcdConfig(hosts=ONE, tls=True, tls_ca="/ca.pem")),
        ("etcds://h?tls_cert=c&tls_key=k", EtcdConfig(hosts=ONE, tls=True, tls_cert="c", tls_key="k")),
        ("etcds://h?tls_server_name=n", EtcdConfig(hosts=ONE, tls=True, tls_server_name="n")),
        ("etcd+http://h/a", EtcdConfig(hosts=ONE, prefix="/a", gateway=True)),
        ("etcd+https://h", EtcdConfig(hosts=ONE, gateway=True, tls=True)),
    ],
)
def test_a_url_says_every_part_of_the_configuration(url: str, expected: EtcdConfig) -> None:
    assert EtcdConfig.from_url(StoreURL.parse(url)) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("etcd:", "the host is missing; an etcd URL is etcd://user:password@host:port,host:port/prefix"),
        ("etcd:///a", "the host is missing"),
        (f"etcd+http://{'h' * 64}/", "'h{64}' is no name or address of a host"),
        ("etcd+http://a..b", r"'a\.\.b' is no name or address of a host"),
        ("etcd+http://%5Bx", r"'\[x' is no name or address of a host"),
        ("etcd://h,-h", "'-h' is no name or address of a host"),
        ("etcd://a%2Fb", "'a/b' is no name or address of a host"),
        ("etcd://é.example", r"'é\.example' is no name .* \(if it is not ASCII, write it as xn--…\)"),
        ("etcd://[fe80::1%25a%20b]", "'fe80::1%a b' is no name or address of a host"),
        ("etcd://[1::2::3]", "At most one '::' permitted in '1::2::3'"),
        ("etcds://h?tls_server_name=", "'' is no name or address of a host"),
        ("etcds://h?tls_server_name=.h", r"'\.h' is no name or address of a host"),
        ("etcd://h//a", "prefix '//a' must be written /part/part"),
        ("etcd://h/a//", "prefix '/a/' must be written /part/part"),
        ("etcd://h/a//b", "no part be empty"),
        ("etcd://h/a%00", r"the prefix must not contain U\+0000"),
        (f"etcd://h/{'é' * 512}", "the prefix has 1025 UTF-8 bytes, more than 1024"),
        ("etcd://u@h", "a user name and a password, or neither"),
        ("etcd://:p@h", "a user name and a password, or neither"),
        ("etcd://h?tls_ca=f", r"begin with 'tls_' need TLS: write etcds: or etcd\+https:"),
        ("etcd://h?tls_server_name=n", "need TLS"),
        ("etcd+http://h?tls_cert=c&tls_key=k", "need TLS"),
        ("etcds://h?tls_cert=c", "'tls_cert' and 'tls_key' are needed together"),
        ("etcds://h?tls_key=k", "'tls_cert' and 'tls_key' are needed together"),
        ("etcd://h?timeot=1", "unknown parameter 'timeot'; did you mean 'timeout'?"),
        ("etcd://h?prefix=a", "unknown parameter 'prefix'"),
        ("etcd://h?password=a", "unknown parameter 'password'"),
        ("etcd://h?compression=gzip", "'compression' must be one of none, zstd"),
        ("etcd://h?timeout=0", "'timeout' must be a number above 0"),
        ("etcd://h?timeout=nan", "'timeout' must be a number above 0|finite number of seconds above 0"),
        ("etcd://h?timeout=inf", "timeout must be a finite number of seconds above 0"),
        ("etcd://h?timeout=soon", "'timeout' must be a number above 0"),
        ("etcd://h?keepalive=-1", "'keepalive' must be a number above 0"),
        ("etcd://h?chunk_bytes=1023", "'chunk_bytes' must be a whole number of at least 1024"),
        ("etcd://h?chunk_bytes=1MB", "'chunk_bytes' must be a whole number"),
        ("etcd://h?timeout=1&timeout=2", "given twice"),
    ],
)
def test_a_mistake_in_a_url_is_told(url: str, message: str) -> None:
    for use in (lambda: EtcdConfig.from_url(StoreURL.parse(url)), lambda: open_store(url)):
        with pytest.raises(StoreURLError, match=message.replace("?", r"\?")):
            use()


@pytest.mark.parametrize(
    "options",
    [
        {"hosts": ()},
        {"prefix": ""},
        {"prefix": "a"},
        {"prefix": "/"},
        {"prefix": "/\ud800"},
        {"timeout": 0},
        {"timeout": math.nan},
        {"keepalive": math.inf},
        {"chunk_bytes": 0},
        {"username": "u"},
        {"tls_ca": "f"},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        EtcdConfig(**options)


def test_a_configuration_shows_no_credentials() -> None:
    config = EtcdConfig(username="who", password="secret")
    assert "secret" not in repr(config)
    assert "who" not in repr(config)
    assert "secret" not in repr(EtcdCheckpointStore(config))


def test_the_plugin_describes_all_that_a_url_may_say() -> None:
    description = _plugin.dagonizer_describe_store()
    assert description.schemes == SCHEMES
    assert [parameter.name for parameter in description.parameters] == [
        "timeout", "chunk_bytes", "compression", "keepalive", "tls_ca", "tls_cert", "tls_key", "tls_server_name",
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_opens_a_store_with_every_protocol(scheme: str) -> None:
    store = open_store(f"{scheme}://h")
    assert isinstance(store, EtcdCheckpointStore)
    for protocol in (contracts.ClosableStore, contracts.SupportsListing, contracts.SupportsCompareAndSwap):
        assert isinstance(store, protocol)
    assert store_endpoints(f"{scheme}://h,h2:1") == (Host("h", 2379), Host("h2", 1))


def test_what_is_public() -> None:
    assert dagonizer_etcd.__all__ == ["EtcdCheckpointStore", "EtcdConfig"]


@pytest.mark.parametrize("package", ["etcd3", "aiohttp"])
def test_the_gateway_needs_a_package_and_says_which(package: str) -> None:
    program = f"""
import sys
sys.modules["{package}"] = None
from dagonizer import UnknownSchemeError, open_store
open_store("etcd://h")
try:
    open_store("etcd+http://h")
except UnknownSchemeError as exc:
    print(exc)
"""
    ran = subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, capture_output=True, text=True)
    assert f"({package}" in ran.stdout
    assert 'run: pip install "dagonizer-etcd[gateway]"' in ran.stdout


def test_only_what_is_used_is_imported() -> None:
    program = """
import sys
import dagonizer_etcd._config
import dagonizer_etcd
assert not {"grpc", "aetcd", "etcd3", "aiohttp"} & set(sys.modules)
dagonizer_etcd.EtcdCheckpointStore(dagonizer_etcd.EtcdConfig(gateway=True))
assert not {"grpc", "aetcd"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
