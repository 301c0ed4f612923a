"""The PostgreSQL store, beyond what the conformance kit asks of every store."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import re
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import pytest

from dagonizer import open_store
from dagonizer.errors import (
    InvalidKeyError,
    InvalidValueError,
    StoreAccessError,
    StoreClosedError,
    StoreConflictError,
    StoreCorruptedError,
    StoreLimitError,
    StoreUnavailableError,
)
from dagonizer.url import StoreURL
from dagonizer_conformance.proxy import FaultProxy
from dagonizer_postgres import PostgresCheckpointStore, PostgresConfig, _pool, _store
from dagonizer_postgres._config import TableConfig
from dagonizer_postgres._pool import drop_idle

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from conftest import Database, Withholding


def opened(url: str, **parameters: object) -> PostgresCheckpointStore:
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in parameters.items())
    store = open_store(f"{url}?{query}" if query else url)
    assert isinstance(store, PostgresCheckpointStore)
    return store


def every_call(store: Any, key: Any = "k") -> dict[str, Callable[[], Coroutine[Any, Any, object]]]:
    return {
        "save": lambda: store.save(key, "v"),
        "load": lambda: store.load(key),
        "delete": lambda: store.delete(key),
        "load_versioned": lambda: store.load_versioned(key),
        "save_if, new": lambda: store.save_if(key, "v", expected=None),
        "save_if": lambda: store.save_if(key, "v", expected="x"),
    }


async def listed(store: PostgresCheckpointStore, prefix: str = "") -> list[str]:
    return [key async for key in store.list_keys(prefix)]


# The table.


async def test_fifty_clients_create_the_schema_and_the_table_at_once(database: Database) -> None:
    for attempt in range(4):
        stores = [opened(database.url, schema=f"s {attempt}", pool_size=1) for _ in range(50)]
        await asyncio.gather(*(store.save(f"{n}", "v") for n, store in enumerate(stores)))
        assert sorted(await listed(stores[0])) == sorted(f"{n}" for n in range(50))
        await asyncio.gather(*(store.aclose() for store in stores))


async def test_the_table_is_what_the_ddl_says_and_made_when_first_missed(database: Database) -> None:
    async with opened(database.url) as store:
        assert await database.fetchval("SELECT to_regclass('public.checkpoints')") is None
        assert await store.load("k") is None
        async with database.connection() as db:
            columns = await db.fetch(
                "SELECT column_name, data_type, is_nullable, collation_name FROM information_schema.columns "
                "WHERE table_name = 'checkpoints' ORDER BY ordinal_position"
            )
        assert [tuple(column) for column in columns] == [
            ("key", "text", "NO", "C"),
            ("json", "text", "NO", None),
            ("revision", "uuid", "NO", None),
            ("saved_at", "timestamp with time zone", "NO", None),
        ]
        # It comes back when it is dropped under statements that were prepared for it.
        for name, call in every_call(store).items():
            await database.execute("DROP TABLE checkpoints")
            if name == "save_if":
                with pytest.raises(StoreConflictError):
                    await call()
            else:
                await call()
        await database.execute("DROP TABLE checkpoints")
        assert await listed(store) == []


async def test_a_text_is_compressed_by_lz4_where_the_server_has_it(database: Database) -> None:
    async with opened(database.url) as store:
        text = "".join(f"{number} " for number in range(20_000))
        await store.save("k", text)
        assert await store.load("k") == text
    assert await database.fetchval("SELECT pg_column_size(json) FROM checkpoints") < len(text) * 0.9
    if await database.has_lz4():
        assert await database.fetchval("SELECT pg_column_compression(json) FROM checkpoints") == "lz4"


@pytest.mark.parametrize(
    ("refusal", "tries"),
    [(None, 1), (asyncpg.FeatureNotSupportedError, 2), (asyncpg.PostgresSyntaxError, 2)],
    ids=["lz4", "built without it", "before PostgreSQL 14"],
)
async def test_a_server_without_lz4_gets_a_table_without_it(
    database: Database, refusal: type[asyncpg.PostgresError] | None, tries: int
) -> None:
    tried = []

    class Server:
        """It refuses what no real one of these tests refuses, or takes it."""

        async def execute(self, sql: str) -> None:
            tried.append(sql)
            if "COMPRESSION lz4" in sql and refusal is not None:
                raise refusal("no")

    async with opened(database.url) as store:
        await store._create(Server())
        assert tried == [store.ddl, TableConfig().ddl_without_lz4][:tries]


async def test_create_never_shows_the_statement_that_makes_the_table(database: Database) -> None:
    async with opened(database.url, create="never", schema="s", table="t") as store:
        config = PostgresConfig.from_url(StoreURL.parse(f"{database.url}?schema=s&table=t"))
        assert store.ddl == config.ddl
        for call in (*every_call(store).values(), lambda: listed(store)):
            with pytest.raises(StoreAccessError) as caught:
                await call()
            assert store.ddl in str(caught.value)
        assert await database.fetchval("SELECT to_regnamespace('s')") is None
        ddl = config.ddl if await database.has_lz4() else config.ddl_without_lz4
        await database.execute("CREATE SCHEMA s", ddl)
        await store.save("k", "v")
        assert await store.load("k") == "v"


NASTY = [
    'a"b',
    'a""',
    "a.b",
    "a'b",
    "a; DROP TABLE x; --",
    "A",
    "a",
    "select",
    "pg_temp_x",
    "$1",
    "{table}",
    "%s",
    "é",
    "e\u0301",
    "😀",
    " ",
    "\n",
    "\\",
    63 * "x",
    62 * "x",
    21 * "\u20ac",
]


async def test_no_name_means_anything_but_itself(database: Database) -> None:
    stores = {
        (schema, table): opened(database.url, schema=schema, table=table, pool_size=1)
        for schema, table in [("s", name) for name in NASTY] + [(name, "t") for name in NASTY if name != "pg_temp_x"]
    }
    for name, store in stores.items():
        await store.save("k", repr(name))
    for name, store in stores.items():
        assert await store.load("k") == repr(name)
        assert await listed(store) == ["k"]
        version = (await store.load_versioned("k")).version  # type: ignore[union-attr]
        await store.save_if("k", "w", expected=version)
        await store.delete("k")
        await store.aclose()
    async with database.connection() as db:
        made = await db.fetch("SELECT schemaname, tablename FROM pg_tables WHERE schemaname !~ '^(pg_cat|inform)'")
    assert {tuple(row) for row in made} == set(stores)


async def test_a_table_of_another_kind_is_refused(database: Database) -> None:
    await database.execute("CREATE TABLE checkpoints (id int, key int, json int)")
    async with opened(database.url) as store:
        for call in (*every_call(store).values(), lambda: listed(store)):
            with pytest.raises(StoreAccessError, match="check that the table is the one"):
                await call()


async def test_a_table_of_the_specifications_engine_needs_one_column(database: Database) -> None:
    await database.execute(
        "CREATE TABLE checkpoints (key TEXT PRIMARY KEY, json TEXT NOT NULL, saved_at TIMESTAMPTZ NOT NULL)",
        "INSERT INTO checkpoints VALUES ('a', '1', now()), ('B', '2', now())",
    )
    async with opened(database.url) as store:
        with pytest.raises(StoreAccessError, match="revision"):
            await store.load("a")
        readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
        (statement,) = re.findall(r"`(ALTER TABLE [^`]* ADD [^`]*)`", readme)
        await database.execute(statement)
        assert await store.load("a") == "1"
        assert await listed(store) == ["B", "a"]
        first, second = [await store.load_versioned(key) for key in "aB"]
        assert first is not None
        assert second is not None
        assert first.version != second.version
        await store.save("a", "3")


async def test_without_a_unique_key_nothing_is_saved(database: Database) -> None:
    await database.execute("CREATE TABLE checkpoints (key text, json text, revision uuid, saved_at timestamptz)")
    async with opened(database.url) as store:
        with pytest.raises(StoreAccessError, match=r"42P10.*This makes the table: CREATE"):
            await store.save("k", "v")


async def test_what_a_trigger_does_is_not_success(database: Database) -> None:
    async with opened(database.url) as store:
        await store.load("k")
        await database.execute(
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF NEW.json = 'raise' THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NULL; END $$",
            "CREATE TRIGGER t BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION f()",
        )
        with pytest.raises(StoreAccessError, match="lets nothing be stored"):
            await store.save("k", "v")
        with pytest.raises(StoreAccessError, match="not this one"):
            await store.save("k", "raise")


async def test_a_limit_of_the_table_and_of_the_server(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(database.url) as store:
        await store.load("k")
        await database.execute("ALTER TABLE checkpoints ALTER json TYPE varchar(10)")
        with pytest.raises(StoreLimitError, match="22001"):
            await store.save("k", 11 * "x")
        await store.save("k", 10 * "x")
        monkeypatch.setattr(_store, "_MAX_VALUE_BYTES", 8)
        with pytest.raises(StoreLimitError, match="more than 8"):
            await store.save("k", 3 * "\u20ac")


# Roles, encodings and settings.


async def test_the_least_privileges_are_enough(database: Database) -> None:
    role = f"{database.name}_least"
    store = opened(database.url_of(role, "pw"), create="never", schema="s")
    await database.execute(
        "CREATE SCHEMA s",
        TableConfig(schema="s").ddl_without_lz4,
        f"CREATE ROLE {role} LOGIN PASSWORD 'pw' NOINHERIT",
        f"GRANT USAGE ON SCHEMA s TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON s.checkpoints TO {role}",
        "REVOKE ALL ON SCHEMA public FROM PUBLIC",
        f"REVOKE TEMPORARY ON DATABASE {database.name} FROM PUBLIC",
    )
    async with store:
        await store.save("k", "1")
        await store.save("k", "2")
        assert await store.load("k") == "2"
        version = await store.save_if("j", "1", expected=None)
        await store.save_if("j", "2", expected=version)
        with pytest.raises(StoreConflictError):
            await store.save_if("j", "3", expected=version)
        assert await listed(store) == ["j", "k"]
        await store.delete("k")
        assert await store.load("k") is None
    # An existing table is found without the right to create one, too.
    async with opened(database.url_of(role, "pw"), schema="s") as store:
        assert await store.load("j") == "2"
    # Each privilege is needed.
    for privilege, calls in {
        "SELECT": {"save", "load", "delete", "load_versioned", "save_if, new", "save_if"},
        "INSERT": {"save", "save_if, new"},
        "UPDATE": {"save", "save_if"},
        "DELETE": {"delete"},
    }.items():
        await database.execute(f"REVOKE {privilege} ON s.checkpoints FROM {role}")
        async with opened(database.url_of(role, "pw"), schema="s", create="never") as store:
            for name in every_call(store):
                call = every_call(store, f"key of {name}")[name]
                if name in calls:
                    with pytest.raises(StoreAccessError, match=r"permission denied .*grant the role USAGE"):
                        await call()
                elif name == "save_if":
                    with pytest.raises(StoreConflictError):
                        await call()
                else:
                    await call()
            if privilege == "SELECT":
                with pytest.raises(StoreAccessError, match="permission denied"):
                    await listed(store)
        await database.execute(f"GRANT {privilege} ON s.checkpoints TO {role}", "DELETE FROM s.checkpoints")


async def test_who_may_not_create_is_told_what_to_create(database: Database) -> None:
    role = f"{database.name}_reader"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pw'")
    for schema in ("public", "other"):
        async with opened(database.url_of(role, "pw"), schema=schema) as store:
            for call in every_call(store).values():
                with pytest.raises(StoreAccessError, match="permission denied") as caught:
                    await call()
                assert store.ddl in str(caught.value)


async def test_authentication_is_not_unavailability(database: Database) -> None:
    role = f"{database.name}_r"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pw' CONNECTION LIMIT 0")
    for url, error, message in (
        (database.url_of(role, "wrong"), StoreAccessError, "password authentication failed"),
        (database.url_of("nobody", "pw"), StoreAccessError, "password authentication failed"),
        (database.url_of(role, ""), StoreAccessError, "check the user name, the password"),
        (database.url.replace(database.name, "nodb"), StoreAccessError, 'database "nodb" does not exist'),
        (database.url_of(role, "pw"), StoreUnavailableError, "too many connections for role"),
    ):
        async with opened(url) as store:
            for call in (*every_call(store).values(), lambda store=store: listed(store)):
                with pytest.raises(error, match=message):
                    await call()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_that_is_not_utf8_is_refused(database: Database, encoding: str) -> None:
    other = f"{database.name}_{encoding.lower()}"
    await database.execute(f"CREATE DATABASE {other} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    try:
        async with opened(database.url.replace(database.name, other)) as store:
            for call in every_call(store).values():
                with pytest.raises(StoreAccessError, match=f"has the encoding {encoding}.*ENCODING 'UTF8'"):
                    await call()
    finally:
        await database.execute(f"DROP DATABASE {other} WITH (FORCE)")


async def test_a_setting_of_the_role_that_is_no_text_is_no_damaged_entry(database: Database) -> None:
    # A role's settings are in the encoding of the database where they were made.
    other, role = f"{database.name}_latin1", f"{database.name}_r"
    await database.execute(
        f"CREATE DATABASE {other} ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'",
        f"CREATE ROLE {role} LOGIN PASSWORD 'pw'",
    )
    try:
        db = await asyncpg.connect(database.url.replace(database.name, other))
        await db.execute(f"ALTER ROLE {role} SET search_path = 'café'")
        await db.close()
        url = database.url_of(role, "pw")
        async with opened(url) as store, asyncpg.create_pool(url, min_size=0) as pool:
            for asked in (store, PostgresCheckpointStore(pool)):
                with pytest.raises(StoreUnavailableError, match="answered a new connection with something that is not"):
                    await asked.load("k")
    finally:
        await database.execute(f"DROP DATABASE {other} WITH (FORCE)")


async def test_rows_that_a_policy_hides_are_absent_as_the_readme_says(database: Database) -> None:
    role = f"{database.name}_r"
    async with opened(database.url) as store:
        await store.save("k", "v")
    await database.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'pw'",
        f"GRANT ALL ON checkpoints TO {role}",
        "ALTER TABLE checkpoints ENABLE ROW LEVEL SECURITY",
    )
    async with opened(database.url_of(role, "pw")) as store:
        assert await store.load("k") is None
        with pytest.raises(StoreAccessError, match="row-level security"):
            await store.save("k", "w")


@pytest.mark.parametrize(
    ("default", "used"), [("off", "on"), ("local", "local"), ("on", "on"), ("remote_apply", "remote_apply")]
)
async def test_what_is_acknowledged_is_durable_whatever_the_default(
    database: Database, default: str, used: str
) -> None:
    role = f"{database.name}_r"
    async with opened(database.url) as store:
        await store.load("k")
    await database.execute(
        f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'pw'",
        f"ALTER ROLE {role} SET synchronous_commit = '{default}'",
        "CREATE TABLE seen (operation text, setting text)",
        # When the transaction commits, which is when the setting counts.
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO seen VALUES (TG_OP, current_setting('synchronous_commit')); RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON checkpoints "
        "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION f()",
    )
    async with opened(database.url_of(role, "pw")) as store:
        await store.save("k", "1")
        await store.save("k", "2")
        await store.delete("k")
        version = await store.save_if("k", "1", expected=None)
        await store.save_if("k", "2", expected=version)
    async with database.connection() as db:
        seen = await db.fetch("SELECT operation, setting FROM seen")
    assert [tuple(row) for row in seen] == [
        (operation, used) for operation in ("INSERT", "UPDATE", "DELETE", "INSERT", "UPDATE")
    ]


async def test_an_acknowledged_save_is_flushed_where_commits_are_asynchronous(database: Database) -> None:
    await database.execute(f"ALTER DATABASE {database.name} SET synchronous_commit = off")
    async with opened(database.url) as store, database.connection() as db:
        await store.load("k")
        behind = 0
        for n in range(30):
            await db.execute("INSERT INTO checkpoints VALUES ('k', 'v') ON CONFLICT (key) DO UPDATE SET json = 'w'")
            written = await db.fetchval("SELECT pg_current_wal_insert_lsn()")
            # The log is flushed in its order: a save that is flushed takes with it what was written before it.
            flushed = "SELECT pg_current_wal_flush_lsn() >= $1"
            behind += not await db.fetchval(flushed, written)
            await store.save("k", f"{n}")
            assert await db.fetchval(flushed, written)
    assert behind, "a commit that is not waited for was never seen, so this proves nothing"


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_another_default_isolation_makes_no_save_fail(database: Database, isolation: str) -> None:
    await database.execute(f"ALTER DATABASE {database.name} SET default_transaction_isolation = '{isolation}'")
    async with opened(database.url, pool_size=8) as store:
        await asyncio.gather(*(store.save("k", f"{n}") for n in range(200)))
        wins = 0
        for _ in range(20):
            found = await store.load_versioned("k")
            assert found is not None
            outcomes = await asyncio.gather(
                *(store.save_if("k", "v", expected=found.version) for _ in range(8)), return_exceptions=True
            )
            wins += sum(isinstance(outcome, str) for outcome in outcomes)
            assert all(isinstance(outcome, (str, StoreConflictError)) for outcome in outcomes), outcomes
        assert wins == 20


async def test_where_nothing_can_be_written_the_store_says_so(database: Database) -> None:
    await database.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
    async with opened(database.url) as store:
        for call in every_call(store).values():
            with pytest.raises(StoreUnavailableError, match="accepts no writes"):
                await call()


# Versions and listing.


async def test_a_version_is_opaque(database: Database) -> None:
    async with opened(database.url) as store:
        version = await store.save_if("k", "1", expected=None)
        for other in (
            "",
            "x",
            "1",
            "'; DROP TABLE checkpoints; --",
            "\0",
            "\ud800",
            "é",
            version.upper(),
            version.replace("-", ""),
            f"{{{version}}}",
            f"urn:uuid:{version}",
            f" {version}",
            "00000000-0000-0000-0000-000000000000",
        ):
            if other != version:
                with pytest.raises(StoreConflictError):
                    await store.save_if("k", "2", expected=other)
        found = await store.load_versioned("k")
        assert found is not None
        assert (found.json, found.version) == ("1", version)
        assert await store.save_if("k", "1", expected=version) != version


async def test_every_save_has_a_new_revision_and_a_later_time(database: Database) -> None:
    async with opened(database.url) as store:
        revisions, times = [], []
        for text in ("1", "1", "2"):
            await store.save("k", text)
            async with database.connection() as db:
                revision, saved_at = await db.fetchrow("SELECT revision, saved_at FROM checkpoints")
            revisions.append(str(revision))
            times.append(saved_at)
        version = await store.save_if("k", "2", expected=revisions[-1])
        times.append(await database.fetchval("SELECT saved_at FROM checkpoints"))
        await store.delete("k")
        again = await store.save_if("k", "2", expected=None)
        assert len({*revisions, version, again}) == 5
        assert times == sorted(set(times))


async def test_listing_goes_by_pages_through_the_index(database: Database) -> None:
    async with opened(database.url) as store:
        await store.load("k")
        await database.execute(
            "INSERT INTO checkpoints (key, json) SELECT 'a/' || n, 'v' FROM generate_series(1, 1203) n",
            "INSERT INTO checkpoints (key, json) SELECT 'b/' || n, 'v' FROM generate_series(1, 20000) n",
            "ANALYZE checkpoints",
        )
        assert await listed(store, "a/") == sorted(f"a/{n}" for n in range(1, 1204))
        assert await listed(store, "a/120") == ["a/120", *(f"a/120{n}" for n in range(4))]
        assert len(await listed(store)) == 21203
        for statement in (_store._LIST_FROM, _store._LIST_AFTER):
            async with database.connection() as db:
                plan = await db.fetch("EXPLAIN " + store._sql(statement), "a/", 500)
            text = "\n".join(line for (line,) in plan)
            assert "Index Only Scan" in text
            assert "Sort" not in text


async def test_prefixes_at_the_edges_of_unicode(database: Database) -> None:
    keys = [
        *("a", "a\u007f", "a\u0080", "a\ud7ff", "a\ue000", "a\uffff", "a\U00010000", "a\U0010ffff"),
        *("a\U0010ffff\U0010ffff", "a\U0010ffffb", "b", "\U0010ffff", "\U0010ffff\U0010ffff", "%", "a%", "a_", "\x01"),
    ]
    async with opened(database.url) as store:
        for key in keys:
            await store.save(key, "v")
        for prefix in {"", "c", *keys}:
            assert await listed(store, prefix) == sorted(key for key in keys if key.startswith(prefix))


async def test_a_column_of_another_collation_is_listed_rightly(database: Database) -> None:
    await database.execute(
        'CREATE TABLE checkpoints (key text COLLATE "und-x-icu" PRIMARY KEY, json text, revision uuid, '
        "saved_at timestamptz DEFAULT now())"
        if await database.fetchval("SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu'")
        else 'CREATE TABLE checkpoints (key text COLLATE "ucs_basic" PRIMARY KEY, json text, revision uuid, '
        "saved_at timestamptz DEFAULT now())"
    )
    keys = [f"{letter}{n}" for letter in "aAbB_%" for n in range(200)]
    async with opened(database.url) as store:
        await asyncio.gather(*(store.save(key, "v") for key in keys))
        assert await listed(store) == sorted(keys)
        assert await listed(store, "A1") == sorted(key for key in keys if key.startswith("A1"))


# Keys, values, and what is stored.


async def test_every_method_refuses_bad_keys_and_then_bad_values() -> None:
    # Nobody listens there: what is refused needs no server.
    async with opened("postgresql://u@127.0.0.1:1/d") as store:
        for key in ("", "a\0", "\ud800", "x" * 1025, 1):
            for call in every_call(store, key).values():
                with pytest.raises(InvalidKeyError):
                    await call()
            if key != "":
                with pytest.raises(InvalidKeyError):
                    await anext(store.list_keys(key))  # type: ignore[arg-type]
        for value in ("a\0", "\udfff", b"v"):
            with pytest.raises(InvalidValueError):
                await store.save("k", value)  # type: ignore[arg-type]
            with pytest.raises(InvalidValueError):
                await store.save_if("k", value, expected=None)  # type: ignore[arg-type]


async def test_bytes_that_are_no_text_spoil_neither_the_connection_nor_other_keys(database: Database) -> None:
    async with opened(database.url, pool_size=1, application_name="spoilt") as store:
        await store.save("good", "v")
        await store.save("bad", "v")
        await database.execute("CREATE CAST (bytea AS text) WITHOUT FUNCTION")
        pid = "SELECT pid FROM pg_stat_activity WHERE application_name = 'spoilt'"
        before = await database.fetchval(pid)
        for damage in (b"\xff", b"caf\xe9", b"x" * 70_000 + b"\xc3", b"a\0b"):
            async with database.connection() as db:
                await db.execute("UPDATE checkpoints SET json = $1::bytea::text WHERE key = 'bad'", damage)
            for load in (store.load, store.load_versioned):
                with pytest.raises(StoreCorruptedError, match=r"'bad' in \"public\"\.\"checkpoints\".*restore it"):
                    await load("bad")
            assert await store.load("good") == "v"
        assert await database.fetchval(pid) == before
        await store.save("bad", "mended")
        assert await store.load("bad") == "mended"


async def test_what_is_no_text_with_a_revision_is_corrupted(database: Database) -> None:
    await database.execute(
        "CREATE TABLE checkpoints (key text PRIMARY KEY, json text, revision uuid, saved_at timestamptz)"
    )
    async with opened(database.url) as store:
        for columns in ("NULL, gen_random_uuid()", "'v', NULL"):
            await database.execute(f"INSERT INTO checkpoints VALUES ('bad', {columns})")
            for load in (store.load, store.load_versioned):
                with pytest.raises(StoreCorruptedError, match=r"'bad' in \"public\"\.\"checkpoints\".*NULL"):
                    await load("bad")
            await store.save("bad", "mended")
            assert await store.load("bad") == "mended"
            await store.delete("bad")
        await store.load("k")
        await database.execute("ALTER TABLE checkpoints ALTER json TYPE int USING 1")
        await database.execute("INSERT INTO checkpoints VALUES ('bad', 1, gen_random_uuid())")
        with pytest.raises(StoreCorruptedError, match="the column another type"):
            await store.load("bad")


_MEMORY = """
import asyncio, sys, tracemalloc
from dagonizer import open_store

