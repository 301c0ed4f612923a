"""What the doctor finds, on servers that are so; and that its remedies are ones."""

from __future__ import annotations

import asyncio
import gc
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import asyncpg
import pytest

from dagonizer import open_store
from dagonizer.diagnosis import DURABILITY, Finding
from dagonizer.errors import StoreAccessError, StoreError, StoreUnavailableError
from dagonizer.url import StoreURL
from dagonizer_conformance.proxy import FaultProxy
from dagonizer_postgres import PostgresConfig, _diagnosis
from dagonizer_postgres._plugin import dagonizer_diagnose_store
from dagonizer_test_servers.findings import expect, trouble
from dagonizer_test_servers.postgres import Postgres
from dagonizer_test_servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from conftest import Database

CHECKS = [
    "version",
    "primary",
    "read-only",
    "pooler",
    "table",
    "grants",
    "persistence",
    "row-security",
    "compression",
    "space",
    "connections",
    "fsync",
    "full-page-writes",
    "synchronous-commit",
    "standbys",
    DURABILITY,
]


async def findings_of(url: str, **parameters: object) -> list[Finding]:
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in parameters.items())
    found = dagonizer_diagnose_store(StoreURL.parse(f"{url}?{query}" if query else url))
    assert found is not None
    return [finding async for finding in found]


async def diagnosed(url: str, **parameters: object) -> dict[str, Finding]:
    """Return the worst finding of each check."""
    order = ["good", "note", "warning", "bad"]
    found = sorted(await findings_of(url, **parameters), key=lambda finding: order.index(finding.verdict))
    return {finding.check: finding for finding in found}


async def make_table(url: str, **parameters: object) -> None:
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in parameters.items())
    async with open_store(f"{url}?{query}") as store:
        await store.save("k", "v")


async def run(url: str, *statements: str) -> None:
    db = await asyncpg.connect(url)
    try:
        for statement in statements:
            # One after the other, for some cannot be in a transaction with another one.
            for one in statement.split("; "):
                await db.execute(one)
    finally:
        await db.close()


async def fetchval(url: str, query: str) -> Any:
    db = await asyncpg.connect(url)
    try:
        return await db.fetchval(query)
    finally:
        await db.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server of this module's own, whose settings may be changed."""
    with Postgres() as server:
        yield server


async def setting(server: Postgres, name: str, value: str) -> None:
    """Return once new sessions have ``name``."""
    await run(server.url, f"ALTER SYSTEM SET {name} = {value}", "SELECT pg_reload_conf()")
    while await fetchval(server.url, f"SHOW {name}") != value.strip("'"):
        await asyncio.sleep(0.01)


# A server and a table that are as they should be.


async def test_where_all_is_well_every_check_says_so(database: Database) -> None:
    await make_table(database.url)
    found = await findings_of(database.url)
    assert [finding.check for finding in found] == CHECKS
    assert {finding.check for finding in found if finding.verdict != "good"} == {"space"}
    said = {finding.check: finding.message for finding in found}
    version = await database.fetchval("SHOW server_version")
    assert said["version"].startswith(f"PostgreSQL {version} answers at 127.0.0.1:")
    assert said["table"] == '"public"."checkpoints" is as the store makes it'
    assert "kB of the tablespace pg_default" in said["space"]
    assert "a failure of the machine; not the loss of its disk" in said[DURABILITY]


def test_the_readme_names_every_check() -> None:
    section = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").partition("## Doctor")[2]
    assert set(re.findall(r"^\| ([a-z-]+) \| ", section, re.MULTILINE)) - {"check"} == {*CHECKS, "hosts"}


async def test_a_store_that_does_not_know_its_host_is_refused_by_its_error() -> None:
    with pytest.raises(StoreUnavailableError, match="could not look around"):
        await findings_of(f"postgresql://u:p@127.0.0.1:{free_port()}/d")


def test_a_server_that_is_too_old_is_told_by_its_version() -> None:
    # None of these tests is: they run on one of today.
    old = _diagnosis.version_finding("h:5432/d", "12.22", 120_022)
    assert (old.verdict, "too old" in old.message, old.remedy) == ("bad", True, "upgrade the server")
    assert _diagnosis.version_finding("h:5432/d", "13.0", 130_000).verdict == "good"


