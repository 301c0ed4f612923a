"""What the server's answers and the SDK's exceptions become.

A small HTTP server says here what a real one can hardly be made to say: AWS's answers, and those of servers that are none.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import socket
import ssl
import threading
import time
import traceback
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import botocore.exceptions
import botocore.parsers
import pytest
import trustme
from aiobotocore.response import AioReadTimeoutError
from aiohttp import web

from dagonizer import open_store
from dagonizer.errors import (
    StoreAccessError,
    StoreConflictError,
    StoreCorruptedError,
    StoreError,
    StoreLimitError,
    StoreUnavailableError,
)
from dagonizer_s3 import S3CheckpointStore, S3Config, _client
from dagonizer_s3._errors import translated
from dagonizer_test_servers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

ETAG = {"ETag": '"0cc175b9c0f1b6a831c399e269772661"'}
SECRET = "ThisIsTheSecret"
BUCKET = "bucket"


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    breaks: bool = False
    """Whether the connection breaks instead."""
    is_silent: bool = False
    """Whether it never comes."""


def refusal(status: int, code: str, message: str = "") -> Answer:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Answer(status, body.encode(), {"Content-Type": "application/xml"})


OK = Answer(headers=ETAG)
BROKEN = Answer(breaks=True)
SILENT = Answer(is_silent=True)


class Script:
    """A server that gives the answers of a list, the last one again and again, and remembers the requests."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.ended = asyncio.Event()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if "Expect" in request.headers:
            assert request.transport is not None
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while await request.content.readany():
            pass
        self.requests.append((request.method, request.path))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer.breaks:
            assert request.transport is not None
            request.transport.abort()
        if answer.is_silent:
            await self.ended.wait()
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


@asynccontextmanager
async def scripted(*answers: Answer, **options: Any) -> AsyncIterator[tuple[S3CheckpointStore, Script]]:
    """Give a store, and the server that answers it so."""
    script = Script(*answers)
    runner = web.ServerRunner(web.Server(script.answer))
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    config = _config(**{"endpoint_url": f"http://127.0.0.1:{port}", "timeout": 20.0, **options})
    try:
        async with S3CheckpointStore(config) as store:
            yield store, script
    finally:
        script.ended.set()
        await runner.cleanup()


def _config(**options: Any) -> S3Config:
    given = {"bucket": BUCKET, "region": "us-east-1", "access_key_id": "AccessKey", "secret_access_key": SECRET}
    return S3Config(**{**given, **options})


def operations(store: S3CheckpointStore) -> dict[str, Callable[[], Any]]:
    return {
        "save": lambda: store.save("k", "v"),
        "load": lambda: store.load("k"),
        "delete": lambda: store.delete("k"),
        "load_versioned": lambda: store.load_versioned("k"),
        "save_if": lambda: store.save_if("k", "v", expected=None),
        "list_keys": lambda: anext(store.list_keys()),
    }


CODES = [
    (403, "InvalidAccessKeyId", StoreAccessError, "credentials"),
    (403, "SignatureDoesNotMatch", StoreAccessError, "credentials"),
    (400, "ExpiredToken", StoreAccessError, "temporary"),
    (400, "InvalidToken", StoreAccessError, "temporary"),
    (403, "RequestTimeTooSkewed", StoreAccessError, "clock"),
    (403, "AccessDenied", StoreAccessError, "grant s3:"),
    (403, "SomethingNew", StoreAccessError, "grant s3:"),
    (404, "NoSuchBucket", StoreAccessError, "bucket's name"),
    (404, "SomethingNew", StoreAccessError, "endpoint_url"),
    (405, "MethodNotAllowed", StoreAccessError, "cannot do this"),
    (501, "NotImplemented", StoreAccessError, "cannot do this"),
    (403, "InvalidObjectState", StoreAccessError, "archive"),
    (400, "KMS.NotFoundException", StoreAccessError, "KMS"),
    (400, "EntityTooLarge", StoreLimitError, "save less"),
    (413, "SomethingNew", StoreLimitError, "save less"),
    (403, "QuotaExceeded", StoreLimitError, "quota"),
    (507, "SomethingNew", StoreLimitError, "quota"),
    (400, "KeyTooLongError", StoreLimitError, "shorter"),
    (400, "RequestTimeout", StoreUnavailableError, "try again"),
    (400, "BadDigest", StoreUnavailableError, "save it again"),
    (503, "SlowDown", StoreUnavailableError, "try again"),
    (503, "ServiceUnavailable", StoreUnavailableError, "try again"),
    (500, "InternalError", StoreUnavailableError, "try again"),
    (502, "SomethingNew", StoreUnavailableError, "try again"),
]


