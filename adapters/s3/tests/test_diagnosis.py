"""What is found of a bucket, each at a server that is so configured, or behind a proxy that answers as such a server does."""

from __future__ import annotations

import asyncio
import datetime
import json
import uuid
from contextlib import aclosing, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import botocore.auth
import pytest
from aiohttp import web
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from yarl import URL

from dagonizer import StoreURL, open_store
from dagonizer.contracts import SupportsCompareAndSwap
from dagonizer.diagnosis import DURABILITY, Finding
from dagonizer.errors import StoreAccessError, StoreConflictError, StoreUnavailableError
from dagonizer_s3 import _diagnosis
from dagonizer_s3._plugin import dagonizer_diagnose_store
from dagonizer_test_servers import free_port
from dagonizer_test_servers.s3 import ADMIN, BUCKET, SeaweedFS, url_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

CHECKS = [
    *("tls", "clock", "bucket", "absent-keys", "region", "lifecycle", "versioning", "object-lock"),
    *("permissions", "conditional-writes", "conditional-deletes", "etag", "encryption", DURABILITY),
]  # fmt: skip
# At SeaweedFS as the tests start it.
ALWAYS = {"etag": "note", "encryption": "note", DURABILITY: "note"}
LOCKED = "dagonizer-locked"


@pytest.fixture(scope="module")
def server() -> Iterator[SeaweedFS]:
    """A server with users who may do all that the README says, and less."""
    users = {"least": ["Read", "Write", "List"], "reader": ["Read", "List"], "policy": []}
    identities = {user: [f"{action}:{BUCKET}" for action in actions] for user, actions in users.items()}
    with SeaweedFS(identities=identities) as server:
        yield server


@pytest.fixture
def bucket(server: SeaweedFS) -> Iterator[Any]:
    """Give a client for the configuration of the bucket, which is put back."""
    client = server.client()
    yield client
    client.delete_bucket_lifecycle(Bucket=BUCKET)
    with suppress(ClientError):
        client.delete_bucket_policy(Bucket=BUCKET)
    client.close()


async def examined(url: str) -> dict[str, Finding]:
    findings = dagonizer_diagnose_store(StoreURL.parse(url))
    async with aclosing(findings):  # type: ignore[type-var]
        listed = [finding async for finding in findings]
    for finding in listed:
        assert (finding.remedy is None) == (finding.verdict == "good"), finding
    by_check = {finding.check: finding for finding in listed}
    assert len(by_check) == len(listed)
    assert listed[-1].check == DURABILITY
    return by_check


def names_in(client: Any, of: str = BUCKET) -> set[str]:
    """Return all that there is, deleted versions too."""
    listing = client.list_object_versions(Bucket=of)
    return {version["Key"] for kind in ("Versions", "DeleteMarkers") for version in listing.get(kind, ())}


async def test_a_sound_bucket(server: SeaweedFS) -> None:
    for prefix in ("", "team/a"):
        findings = await examined(server.url_for(ADMIN, prefix))
        assert list(findings) == CHECKS
        for finding in findings.values():
            assert finding.verdict == ALWAYS.get(finding.check, "good"), finding
        assert "SeaweedFS" in findings[DURABILITY].message
        assert "it outlives the process, and the machine only if" in findings[DURABILITY].message


async def test_the_remedy_for_seaweedfs_is_what_its_shell_takes(server: SeaweedFS) -> None:
    remedy = (await examined(server.url))[DURABILITY].remedy
    assert remedy is not None
    command = remedy.removeprefix("in weed shell: ").removesuffix(" -apply")
    said = server.shell(command)
    assert f'"locationPrefix":  "/buckets/{BUCKET}/"' in said
    assert '"fsync":  true' in said


async def test_a_bucket_that_there_is_not(server: SeaweedFS) -> None:
    findings = await examined(server.url.replace(BUCKET, "another-bucket"))
    assert list(findings) == ["tls", "bucket", DURABILITY]
    for check in ("bucket", DURABILITY):
        assert findings[check].verdict == "bad"
        assert findings[check].remedy == "create the bucket, or correct its name: the store never creates one"