# The table.


async def test_a_missing_table_is_made_by_the_first_operation(database: Database) -> None:
    expect(await diagnosed(database.url), "table", "good", "not there yet", "create=auto")
    expect(await diagnosed(database.url, schema="new"), "table", "good", "not there yet")
    assert await database.fetchval("SELECT to_regclass('public.checkpoints')") is None
    assert await database.fetchval("SELECT to_regnamespace('new')") is None


@pytest.mark.parametrize("schema", ["public", "new one"])
async def test_a_missing_table_that_nobody_creates_is_created_by_the_remedy(database: Database, schema: str) -> None:
    parameters = {"create": "never", "schema": schema}
    remedy = expect(await diagnosed(database.url, **parameters), "table", "bad", "create=never")
    await database.execute(remedy.partition("create it: ")[2])
    found = await diagnosed(database.url, **parameters)
    expect(found, "table", "good", f'"{schema}"."checkpoints" is as the store makes it')
    expect(found, "grants", "good")


@pytest.mark.parametrize("schema", ["public", "new"])
async def test_a_role_that_may_not_create_the_missing_table_may_after_the_remedy(
    database: Database, schema: str
) -> None:
    role = f"{database.name}_r"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pw'")
    url = database.url_of(role, "pw")
    remedy = expect(await diagnosed(url, schema=schema), "table", "bad", "may not create it", "lacks CREATE on")
    grant, _, ddl = remedy.partition("; or create it as another role: ")
    assert "CREATE TABLE" in ddl
    await database.execute(grant)
    expect(await diagnosed(url, schema=schema), "table", "good", "not there yet")
    await make_table(url, schema=schema)
    assert not trouble(await diagnosed(url, schema=schema))


@pytest.mark.parametrize(
    ("change", "check", "verdict", "said"),
    [
        ("ALTER TABLE checkpoints DROP COLUMN revision", "table", "bad", "has no column revision"),
        ("ALTER TABLE checkpoints DROP COLUMN saved_at", "table", "bad", "has no column saved_at"),
        ("ALTER TABLE checkpoints ALTER json TYPE varchar(100)", "table", "warning", "character varying(100), not"),
        ("ALTER TABLE checkpoints ALTER json TYPE char(100)", "table", "bad", "json of"),
        ("ALTER TABLE checkpoints ALTER json TYPE json USING to_json(json)", "table", "bad", "is json, not text"),
        ("ALTER TABLE checkpoints DROP CONSTRAINT checkpoints_pkey", "table", "bad", "no unique index on key"),
        (
            "ALTER TABLE checkpoints DROP CONSTRAINT checkpoints_pkey, ADD PRIMARY KEY (key, revision)",
            "table",
            "bad",
            "no unique index on key",
        ),
        (
            (
                "ALTER TABLE checkpoints DROP CONSTRAINT checkpoints_pkey; "
                "CREATE UNIQUE INDEX ON checkpoints (key) WHERE json <> ''"
            ),
            "table",
            "bad",
            "no unique index on key",
        ),
        ('ALTER TABLE checkpoints ALTER key TYPE text COLLATE "POSIX"', "table", "note", "is POSIX, not C"),
        ('ALTER TABLE checkpoints ADD COLUMN "Owner" text NOT NULL', "table", "bad", "column Owner"),
        ("CREATE RULE no AS ON DELETE TO checkpoints DO INSTEAD NOTHING", "table", "bad", "has rules"),
        ("ALTER TABLE checkpoints SET UNLOGGED", "persistence", "bad", "UNLOGGED"),
    ],
)
async def test_a_table_of_another_form_is_told_and_mended(
    database: Database, change: str, check: str, verdict: str, said: str
) -> None:
    await make_table(database.url)
    await database.execute("TRUNCATE checkpoints", change)
    remedy = expect(await diagnosed(database.url), check, verdict, said)
    await run(database.url, remedy)
    found = await diagnosed(database.url)
    expect(found, check, "good")
    assert not trouble(found)
    await make_table(database.url)