@pytest.mark.parametrize(("status", "code", "error", "advice"), CODES)
async def test_an_answer_becomes_the_most_specific_error(
    status: int, code: str, error: type[StoreError], advice: str
) -> None:
    async with scripted(refusal(status, code, "what happened")) as (store, script):
        for name, operation in operations(store).items():
            with pytest.raises(error, match=advice) as caught:
                await operation()
            assert type(caught.value) is error, name
            assert isinstance(caught.value.__cause__, botocore.exceptions.ClientError)
            message = str(caught.value)
            for part in (f"the bucket {BUCKET!r} at http://127.0.0.1:", str(status), code, "what happened"):
                assert part in message
        # A save goes without its condition to a server that does not know that; an archived object is looked at again.
        more = code in {"NotImplemented", "InvalidObjectState"}
        assert len(script.requests) == len(operations(store)) + more, "an answer is an answer"


@pytest.mark.parametrize(("status", "code", "error", "advice"), CODES)
async def test_an_answer_says_the_same_after_a_success(
    status: int, code: str, error: type[StoreError], advice: str
) -> None:
    async with scripted(OK, refusal(status, code, "what happened")) as (store, script):
        await store.save("k", "v")
        for name in ("save", "load", "load_versioned"):
            with pytest.raises(error, match=advice) as caught:
                await operations(store)[name]()
            assert type(caught.value) is error, name
            assert isinstance(caught.value.__cause__, botocore.exceptions.ClientError)
            assert f"{status} {code}, what happened" in str(caught.value)
        assert len(script.requests) == 4 + (status == 501), "an answer is an answer"


async def test_other_answers_after_a_success() -> None:
    absent = refusal(404, "NoSuchKey")
    async with scripted(OK, absent) as (store, _):
        await store.save("k", "v")
        assert await store.load("k") is None
        with pytest.raises(StoreAccessError):
            await store.save("k", "v")
    for answer in (Answer(200), Answer(200, b"<html>log in</html>"), Answer(404), Answer(404, b"<html>"), Answer(500)):
        async with scripted(OK, answer) as (store, _):
            await store.save("k", "v")
            for name in ("save", "load", "load_versioned"):
                with pytest.raises((StoreUnavailableError, StoreAccessError)):
                    await operations(store)[name]()
    for answer, error in ((Answer(302), StoreAccessError), (BROKEN, StoreUnavailableError)):
        async with scripted(OK, answer) as (store, script):
            await store.save("k", "v")
            for name, times in (("save", 1), ("load", 2 if answer is BROKEN else 1)):
                script.requests.clear()
                with pytest.raises(error):
                    await operations(store)[name]()
                assert len(script.requests) == times
    busy = refusal(409, "OperationAborted")
    async with scripted(OK, busy, busy, OK) as (store, script):
        await store.save("k", "v")
        await store.save("k", "v")
        assert len(script.requests) == 4


async def test_an_error_under_the_status_200_is_one() -> None:
    hidden = Answer(200, refusal(500, "InternalError", "what happened").body, ETAG)
    async with scripted(OK, hidden) as (store, _):
        await store.save("k", "v")
        with pytest.raises(StoreUnavailableError, match="what happened"):
            await store.save("k", "v")


async def test_a_bucket_that_the_sdk_finds_in_another_region_is_asked_there() -> None:
    elsewhere = refusal(400, "AuthorizationHeaderMalformed")
    elsewhere.body = elsewhere.body.replace(b"</Error>", b"<Region>eu-central-1</Region></Error>")
    async with scripted(elsewhere, OK) as (store, script):
        for _ in range(2):
            await store.save("k", "v")
        regions = [headers["authorization"].split("/")[2] for headers in script.headers]
        assert regions == ["us-east-1", "eu-central-1", "eu-central-1"]


