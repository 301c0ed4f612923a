"""The configuration, its URLs and the plugin."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import dagonizer_postgres
from dagonizer.errors import StoreURLError
from dagonizer.registry import open_store, store_endpoints
from dagonizer.url import Host, StoreURL
from dagonizer_postgres import PostgresCheckpointStore, PostgresConfig, _plugin
from dagonizer_postgres._config import PARAMETERS

if TYPE_CHECKING:
    from conftest import Database

HERE = Host("h", None)
PLAIN = PostgresConfig(hosts=(HERE,), database="d")


def config(url: str) -> PostgresConfig:
    return PostgresConfig.from_url(StoreURL.parse(url))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://h/d", PLAIN),
        ("postgres://h/d", PLAIN),
        ("postgresql://u@h/d", dataclasses.replace(PLAIN, user="u")),
        ("postgresql://u:p%40%2F@h/d", dataclasses.replace(PLAIN, user="u", password="p@/")),
        ("postgresql://u:@h/d", dataclasses.replace(PLAIN, user="u", password="")),
        (
            "postgresql://a:1,b:2,[::1]:3/d",
            dataclasses.replace(PLAIN, hosts=(Host("a", 1), Host("b", 2), Host("::1", 3))),
        ),
        ("postgresql://%2Frun%2Fpostgresql:5433/d", dataclasses.replace(PLAIN, hosts=(Host("/run/postgresql", 5433),))),
        ("postgresql://h/a%20b%2Fc", dataclasses.replace(PLAIN, database="a b/c")),
        ("postgresql://h/d?schema=S.%22x", dataclasses.replace(PLAIN, schema='S."x')),
        ("postgresql://h/d?table=t%C3%A9", dataclasses.replace(PLAIN, table="té")),
        ("postgresql://h/d?create=never", dataclasses.replace(PLAIN, create="never")),
        ("postgresql://h/d?create=auto", PLAIN),
        ("postgresql://h/d?timeout=2.5", dataclasses.replace(PLAIN, timeout=2.5)),
        ("postgresql://h/d?sslmode=disable", dataclasses.replace(PLAIN, sslmode="disable")),
        ("postgresql://h/d?sslmode=allow", dataclasses.replace(PLAIN, sslmode="allow")),
        ("postgresql://h/d?sslmode=prefer", PLAIN),
        ("postgresql://h/d?sslmode=require", dataclasses.replace(PLAIN, sslmode="require")),
        (
            "postgresql://h/d?sslmode=verify-ca&sslrootcert=ca.pem",
            dataclasses.replace(PLAIN, sslmode="verify-ca", sslrootcert="ca.pem"),
        ),
        (
            "postgresql://h/d?sslmode=verify-full&sslrootcert=system",
            dataclasses.replace(PLAIN, sslmode="verify-full", sslrootcert="system"),
        ),
        (
            "postgresql://h/d?sslcert=c.pem&sslkey=k.pem&sslpassword=word",
            dataclasses.replace(PLAIN, sslcert="c.pem", sslkey="k.pem", sslpassword="word"),
        ),
        ("postgresql://h/d?statement_cache_size=0", dataclasses.replace(PLAIN, statement_cache_size=0)),
        ("postgresql://h/d?pool_size=3", dataclasses.replace(PLAIN, pool_size=3)),
        ("postgresql://h/d?application_name=me", dataclasses.replace(PLAIN, application_name="me")),
    ],
)
def test_a_url_says_every_part_of_the_configuration(url: str, expected: PostgresConfig) -> None:
    assert config(url) == expected


def test_every_parameter_has_a_test_above() -> None:
    marks = test_a_url_says_every_part_of_the_configuration.pytestmark  # type: ignore[attr-defined]
    urls = " ".join(url for url, _ in marks[0].args[1])
    for known in _plugin.dagonizer_describe_store().parameters:
        assert f"{known.name}=" in urls


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql:d", "a host is missing"),
        ("postgresql:///d", "a host is missing"),
        ("postgresql://h", "the database is missing"),
        ("postgresql://h/", "the database is missing"),
        ("postgresql://h:x/d", "a host must be name, name:port"),
        ("postgresql://h:70000/d", "a host must be name, name:port"),
        ("postgresql://h1,,h2/d", "a host has no name"),
        ("postgresql://u:secret@h,a..b/d", "the host 'a..b' must have labels of 1 to 63"),
        (f"postgresql://u:secret@{64 * 'x'}.example/d", "must have labels of 1 to 63"),
        ("postgresql://u:secret@a%00b/d", "a host must not contain U\\+0000"),
        ("postgresql://u:secret@%2Frun%2Fa%00b/d", "a host must not contain U\\+0000"),
        ("postgresql://h/d?shcema=s", "did you mean 'schema'"),
        ("postgresql://h/d?host=x", "unknown parameter 'host'"),
        ("postgresql://h/d?schema=", "name of the schema must have 1 to 63"),
        ("postgresql://h/d?table=", "name of the table must have 1 to 63"),
        ("postgresql://h/d?table=" + 64 * "x", "it has 64 bytes"),
        ("postgresql://h/d?schema=" + 32 * "%C3%A9", "it has 64 bytes"),
        ("postgresql://h/" + 64 * "x", "name of the database must have 1 to 63"),
        ("postgresql://h/d?table=a%00b", "U\\+0000"),
        ("postgresql://u%00:secret@h/d", "user must not contain U\\+0000"),
        ("postgresql://u:secret%00@h/d", "password must not contain U\\+0000"),
        ("postgresql://h/d?application_name=a%00", "application_name must not contain U\\+0000"),
        ("postgresql://h/d?create=maybe", "must be one of auto, never"),
        ("postgresql://h/d?timeout=0", "must be a number above 0"),
        ("postgresql://h/d?timeout=soon", "must be a number above 0"),
        ("postgresql://h/d?timeout=nan", "above 0"),
        ("postgresql://h/d?timeout=inf", "timeout must be a finite number"),
        ("postgresql://h/d?timeout=1e400", "must be a number above 0"),
        ("postgresql://h/d?sslmode=on", "one of allow, disable, prefer, require, verify-ca, verify-full"),
        ("postgresql://h/d?sslmode=verify-full", "needs sslrootcert=/path/to/ca.pem, or sslrootcert=system"),
        ("postgresql://h/d?sslmode=verify-ca", "needs sslrootcert="),
        ("postgresql://h/d?sslrootcert=ca.pem", "sslrootcert has no effect with sslmode=prefer; write sslmode=verify"),
        ("postgresql://h/d?sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
        ("postgresql://h/d?sslmode=disable&sslcert=c.pem", "sslcert has no effect"),
        ("postgresql://h/d?sslkey=k.pem", "need sslcert"),
        ("postgresql://h/d?sslpassword=secret", "need sslcert"),
        ("postgresql://h/d?statement_cache_size=-1", "a whole number of at least 0"),
        ("postgresql://h/d?statement_cache_size=some", "a whole number of at least 0"),
        ("postgresql://h/d?pool_size=0", "a whole number of at least 1"),
    ],
)
def test_a_wrong_url_is_refused_with_the_reason(url: str, message: str) -> None:
    with pytest.raises(StoreURLError, match=message) as caught:
        config(url)
    assert "secret" not in str(caught.value)


def test_arguments_that_make_no_sense_are_refused() -> None:
    for wrong, message in (
        ({"timeout": 0.0}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"timeout": math.inf}, "timeout must be a finite number"),
        ({"create": "perhaps"}, "create"),
        ({"sslmode": "verify_full"}, "sslmode must be one of disable, allow"),
        ({"schema": "\ud800"}, "lone surrogate"),
        ({"statement_cache_size": -1}, "statement_cache_size"),
        ({"pool_size": 0}, "pool_size"),
        ({"hosts": ()}, "host is missing"),
        ({"hosts": (HERE, Host("", None))}, "the host '' must have labels"),
        ({"hosts": (Host("/run/\ud800", None),)}, "a host must not contain .* lone surrogate"),
        ({"user": "u\ud800"}, "user must not contain .* lone surrogate"),
        ({"application_name": "\udfff"}, "application_name must not contain .* lone surrogate"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(PLAIN, **wrong)


def test_a_secret_that_is_refused_is_not_told() -> None:
    for name in ("password", "sslpassword"):
        for wrong in ("hunter2\ud800", "hunter2\0"):
            with pytest.raises(ValueError, match=f"^{name} must not contain") as caught:
                dataclasses.replace(PLAIN, **{"sslcert": "c.pem", name: wrong})
            # What a UnicodeEncodeError behind it would hold.
            assert caught.value.__cause__ is None
            assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "name", ["localhost.", "a_b", "bücher.example", "::1", "fe80::1%eth0", f"{63 * 'x'}.y", "/a..b"]
)
def test_hosts_that_can_be_asked_for_are_allowed(name: str) -> None:
    host = Host(name, None)
    assert dataclasses.replace(PLAIN, hosts=(host,)).hosts == (host,)


def test_63_bytes_are_allowed() -> None:
    assert config("postgresql://h/d?table=" + 63 * "x").table == 63 * "x"


def test_names_are_quoted() -> None:
    made = dataclasses.replace(PLAIN, schema='a"b', table="c.d; DROP TABLE x --")
    assert made.qualified_table == '"a""b"."c.d; DROP TABLE x --"'
    assert made.ddl.startswith(f"CREATE TABLE IF NOT EXISTS {made.qualified_table} (")


def test_neither_repr_nor_str_shows_a_secret() -> None:
    made = config("postgresql://u:hunter2@h/d?sslcert=c&sslpassword=hunter3")
    assert "hunter" not in f"{made!r} {made!s} {made.address}"


def test_the_address_names_ports_and_the_database() -> None:
    assert config("postgresql://u:p@a:1,b,%2Frun/d").address == "a:1,b:5432,/run/d"


def test_the_plugin_opens_and_describes_postgresql_urls() -> None:
    description = _plugin.dagonizer_describe_store()
    assert description.schemes == ("postgresql", "postgres")
    assert {p.name: p.default for p in description.parameters} == {
        "schema": "public",
        "table": "checkpoints",
        "create": "auto",
        "timeout": 30.0,
        "sslmode": "prefer",
        "sslrootcert": None,
        "sslcert": None,
        "sslkey": None,
        "sslpassword": None,
        "statement_cache_size": None,
        "pool_size": 10,
        "application_name": "dagonizer",
    }
    for scheme in description.schemes:
        assert isinstance(open_store(f"{scheme}://localhost:1/d"), PostgresCheckpointStore)


def test_a_directory_of_unix_sockets_is_no_endpoint_of_a_network() -> None:
    assert store_endpoints("postgresql://h:1/d") == (Host("h", 1),)
    assert store_endpoints("postgresql://%2Frun%2Fpostgresql/d") == ()


def test_a_store_takes_a_config_or_a_pool_and_nothing_twice() -> None:
    with pytest.raises(TypeError, match="says itself what table, timeout is"):
        PostgresCheckpointStore(PLAIN, "t", timeout=3)
    with pytest.raises(TypeError, match=r"a PostgresConfig or an asyncpg\.Pool is needed, not str"):
        PostgresCheckpointStore("postgresql://h/d")  # type: ignore[arg-type]


def test_the_configuration_does_not_import_the_driver() -> None:
    code = (
        "import importlib.util, sys, types\n"
        "spec = importlib.util.find_spec('dagonizer_postgres')\n"
        "package = sys.modules['dagonizer_postgres'] = types.ModuleType('dagonizer_postgres')\n"
        "package.__path__ = spec.submodule_search_locations\n"
        "import dagonizer_postgres._config\n"
        "sys.exit('asyncpg' in sys.modules or 'ssl' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_exports_two_names() -> None:
    assert dagonizer_postgres.__all__ == ["PostgresCheckpointStore", "PostgresConfig"]


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_readme_names_every_parameter_with_its_default() -> None:
    lines = [line.split("|") for line in README.splitlines() if line.startswith("| `")]
    rows = {cells[1].strip(" `"): cells[2].strip(" `") for cells in lines}
    assert list(rows) == [known.name for known in PARAMETERS]
    for known in PARAMETERS:
        assert rows[known.name] == ("" if known.default is None else str(known.default).removesuffix(".0")), known


def test_the_readme_shows_the_ddl() -> None:
    assert re.findall(r"```sql\n(CREATE.*?)\n```", README, re.DOTALL) == [PLAIN.ddl]


def test_the_example_of_the_readme_runs(database: Database) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    environment = {**os.environ, "CHECKPOINTS_URL": database.url}
    subprocess.run([sys.executable, "-W", "error", "-c", source], check=True, env=environment)
    assert asyncio.run(database.fetchval("SELECT json FROM checkpoints")) == '{"step": 1}'