async def test_a_collation_to_which_different_keys_are_equal_is_told_and_mended(database: Database) -> None:
    await make_table(database.url)
    # Only a server with ICU can make such a collation; the catalog of every one can say that one is.
    await database.execute(
        'CREATE COLLATION insensitive FROM "POSIX"',
        "ALTER TABLE checkpoints ALTER key TYPE text COLLATE insensitive",
        "UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'insensitive'",
    )
    await run(database.url, expect(await diagnosed(database.url), "table", "bad", "takes different keys for equal"))
    expect(await diagnosed(database.url), "table", "good")


async def test_entries_that_a_crash_empties_are_not_durable(database: Database) -> None:
    await make_table(database.url)
    await database.execute("ALTER TABLE checkpoints SET UNLOGGED")
    expect(await diagnosed(database.url), DURABILITY, "bad", "not logged")


@pytest.mark.parametrize(
    ("statement", "verdict", "said"),
    [
        ("CREATE VIEW checkpoints AS SELECT 'k' AS key, 'v' AS json", "warning", "is a view"),
        ("CREATE MATERIALIZED VIEW checkpoints AS SELECT 'k' AS key", "bad", "is a materialized view"),
        ("CREATE SEQUENCE checkpoints", "bad", "is a sequence"),
        ("CREATE TYPE checkpoints AS (key text)", "bad", "is a type"),
    ],
)
async def test_what_is_no_table_is_told(database: Database, statement: str, verdict: str, said: str) -> None:
    await database.execute(statement)
    expect(await diagnosed(database.url), "table", verdict, said, "and no table")
    expect(await diagnosed(database.url, table="another"), "table", "good")


async def test_a_temporary_table_is_one_to_lose_entries_in(database: Database) -> None:
    async with database.connection() as db:
        await db.execute(
            PostgresConfig.from_url(StoreURL.parse(database.url)).ddl_without_lz4.replace(
                'TABLE IF NOT EXISTS "public".', "TEMPORARY TABLE "
            )
        )
        schema = await db.fetchval("SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()")
        found = await diagnosed(database.url, schema=schema)
        expect(found, "persistence", "bad", "ends with the session")
        expect(found, DURABILITY, "bad")


async def test_a_partitioned_table_is_one(database: Database) -> None:
    ddl = PostgresConfig.from_url(StoreURL.parse(database.url)).ddl_without_lz4
    await database.execute(
        f"{ddl} PARTITION BY HASH (key)",
        "CREATE TABLE half PARTITION OF checkpoints FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE rest PARTITION OF checkpoints FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    )
    assert not trouble(await diagnosed(database.url))
    await make_table(database.url)


async def test_texts_that_could_be_compressed_by_lz4_are_after_the_remedy(database: Database) -> None:
    await make_table(database.url)
    if not await database.has_lz4():
        expect(await diagnosed(database.url), "compression", "good", "pglz", "the server has no LZ4")
        return
    expect(await diagnosed(database.url), "compression", "good", "by LZ4")
    await database.execute("ALTER TABLE checkpoints ALTER COLUMN json SET COMPRESSION pglz")
    await run(database.url, expect(await diagnosed(database.url), "compression", "note", "by pglz"))
    expect(await diagnosed(database.url), "compression", "good", "by LZ4")


# Rights.


async def test_what_a_role_lacks_is_named_and_granted_by_the_remedy(database: Database) -> None:
    role = f'{database.name}_R "x"'
    quoted = role.replace('"', '""')
    await make_table(database.url, schema="s")
    await database.execute(f"""CREATE ROLE "{quoted}" LOGIN PASSWORD 'pw'""")
    url = database.url_of(quote(role), "pw")
    found = await diagnosed(url, schema="s")
    remedy = expect(found, "grants", "bad", "lacks USAGE on the schema, SELECT, INSERT, UPDATE, DELETE")
    await run(database.url, remedy)
    expect(await diagnosed(url, schema="s"), "grants", "good")
    await database.execute(f'REVOKE UPDATE ON s.checkpoints FROM "{quoted}"')
    expect(await diagnosed(url, schema="s"), "grants", "bad", "lacks UPDATE for")
    # The columns that are written will do.
    await database.execute(f'GRANT UPDATE (json, revision, saved_at) ON s.checkpoints TO "{quoted}"')
    expect(await diagnosed(url, schema="s"), "grants", "good")
    await make_table(url, schema="s")


async def test_what_a_role_may_not_look_at_is_told_and_seen_after_the_remedy(database: Database) -> None:
    role = f"{database.name}_r"
    await database.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'pw'",
        "REVOKE SELECT ON pg_stat_replication, pg_stat_database FROM PUBLIC",
    )
    url = database.url_of(role, "pw")
    found = await diagnosed(url)
    expect(found, DURABILITY, "note", "a failure of the machine; whether there are standbys")
    await run(database.url, expect(found, "standbys", "note", "may not look"))
    await run(database.url, expect(found, "connections", "note", "may not look"))
    found = await diagnosed(url)
    for check in ("standbys", "connections", DURABILITY):
        expect(found, check, "good")