@pytest.mark.parametrize("size", [0, 10, 2 << 20])
async def test_what_is_sent_is_what_the_sdk_sends(size: int) -> None:
    encryption = {"sse": "aws:kms", "sse_kms_key_id": "alias/mine"}
    async with scripted(refusal(412, "PreconditionFailed"), OK, prefix="a@b,(c)", **encryption) as (store, script):
        for _ in range(2):
            await store.save_if("é" * 200, "v" * size, expected="0")
        await store.load("k")
        _, whole, direct, load = script.headers
        assert script.requests[1] == script.requests[2]
        assert direct["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/mine"
        assert direct["if-match"] == '"0"'
        assert "x-amz-meta-key" in direct
        for headers in (whole, direct):
            names = headers.pop("authorization").split("SignedHeaders=")[1].split(",")[0].split(";")
            assert set(headers) >= set(names)
            headers["signed"] = " ".join(names)
            # Of the SDK's statistics only which SDK it is.
            headers["user-agent"] = headers["user-agent"].split(" ")[0]
            headers.pop("x-amz-date")
            headers.pop("amz-sdk-invocation-id", None)
            headers.pop("amz-sdk-request", None)
        assert direct == whole
        assert load["x-amz-content-sha256"] == hashlib.sha256().hexdigest()


@pytest.mark.parametrize("endpoint_url", [None, "http://s3.test:1", "http://s3.test:1/", "http://s3.test:1/base/"])
@pytest.mark.parametrize("addressing", ["path", "virtual"])
async def test_an_object_is_where_the_sdk_finds_it(endpoint_url: str | None, addressing: str) -> None:
    parameters = {"Bucket": BUCKET, "Key": "a b/é+%.json"}
    async with _client.connected(_config(endpoint_url=endpoint_url, addressing=addressing)) as client:
        url = await client.generate_presigned_url("put_object", Params=parameters)
        model = client.meta.service_model.operation_model("PutObject")
        await client._find(model, BUCKET)
        request = await client._request(model, client._places[BUCKET], {**parameters, "Body": b""})
        assert request.url == url.partition("?")[0]


async def test_what_is_signed_for_another_service_is_left_to_the_sdk() -> None:
    outpost = "test-accessp-o0b1d075431d83bebde8xz5w8ijx1qzlbp3i3kuse10--op-s3"
    async with _client.connected(_config(bucket=outpost, region="us-west-2")) as client:
        await client._find(client.meta.service_model.operation_model("PutObject"), outpost)
        assert client._places == {}


async def test_credentials_may_change_between_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(OK) as (store, script):
        async with _client.connected(store._config) as client:
            credentials = client._request_signer._credentials
            own = S3CheckpointStore(store._config, client=client)
            for name in ("first", "second", "third"):
                monkeypatch.setattr(credentials, "access_key", name)
                await own.save("k", "v")
        assert [headers["authorization"].split("=")[1].split("/")[0] for headers in script.headers] == [
            "first",
            "second",
            "third",
        ]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirection_is_told_and_not_followed(status: int) -> None:
    elsewhere = {"Location": "/elsewhere", "x-amz-bucket-region": "eu-central-1"}
    async with scripted(Answer(status, headers=elsewhere)) as (store, script):
        for operation in operations(store).values():
            script.requests.clear()
            with pytest.raises(StoreAccessError, match=r"to the region eu-central-1.*give its own region"):
                await operation()
            assert len(script.requests) == 1


async def test_403_for_an_absent_key_names_the_permission_that_is_missing() -> None:
    async with scripted(refusal(403, "AccessDenied", "Access Denied")) as (store, _):
        for load in (store.load, store.load_versioned):
            with pytest.raises(StoreAccessError, match="grant s3:GetObject, and s3:ListBucket"):
                await load("k")
        with pytest.raises(StoreAccessError, match="grant s3:PutObject"):
            await store.save("k", "v")
        with pytest.raises(StoreAccessError, match="grant s3:DeleteObject"):
            await store.delete("k")
        with pytest.raises(StoreAccessError, match="grant s3:ListBucket"):
            await anext(store.list_keys())


async def test_only_no_such_key_is_absent() -> None:
    async with scripted(refusal(404, "NoSuchKey")) as (store, _):
        assert await store.load("k") is None
        assert await store.load_versioned("k") is None
        await store.delete("k")
        with pytest.raises(StoreAccessError):
            await store.save("k", "v")
        with pytest.raises(StoreConflictError):
            await store.save_if("k", "v", expected="0")
    for answer in (Answer(404), Answer(404, b"<html>not found</html>")):
        async with scripted(answer) as (store, _):
            for operation in operations(store).values():
                with pytest.raises((StoreAccessError, StoreUnavailableError)):
                    await operation()


async def test_what_says_200_to_everything_is_no_s3_server() -> None:
    for body in (b"<html>log in</html>", b""):
        async with scripted(Answer(200, body)) as (store, _):
            for operation in operations(store).values():
                with pytest.raises((StoreUnavailableError, StoreAccessError), match=r"S3 server|If-Match"):
                    await operation()


async def test_a_deletion_is_believed_from_an_s3_server() -> None:
    for answer in (Answer(204), Answer(200, headers={"x-amz-request-id": "1"})):
        async with scripted(OK, answer) as (store, script):
            await store.delete("k")
            assert [method for method, _ in script.requests] == ["GET", "DELETE"]
            assert script.headers[1]["if-match"] == ETAG["ETag"]


async def test_what_is_absent_is_not_deleted() -> None:
    async with scripted(refusal(404, "NoSuchKey")) as (store, script):
        await store.delete("k")
        assert [method for method, _ in script.requests] == ["GET"]
    # It was there a moment ago.
    gone = refusal(404, "NoSuchKey")
    for late in (refusal(412, "PreconditionFailed"), gone):
        async with scripted(OK, late, gone) as (store, script):
            await store.delete("k")
            assert [method for method, _ in script.requests] == ["GET", "DELETE", "GET"]


async def test_a_change_expects_what_was_seen_last() -> None:
    changed = {"ETag": '"b"'}
    told = Answer(headers={**ETAG, "x-amz-request-id": "1"})
    async with scripted(OK, refusal(412, "PreconditionFailed"), Answer(206, b"v", changed), told) as (store, script):
        await store.save("k", "v")
        await store.save("k", "v")
        await store.delete("k")
    seen = [
        (method, headers.get("if-match", headers.get("if-none-match")))
        for (method, _), headers in zip(script.requests, script.headers, strict=True)
    ]
    etag = ETAG["ETag"]
    assert seen == [("PUT", "*"), ("PUT", etag), ("GET", None), ("PUT", '"b"'), ("DELETE", etag)]


async def test_an_empty_object_is_seen_as_well() -> None:
    answers = refusal(412, "PreconditionFailed"), refusal(416, "InvalidRange"), OK
    async with scripted(*answers) as (store, script):
        await store.save("k", "v")
    assert [method for method, _ in script.requests] == ["PUT", "GET", "HEAD", "PUT"]


@pytest.mark.parametrize(
    ("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument"), (400, "InvalidRequest")]
)
async def test_a_server_that_knows_no_conditions_is_told_none_again(status: int, code: str) -> None:
    unknown = refusal(status, code)
    async with scripted(unknown, OK, OK, unknown, Answer(204)) as (store, script):
        for operation in (store.save("k", "v"), store.save("k", "w"), store.delete("k")):
            await operation
    conditions = ["if-match" in headers or "if-none-match" in headers for headers in script.headers]
    assert [method for method, _ in script.requests] == ["PUT", "PUT", "PUT", "DELETE", "DELETE"]
    assert conditions == [True, False, False, True, False]