async def main():
    _, url, operation, unit = sys.argv
    store = open_store(url)
    await store.save("warm", "v")
    await store.load("warm")
    length = (64 << 20) // len(unit.encode())
    text = unit * length
    if operation == "load":
        del text
    tracemalloc.start()
    if operation == "save":
        await store.save(unit, text)
    else:
        assert len(await store.load(unit)) == length
    peak = tracemalloc.get_traced_memory()[1]
    print((peak - (sys.getsizeof(unit * length) if operation == "load" else 0)) / (64 << 20))
    await store.aclose()

asyncio.run(main())
"""


@pytest.mark.parametrize("unit", ["a", "\u20ac"], ids=["ASCII", "others"])
async def test_64_mib_take_at_most_five_times_their_size(database: Database, unit: str) -> None:
    for operation in ("save", "load"):
        command = [sys.executable, "-c", _MEMORY, database.url, operation, unit]
        done = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, text=True)
        # The fifth is the text itself.
        assert 0.9 < float(done.stdout) <= 4, operation
    stored = await database.fetchval("SELECT octet_length(json) FROM checkpoints WHERE key = $1", unit)
    assert stored > (64 << 20) - 4


# Connections.


async def test_dead_connections_are_noticed_before_anything_is_sent(database: Database) -> None:
    async with opened(database.url, pool_size=5, application_name="victim") as store:
        for call in (lambda: store.save("k", "w"), lambda: store.delete("k"), lambda: store.load("k")):
            await asyncio.gather(*(store.save(f"{n}", "v") for n in range(20)))
            killed = await database.fetchval(
                "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = 'victim'"
            )
            assert killed == 5
            await call()


async def _break_under_way(database: Database, call: Coroutine[Any, Any, object]) -> object:
    """Terminate the connection of ``call`` while it waits for the table, and return what it returns or raises."""
    terminate = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE application_name = 'victim' AND wait_event_type = 'Lock'"
    )
    async with database.connection() as db, db.transaction():
        await db.execute("LOCK TABLE checkpoints")
        task = asyncio.ensure_future(call)
        while not await database.fetchval(terminate):
            await asyncio.sleep(0.01)
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    return outcome


async def test_a_load_is_repeated_when_its_connection_breaks_and_a_save_is_not(database: Database) -> None:
    async with opened(database.url, application_name="victim") as store:
        await store.save("k", "v")
        assert await _break_under_way(database, store.load("k")) == "v"
        assert await _break_under_way(database, listed(store)) == ["k"]
        for call in (store.save("k", "w"), store.delete("k")):
            outcome = await _break_under_way(database, call)
            assert isinstance(outcome, StoreUnavailableError)
            assert "it may have happened" in str(outcome)
        assert await store.load("k") == "v"


async def test_a_save_that_timed_out_never_lands_on_a_later_one(database: Database) -> None:
    async with opened(database.url, timeout=0.5) as store:
        await store.load("k")
        for _ in range(3):
            async with database.connection() as db, db.transaction():
                await db.execute("LOCK TABLE checkpoints")
                began = time.monotonic()
                with pytest.raises(StoreUnavailableError, match=r"timeout of 0\.5 s"):
                    await store.save("k", "early")
                assert time.monotonic() - began < 2
                later = asyncio.create_task(store.save("k", "later"))
                await asyncio.sleep(0.1)
            await later
            await asyncio.sleep(0.1)
            assert await store.load("k") == "later"
            await store.delete("k")
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dagonizer' AND state = 'active'"
        assert await database.fetchval(waiting) == 0


async def test_what_was_given_up_and_comes_late_does_nothing(withholding: Withholding) -> None:
    async with withholding.running() as url, opened(url, timeout=1, pool_size=1) as store:

        async def given_up(call: Coroutine[Any, Any, object], *meanwhile: Coroutine[Any, Any, object]) -> None:
            withholding.withhold()
            with pytest.raises(StoreUnavailableError, match="timeout"):
                await call
            for acknowledged in meanwhile:
                await acknowledged
            await withholding.deliver()

        async def prepare() -> None:
            # A statement that its connection does not know yet is not sent at once.
            await store.save("other", "text")
            await store.delete("other")
            await store.save_if("other", "text", expected=None)
            await store.delete("other")

        for late in (lambda: store.save("k", "late"), lambda: store.delete("k")):
            await prepare()
            await given_up(late(), store.save("k", "acknowledged"))
            assert await store.load("k") == "acknowledged"
        for late in (lambda: store.save("k", "late"), lambda: store.save_if("k", "late", expected=None)):
            await store.delete("k")
            await prepare()
            await given_up(late(), store.save("k", "acknowledged"), store.delete("k"))
            assert await store.load("k") is None


@pytest.mark.parametrize("late", ["save", "delete"])
async def test_what_waits_for_another_until_its_time_is_over_does_nothing(database: Database, late: str) -> None:
    async with opened(database.url) as store, database.connection() as other, database.connection() as db:
        statements = {"save": (_store._SAVE, ["late", uuid4()]), "delete": (_store._DELETE, [])}
        statement, values = statements[late]
        await store.save("k", "before")
        now = await other.fetchval(f"SELECT {_pool.CLOCK}")
        async with other.transaction():
            await other.execute("UPDATE checkpoints SET json = 'meanwhile' WHERE key = 'k'")
            waiting = asyncio.create_task(db.fetchrow(store._sql(statement), "k", now + 1, *values))
            async with asyncio.timeout(30):
                while not await other.fetchval("SELECT pg_blocking_pids($1) <> '{}'", db.get_server_pid()):
                    await asyncio.sleep(0.01)
                while await other.fetchval(f"SELECT {_pool.CLOCK}") < now + 1:
                    await asyncio.sleep(0.01)
        assert await waiting is None
        assert await store.load("k") == "meanwhile"


async def test_the_callers_pool_may_decode_numbers_in_its_own_way(database: Database) -> None:
    async def prepare(connection: Any) -> None:
        await connection.set_type_codec("float8", encoder=str, decoder=Decimal, schema="pg_catalog")

    async with asyncpg.create_pool(database.url, min_size=1, init=prepare) as pool:
        store = PostgresCheckpointStore(pool)
        await store.save("k", "v")
        with pytest.raises(StoreConflictError):
            await store.save_if("k", "w", expected=None)
        await store.delete("k")
        assert await store.load("k") is None


async def test_a_deletion_is_not_acknowledged_where_two_clocks_disagree(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def an_hour_ago(*_: object) -> float:
        return time.time() - 3600

    async with opened(database.url, pool_size=1) as store:
        await store.save("k", "before")
        told = store._clocks._told
        ((connection, (asked, said)),) = told.items()
        told[connection] = asked, said - 3600
        monkeypatch.setattr(store._clocks, "now", an_hour_ago)
        with pytest.raises(StoreUnavailableError, match="put back"):
            await store.delete("k")
        assert await store.load("k") == "before"


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_of_the_server_that_was_put_forward_or_back_is_asked_again(
    database: Database, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database.url, pool_size=1) as store:
        await store.save("k", "before")
        told = store._clocks._told
        ((connection, (asked, said)),) = told.items()
        told[connection] = asked, said + 3600 * hours
        if hours > 0:
            # Nobody is refused for it, but a minute later it is known.
            await store.save("k", "in between")
            monkeypatch.setattr(_pool, "_CLOCK_SECONDS", 0)
        for change, text in ((store.delete("k"), None), (store.save("k", "after"), "after")):
            told[connection] = asked, said + 3600 * hours
            await change
            assert await store.load("k") == text
            asked, said = told[connection]
            now = float(await database.fetchval("SELECT extract(epoch FROM clock_timestamp())"))
            assert abs(said - now) < 60


async def test_cut_off_operations_hold_no_connection(database: Database) -> None:
    chance = random.Random(7)
    async with opened(database.url, pool_size=3, application_name="cut") as store:
        await store.save("k", "v")
        for n in range(150):
            tasks = [asyncio.create_task(call()) for call in (lambda: store.load("k"), lambda: store.save("k", "v"))]
            tasks.append(asyncio.create_task(listed(store)))  # type: ignore[arg-type]
            await asyncio.sleep(chance.random() * 0.003)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if n % 10 == 0:
                assert await asyncio.gather(*(store.load("k") for _ in range(6))) == ["v"] * 6
        await connections_become(database, 3)
    await connections_become(database, 0)


async def connections_become(database: Database, most: int) -> None:
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cut'"
    # The server's process ends some time after its connection.
    async with asyncio.timeout(10):
        while await database.fetchval(count) > most:
            await asyncio.sleep(0.02)


async def test_a_connection_that_the_callers_pool_is_preparing_is_left_alone(database: Database) -> None:
    preparing, go_on = asyncio.Event(), asyncio.Event()

    async def prepare(_connection: object) -> None:
        preparing.set()
        await go_on.wait()

    async with asyncpg.create_pool(database.url, min_size=1, max_size=1, setup=prepare) as pool:
        acquiring = asyncio.ensure_future(pool.acquire())
        await preparing.wait()
        await drop_idle(pool)
        go_on.set()
        async with asyncio.timeout(10):
            connection = await acquiring
        assert await connection.fetchval("SELECT 1") == 1
        await pool.release(connection)


async def test_loads_that_are_cancelled_while_they_connect(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(3)
    port = int(database.url.rpartition(":")[2].partition("/")[0])
    async with (
        FaultProxy("127.0.0.1", port) as proxy,
        opened(database.url.replace(f":{port}/", f":{proxy.port}/"), pool_size=2) as store,
    ):
        await store.save("k", "v")
        await proxy.delay(0.005)
        for _ in range(60):
            # Break what is connected, and cancel while there is something to connect.
            await proxy.reset()
            await proxy.delay(0.005)
            loads = [asyncio.create_task(store.load("k")) for _ in range(4)]
            await asyncio.sleep(chance.random() * 0.05)
            for load in loads:
                load.cancel()
            await asyncio.gather(*loads, return_exceptions=True)
        # What went on without its caller ends by itself, and the pool has two.
        async with asyncio.timeout(5):
            while proxy.connections > 2:
                await asyncio.sleep(0.01)
        await proxy.pass_through()
        assert await store.load("k") == "v"
    gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_load_has_its_own_time_to_connect(database: Database) -> None:
    port = int(database.url.rpartition(":")[2].partition("/")[0])
    async with (
        FaultProxy("127.0.0.1", port) as proxy,
        opened(database.url.replace(f":{port}/", f":{proxy.port}/"), timeout=1) as store,
    ):
        await proxy.black_hole()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.8):
                await store.load("k")
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="no answer"):
            await store.load("k")
        assert time.monotonic() - began > 0.9


async def test_closing_ends_an_attempt_to_connect_that_nobody_waits_for(database: Database) -> None:
    port = int(database.url.rpartition(":")[2].partition("/")[0])
    async with FaultProxy("127.0.0.1", port) as proxy:
        await proxy.black_hole()
        store = opened(database.url.replace(f":{port}/", f":{proxy.port}/"), timeout=20)
        load = asyncio.create_task(store.load("k"))
        while not proxy.accepted:
            await asyncio.sleep(0.01)
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        assert len(asyncio.all_tasks()) == 2
        began = time.monotonic()
        await store.aclose()
        assert time.monotonic() - began < 5
        assert len(asyncio.all_tasks()) == 1


async def test_a_user_without_a_name_is_told_to_give_one(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nobody)
    async with opened(f"postgresql://{database.url.rpartition('@')[2]}") as store:
        with pytest.raises(StoreAccessError, match="put one into the URL"):
            await store.load("k")


async def test_closing_is_bounded_where_nobody_answers(database: Database) -> None:
    port = int(database.url.rpartition(":")[2].partition("/")[0])
    async with FaultProxy("127.0.0.1", port) as proxy:
        store = opened(database.url.replace(f":{port}/", f":{proxy.port}/"), timeout=20)
        await asyncio.gather(*(store.save(f"{n}", "v") for n in range(5)))
        await proxy.black_hole()
        began = time.monotonic()
        await store.aclose()
        assert time.monotonic() - began < 5


async def test_operations_are_bounded_where_nobody_answers(database: Database) -> None:
    port = int(database.url.rpartition(":")[2].partition("/")[0])
    async with (
        FaultProxy("127.0.0.1", port) as proxy,
        opened(database.url.replace(f":{port}/", f":{proxy.port}/"), timeout=0.7, pool_size=2) as store,
    ):
        await asyncio.gather(*(store.save(f"{n}", "v") for n in range(5)))
        await proxy.black_hole()
        for call in (*every_call(store).values(), lambda: listed(store)):
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError, match=r"no answer within the timeout of 0\.7 s"):
                await call()
            assert time.monotonic() - began < 2
        await proxy.pass_through()
        await store.save("k", "v")
        assert await store.load("k") == "v"


@pytest.mark.parametrize("made_by", ["store", "caller"])
async def test_idle_connections_that_have_gone_silent_cost_one_operation(database: Database, made_by: str) -> None:
    port = int(database.url.rpartition(":")[2].partition("/")[0])
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", port))
        url = database.url.replace(f":{port}/", f":{proxy.port}/")
        if made_by == "caller":
            pool = await stack.enter_async_context(asyncpg.create_pool(url, min_size=0))
            store = PostgresCheckpointStore(pool, timeout=2)
        else:
            store = await stack.enter_async_context(opened(url, timeout=2))
        for call in every_call(store).values():
            await store.save("k", "v")
            await asyncio.gather(*(store.load("k") for _ in range(5)))
            assert proxy.connections >= 5
            await proxy.half_open()
            with pytest.raises(StoreUnavailableError, match="no answer"):
                await call()
            assert await asyncio.gather(*(store.load("k") for _ in range(5))) == ["v"] * 5


async def test_after_close_every_call_raises(database: Database) -> None:
    async with opened(database.url) as store:
        await store.save("a", "1")
        await store.save("b", "1")
        listing = store.list_keys()
        await anext(listing)
    await store.aclose()
    for call in every_call(store, "").values():
        with pytest.raises(StoreClosedError):
            await call()
    for key in (anext(store.list_keys("\0")), anext(listing)):
        with pytest.raises(StoreClosedError):
            await key


def test_one_event_loop_after_another_without_a_close(database: Database) -> None:
    store = opened(database.url, application_name="loops")
    asyncio.run(store.save("k", "v"))
    assert asyncio.run(store.load("k")) == "v"
    asyncio.run(store.aclose())


# The caller's pool.


async def test_the_callers_pool_serves_and_stays_open(database: Database) -> None:
    async with asyncpg.create_pool(database.url, min_size=1, max_size=3) as pool:
        async with PostgresCheckpointStore(pool, "mine", schema="s", timeout=5.0) as store:
            await asyncio.gather(*(store.save(f"{n}", "v") for n in range(20)))
            assert len(await listed(store)) == 20
            version = await store.save_if("k", "1", expected=None)
            with pytest.raises(StoreConflictError):
                await store.save_if("k", "2", expected=None)
            await store.save_if("k", "2", expected=version)
            await store.delete("k")
            # What the pool did not know to be dead.
            await pool.fetch("SELECT 1")
            await database.fetchval(
                "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
                f"WHERE datname = '{database.name}' AND pid <> pg_backend_pid()"
            )
            await store.save("k", "after")
        with pytest.raises(StoreClosedError):
            await store.load("k")
        assert await pool.fetchval("SELECT json FROM s.mine WHERE key = 'k'") == "after"
        never = PostgresCheckpointStore(pool, create="never")
        with pytest.raises(StoreAccessError, match=r"\"public\"\.\"checkpoints\" at the given pool's server"):
            await never.load("k")
    with pytest.raises(StoreUnavailableError, match="pool is closed"):
        await never.load("k")


def test_the_callers_pool_serves_its_own_event_loop(database: Database) -> None:
    async def make() -> PostgresCheckpointStore:
        pool = asyncpg.create_pool(database.url, min_size=1, max_size=1)
        store = PostgresCheckpointStore(pool)
        with pytest.raises(StoreUnavailableError, match="pool is not initialized"):
            await store.load("k")
        async with pool:
            await store.save("k", "v")
        return store

    store = asyncio.run(make())
    with pytest.raises(StoreUnavailableError, match="another event loop"):
        asyncio.run(store.load("k"))


async def test_what_names_the_server_is_the_url_and_no_variable(database: Database, tmp_path: Path) -> None:
    # Undone before the database is dropped.
    with pytest.MonkeyPatch.context() as monkeypatch:
        await _expect_only_the_password_from_elsewhere(database, tmp_path, monkeypatch)


async def _expect_only_the_password_from_elsewhere(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGHOST": "/nowhere",
        "PGPORT": "1",
        "PGUSER": "nobody",
        "PGDATABASE": "nowhere",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/nowhere",
        "PGSSLCERT": "/nowhere",
        "PGSSLNEGOTIATION": "direct",
        "PGTARGETSESSIONATTRS": "standby",
        "PGSERVICE": "nothing",
        "PGGSSLIB": "nothing",
    }.items():
        monkeypatch.setenv(name, value)
    async with opened(database.url) as store:
        await store.save("k", "v")
    # A user that the URL does not name is the operating system's, not PGUSER.
    monkeypatch.setenv("LOGNAME", "some_user")
    bare = f"postgresql://{database.url.rpartition('@')[2]}"
    async with opened(bare) as store:
        with pytest.raises(StoreAccessError, match='"some_user"'):
            await store.load("k")
    # A password may come from where passwords are kept.
    account, _, place = database.url.removeprefix("postgresql://").rpartition("@")
    user, _, password = account.partition(":")
    host, _, port = place.partition("/")[0].partition(":")
    passwords = tmp_path / "passwords"
    passwords.write_text(f"{host}:{port}:{database.name}:{user}:{password}\n")
    passwords.chmod(0o600)
    for name, value in {"PGPASSFILE": str(passwords), "PGPASSWORD": password}.items():
        async with opened(f"postgresql://{user}@{place}") as store:
            with pytest.raises(StoreAccessError):
                await store.load("k")
            monkeypatch.setenv(name, value)
            assert await store.load("k") == "v"
            monkeypatch.delenv(name)


async def test_the_application_is_named(database: Database) -> None:
    async with opened(database.url, application_name="a name") as store:
        await store.load("k")
        assert await database.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'a name'") == 1