async def test_rows_that_policies_hide_are_told_and_shown_by_the_remedy(database: Database) -> None:
    role = f"{database.name}_r"
    await make_table(database.url)
    await database.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'pw'",
        f"GRANT ALL ON checkpoints TO {role}",
        "ALTER TABLE checkpoints ENABLE ROW LEVEL SECURITY",
    )
    url = database.url_of(role, "pw")
    expect(await diagnosed(database.url), "row-security", "good")
    await run(database.url, expect(await diagnosed(url), "row-security", "warning", "row-level security is on"))
    async with open_store(url) as store:
        assert await store.load("k") == "v"


# Which server.


def hosts_of(*servers: Postgres | int, url: str) -> str:
    account, _, place = url.rpartition("@")
    ports = [server if isinstance(server, int) else server.port for server in servers]
    return f"{account}@{','.join(f'127.0.0.1:{port}' for port in ports)}/{place.partition('/')[2]}"


async def test_a_standby_is_told_from_the_primary(server: Postgres) -> None:
    await make_table(server.url)
    with Postgres(primary=server) as standby:
        found = await diagnosed(standby.url)
        remedy = expect(found, "primary", "bad", "is a standby", "accepts no saves")
        assert "SELECT pg_promote()" in remedy
        expect(found, DURABILITY, "bad", "the server accepts none")
        expect(found, "table", "good", "as the store makes it")
        dead = free_port()
        found = await diagnosed(hosts_of(standby, dead, server, url=server.url))
        expect(found, "primary", "good", f"127.0.0.1:{server.port}/postgres is the primary")
        expect(found, "hosts", "warning", f"127.0.0.1:{dead}/postgres", "Connect call failed")
        others = await findings_of(hosts_of(standby, server, url=server.url))
        assert others[0].verdict == "good"
        assert f"127.0.0.1:{standby.port}/postgres is a standby" in others[0].message
        # Without its primary it is all that there is, and says so.
        alone = await diagnosed(hosts_of(dead, standby, url=server.url))
        expect(alone, "primary", "bad", f"127.0.0.1:{standby.port}/postgres is a standby")
        await asyncio.to_thread(standby.promote)
        found = await diagnosed(hosts_of(standby, server, url=server.url))
        expect(found, "hosts", "bad", f"{server.port}/postgres accepts writes, as", f"{standby.port}/postgres does")


async def test_a_server_of_two_names_is_one(server: Postgres) -> None:
    found = await diagnosed(hosts_of(server, server, url=server.url))
    expect(found, "hosts", "note", "the same server")
    assert not trouble(found)


async def test_where_no_host_answers_each_is_told_and_the_error_raised() -> None:
    ports = free_port(), free_port()
    found: Any = dagonizer_diagnose_store(StoreURL.parse(hosts_of(*ports, url="postgresql://u:pw@h/d")))
    told = [await anext(found), await anext(found)]
    with pytest.raises(StoreUnavailableError, match="could not look around"):
        await anext(found)
    assert [(finding.check, finding.verdict) for finding in told] == [("hosts", "warning")] * 2
    for finding, port in zip(told, ports, strict=True):
        assert f"127.0.0.1:{port}" in finding.message