async def test_wrong_credentials_and_no_server_end_it(server: SeaweedFS) -> None:
    for url, error in (
        (server.url.replace("admin-secret", "wrong-secret"), StoreAccessError),
        (url_of(f"http://127.0.0.1:{free_port()}", ADMIN), StoreUnavailableError),
    ):
        with pytest.raises(error, match="could not examine the bucket"):
            await examined(url)


# Rights.


async def test_the_least_privileges_are_enough(server: SeaweedFS) -> None:
    findings = await examined(server.url_for("least"))
    for check in ("absent-keys", "permissions"):
        assert findings[check].verdict == "good"
    assert findings["object-lock"].verdict == "note"
    assert findings["object-lock"].remedy == "grant s3:GetBucketObjectLockConfiguration to examine it"


async def test_a_reader_may_not_delete_and_then_nothing_is_put(server: SeaweedFS) -> None:
    before = names_in(server.client())
    findings = await examined(server.url_for("reader"))
    assert findings["permissions"].verdict == "bad"
    assert findings["permissions"].message == "the store may not delete objects: 403 AccessDenied"
    assert findings["permissions"].remedy == "grant s3:DeleteObject"
    assert names_in(server.client()) == before


@pytest.mark.parametrize("missing", ["GetObject", "PutObject", "DeleteObject", "ListBucket"])
async def test_each_permission_that_is_missing_is_named(server: SeaweedFS, bucket: Any, missing: str) -> None:
    actions = [
        f"s3:{action}" for action in ("GetObject", "PutObject", "DeleteObject", "ListBucket") if action != missing
    ]
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::000000000000:user/policy"},
        "Action": actions,
        "Resource": [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/team/*"],
    }
    bucket.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    before = names_in(bucket)
    findings = await examined(server.url_for("policy", "team"))
    finding = findings["permissions"]
    assert finding.verdict == "bad"
    assert finding.remedy is not None
    assert finding.remedy.startswith(f"grant s3:{missing}")
    assert findings["absent-keys"].verdict == ("bad" if missing == "GetObject" else "good")
    # What its owner alone may see.
    for check, permission in (("lifecycle", "GetLifecycleConfiguration"), ("versioning", "GetBucketVersioning")):
        assert findings[check].verdict == "note"
        assert findings[check].remedy == f"grant s3:{permission} to examine it"
    assert names_in(bucket) == before


# What the bucket is configured to.


@pytest.mark.parametrize(
    ("prefix", "rule", "verdict", "said"),
    [
        ("team", {"Expiration": {"Days": 3}, "Filter": {"Prefix": ""}}, "bad", "3 days after their last save"),
        ("team", {"Expiration": {"Days": 3}, "Filter": {"Prefix": "team/"}}, "bad", "'the rule' deletes checkpoints"),
        ("team", {"Expiration": {"Days": 3}, "Filter": {"Prefix": "team/run-"}}, "bad", "3 days"),
        ("team", {"Expiration": {"Date": "2030-01-01T00:00:00Z"}, "Filter": {"Prefix": "te"}}, "bad", "2030-01-01"),
        ("", {"Expiration": {"Days": 3}, "Filter": {"Prefix": "run-"}}, "bad", "3 days"),
        ("", {"Expiration": {"Days": 3}, "Filter": {"Prefix": "logs/"}}, "good", "no lifecycle rule deletes"),
        ("team", {"Expiration": {"Days": 3}, "Filter": {"Prefix": "team/below/"}}, "good", "no lifecycle rule deletes"),
        ("team", {"Expiration": {"Days": 3}, "Filter": {"Prefix": "teams/"}}, "good", "no lifecycle rule deletes"),
        ("team", {"Expiration": {"Days": 3}, "Filter": {"Prefix": ""}, "Status": "Disabled"}, "good", "no lifecycle"),
        (
            "team",
            {"Expiration": {"Days": 3}, "Filter": {"And": {"Prefix": "", "Tags": [{"Key": "a", "Value": "b"}]}}},
            "good",
            "no lifecycle rule deletes",
        ),
        ("team", {"Expiration": {"ExpiredObjectDeleteMarker": True}, "Filter": {"Prefix": ""}}, "good", "no lifecycle"),
    ],
)
async def test_lifecycle_rules(
    server: SeaweedFS, bucket: Any, *, prefix: str, rule: dict[str, Any], verdict: str, said: str
) -> None:
    rules = [{"ID": "the rule", "Status": "Enabled", **rule}]
    bucket.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": rules})
    finding = (await examined(server.url_for(ADMIN, prefix)))["lifecycle"]
    assert finding.verdict == verdict
    assert said in finding.message


def test_a_rule_that_archives() -> None:
    rule = {"ID": "cold", "Status": "Enabled", "Filter": {"Prefix": ""}, "Transitions": [{"StorageClass": "GLACIER"}]}
    finding = _diagnosis._lifecycle(_diagnosis._Said("", 200, {"Rules": [rule]}), [rule])
    assert finding.verdict == "warning"
    assert "archives checkpoints in GLACIER" in finding.message
    rule["Transitions"] = [{"StorageClass": "STANDARD_IA"}]
    assert _diagnosis._lifecycle(_diagnosis._Said("", 200, {"Rules": [rule]}), [rule]).verdict == "good"


async def test_versions_are_kept_and_none_of_the_probe(server: SeaweedFS) -> None:
    client = server.client()
    client.create_bucket(Bucket="versioned")
    url = server.url_for(ADMIN, "team").replace(BUCKET, "versioned", 1)

    async def versioning(status: str) -> Finding:
        client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": status})
        return (await examined(url))["versioning"]

    assert (await examined(url))["versioning"].verdict == "good"
    finding = await versioning("Enabled")
    assert finding.verdict == "note"
    assert "every checkpoint that is replaced or deleted stays" in finding.message
    assert names_in(client, "versioned") == set()
    finding = await versioning("Suspended")
    assert finding.verdict == "note"
    assert "Suspended" in finding.message
    # SeaweedFS does not remove a marker without a version, and it is told.
    (name,) = names_in(client, "versioned")
    findings = await examined(url)
    assert "the version 'null'" in findings["probe"].message
    assert name.startswith("team/dagonizer.probe.")
    rule = {"Status": "Enabled", "Filter": {"Prefix": ""}, "NoncurrentVersionExpiration": {"NoncurrentDays": 1}}
    client.put_bucket_lifecycle_configuration(Bucket="versioned", LifecycleConfiguration={"Rules": [rule]})
    finding = await versioning("Enabled")
    assert finding.verdict == "good"
    assert "a lifecycle rule removes old versions" in finding.message


async def test_what_cannot_be_removed_wholly_is_told(server: SeaweedFS) -> None:
    client = server.client()
    client.create_bucket(Bucket="unpurged")
    client.put_bucket_versioning(Bucket="unpurged", VersioningConfiguration={"Status": "Enabled"})
    async with Proxy(server, answers={("GET", "versions"): (403, "AccessDenied")}).running() as url:
        findings = await examined(url.replace(BUCKET, "unpurged", 1))
    (name,) = names_in(client, "unpurged")
    assert findings["probe"].verdict == "note"
    assert name in findings["probe"].message
    assert "grant s3:ListBucketVersions" in str(findings["probe"].remedy)


async def test_a_bucket_that_locks_objects_is_not_tried(server: SeaweedFS) -> None:
    client = server.client()
    client.create_bucket(Bucket=LOCKED, ObjectLockEnabledForBucket=True)
    url = server.url.replace(BUCKET, LOCKED, 1)
    findings = await examined(url)
    assert findings["object-lock"].verdict == "good"
    assert findings["permissions"].verdict == "good"
    lock = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}}
    client.put_object_lock_configuration(Bucket=LOCKED, ObjectLockConfiguration=lock)
    findings = await examined(url)
    assert findings["object-lock"].verdict == "note"
    assert "(GOVERNANCE, 1 days)" in findings["object-lock"].message
    assert findings["permissions"].verdict == "note"
    # S3 wants a checksum of what is put there, which a store does not send.
    async with Proxy(server, headers={"Server": "AmazonS3"}).running() as proxied:
        finding = (await examined(proxied.replace(BUCKET, LOCKED, 1)))["object-lock"]
    assert finding.verdict == "bad"
    assert "(GOVERNANCE, 1 days): S3 refuses what is put without a checksum" in finding.message
    assert finding.remedy == "use a bucket without a default retention"
    assert names_in(client, LOCKED) == set()


async def test_encryption_on_the_way_and_at_rest(encrypting: SeaweedFS, tmp_path: Path) -> None:
    assert encrypting.ca_bundle is not None
    plain = await examined(encrypting.url_for(ADMIN, ca_bundle=encrypting.ca_bundle))
    assert plain["tls"].verdict == "good"
    assert plain["tls"].message == "the connections are encrypted"
    assert plain["encryption"].verdict == "note"
    asked = await examined(encrypting.url_for(ADMIN, ca_bundle=encrypting.ca_bundle, sse="AES256"))
    assert asked["encryption"].message == "the server encrypts what it stores (AES256)"
    client = encrypting.client()
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    client.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]})
    by_default = await examined(encrypting.url_for(ADMIN, ca_bundle=encrypting.ca_bundle))
    assert by_default["encryption"].verdict == "good"


@pytest.mark.parametrize(
    ("endpoint", "verdict"),
    [
        ("https://s3.eu-central-1.amazonaws.com", "good"),
        ("https://s3.example", "good"),
        ("http://localhost:9000", "good"),
        ("http://[::1]:9000", "good"),
        ("http://10.0.0.1:9000", "warning"),
        ("http://s3.example", "warning"),
    ],
)
def test_what_leaves_the_machine_unencrypted(endpoint: str, verdict: str) -> None:
    assert _diagnosis._tls(endpoint).verdict == verdict


@pytest.mark.parametrize("named", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "profile"])
async def test_a_server_that_is_not_named_by_the_url_is_judged_as_it_is(
    server: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str
) -> None:
    parameters = "?region=us-east-1"
    if named == "profile":
        configuration = tmp_path / "config"
        configuration.write_text(
            f"[profile other]\nendpoint_url = {server.endpoint_url}\n"
            f"aws_access_key_id = {ADMIN}\naws_secret_access_key = {ADMIN}-secret\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(configuration))
        url = f"s3://{BUCKET}{parameters}&profile=other"
    else:
        monkeypatch.setenv(named, server.endpoint_url)
        url = f"s3://{ADMIN}:{ADMIN}-secret@{BUCKET}{parameters}"
    findings = await examined(f"{url}&addressing=path")
    assert findings["tls"].message == "the connections are not encrypted, and do not leave this machine"
    assert findings[DURABILITY].verdict == "note"
    assert "SeaweedFS" in findings[DURABILITY].message


# Other servers.


@dataclass
class Proxy:
    """A server that is SeaweedFS, but for some things.

    ``ignored`` are the headers of requests, by method, which it does not know; ``refused`` those that it answers
    ``refusal`` to; ``answers``, by method and parameter of the query (or ``""``), the status and code that it gives
    instead of its own; ``headers`` are what its answers have besides. ``absent`` is what it answers for an absent key,
    ``ignored_if_absent`` makes it ignore ``If-Match`` there, and ``weak`` makes its ETags weak. ``changed`` is called
    with the number of PUTs and DELETEs that SeaweedFS has answered, before the examination sees the answer.
    """

    server: SeaweedFS
    ignored: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    refusal: tuple[int, str] = (501, "NotImplemented")
    ignored_if_absent: bool = False
    answers: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    absent: tuple[int, str] | None = None
    weak: bool = False
    present: set[str] = field(default_factory=set)
    changes: int = 0
    changed: Callable[[int], None] = lambda _: None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Give its store URL."""
        runner = web.ServerRunner(web.Server(self._answer))
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            async with aiohttp.ClientSession(auto_decompress=False) as self._session:
                yield url_of(f"http://127.0.0.1:{port}", ADMIN, "proxied")
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        parameter = next(iter(request.query), "") if "/proxied/" not in request.path else ""
        if (request.method, parameter) in self.answers:
            return self._refusal(*self.answers[request.method, parameter])
        given = {name.lower(): value for name, value in request.headers.items()}
        if any(request.method == method and name.lower() in given for method, name in self.refused):
            return self._refusal(*self.refusal)
        wanted = {"if-match", "if-none-match", "content-type"} - {
            name.lower() for method, name in self.ignored if request.method == method
        }
        if self.ignored_if_absent and request.path not in self.present:
            wanted -= {"if-match"}
        status, body, headers = await self._forward(request, {name: given[name] for name in wanted & given.keys()})
        if status == 200 and request.method == "PUT":
            self.present.add(request.path)
        elif status == 204 and request.method == "DELETE":
            self.present.discard(request.path)
        if request.method in {"PUT", "DELETE"}:
            self.changes += 1
            self.changed(self.changes)
        if status == 404 and b"NoSuchKey" in body and self.absent is not None:
            return self._refusal(*self.absent)
        if self.weak and "ETag" in headers:
            headers["ETag"] = f"W/{headers['ETag']}"
        return web.Response(status=status, body=body, headers={**headers, **self.headers})

    async def _forward(self, request: web.BaseRequest, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        """Ask SeaweedFS, under a signature of its administrator's."""
        url = self.server.endpoint_url + request.raw_path
        asked = AWSRequest(request.method, url.partition("?")[0], headers, await request.read(), dict(request.query))
        S3SigV4Auth(Credentials(ADMIN, f"{ADMIN}-secret"), "s3", "us-east-1").add_auth(asked)
        prepared = asked.prepare()
        async with self._session.request(
            request.method, URL(prepared.url, encoded=True), headers=dict(prepared.headers), data=asked.data
        ) as said:
            passed = {"ETag", "Date", "Server", "Content-Type", "x-amz-version-id", "x-amz-delete-marker"}
            kept = {name: said.headers[name] for name in passed if name in said.headers}
            return said.status, await said.read(), kept

    def _refusal(self, status: int, code: str) -> web.Response:
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code></Error>'
        return web.Response(status=status, body=body, content_type="application/xml", headers=self.headers)


async def test_behind_a_proxy_that_changes_nothing_everything_is_as_without(server: SeaweedFS) -> None:
    async with Proxy(server).running() as url:
        for finding in (await examined(url)).values():
            assert finding.verdict == ALWAYS.get(finding.check, "good"), finding


async def test_403_for_an_absent_key(server: SeaweedFS) -> None:
    async with Proxy(
        server, absent=(403, "AccessDenied"), answers={("GET", "list-type"): (403, "AccessDenied")}
    ).running() as url:
        findings = await examined(url)
    assert findings["absent-keys"].verdict == "bad"
    assert "403 AccessDenied for an absent key" in findings["absent-keys"].message
    assert findings["absent-keys"].remedy is not None
    assert "s3:ListBucket" in findings["absent-keys"].remedy
    assert findings["permissions"].message == "the store may not list objects: 403 AccessDenied"
    assert findings["bucket"].verdict == "good"
    assert findings["conditional-writes"].verdict == "good"


async def test_a_server_that_has_something_to_show_for_everything(server: SeaweedFS) -> None:
    async with Proxy(server, answers={("GET", ""): (200, "Welcome")}).running() as url:
        with pytest.raises(StoreUnavailableError, match="not as an S3 server does; check endpoint_url"):
            await examined(url)


async def test_403_for_everything_says_nothing_of_the_bucket(server: SeaweedFS) -> None:
    denied = {(method, ""): (403, "AccessDenied") for method in ("GET", "HEAD", "PUT", "DELETE")}
    async with Proxy(server, answers=denied).running() as url:
        findings = await examined(url)
    assert findings["bucket"].verdict == "note"
    assert findings["permissions"].verdict == "bad"


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
async def test_a_server_that_ignores_conditions(server: SeaweedFS, header: str) -> None:
    before = names_in(server.client())
    async with Proxy(server, ignored=(("PUT", header),)).running() as url:
        finding = (await examined(url))["conditional-writes"]
    assert finding.verdict == "warning"
    assert f"ignores {header}" in finding.message
    assert "carried out late may undo a later save" in finding.message
    assert names_in(server.client()) == before


async def test_a_server_that_compares_but_what_is_absent(server: SeaweedFS) -> None:
    before = names_in(server.client())
    async with Proxy(server, ignored_if_absent=True).running() as url:
        finding = (await examined(url))["conditional-writes"]
        async with open_store(url) as store:
            assert isinstance(store, SupportsCompareAndSwap)
            with pytest.raises(StoreAccessError, match="the server ignores If-Match"):
                await store.save_if("k", "v", expected=None)
    assert finding.verdict == "warning"
    assert finding.message.startswith("the server ignores If-Match at an absent object: compare-and-swap raises")
    assert names_in(server.client()) == before


async def test_a_server_that_refuses_first_saves(server: SeaweedFS) -> None:
    refusal = (409, "ConditionalRequestConflict")
    async with Proxy(server, refused=(("PUT", "If-None-Match"),), refusal=refusal).running() as url:
        findings = await examined(url)
        async with open_store(url) as store:
            with pytest.raises(StoreUnavailableError):
                await store.save("first", "v")
    assert findings["permissions"].verdict == "good"
    assert findings["conditional-writes"].verdict == "bad"
    said = "the server refuses If-None-Match: * at an absent object (409 ConditionalRequestConflict), and so saves"
    assert findings["conditional-writes"].message.startswith(said)


@pytest.mark.parametrize("refusal", [(412, "PreconditionFailed"), (404, "NoSuchKey")])
async def test_a_server_for_which_no_version_is_the_right_one(server: SeaweedFS, refusal: tuple[int, str]) -> None:
    # Ceph compares with the ETag without its quotes.
    async with Proxy(server, refused=(("PUT", "If-Match"),), refusal=refusal).running() as url:
        finding = (await examined(url))["conditional-writes"]
        async with open_store(url) as store:
            assert isinstance(store, SupportsCompareAndSwap)
            version = await store.save_if(f"{refusal}", "v", expected=None)
            with pytest.raises(StoreConflictError):
                await store.save_if(f"{refusal}", "w", expected=version)
            await store.save(f"{refusal}", "x")
            assert await store.load(f"{refusal}") == "x"
    assert finding.verdict == "warning"
    said = (
        f"the server refuses If-Match with its version ({refusal[0]} {refusal[1]}): compare-and-swap always conflicts"
    )
    assert finding.message.startswith(said)
    assert "carried out late may undo a later save" in finding.message


@pytest.mark.parametrize(
    ("refusal", "writes", "deletes"),
    [
        ((501, "NotImplemented"), "warning", "note"),
        ((400, "InvalidArgument"), "warning", "note"),
        ((405, "MethodNotAllowed"), "bad", "bad"),
    ],
)
async def test_a_server_that_refuses_conditions(
    server: SeaweedFS, *, refusal: tuple[int, str], writes: str, deletes: str
) -> None:
    proxy = Proxy(server, refused=(("PUT", "If-Match"), ("DELETE", "If-Match")), refusal=refusal)
    async with proxy.running() as url:
        findings = await examined(url)
        # As is said, only a server that does not know conditions is asked without.
        async with open_store(url) as store:
            await store.save("k", "1")
            for change in (store.save("k", "2"), store.delete("k")):
                with nullcontext() if writes == "warning" else pytest.raises(StoreAccessError):
                    await change
    said = f"({refusal[0]} {refusal[1]})"
    assert findings["conditional-writes"].verdict == writes
    assert f"If-Match with another version {said}" in findings["conditional-writes"].message
    assert findings["conditional-deletes"].verdict == deletes
    assert f"refuses If-Match of a deletion {said}" in findings["conditional-deletes"].message


async def test_a_server_that_ignores_the_condition_of_a_deletion(server: SeaweedFS) -> None:
    async with Proxy(server, ignored=(("DELETE", "If-Match"),)).running() as url:
        findings = await examined(url)
    assert findings["conditional-writes"].verdict == "good"
    assert findings["conditional-deletes"].verdict == "note"
    assert "ignores If-Match of a deletion" in findings["conditional-deletes"].message


async def test_etags_that_cannot_be_compared(server: SeaweedFS) -> None:
    async with Proxy(server, weak=True).running() as url:
        findings = await examined(url)
    assert findings["etag"].verdict == "warning"
    assert 'W/"' in findings["etag"].message
    assert findings["conditional-writes"].verdict == "good"


def test_an_etag_that_is_no_md5() -> None:
    assert _diagnosis._etag(f'"{"0" * 32}"').verdict == "good"


async def test_settings_that_a_server_does_not_know(server: SeaweedFS) -> None:
    unknown = {("GET", name): (501, "NotImplemented") for name in ("lifecycle", "versioning", "object-lock")}
    async with Proxy(server, answers=unknown).running() as url:
        findings = await examined(url)
    for check in ("lifecycle", "versioning", "object-lock"):
        assert findings[check].verdict == "note"
        assert "501 NotImplemented" in findings[check].message
    assert findings["permissions"].verdict == "good"


async def test_the_region(server: SeaweedFS) -> None:
    for told, verdict in (("us-east-1", "good"), ("eu-central-1", "warning")):
        async with Proxy(server, headers={"x-amz-bucket-region": told}).running() as url:
            finding = (await examined(url))["region"]
        assert finding.verdict == verdict
        assert f"the bucket is in {told}" in finding.message
    assert finding.remedy == "?region=eu-central-1"


@pytest.mark.parametrize(
    ("minutes", "verdict"), [(1, "good"), (-1, "good"), (7, "warning"), (-7, "warning"), (20, "bad"), (-20, "bad")]
)
async def test_clocks_that_differ(server: SeaweedFS, minutes: int, verdict: str) -> None:
    ahead = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=minutes)
    async with Proxy(server, headers={"Date": format_datetime(ahead, usegmt=True)}).running() as url:
        finding = (await examined(url))["clock"]
    assert finding.verdict == verdict
    if verdict != "good":
        assert ("ahead of" if minutes > 0 else "behind") in finding.message


async def test_a_server_that_does_not_tell_its_time(server: SeaweedFS) -> None:
    async with Proxy(server, headers={"Date": "today"}).running() as url:
        assert (await examined(url))["clock"].verdict == "note"


async def test_a_request_of_another_time_is_refused(server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    real = botocore.auth.get_current_datetime
    late = lambda *arguments, **named: real(*arguments, **named) + datetime.timedelta(minutes=20)  # noqa: E731
    monkeypatch.setattr(botocore.auth, "get_current_datetime", late)
    findings = await examined(server.url)
    assert list(findings) == ["tls", "clock", DURABILITY]
    assert findings["clock"].verdict == findings[DURABILITY].verdict == "bad"


async def test_what_other_servers_keep(server: SeaweedFS) -> None:
    async with Proxy(server, headers={"Server": "MinIO"}).running() as url:
        finding = (await examined(url))[DURABILITY]
    assert finding.verdict == "note"
    assert "(MinIO)" in finding.message
    async with Proxy(server, headers={"Server": "AmazonS3"}).running() as url:
        finding = (await examined(url))[DURABILITY]
    assert finding.verdict == "good"
    assert "several availability zones" in finding.message
    assert _diagnosis._durability("bucket--use1-az4--x-s3", "AmazonS3", is_amazon=True).verdict == "note"


@pytest.mark.parametrize(
    ("name", "server", "is_amazon"),
    [
        ("s3.eu-central-1.amazonaws.com", "", True),
        ("s3.cn-north-1.amazonaws.com.cn", "", True),
        ("s3.example", "AmazonS3", True),
        ("s3.amazonaws.com.example", "MinIO", False),
    ],
)
def test_which_server_is_s3_itself(name: str, server: str, *, is_amazon: bool) -> None:
    assert _diagnosis._is_amazon(name, server) == is_amazon


# What it leaves, and what it tells.


@pytest.mark.parametrize("after", range(1, 9))
async def test_an_examination_that_is_cancelled_leaves_nothing(server: SeaweedFS, after: int) -> None:
    client = server.client()
    before = names_in(client)
    examination: asyncio.Task[dict[str, Finding]]

    def changed(count: int) -> None:
        if count == after:
            examination.cancel()

    async with Proxy(server, changed=changed).running() as url:
        examination = asyncio.create_task(examined(url))
        with pytest.raises(asyncio.CancelledError):
            await examination
    assert names_in(client) == before


async def test_an_examination_may_end_early(server: SeaweedFS) -> None:
    findings: Any = dagonizer_diagnose_store(StoreURL.parse(server.url))
    assert (await anext(findings)).check == "tls"
    assert (await anext(findings)).check == "clock"
    await findings.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(findings)


async def test_no_finding_holds_a_secret(server: SeaweedFS) -> None:
    secret = f"secret-{uuid.uuid4()}"
    server.identify("secretive", [f"Read:{BUCKET}"], secret)
    url = server.url_for("secretive").replace("secretive-secret", secret)
    for finding in (await examined(url)).values():
        assert secret not in repr(finding)
        assert "secretive" not in repr(finding)
    for finding in (await examined(server.url)).values():
        assert "admin-secret" not in repr(finding)
