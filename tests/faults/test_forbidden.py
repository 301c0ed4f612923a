"""A backend refuses: calls say so and change nothing, and go on once they are allowed again."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from base64 import b64encode
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from faults.refusals import CALLS, CHANGES, LOADS, READS, SAVES, trial
from faults.sql import administer
from faults.volume import account_without_privileges, give_away, small_volume

from dagonizer import StoreAccessError, StoreUnavailableError, open_store
from dagonizer_test_servers.etcd import Etcd
from dagonizer_test_servers.postgres import Postgres
from dagonizer_test_servers.redis import Valkey, until
from dagonizer_test_servers.s3 import BUCKET, SeaweedFS

RIGHT, WRONG = "r1ght-only-in-tests", "wr0ng-only-in-tests"


# Files.


async def test_a_file_system_that_became_read_only(faults):
    with small_volume("size=1m") as volume:
        async with trial(faults, "file system read-only", "file", f"file://{volume.path}/store") as at:
            for _ in range(faults.scale(short=1, whole=5)):
                with volume.read_only():
                    # A listing takes the lock, as the README says.
                    await at.refused(StoreAccessError, "Read-only file system", *CHANGES, "list_keys")
                    await at.intact(listing=False)
                await at.recovered()


async def test_a_directory_without_permissions(faults):
    directory = Path(tempfile.mkdtemp(prefix="dgz-forbidden-"))
    give_away(directory)
    try:
        with account_without_privileges():
            async with trial(faults, "directory forbidden", "file", f"file://{directory}") as at:
                for _ in range(faults.scale(short=1, whole=5)):
                    with mode(directory, 0o500):
                        await at.refused(StoreAccessError, "Permission denied", *SAVES)
                        await at.intact()
                    with mode(directory, 0o000):
                        await at.refused(StoreAccessError, "Permission denied", *CALLS)
                    await at.recovered()
    finally:
        shutil.rmtree(directory)


@contextmanager
def mode(path, bits):
    before = path.stat().st_mode
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)


# PostgreSQL.


@pytest.fixture(scope="module")
def postgres():
    with Postgres() as server:
        yield server


@pytest.fixture
async def worker(postgres, faults):
    """Give a role with the least privileges, and a schema of its name."""
    role = f"worker_{faults.random.getrandbits(32):08x}"
    await administer(postgres, f"CREATE ROLE {role} LOGIN PASSWORD '{RIGHT}'", f"CREATE SCHEMA {role}")
    async with open_store(f"{postgres.url}?schema={role}") as store:
        await store.save("k", "")
        await store.delete("k")
    await administer(
        postgres,
        f"GRANT USAGE ON SCHEMA {role} TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {role}.checkpoints TO {role}",
    )
    return role


def postgres_trial(faults, fault, postgres, worker):
    url = f"postgresql://{worker}:{RIGHT}@127.0.0.1:{postgres.port}/postgres?schema={worker}"
    return trial(faults, fault, "postgresql", url, witness=f"{postgres.url}?schema={worker}", secrets=(RIGHT, WRONG))


@asynccontextmanager
async def executed(postgres, *statements, undo):
    await administer(postgres, *statements)
    try:
        yield
    finally:
        await administer(postgres, undo)


GRANTS = {
    "SELECT": CALLS,
    "INSERT": ("save", "save new", "save_if new"),
    "UPDATE": ("save", "save new", "save_if"),
    "DELETE": ("delete",),
}


@pytest.mark.parametrize("grant", GRANTS)
async def test_a_revoked_grant(faults, postgres, worker, grant):
    table = f"{worker}.checkpoints"
    async with postgres_trial(faults, f"{grant} revoked", postgres, worker) as at:
        for _ in range(faults.scale(short=1, whole=5)):
            async with executed(
                postgres, f"REVOKE {grant} ON {table} FROM {worker}", undo=f"GRANT {grant} ON {table} TO {worker}"
            ):
                await at.refused(StoreAccessError, "permission denied for table checkpoints", *GRANTS[grant])
                await at.look(at.witness)
            await at.recovered()


LOGINS = {
    "login revoked": ("NOLOGIN", "LOGIN", "is not permitted to log in"),
    "wrong password": (f"PASSWORD '{WRONG}'", f"PASSWORD '{RIGHT}'", "password authentication failed"),
}


@pytest.mark.parametrize("fault", LOGINS)
async def test_a_postgres_that_refuses_the_login(faults, postgres, worker, fault):
    refuse, permit, said = LOGINS[fault]
    # Whoever is connected would stay so.
    disconnect = f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = '{worker}'"
    async with postgres_trial(faults, fault, postgres, worker) as at:
        for _ in range(faults.scale(short=1, whole=5)):
            async with executed(
                postgres, f"ALTER ROLE {worker} {refuse}", disconnect, undo=f"ALTER ROLE {worker} {permit}"
            ):
                await at.refused(StoreAccessError, said, *CALLS)
                await at.look(at.witness)
            await at.recovered()


# Redis.


@pytest.fixture
def redis():
    with Valkey("--user", "worker", "on", f">{RIGHT}", "~dagonizer:*", "+@all") as server:
        yield server


def redis_trial(faults, fault, redis):
    url = f"redis://worker:{RIGHT}@127.0.0.1:{redis.port}"
    return trial(faults, fault, "redis", url, witness=redis.url, secrets=(RIGHT, WRONG))


COMMANDS = {
    "-@write": CHANGES,
    "-@read": ("save_if", *READS),
    # A listing asks for no key.
    "resetkeys": (*CHANGES, *LOADS),
}


@pytest.mark.parametrize("rule", COMMANDS)
async def test_a_redis_user_whose_rights_are_taken_away(faults, redis, rule):
    async with redis_trial(faults, f"ACL {rule}", redis) as at:
        for _ in range(faults.scale(short=1, whole=5)):
            redis.ask("ACL", "SETUSER", "worker", rule)
            await at.refused(StoreAccessError, "grant the user the commands and keys", *COMMANDS[rule])
            await at.look(at.witness)
            redis.ask("ACL", "SETUSER", "worker", "+@all", "~dagonizer:*")
            await at.recovered()


REDIS_LOGINS = {
    "login revoked": (("off",), ("on",)),
    "wrong password": (("resetpass", f">{WRONG}"), ("resetpass", f">{RIGHT}")),
}


@pytest.mark.parametrize("fault", REDIS_LOGINS)
async def test_a_redis_that_refuses_the_login(faults, redis, fault):
    refuse, permit = REDIS_LOGINS[fault]
    async with redis_trial(faults, fault, redis) as at:
        for _ in range(faults.scale(short=1, whole=5)):
            redis.ask("ACL", "SETUSER", "worker", *refuse)
            # Whoever is connected would stay so.
            redis.ask("CLIENT", "KILL", "USER", "worker")
            await at.refused(StoreAccessError, "check the user name and the password", *CALLS)
            await at.look(at.witness)
            redis.ask("ACL", "SETUSER", "worker", *permit)
            await at.recovered()


# S3.


def rights(*actions):
    return [f"{action}:{BUCKET}" for action in actions]


EVERYTHING = rights("Read", "Write", "List")


@pytest.fixture(scope="module")
def s3():
    with SeaweedFS(identities={"worker": EVERYTHING}) as server:
        yield server


def s3_trial(faults, fault, s3, **parameters):
    return trial(
        faults, fault, "s3", s3.url_for("worker"), witness=s3.url, secrets=("worker-secret", WRONG), **parameters
    )


@contextmanager
def identified(s3, actions, secret=None):
    s3.identify("worker", actions, secret)
    try:
        yield
    finally:
        s3.identify("worker", EVERYTHING)


ACTIONS = {
    "writing forbidden": (rights("Read", "List"), CHANGES),
    "reading forbidden": (rights("Write"), LOADS),
    "all forbidden": ([], CALLS),
}


@pytest.mark.parametrize("fault", ACTIONS)
async def test_an_s3_user_whose_rights_are_taken_away(faults, s3, fault):
    actions, refused = ACTIONS[fault]
    async with s3_trial(faults, fault, s3) as at:
        for _ in range(faults.scale(short=1, whole=5)):
            with identified(s3, actions):
                await at.refused(StoreAccessError, "AccessDenied", *refused)
                await at.look(at.witness)
            await at.recovered()


async def test_an_s3_user_with_another_secret_key(faults, s3):
    async with s3_trial(faults, "wrong password", s3) as at:
        for _ in range(faults.scale(short=1, whole=5)):
            with identified(s3, EVERYTHING, WRONG):
                await at.refused(StoreAccessError, "check the credentials", *CALLS)
                await at.look(at.witness)
            await at.recovered()


async def test_an_s3_bucket_that_is_closed_for_its_quota(faults, s3):
    async with s3_trial(faults, "quota reached", s3, size=400_000) as at:
        at.notes.append("SeaweedFS answers InternalError and not that it is full")
        for _ in range(faults.scale(short=1, whole=3)):
            await at.store.save(at.filler, "x" * 2_000_000)
            with quota(s3):
                await at.refused(StoreUnavailableError, "500 InternalError", *SAVES)
                await at.intact()
                await at.make_room()
            await at.recovered()


@contextmanager
def quota(s3):
    command, enforce = f"s3.bucket.quota -name={BUCKET}", "s3.bucket.quota.enforce -apply"
    try:
        # It learns by and by how much it stores.
        until(lambda: "to read only" in s3.shell(f"{command} -op=set -sizeMB=1", enforce))
        yield
    finally:
        s3.shell(f"{command} -op=disable", enforce)


# etcd.

ETCD = ("etcd", "etcd+http")
TOKEN_SECONDS = 1
# As the README says.
PREFIX = ("--prefix", "/dagonizer//")


@pytest.fixture(scope="module")
def etcd():
    with Etcd(f"--auth-token-ttl={TOKEN_SECONDS}", "--bcrypt-cost=4") as server:
        for user in ("root:root", f"worker:{RIGHT}"):
            server.ctl("user", "add", user)
        server.ctl("user", "grant-role", "root", "root")
        server.ctl("role", "add", "worker")
        server.ctl("role", "grant-permission", "worker", "readwrite", *PREFIX)
        server.ctl("user", "grant-role", "worker", "worker")
        server.ctl("auth", "enable")
        yield server


def etcd_trial(faults, fault, scheme, etcd):
    address = f"127.0.0.1:{etcd.port}"
    return trial(
        faults,
        fault,
        scheme,
        f"{scheme}://worker:{RIGHT}@{address}",
        witness=f"{scheme}://root:root@{address}",
        secrets=(RIGHT, WRONG),
    )


def ctl(etcd, *command, answer=""):
    etcd.ctl("--user=root:root", *command, answer=answer)


@contextmanager
def permitted(etcd, kind):
    """Let the role do just ``kind``, or nothing."""
    ctl(etcd, "role", "revoke-permission", "worker", *PREFIX)
    try:
        if kind:
            ctl(etcd, "role", "grant-permission", "worker", kind, *PREFIX)
        yield
    finally:
        ctl(etcd, "role", "grant-permission", "worker", "readwrite", *PREFIX)


@contextmanager
def password(etcd, word):
    change = ("user", "passwd", "worker", "--interactive=false")
    ctl(etcd, *change, answer=word)
    try:
        yield
    finally:
        ctl(etcd, *change, answer=RIGHT)


PERMISSIONS = {
    "writing forbidden": ("read", CHANGES),
    "reading forbidden": ("write", READS),
    "all forbidden": (None, CALLS),
}


@pytest.mark.parametrize("scheme", ETCD)
@pytest.mark.parametrize("fault", PERMISSIONS)
async def test_an_etcd_role_whose_permission_is_revoked(faults, etcd, scheme, fault):
    kind, refused = PERMISSIONS[fault]
    async with etcd_trial(faults, fault, scheme, etcd) as at:
        for _ in range(faults.scale(short=1, whole=5)):
            with permitted(etcd, kind):
                await at.refused(StoreAccessError, "permission denied", *refused)
                await at.look(at.witness)
            await at.recovered()


@pytest.mark.parametrize("scheme", ETCD)
async def test_an_etcd_user_with_another_password(faults, etcd, scheme):
    async with etcd_trial(faults, "wrong password", scheme, etcd) as at:
        for _ in range(faults.scale(short=1, whole=5)):
            with password(etcd, WRONG):
                await at.refused(StoreAccessError, "authentication failed", *CALLS)
                await at.look(at.witness)
            await at.recovered()


async def test_etcd_tokens_that_have_expired(faults, etcd):
    async with AsyncExitStack() as stack:
        trials = [await stack.enter_async_context(etcd_trial(faults, "token expired", name, etcd)) for name in ETCD]
        for _ in range(faults.scale(short=1, whole=2)):
            # Younger than those of the stores.
            token = ask(etcd, "auth/authenticate", {"name": "worker", "password": RIGHT})["token"]
            # There is nothing to wait for but the server's clock, and it looks at tokens once a second.
            await asyncio.sleep(TOKEN_SECONDS + 2)
            with pytest.raises(HTTPError) as refused:
                ask(etcd, "kv/range", {"key": b64encode(b"/dagonizer//").decode()}, token)
            assert "invalid auth token" in refused.value.read().decode()
            for at in trials:
                at.begin()
                fillers = [f"{at.filler}-{number}" for number in range(8)]
                await asyncio.gather(*(at.store.save(filler, "") for filler in fillers))
                at.acknowledged += len(fillers)
                await at.done(*CALLS)
                await at.recovered()
                await asyncio.gather(*(at.store.delete(filler) for filler in fillers))


def ask(etcd, method, question, token=""):
    """Ask a question over the JSON gateway, and return the answer. Raises ``HTTPError``."""
    request = Request(f"{etcd.client_url}/v3/{method}", json.dumps(question).encode(), {"Authorization": token})
    with urlopen(request) as answer:
        return json.load(answer)