async def test_a_wrong_password_is_the_error_though_another_host_is_down(database: Database) -> None:
    port = int(database.url.rpartition(":")[2].partition("/")[0])
    wrong = database.url.replace("@", "x@")
    with pytest.raises(StoreAccessError, match="password authentication failed"):
        await findings_of(hosts_of(free_port(), port, url=wrong))


@pytest.mark.parametrize("where", ["ROLE {role}", "DATABASE {database}", "ROLE {role} IN DATABASE {database}"])
async def test_a_role_or_database_that_is_read_only_is_told_and_mended(database: Database, where: str) -> None:
    role = f"{database.name}_r"
    await make_table(database.url)
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pw'", f"GRANT ALL ON checkpoints TO {role}")
    where = where.format(role=role, database=database.name)
    await database.execute(f"ALTER {where} SET default_transaction_read_only = on")
    url = database.url_of(role, "pw")
    found = await diagnosed(url)
    remedy = expect(found, "read-only", "bad", "default_transaction_read_only is on")
    assert remedy.startswith(f"ALTER {where} SET")
    expect(found, "primary", "good")
    expect(found, DURABILITY, "bad")
    port = int(database.url.rpartition(":")[2].partition("/")[0])
    several = await diagnosed(hosts_of(port, free_port(), url=url))
    expect(several, "read-only", "bad")
    # The superuser's own session has to write, though the database is set so.
    await run(database.url, "SET default_transaction_read_only = off", remedy)
    assert not trouble(await diagnosed(url))


# Settings of the server.


async def test_a_server_that_is_read_only_is_told_and_mended(server: Postgres) -> None:
    await setting(server, "default_transaction_read_only", "on")
    found = await diagnosed(server.url)
    remedy = expect(found, "read-only", "bad", "settings of the configuration file")
    with Postgres() as other:
        await run(other.url, f"ALTER ROLE postgres PASSWORD '{server.password}'")
        several = await diagnosed(hosts_of(server, other, url=server.url))
        expect(several, "hosts", "warning", "is no standby, and accepts no writes")
        expect(several, "primary", "good", f"127.0.0.1:{other.port}/")
    await mended(server, remedy, "default_transaction_read_only", "off")
    assert not trouble(await diagnosed(server.url))


async def mended(server: Postgres, remedy: str, name: str, value: str) -> None:
    """Do as the remedy says, and return once new sessions have it."""
    await run(server.url, remedy)
    while await fetchval(server.url, f"SHOW {name}") != value:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "check", "verdict", "durability"),
    [
        ("fsync", "fsync", "bad", "bad"),
        ("full_page_writes", "full-page-writes", "warning", "warning"),
    ],
)
async def test_a_setting_that_a_failing_machine_punishes_is_told_and_mended(
    server: Postgres, name: str, check: str, verdict: str, durability: str
) -> None:
    await setting(server, name, "off")
    found = await diagnosed(server.url)
    expect(found, DURABILITY, durability, f"{name} is off")
    await mended(server, expect(found, check, verdict, f"{name} is off"), name, "on")
    found = await diagnosed(server.url)
    expect(found, check, "good", f"{name} is on")
    expect(found, DURABILITY, "good")


# Providers with a storage of their own, by servers that are told from others as those are.


async def test_neon_flushes_elsewhere_and_its_safekeepers_are_no_standbys() -> None:
    with Postgres() as server:
        await make_table(server.url)
        await run(server.url, "CREATE ROLE r LOGIN PASSWORD 'pw'", "GRANT ALL ON checkpoints TO r")
        # A library that does nothing.
        folder = await fetchval(server.url, "SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'")
        library = server.directory / "neon.so"
        library.write_bytes(next(Path(folder).glob("dict_snowball.*")).read_bytes())
        server.give(library)
        await run(server.url, f"ALTER SYSTEM SET dynamic_library_path = '$libdir:{server.directory}'")
        await run(server.url, "ALTER SYSTEM SET fsync = off", "ALTER SYSTEM SET full_page_writes = off")
        await setting(server, "synchronous_standby_names", "'walproposer'")
        await setting_and_restart(server, "shared_preload_libraries", "neon")
        found = await diagnosed(server.url)
        expect(found, "fsync", "note", "fsync is off, as Neon has it")
        expect(found, "full-page-writes", "note", "full_page_writes is off, as Neon has it")
        expect(found, "standbys", "good", "synchronous_standby_names is walproposer, as Neon has it")
        expect(found, DURABILITY, "note", "what the storage of Neon is made for")
        assert not trouble(found)
        # Others than its superuser do not see the libraries.
        account = server.url.replace(f"postgres:{server.password}", "r:pw")
        expect(await diagnosed(account), "fsync", "bad")
        # There are no safekeepers to wait for.
        alone = "SET synchronous_commit = local"
        await run(server.url, alone, f"ALTER DATABASE postgres SET neon.timeline_id = '{'0' * 32}'")
        found = await diagnosed(account)
        expect(found, "fsync", "note", "as Neon has it")
        assert not trouble(found)
        # Who does not wait for the safekeepers has nothing there.
        await run(server.url, alone, "ALTER ROLE r SET synchronous_commit = local")
        found = await diagnosed(account)
        expect(found, "synchronous-commit", "warning", "do not wait for")
        expect(found, DURABILITY, "warning", "does not wait for walproposer")