UNMET = refusal(412, "PreconditionFailed")
GONE = refusal(404, "NoSuchKey")
DONE = Answer(204)


def requests_of(script: Script) -> list[str]:
    """Return the methods, each with the condition, and in brackets if it is about the object that servers are tried with."""
    shown = []
    for (method, path), headers in zip(script.requests, script.headers, strict=True):
        condition = headers.keys() & {"if-match", "if-none-match"}
        request = " ".join((method, *condition))
        shown.append(f"({request})" if path.startswith(f"/{BUCKET}/dagonizer.probe.") else request)
    assert len({path for _, path in script.requests if "probe" in path}) <= 1
    return shown


@pytest.mark.parametrize("unmet", [UNMET, GONE])
async def test_a_server_that_refuses_what_has_not_changed_is_told_no_condition_again(unmet: Answer) -> None:
    # Such as one that compares with the ETag without its quotes.
    tried = GONE, OK, OK, unmet, OK, DONE
    async with scripted(OK, *[unmet, OK] * 3, *tried, OK, OK) as (store, script):
        for text in ("v", "w", "x"):
            await store.save("k", text)
    tried_with = ["(GET)", "(PUT if-none-match)", "(GET)", "(PUT if-match)", "(GET)", "(DELETE)"]
    in_vain = ["PUT if-match", "GET"] * 3
    assert requests_of(script) == ["PUT if-none-match", *in_vain, *tried_with, "PUT", "PUT"]


async def test_a_server_that_takes_nothing_for_absent_is_told_no_condition_again() -> None:
    async with scripted(*[UNMET, GONE] * 3, GONE, UNMET, GONE, DONE, OK) as (store, script):
        await store.save("k", "v")
        await store.save("k", "w")
    tried_with = ["(GET)", "(PUT if-none-match)", "(GET)", "(DELETE)"]
    assert requests_of(script) == [*["PUT if-none-match", "GET"] * 3, *tried_with, "PUT", "PUT"]


async def test_a_server_that_refuses_to_delete_what_has_not_changed_is_told_no_condition_again() -> None:
    async with scripted(OK, *[UNMET, OK] * 3, OK, OK, UNMET, OK, DONE) as (store, script):
        await store.delete("k")
        await store.delete("k")
    tried_with = ["(PUT)", "(GET)", "(DELETE if-match)", "(GET)", "(DELETE)"]
    assert requests_of(script) == ["GET", *["DELETE if-match", "GET"] * 3, *tried_with, "DELETE", "DELETE"]


async def test_a_server_that_is_tried_and_knows_no_condition_is_told_none_again() -> None:
    async with scripted(*[UNMET, GONE] * 3, GONE, OK, OK, refusal(501, "NotImplemented"), DONE, OK) as (store, script):
        await store.save("k", "v")
    assert requests_of(script)[-3:] == ["(PUT if-match)", "(DELETE)", "PUT"]


