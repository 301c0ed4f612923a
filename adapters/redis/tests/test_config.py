"""The configuration, its URLs and the plugin."""

from __future__ import annotations

import math
import sys

import pytest

import dagonizer_redis
from dagonizer.errors import StoreURLError
from dagonizer.registry import store_endpoints
from dagonizer.url import Host, StoreURL
from dagonizer_redis import RedisCheckpointStore, RedisConfig, _plugin

ONE = (Host("h", None),)
TWO = (Host("h1", 1), Host("h2", None))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", RedisConfig(hosts=ONE)),
        ("redis://h/", RedisConfig(hosts=ONE)),
        ("redis://h:7000/3", RedisConfig(hosts=(Host("h", 7000),), db=3)),
        ("redis://h?db=3", RedisConfig(hosts=ONE, db=3)),
        ("redis://[::1]:7000", RedisConfig(hosts=(Host("::1", 7000),))),
        ("redis://u%40:p%2Fw@h", RedisConfig(hosts=ONE, username="u@", password="p/w")),
        ("redis://:pw@h", RedisConfig(hosts=ONE, password="pw")),
        ("redis://h?prefix=a:b%25%C3%A9", RedisConfig(hosts=ONE, prefix="a:b%é")),
        ("redis://h?prefix=", RedisConfig(hosts=ONE, prefix="")),
        ("redis://h?wait=2", RedisConfig(hosts=ONE, wait=2)),
        ("redis://h?timeout=2.5", RedisConfig(hosts=ONE, timeout=2.5)),
        ("redis://h?max_connections=1", RedisConfig(hosts=ONE, max_connections=1)),
        ("redis://h?compression=zstd", RedisConfig(hosts=ONE, compression="zstd")),
        ("rediss://h", RedisConfig(hosts=ONE, tls=True)),
        ("rediss://h/1?tls_ca=/ca.pem", RedisConfig(hosts=ONE, db=1, tls=True, tls_ca="/ca.pem")),
        ("rediss://h?tls_cert=c&tls_key=k", RedisConfig(hosts=ONE, tls=True, tls_cert="c", tls_key="k")),
        ("rediss://h?tls_verify=ca", RedisConfig(hosts=ONE, tls=True, tls_verify="ca")),
        ("rediss://h?tls_verify=none", RedisConfig(hosts=ONE, tls=True, tls_verify="none")),
        ("redis+unix:///run/r.sock", RedisConfig(path="/run/r.sock")),
        ("redis+unix:r.sock?db=2", RedisConfig(path="r.sock", db=2)),
        ("redis+unix://u:p@/run/r.sock", RedisConfig(path="/run/r.sock", username="u", password="p")),
        ("redis+cluster://h1:1,h2", RedisConfig(hosts=TWO, cluster=True)),
        ("redis+cluster://u:p@h/", RedisConfig(hosts=ONE, cluster=True, username="u", password="p")),
        ("redis+cluster://h?tls=true&tls_ca=f", RedisConfig(hosts=ONE, cluster=True, tls=True, tls_ca="f")),
        ("redis+sentinel://h1:1,h2/s", RedisConfig(hosts=TWO, service="s")),
        ("redis+sentinel://h/s/4", RedisConfig(hosts=ONE, service="s", db=4)),
        ("redis+sentinel://h/s?tls=true", RedisConfig(hosts=ONE, service="s", tls=True)),
        (
            "redis+sentinel://h/s?sentinel_username=u&sentinel_password=p",
            RedisConfig(hosts=ONE, service="s", sentinel_username="u", sentinel_password="p"),
        ),
    ],
)
def test_a_url_says_every_part_of_the_configuration(url: str, expected: RedisConfig) -> None:
    assert RedisConfig.from_url(StoreURL.parse(url)) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis:", "host is missing"),
        ("redis:///0", "host is missing"),
        ("redis://h1,h2", r"one host, or several with redis\+cluster: or redis\+sentinel:"),
        ("rediss://h1,h2", "one host"),
        ("redis://h/x", "database must be a number"),
        ("redis://h/-1", "database must be a number"),
        ("redis://h/1/2", "database must be a number"),
        ("redis://h/\u0661", "database must be a number"),
        ("redis://h/1?db=1", "given twice"),
        ("redis://h?db=-1", "'db' must be a whole number of at least 0"),
        ("redis://secret@h", "user name needs a password"),
        ("redis://h?wait=-1", "'wait' must be a whole number of at least 0"),
        ("redis://h?wait=all", "'wait' must be a whole number"),
        ("redis://h?timeout=0", "'timeout' must be a number above 0"),
        ("redis://h?timeout=nan", "above 0"),
        ("redis://h?timeout=inf", "timeout must be a finite number of seconds above 0"),
        ("redis://h?timeout=1e400", "above 0"),
        ("redis://h?max_connections=0", "'max_connections' must be a whole number of at least 1"),
        ("redis://h?compression=gzip", "'compression' must be one of none, zstd"),
        ("redis://h?prefx=a", "did you mean 'prefix'"),
        ("redis://h?socket_timeout=1", "did you mean 'timeout'"),
        ("redis://h?tls=true", "write redis: or rediss: instead"),
        ("rediss://h?tls=false", "write redis: or rediss: instead"),
        ("redis://h?tls_ca=f", "need rediss: or tls=true"),
        ("redis://h?tls_verify=none", "need rediss: or tls=true"),
        ("rediss://h?tls_key=f", "tls_key needs tls_cert"),
        ("rediss://h?tls_verify=maybe", "one of ca, full, none"),
        ("redis+unix:", "path of the socket is missing"),
        ("redis+unix:///", "path of the socket is missing"),
        ("redis+unix://run/r.sock", "a socket has no host"),
        ("redis+unix:///r.sock?tls=true", "neither cluster, sentinels nor TLS"),
        ("redis+cluster:", "host is missing"),
        ("redis+cluster://h/1", "database 0 only"),
        ("redis+cluster://h?db=1", "database 0 only"),
        ("redis+cluster://h/x", "database must be a number"),
        ("redis+cluster://h?tls_ca=f", "need rediss: or tls=true"),
        ("redis+sentinel://h", "name of the service is missing"),
        ("redis+sentinel:///s", "host is missing"),
        ("redis+sentinel://h/s/x", "database must be a number"),
        ("redis+sentinel://h/s/1?db=1", "given twice"),
        ("redis+sentinel://h/s?sentinel_username=secret", "needs sentinel_password"),
        ("redis://h?sentinel_password=secret", "for sentinels only"),
    ],
)
def test_a_wrong_url_is_refused_with_the_reason_and_the_form(url: str, message: str) -> None:
    with pytest.raises(StoreURLError, match=message) as caught:
        RedisConfig.from_url(StoreURL.parse(url))
    assert "secret" not in str(caught.value)