async def test_aurora_writes_no_pages_and_so_no_halves_of_them() -> None:
    with Postgres("full_page_writes = off") as server:
        # Only what is the server's own tells it.
        for schema, verdict in (("public", "warning"), ("pg_catalog", "note")):
            await run(server.url, f"CREATE FUNCTION {schema}.aurora_version() RETURNS text RETURN '17.4.1'")
            found = await diagnosed(server.url)
            expect(found, "full-page-writes", verdict, "full_page_writes is off")
            expect(found, DURABILITY, verdict)
        expect(found, DURABILITY, "note", "what the storage of Aurora is made for")
        assert not trouble(found)


async def test_synchronous_commit_is_that_of_this_role_and_off_does_no_harm(database: Database) -> None:
    role = f"{database.name}_r"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pw'", f"ALTER ROLE {role} SET synchronous_commit = off")
    found = await diagnosed(database.url_of(role, "pw"))
    expect(found, "synchronous-commit", "good", "is off here", "turns it on")
    expect(found, DURABILITY, "good", "is flushed")
    expect(await diagnosed(database.url), "synchronous-commit", "good", "synchronous_commit is on")


@pytest.fixture
async def replicated() -> AsyncIterator[tuple[Postgres, Postgres]]:
    """A primary with a table, and its standby."""
    with Postgres() as primary:
        await make_table(primary.url)
        with Postgres(primary=primary) as standby:
            await attached(primary, 1)
            yield primary, standby


async def attached(primary: Postgres, standbys: int) -> None:
    count = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    while await fetchval(primary.url, count) != standbys:
        await asyncio.sleep(0.01)