async def test_a_server_that_compares_is_tried_once_and_every_condition_kept() -> None:
    tried = GONE, OK, OK, OK, DONE
    async with scripted(*[UNMET, GONE] * 3, *tried, *[UNMET, GONE] * 4, OK) as (store, script):
        await store.save("k", "v")
    tried_with = ["(GET)", "(PUT if-none-match)", "(GET)", "(PUT if-match)", "(DELETE)"]
    in_vain = ["PUT if-none-match", "GET"]
    assert requests_of(script) == [*in_vain * 3, *tried_with, *in_vain * 4, "PUT if-none-match"]
    tried = OK, OK, DONE, DONE
    async with scripted(OK, *[UNMET, OK] * 3, *tried, *[UNMET, OK] * 4, DONE) as (store, script):
        await store.delete("k")
    tried_with = ["(PUT)", "(GET)", "(DELETE if-match)", "(DELETE)"]
    in_vain = ["DELETE if-match", "GET"]
    assert requests_of(script) == ["GET", *in_vain * 3, *tried_with, *in_vain * 4, "DELETE if-match"]


@pytest.mark.parametrize(
    "tried",
    [
        # Sent twice, and done the first time.
        (GONE, UNMET, OK, OK, Answer(200, b"", {"ETag": '"b"'}), DONE),
        (GONE, OK, OK, UNMET, Answer(200, b"", {"ETag": '"b"'}), DONE),
        # It may not be put, or the server is busy.
        (GONE, refusal(403, "AccessDenied"), DONE),
        (GONE, OK, OK, refusal(503, "SlowDown"), DONE),
        # It is as it should be, and may not be removed.
        (GONE, OK, OK, OK, refusal(403, "AccessDenied")),
    ],
)
async def test_what_is_not_known_of_a_server_is_not_concluded(tried: tuple[Answer, ...]) -> None:
    async with scripted(*[UNMET, GONE] * 3, *tried, UNMET, GONE, OK) as (store, script):
        await store.save("k", "v")
    assert requests_of(script)[-4:] == ["(DELETE)", "PUT if-none-match", "GET", "PUT if-none-match"]


async def test_who_may_delete_need_not_be_allowed_to_put() -> None:
    denied = refusal(403, "AccessDenied")
    async with scripted(OK, *[UNMET, OK] * 3, denied, DONE, UNMET, OK, DONE) as (store, script):
        await store.delete("k")
    assert requests_of(script)[-5:] == ["(PUT)", "(DELETE)", "DELETE if-match", "GET", "DELETE if-match"]
    # What was put, and is gone.
    async with scripted(OK, *[UNMET, OK] * 3, OK, GONE, DONE, DONE) as (store, script):
        await store.delete("k")
    assert requests_of(script)[-4:] == ["(PUT)", "(GET)", "(DELETE)", "DELETE if-match"]


async def test_what_a_server_is_tried_with_is_removed_when_the_timeout_is_over() -> None:
    async with scripted(*[UNMET, GONE] * 3, GONE, SILENT, timeout=5) as (store, script):
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="timeout"):
            await store.save("k", "v")
        # The deletion of it is not waited for as long again.
        assert time.monotonic() - began < 9
        assert requests_of(script)[-2:] == ["(PUT if-none-match)", "(DELETE)"]


async def test_an_archived_object_can_be_replaced_and_deleted() -> None:
    archived = refusal(403, "InvalidObjectState")
    async with scripted(refusal(412, "PreconditionFailed"), archived, OK) as (store, script):
        await store.save("k", "v")
    assert [method for method, _ in script.requests] == ["PUT", "GET", "HEAD", "PUT"]
    async with scripted(archived, OK, Answer(204)) as (store, script):
        await store.delete("k")
    assert [method for method, _ in script.requests] == ["GET", "HEAD", "DELETE"]


async def test_what_is_deleted_while_it_is_looked_at_is_absent() -> None:
    async with scripted(refusal(416, "InvalidRange"), Answer(404)) as (store, script):
        await store.delete("k")
    assert [method for method, _ in script.requests] == ["GET", "HEAD"]


async def test_an_etag_that_cannot_be_compared_is_no_condition() -> None:
    async with scripted(Answer(headers={"ETag": 'W/"1"'})) as (store, script):
        await store.save("k", "v")
        await store.save("k", "w")
    assert [("if-none-match" in headers, "if-match" in headers) for headers in script.headers] == [
        (True, False),
        (False, False),
    ]