def test_a_refusal_names_the_form_of_its_scheme() -> None:
    with pytest.raises(StoreURLError, match=r"the form is redis\+sentinel://user:password@host:port,host:port/service"):
        RedisConfig.from_url(StoreURL.parse("redis+sentinel://h"))


def test_arguments_that_make_no_sense_are_refused() -> None:
    for timeout in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="timeout"):
            RedisConfig(timeout=timeout)
    with pytest.raises(ValueError, match="wait"):
        RedisConfig(wait=-1)
    with pytest.raises(ValueError, match="lone surrogate"):
        RedisConfig(prefix="\ud800")
    with pytest.raises(ValueError, match="compression must be 'none' or 'zstd', not 'gzip'"):
        RedisConfig(compression="gzip")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no sentinels"):
        RedisConfig(cluster=True, service="s")
    with pytest.raises(TypeError, match=r"RedisConfig or a redis\.asyncio\.Redis, not str"):
        RedisCheckpointStore("redis://h")  # type: ignore[arg-type]


def test_no_secret_is_in_a_repr() -> None:
    config = RedisConfig(
        service="s", username="secret", password="secret", sentinel_username="secret", sentinel_password="secret"
    )
    assert "secret" not in f"{config!r}{config}{config.where}{RedisCheckpointStore(config)!r}"


def test_keywords_of_the_store_replace_what_the_configuration_says() -> None:
    store = RedisCheckpointStore(RedisConfig(prefix="a", wait=1), prefix="b", timeout=1, compression="zstd")
    assert store._config == RedisConfig(prefix="b", wait=1, timeout=1, compression="zstd")


def test_compression_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(StoreURLError, match=r"pip install \"dagonizer\[zstd\]\""):
        RedisConfig.from_url(StoreURL.parse("redis://h?compression=zstd"))


def test_the_plugin_opens_and_describes_redis_urls() -> None:
    description = _plugin.dagonizer_describe_store()
    assert description.schemes == ("redis", "rediss", "redis+unix", "redis+cluster", "redis+sentinel")
    assert {p.name: p.default for p in description.parameters} == {
        "prefix": "dagonizer",
        "db": 0,
        "wait": 0,
        "timeout": 30.0,
        "max_connections": 32,
        "compression": "none",
        "tls": False,
        "tls_ca": None,
        "tls_cert": None,
        "tls_key": None,
        "tls_verify": "full",
        "sentinel_username": None,
        "sentinel_password": None,
    }
    store = _plugin.dagonizer_open_store(StoreURL.parse("redis://nowhere.invalid"))
    assert isinstance(store, RedisCheckpointStore)


def test_the_readme_names_every_parameter_with_its_default(readme: str) -> None:
    rows = [row for row in readme.splitlines() if row.startswith("| `")]
    for parameter in _plugin.dagonizer_describe_store().parameters:
        (row,) = [row for row in rows if f"`{parameter.name}`" in row.split("|")[1]]
        default = row.split("|")[2].strip()
        if isinstance(parameter.default, bool):
            assert default == f"`{str(parameter.default).lower()}`"
        elif parameter.default is not None:
            assert default.strip("`") == f"{parameter.default}".removesuffix(".0")


@pytest.mark.parametrize(
    ("url", "endpoints"),
    [
        ("redis://h:1", (Host("h", 1),)),
        ("rediss://h", (Host("h", None),)),
        ("redis+unix:///r.sock", ()),
        ("redis+cluster://h:1,i:2", (Host("h", None), Host("i", None))),
        ("redis+sentinel://h:1/s", (Host("h", None),)),
    ],
)
def test_the_plugin_names_the_hosts(url: str, endpoints: tuple[Host, ...]) -> None:
    assert store_endpoints(url) == endpoints


def test_the_package_exports_two_names() -> None:
    assert dagonizer_redis.__all__ == ["RedisCheckpointStore", "RedisConfig"]