async def test_what_standbys_are_waited_for(replicated: tuple[Postgres, Postgres]) -> None:
    primary, standby = replicated
    # Nobody waits for it.
    found = await diagnosed(primary.url)
    expect(found, "standbys", "note", "1 standby is connected; no save waits")
    remedy = expect(found, DURABILITY, "warning", "a failover loses what had not reached")
    assert "synchronous_standby_names = 'ANY 1 (*)'" in remedy
    # After the remedy saves do.
    await mended(primary, remedy.partition("; best")[0], "synchronous_standby_names", "ANY 1 (*)")
    while await fetchval(primary.url, "SELECT sync_state FROM pg_stat_replication") != "quorum":
        await asyncio.sleep(0.01)
    found = await diagnosed(primary.url)
    expect(found, "standbys", "note", "ANY 1 (*): every save waits for 1 of them", "when one fails")
    expect(found, DURABILITY, "good", "is flushed to the disk of 1 of the standbys", "a failover")
    # What they are waited for depends on the role.
    for level, verdict, said in (
        ("remote_write", "note", "has been received by 1"),
        ("remote_apply", "good", "is flushed and visible on 1"),
        ("off", "good", "is flushed to the disk of 1"),
    ):
        await run(primary.url, f"ALTER ROLE postgres SET synchronous_commit = {level}")
        found = await diagnosed(primary.url)
        expect(found, DURABILITY, verdict, said)
        expect(found, "synchronous-commit", "good", f"synchronous_commit is {level}")
    await run(primary.url, "ALTER ROLE postgres SET synchronous_commit = local")
    found = await diagnosed(primary.url)
    remedy = expect(found, "synchronous-commit", "warning", "is local here", "ANY 1 (*)")
    expect(found, DURABILITY, "warning", "no save waits for any")
    await run(primary.url, remedy)
    expect(await diagnosed(primary.url), "synchronous-commit", "good", "synchronous_commit is on")
    # A role that may not look says so, and looks after the remedy.
    await run(primary.url, "CREATE ROLE r LOGIN PASSWORD 'pw'", "GRANT ALL ON checkpoints TO r")
    account = primary.url.replace(f"postgres:{primary.password}", "r:pw")
    remedy = expect(await diagnosed(account), "standbys", "note", "r may not see whether they are synchronous")
    await run(primary.url, remedy)
    expect(await diagnosed(account), "standbys", "note", "when one fails")
    with Postgres(primary=primary) as second:
        await attached(primary, 2)
        expect(await diagnosed(primary.url), "standbys", "good", "2 standbys are connected")
        await asyncio.to_thread(second.down)
    # Without enough of them, or any of these names.
    await asyncio.to_thread(standby.down)
    await attached(primary, 0)
    remedy = expect(await diagnosed(primary.url), "standbys", "bad", "no standbys are connected as such", "time out")
    assert "application_name in primary_conninfo" in remedy
    await asyncio.to_thread(standby.up)
    await attached(primary, 1)
    await setting(primary, "synchronous_standby_names", "'FIRST 2 (*)'")
    expect(await diagnosed(primary.url), "standbys", "bad", "waits for 2 of them", "1 standby is connected as such")
    await setting(primary, "synchronous_standby_names", "'elsewhere'")
    expect(await diagnosed(primary.url), "standbys", "bad", "elsewhere: every save waits for 1", "no standbys are")


async def test_a_subscriber_is_no_standby(replicated: tuple[Postgres, Postgres]) -> None:
    primary, standby = replicated
    await asyncio.to_thread(standby.down)
    await attached(primary, 0)
    await setting_and_restart(primary, "wal_level", "logical")
    await run(primary.url, "CREATE PUBLICATION p FOR ALL TABLES")
    with Postgres() as subscriber:
        await make_table(subscriber.url)
        source = f"host=127.0.0.1 port={primary.port} user=postgres password={primary.password} dbname=postgres"
        await run(subscriber.url, f"CREATE SUBSCRIPTION s CONNECTION '{source}' PUBLICATION p WITH (copy_data = false)")
        await attached(primary, 1)
        found = await diagnosed(primary.url)
        expect(found, "standbys", "good", "no standbys are connected")
        expect(found, DURABILITY, "good", "no standby is connected")


async def setting_and_restart(server: Postgres, name: str, value: str) -> None:
    await run(server.url, f"ALTER SYSTEM SET {name} = {value}")
    await asyncio.to_thread(server.down)
    await asyncio.to_thread(server.up)


# Connections.


async def test_a_role_with_few_connections_is_told_and_given_more(database: Database) -> None:
    role = f"{database.name}_r"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pw' CONNECTION LIMIT 3")
    url = database.url_of(role, "pw")
    expect(await diagnosed(url, pool_size=3), "connections", "good", "pool_size=3 fits")
    remedy = expect(await diagnosed(url), "connections", "warning", "leaves 3 to this store, whose pool_size is 10")
    await run(database.url, remedy.partition(", or lower")[0])
    expect(await diagnosed(url), "connections", "good", "pool_size=10 fits")


async def test_a_server_with_few_connections_is_told() -> None:
    with Postgres("max_connections = 14", "superuser_reserved_connections = 5") as server:
        await run(server.url, "CREATE ROLE r LOGIN PASSWORD 'pw'")
        url = server.url.replace(f"postgres:{server.password}", "r:pw")
        said = "max_connections is 14, of which 5 are reserved for others and 1 are in use"
        remedy = expect(await diagnosed(url), "connections", "warning", said, "leaves 9 to this store")
        assert "max_connections" in remedy
        expect(await diagnosed(url, pool_size=9), "connections", "good", "pool_size=9 fits")
        # None is reserved for others than the superuser.
        expect(await diagnosed(server.url), "connections", "good")