async def test_a_server_that_ignores_conditions_is_told_before_a_save_is_lost() -> None:
    async with scripted(OK) as (store, script):
        for _ in range(2):
            with pytest.raises(StoreAccessError, match="ignores If-Match"):
                await store.save_if("k", "v", expected=None)
        assert script.requests == [("PUT", f"/{BUCKET}/dagonizer.probe"), ("DELETE", f"/{BUCKET}/dagonizer.probe")] * 2


async def test_the_server_is_asked_once_whether_it_compares() -> None:
    async with scripted(refusal(412, "PreconditionFailed"), OK) as (store, script):
        for _ in range(2):
            assert await store.save_if("k", "v", expected=None) == "0cc175b9c0f1b6a831c399e269772661"
        assert [path for _, path in script.requests] == [f"/{BUCKET}/dagonizer.probe", *[f"/{BUCKET}/k.json"] * 2]


async def test_a_server_without_strong_etags_cannot_compare() -> None:
    async with scripted(Answer(headers={"ETag": 'W/"1"'})) as (store, _):
        assert await store.load("k") == ""
        with pytest.raises(StoreAccessError, match="strong ETags"):
            await store.load_versioned("k")


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted"])
async def test_409_says_that_nothing_happened_and_is_asked_again(code: str) -> None:
    busy = refusal(409, code)
    async with scripted(refusal(412, "PreconditionFailed"), busy, busy, OK) as (store, script):
        await store.save_if("k", "v", expected="0")
        assert len(script.requests) == 4
    async with scripted(busy, OK) as (store, script):
        await store.save("k", "v")
        assert len(script.requests) == 2
    async with scripted(refusal(412, "PreconditionFailed"), busy) as (store, script):
        with pytest.raises(StoreConflictError):
            await store.save_if("k", "v", expected="0")


async def test_a_lost_condition_is_a_conflict() -> None:
    lost = refusal(412, "PreconditionFailed")
    async with scripted(lost) as (store, _):
        for expected in (None, "0"):
            with pytest.raises(StoreConflictError, match="load it again"):
                await store.save_if("k", "v", expected=expected)


@pytest.mark.parametrize("expected", ["", "*", '"', '"a"', "a,b", "a b", "é", "a\n", "x" * 257])
async def test_what_is_no_version_never_reaches_the_server(expected: str) -> None:
    async with scripted(OK) as (store, script):
        with pytest.raises(StoreConflictError):
            await store.save_if("k", "v", expected=expected)
        assert script.requests == []


async def test_a_save_is_sent_once_and_a_load_twice_when_connections_break() -> None:
    async with scripted(BROKEN) as (store, script):
        for name, times in (("save", 1), ("delete", 1), ("save_if", 1), ("load", 2), ("list_keys", 2)):
            script.requests.clear()
            with pytest.raises(StoreUnavailableError):
                await operations(store)[name]()
            assert len(script.requests) == times, name
    async with scripted(BROKEN, Answer(200, b"v", ETAG)) as (store, _):
        assert await store.load("k") == "v"


async def test_a_connection_that_the_server_has_closed_is_not_used_for_a_save() -> None:
    saves = 0

    def serve() -> None:
        nonlocal saves
        while True:
            connection, _ = listener.accept()
            with connection:
                if not connection.recv(65_536):
                    return
                saves += 1
                connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: "0"\r\n\r\n')
                time.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = threading.Thread(target=serve)
        server.start()
        async with open_store(f"s3://a:{SECRET}@bucket?endpoint_url=http://127.0.0.1:{port}") as store:
            for _ in range(10):
                await store.save("k", "v")
                # The event loop cannot look at its sockets meanwhile.
                time.sleep(0.05)
        socket.create_connection(("127.0.0.1", port)).close()
        server.join()
    assert saves == 10


async def test_an_endless_page_is_told() -> None:
    page = b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"
    async with scripted(Answer(200, page)) as (store, _):
        with pytest.raises(StoreUnavailableError, match="next page"):
            await anext(store.list_keys())


async def test_no_answer_is_bounded_by_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"s3://a:{SECRET}@bucket?endpoint_url=http://127.0.0.1:{silent.getsockname()[1]}&timeout=0.5"
        async with open_store(url) as store:
            began = time.monotonic()
            for operation in operations(store).values():
                with pytest.raises(StoreUnavailableError):
                    await operation()
            assert time.monotonic() - began < 6


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_save_that_timed_out_is_sent_no_further(scheme: str, tmp_path: Path) -> None:
    size = 1_000_000
    given_up = threading.Event()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    def receive() -> int:
        connection, _ = listener.accept()
        if scheme == "https":
            connection = context.wrap_socket(connection, server_side=True)
        with connection:
            received = len(connection.recv(1))
            assert given_up.wait(20)
            with suppress(OSError):
                while count := len(connection.recv(65_536)):
                    received += count
        return received

    with socket.create_server(("127.0.0.1", 0)) as listener:
        # So that most of the save is still on this side when it is given up.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        config = S3Config(
            bucket=BUCKET,
            endpoint_url=f"{scheme}://127.0.0.1:{listener.getsockname()[1]}",
            region="us-east-1",
            access_key_id="AccessKey",
            secret_access_key=SECRET,
            ca_bundle=str(tmp_path / "ca.pem"),
            timeout=2,
        )
        server = asyncio.create_task(asyncio.to_thread(receive))
        async with S3CheckpointStore(config) as store:
            with pytest.raises(StoreUnavailableError, match="timeout"):
                await store.save("k", "v" * size)
            given_up.set()
            assert 0 < await server < size


