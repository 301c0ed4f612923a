"""Users, roles, tokens and certificates, with real servers that ask for them."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from dagonizer import open_store
from dagonizer.errors import StoreAccessError, StoreConflictError, StoreError, StoreUnavailableError
from dagonizer_etcd._transport import Cluster
from dagonizer_test_servers.etcd import Etcd

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMES = ("etcd", "etcd+http")
CHUNK = 1024
LONG = "é" * CHUNK
# In etcd simple tokens have a life in whole seconds, which begins anew with every use.
TOKEN_SECONDS = 1
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[Etcd]:
    """A server with a root, and a user as the README makes it."""
    (block,) = re.findall(r"```sh\n(etcdctl role add .*?)```", README, re.DOTALL)
    with Etcd(f"--auth-token-ttl={TOKEN_SECONDS}") as server:
        server.ctl("user", "add", "root:root")
        server.ctl("user", "grant-role", "root", "root")
        for command in block.strip().splitlines():
            server.ctl(*command.removeprefix("etcdctl ").split())
        server.ctl("user", "add", "nobody:secret")
        server.ctl("auth", "enable")
        yield server


def url(server: Etcd, scheme: str, user: str = "dagonizer:secret", rest: str = "") -> str:
    return f"{scheme}://{user}@127.0.0.1:{server.port}{rest}?chunk_bytes={CHUNK}&timeout=8"


def root(server: Etcd, *command: str) -> str:
    return server.ctl("--user=root:root", *command)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_the_privileges_in_the_readme_are_enough_for_everything(server: Etcd, scheme: str) -> None:
    async with open_store(url(server, scheme)) as store:
        for text in ("short", LONG, LONG + "2", "short"):
            await store.save("k", text)
            assert await store.load("k") == text
        version = await store.save_if("new", LONG, expected=None)
        await store.save_if("new", "short", expected=version)
        assert [key async for key in store.list_keys()] == ["k", "new"]
        await store.delete("k")
        await store.delete("new")
        assert await store.load("k") is None
    assert root(server, "get", "--prefix", "/", "--keys-only").strip() == ""


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_and_not_more_than_that(server: Etcd, scheme: str) -> None:
    for user, rest in (("dagonizer:secret", "/another"), ("nobody:secret", "")):
        async with open_store(url(server, scheme, user, rest)) as store:
            for call in (
                store.load("k"),
                store.save("k", "short"),
                store.save("k", LONG),
                store.delete("k"),
                store.save_if("k", "short", expected=None),
                store.save_if("k", LONG, expected="5"),
                anext(store.list_keys()),
            ):
                with pytest.raises(StoreAccessError, match=r"permission denied \(PERMISSION_DENIED\); check user"):
                    await call


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_wrong_and_missing_credentials_are_no_outage(server: Etcd, scheme: str) -> None:
    async with open_store(url(server, scheme, "dagonizer:wrong")) as store:
        for call in (store.load("k"), store.save("k", "")):
            with pytest.raises(StoreAccessError, match="authentication failed"):
                await call
    async with open_store(f"{scheme}://127.0.0.1:{server.port}") as store:
        for call in (store.load("k"), store.save("k", "")):
            with pytest.raises(StoreAccessError, match="the server wants a user: etcd://user:password@host"):
                await call


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_token_that_has_expired_is_renewed(server: Etcd, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: dict[Cluster, list[str]] = {}
    original = Cluster._current_token

    async def watched(cluster: Cluster, *arguments: str) -> str:
        token = await original(cluster, *arguments)
        tokens.setdefault(cluster, []).append(token)
        return token

    monkeypatch.setattr(Cluster, "_current_token", watched)
    uses = [
        lambda store: store.save("k", "new"),
        lambda store: store.save("k", LONG),
        lambda store: store.load("k"),
        lambda store: store.save_if("k", "new", expected="5"),
        lambda store: store.delete("k"),
        # Only one of many asks for the new one.
        lambda store: asyncio.gather(*(store.save("k", f"{number}") for number in range(20))),
    ]
    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(url(server, scheme))) for _ in uses]
        for store in stores:
            await store.load("k")
        # There is nothing to wait for but the server's clock, and it looks at tokens once a second.
        await asyncio.sleep(TOKEN_SECONDS + 2)
        for use, store in zip(uses, stores, strict=True):
            with contextlib.suppress(StoreConflictError):
                await use(store)
        await stores[0].delete("k")
    assert [len(set(seen)) for seen in tokens.values()] == [2] * len(uses)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_server_that_starts_again_has_forgotten_its_tokens(scheme: str) -> None:
    with Etcd() as server:
        server.ctl("user", "add", "root:root")
        server.ctl("user", "grant-role", "root", "root")
        async with open_store(url(server, scheme, "root:root")) as store:
            # Without authentication credentials do no harm.
            await store.save("k", "1")
            server.ctl("auth", "enable")
            assert await store.load("k") == "1"
            await store.save("k", "2")
            server.down()
            server.up()
            while True:
                try:
                    await store.save("k", "3")
                    break
                except StoreUnavailableError:
                    await asyncio.sleep(0.05)
            assert await store.load("k") == "3"
            # Whatever is changed about users, old tokens are refused, and renewed.
            root(server, "user", "add", "another:pw")
            await store.save("k", "4")
            assert await store.load("k") == "4"


# Certificates.


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of one authority and of another."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("ours", "theirs"):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / f"{name}-ca.pem")
        for certificate, host in (("local", "127.0.0.1"), ("named", "etcd.example"), ("client", "client.example")):
            issued = authority.issue_cert(host)
            issued.cert_chain_pems[0].write_to_path(folder / f"{name}-{certificate}.pem")
            issued.private_key_pem.write_to_path(folder / f"{name}-{certificate}.key")
    key = serialization.load_pem_private_key((folder / "ours-client.key").read_bytes(), None)
    form, encryption = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"opensesame")
    (folder / "encrypted.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
    return folder


def tls(files: Path, certificate: str, *options: str) -> Etcd:
    pair = f"--cert-file={files}/{certificate}.pem", f"--key-file={files}/{certificate}.key"
    return Etcd(*pair, *options)


@pytest.fixture(scope="module")
def named(files: Path) -> Iterator[Etcd]:
    with tls(files, "ours-named") as server:
        yield server


@pytest.fixture(scope="module")
def mutual(files: Path) -> Iterator[Etcd]:
    with tls(files, "ours-local", "--client-cert-auth", f"--trusted-ca-file={files}/ours-ca.pem") as server:
        yield server


SECURE = ("etcds", "etcd+https")


@pytest.mark.parametrize("scheme", SECURE)
async def test_a_server_with_a_certificate_of_another_name(named: Etcd, files: Path, scheme: str) -> None:
    where = f"{scheme}://127.0.0.1:{named.port}?tls_ca={files}/ours-ca.pem&timeout=8"
    async with open_store(f"{where}&tls_server_name=etcd.example&chunk_bytes={CHUNK}") as store:
        for text in ("short", LONG):
            await store.save("k", text)
            assert await store.load("k") == text
    for wrong in (where, where.replace("ours", "theirs") + "&tls_server_name=etcd.example", where.partition("?")[0]):
        async with open_store(wrong) as store:
            for call in (store.load("k"), store.save("k", "")):
                with pytest.raises(StoreAccessError, match=r"\(UNAUTHENTICATED\); check user and password, certific"):
                    await call


@pytest.mark.parametrize("scheme", SECURE)
async def test_a_server_that_wants_a_client_certificate(mutual: Etcd, files: Path, scheme: str) -> None:
    where = f"{scheme}://127.0.0.1:{mutual.port}?tls_ca={files}/ours-ca.pem&timeout=8"
    ours, theirs = (
        f"&tls_cert={files}/{name}-client.pem&tls_key={files}/{name}-client.key" for name in ("ours", "theirs")
    )
    async with open_store(where + ours) as store:
        await store.save("k", "1")
        assert await store.load("k") == "1"
    for wrong in (where, where + theirs):
        async with open_store(wrong) as store:
            for call in (store.load("k"), store.save("k", "")):
                # Whether this is told as a refusal or as a broken connection is a matter of who is quicker.
                with pytest.raises((StoreAccessError, StoreUnavailableError)):
                    await call


@pytest.mark.parametrize("scheme", SECURE)
async def test_files_that_are_no_certificates(named: Etcd, files: Path, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "empty.pem").touch()
    (tmp_path / "text.pem").write_text("text")
    ours = f"tls_ca={files}/ours-ca.pem"
    for parameters in (
        f"tls_ca={tmp_path}/absent.pem",
        f"tls_ca={tmp_path}/empty.pem",
        f"tls_ca={tmp_path}/text.pem",
        f"{ours}&tls_cert={files}/ours-client.pem&tls_key={tmp_path}/absent.pem",
        f"{ours}&tls_cert={tmp_path}/text.pem&tls_key={files}/ours-client.key",
        f"{ours}&tls_cert={files}/ours-client.pem&tls_key={files}/theirs-client.key",
    ):
        async with open_store(f"{scheme}://127.0.0.1:{named.port}?{parameters}") as store:
            for call in (store.load("k"), store.save("k", "")):
                with pytest.raises(StoreAccessError, match="the files of 'tls_ca', 'tls_cert' and 'tls_key' cannot"):
                    await call


@pytest.mark.parametrize("scheme", SECURE)
async def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(
    named: Etcd, files: Path, scheme: str
) -> None:
    parameters = f"tls_ca={files}/ours-ca.pem&tls_cert={files}/ours-client.pem&tls_key={files}/encrypted.key"
    async with open_store(f"{scheme}://127.0.0.1:{named.port}?{parameters}") as store:
        for call in (store.load("k"), store.save("k", "")):
            with pytest.raises(StoreAccessError, match=r"encrypted\.key is encrypted; store it without a password"):
                await call


@pytest.mark.parametrize(("scheme", "secure"), [("etcd", "etcds"), ("etcd+http", "etcd+https")])
async def test_one_end_speaks_tls_and_the_other_does_not(
    named: Etcd, etcd_server: Etcd, files: Path, scheme: str, secure: str
) -> None:
    plain = etcd_server.url.removeprefix("etcd://")
    for wrong in (
        f"{scheme}://127.0.0.1:{named.port}?timeout=4",
        f"{secure}://{plain}?tls_ca={files}/ours-ca.pem&timeout=4",
    ):
        async with open_store(wrong) as store:
            for call in (store.load("k"), store.save("k", "")):
                with pytest.raises(StoreError):
                    await call