# Poolers.


async def test_a_pooler_in_transaction_mode_is_recognised(pooler_url: str) -> None:
    await make_table(pooler_url)
    for parameters in ({}, {"statement_cache_size": 0}):
        found = await diagnosed(pooler_url, **parameters)
        expect(found, "pooler", "good", "transaction mode", "no prepared statements are kept")
        expect(found, "connections", "good", "the pooler has limits of its own")
        assert not trouble(found)
    remedy = expect(
        await diagnosed(pooler_url, statement_cache_size=100), "pooler", "warning", "statement_cache_size=100", "26000"
    )
    assert "take statement_cache_size out of the URL" in remedy


async def test_a_pooler_in_session_mode_is_recognised(session_pooler_url: str) -> None:
    await make_table(session_pooler_url)
    expect(await diagnosed(session_pooler_url), "pooler", "good", "session mode", "no prepared statements are kept")
    found = await diagnosed(session_pooler_url, statement_cache_size=100)
    expect(found, "pooler", "good", "session mode", "statement_cache_size=100")
    assert not trouble(found)


# What a diagnosis leaves alone.


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Let nothing be closed by the garbage collector that was not closed before."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
async def test_nothing_is_left_behind_or_changed(database: Database) -> None:
    await make_table(database.url)
    contents = "SELECT count(*)::text || string_agg(c::text, ' ' ORDER BY oid) FROM pg_class c WHERE oid >= 16384"
    entries = "SELECT string_agg(c::text, ' ') FROM checkpoints c"
    before = [await database.fetchval(query) for query in (contents, entries)]
    await findings_of(database.url)
    await findings_of(database.url, schema="another")
    assert [await database.fetchval(query) for query in (contents, entries)] == before
    await until_gone(database)


async def until_gone(database: Database) -> None:
    # The server notices a moment later.
    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dagonizer' AND datname = current_database()"
    async with asyncio.timeout(5):
        while await database.fetchval(ours):
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("uncollected")
async def test_whoever_stops_listening_is_left_with_nothing(database: Database) -> None:
    found: Any = dagonizer_diagnose_store(StoreURL.parse(database.url))
    async for finding in found:
        assert finding.check == "version"
        break
    await found.aclose()
    await until_gone(database)
    assert len(asyncio.all_tasks()) == 1


async def rest_of(found: AsyncIterator[Finding]) -> list[Finding]:
    return [finding async for finding in found]


async def test_a_diagnosis_can_be_cancelled_and_does_not_wait_for_ever(database: Database) -> None:
    port = int(database.url.rpartition(":")[2].partition("/")[0])
    async with FaultProxy("127.0.0.1", port) as proxy:
        url = database.url.replace(f":{port}/", f":{proxy.port}/")
        found: Any = dagonizer_diagnose_store(StoreURL.parse(f"{url}?timeout=1"))
        await anext(found)
        await proxy.black_hole()
        with pytest.raises(StoreUnavailableError, match="no answer within the timeout of 1 s"):
            await rest_of(found)
        await proxy.pass_through()
        found = dagonizer_diagnose_store(StoreURL.parse(url))
        await anext(found)
        await proxy.black_hole()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rest_of(found), 0.2)
    await until_gone(database)


async def test_no_finding_holds_the_password(database: Database) -> None:
    role, secret, encoded = f"{database.name}_r", "hunter/2 &top", "hunter%2F2%20%26top"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{secret}'")
    good = database.url_of(role, encoded)
    port = int(database.url.rpartition(":")[2].partition("/")[0])
    said: list[str] = []
    for url in (
        good,
        f"{good}?create=never",
        f"{good}?schema=new",
        hosts_of(port, free_port(), port, url=good),
        hosts_of(free_port(), url=good),
        good.replace(encoded, f"{encoded}x"),
        good.replace("/t_", "/x_"),
        f"{good}?sslmode=require",
    ):
        try:
            said += map(repr, await findings_of(url))
        except StoreError as exc:
            said += [str(exc), repr(exc)]
    assert len(said) > 40
    assert not [text for text in said if "hunter" in text]