async def test_nobody_listens() -> None:
    async with open_store(f"s3://a:{SECRET}@bucket?endpoint_url=http://127.0.0.1:{free_port()}") as store:
        for operation in operations(store).values():
            with pytest.raises(StoreUnavailableError, match="the server runs"):
                await operation()


@pytest.mark.parametrize("parameters", ["", "&profile=nobody"])
async def test_no_credentials_are_told(parameters: str) -> None:
    async with open_store(f"s3://bucket?endpoint_url=http://127.0.0.1:1{parameters}") as store:
        for operation in operations(store).values():
            with pytest.raises(StoreAccessError, match=r"credentials|configuration"):
                await operation()


UNAVAILABLE = [
    "BotoCoreError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "ConnectionError",
    "EndpointConnectionError",
    "HTTPClientError",
    "IncompleteReadError",
    "ProxyConnectionError",
    "ReadTimeoutError",
    "ResponseStreamingError",
    "SSLError",
    "AioReadTimeoutError",
    "ResponseParserError",
    "AwsChunkedWrapperError",
    "CapacityNotAvailableError",
    "UnseekableStreamError",
    "ClientError",
    "ClientConnectionError",
    "ClientConnectionResetError",
    "ClientConnectorDNSError",
    "ClientConnectorError",
    "ClientConnectorSSLError",
    "ClientHttpProxyError",
    "ClientOSError",
    "ClientPayloadError",
    "ClientProxyConnectionError",
    "ClientResponseError",
    "ClientSSLError",
    "ConnectionTimeoutError",
    "ContentTypeError",
    "InvalidURL",
    "InvalidUrlClientError",
    "InvalidUrlRedirectClientError",
    "NonHttpUrlClientError",
    "NonHttpUrlRedirectClientError",
    "RedirectClientError",
    "ServerConnectionError",
    "ServerDisconnectedError",
    "ServerFingerprintMismatch",
    "ServerTimeoutError",
    "SocketTimeoutError",
    "TooManyRedirects",
    "UnixClientConnectorError",
    "UploadAbortedError",
    "WSServerHandshakeError",
]
ACCESS = [
    "CredentialRetrievalError",
    "MetadataRetrievalError",
    "NoAuthTokenError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "RefreshWithMFAUnsupportedError",
    "SSOError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
    "UnknownCredentialError",
    "AliasConflictParameterError",
    "BaseEndpointResolverError",
    "ConfigNotFound",
    "ConfigParseError",
    "EndpointProviderError",
    "EndpointResolutionError",
    "EndpointVariantError",
    "InfiniteLoopConfigError",
    "InvalidChecksumConfigError",
    "InvalidConfigError",
    "InvalidDNSNameError",
    "InvalidDefaultsMode",
    "InvalidEndpointConfigurationError",
    "InvalidHostLabelError",
    "InvalidIMDSEndpointError",
    "InvalidIMDSEndpointModeError",
    "InvalidMaxRetryAttemptsError",
    "InvalidProxiesConfigError",
    "InvalidRegionError",
    "InvalidRetryConfigurationError",
    "InvalidRetryModeError",
    "InvalidS3AddressingStyleError",
    "InvalidS3UsEast1RegionalEndpointConfigError",
    "InvalidSTSRegionalEndpointsConfigError",
    "MD5UnavailableError",
    "MissingDependencyException",
    "NoRegionError",
    "ParamValidationError",
    "ProfileNotFound",
    "RangeError",
    "ServiceNotInRegionError",
    "UnknownEndpointError",
    "UnknownEndpointResolutionBuiltInName",
    "UnknownFIPSEndpointError",
    "UnknownKeyError",
    "UnknownParameterError",
    "UnknownRegionError",
    "UnknownSignatureVersionError",
    "UnsupportedOutpostResourceError",
    "UnsupportedS3AccesspointConfigurationError",
    "UnsupportedS3ArnError",
    "UnsupportedS3ConfigurationError",
    "UnsupportedSignatureVersionError",
    "ValidationError",
    "ClientConnectorCertificateError",
]
CORRUPTED = ["ChecksumError", "FlexibleChecksumError"]
# What the store does not use: other services, paginators, waiters, stubs, event streams, websockets; and mistakes in the
# SDK's own data.
UNREACHABLE = [
    "ApiVersionNotFoundError",
    "DataNotFoundError",
    "EventStreamError",
    "ImminentRemovalWarning",
    "InvalidEndpointDiscoveryConfigurationError",
    "InvalidExpressionError",
    "MissingParametersError",
    "MissingServiceIdError",
    "OperationNotPageableError",
    "PaginationError",
    "StubAssertionError",
    "StubResponseError",
    "UnStubbedResponseError",
    "UndefinedModelAttributeError",
    "UnknownClientMethodError",
    "UnknownServiceError",
    "UnknownServiceStyle",
    "UnsupportedS3ControlArnError",
    "UnsupportedS3ControlConfigurationError",
    "UnsupportedServiceProtocolsError",
    "UnsupportedTLSVersionWarning",
    "WSMessageTypeError",
    "WaiterConfigError",
    "WaiterError",
]


def sdk_exceptions() -> list[type[BaseException]]:
    found = [AioReadTimeoutError]
    for module in (botocore.exceptions, botocore.parsers, aiohttp.client_exceptions):
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, BaseException) and cls.__module__ == module.__name__:
                found.append(cls)
    return found


@pytest.mark.parametrize("cls", sdk_exceptions(), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_exception_of_the_sdk_is_in_the_table(cls: type[BaseException]) -> None:
    verdicts = dict.fromkeys(UNAVAILABLE, StoreUnavailableError)
    verdicts |= dict.fromkeys(ACCESS, StoreAccessError)
    verdicts |= dict.fromkeys(CORRUPTED, StoreCorruptedError)
    if cls.__name__ in UNREACHABLE:
        assert cls.__name__ not in verdicts
        return
    assert cls.__name__ in verdicts, "the SDK has an exception that nobody has thought about"
    expected = verdicts[cls.__name__]
    if cls is botocore.exceptions.ClientError:
        exc: BaseException = cls({"Error": {}, "ResponseMetadata": {}}, "GetObject")
    else:
        # However it is made; aiohttp's have no two signatures alike.
        exc = cls.__new__(cls)
        exc.__dict__.update(
            host="h",
            port=1,
            ssl=None,
            _conn_key=aiohttp.client_reqrep.ConnectionKey("h", 1, True, True, None, None, None),
        )
    with pytest.raises(StoreError) as caught, translated("load from", "s3:GetObject", "the bucket"):
        raise Shown.of(exc)
    assert type(caught.value) is expected


class Shown:
    """Gives an exception that was not initialised a text."""

    @staticmethod
    def of(exc: BaseException) -> BaseException:
        if isinstance(exc, botocore.exceptions.ClientError):
            return exc
        cls = type(exc)
        shown = type(cls.__name__, (cls,), {"__str__": lambda _: "text", "__init__": lambda _: None})
        return shown.__new__(shown)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ssl.SSLError(1, "no certificate"), StoreAccessError),
        (FileNotFoundError(2, "none"), StoreAccessError),
        (ConnectionResetError(104, "reset"), StoreUnavailableError),
    ],
)
def test_what_the_sdk_hides_under_one_class_is_told_apart(error: Exception, expected: type[StoreError]) -> None:
    with pytest.raises(expected), translated("load from", "s3:GetObject", "the bucket"):
        raise botocore.exceptions.HTTPClientError(error=error)


async def test_no_secret_in_any_error_or_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told = []
    for answers in (
        [refusal(403, "SignatureDoesNotMatch", "no")],
        [refusal(403, "AccessDenied")],
        [refusal(500, "InternalError")],
        [BROKEN],
        [Answer(200, b"<html>")],
        [Answer(302, headers={"Location": "http://127.0.0.1:1/"})],
    ):
        async with scripted(*answers) as (store, _):
            for operation in operations(store).values():
                try:
                    await operation()
                except StoreError as exc:
                    told += traceback.format_exception(exc)
            told.append(repr(store))
    for url in (
        f"s3://me:{SECRET}@bucket:1",
        f"s3://me:{SECRET}@bucket?x=1",
        f"s3://me:{SECRET}@bucket?endpoint_url=http://me:{SECRET}%40h",
        f"s3://me:{SECRET}@bucket?sse=AES256&sse_kms_key_id={SECRET}",
    ):
        with pytest.raises(StoreError) as caught:
            open_store(url)
        told += traceback.format_exception(caught.value)
    assert len(told) > 30
    assert caplog.text
    for text in (*told, caplog.text):
        # The lines of this file are quoted in tracebacks, and name the variable only.
        assert SECRET not in text
