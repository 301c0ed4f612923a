"""The store: a bucket, one object a key.

An object is the value's UTF-8 bytes, or a Zstandard frame of them. Its version is its ETag, which the server compares
when it is asked to. It is asked to with every change: a request that the server, or a proxy before it, carries out long
after it was given up then finds another ETag than it expects, and undoes nothing that was saved since.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from dagonizer.compression import compress_in_steps, expand
from dagonizer.connections import Connections
from dagonizer.contracts import VersionedJson
from dagonizer.errors import (
    StoreAccessError,
    StoreConflictError,
    StoreCorruptedError,
    StoreUnavailableError,
)
from dagonizer.keys import key_bytes, prefix_bytes, value_bytes, value_text
from dagonizer_s3 import _names as names
from dagonizer_s3._client import close_idle, connected
from dagonizer_s3._errors import DRIVER_ERRORS, UNSUPPORTED, code_of, is_broken, status_of, translated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from types import TracebackType
    from typing import Self

    from types_aiobotocore_s3 import S3Client

    from dagonizer_s3._config import S3Config

    Answer = Mapping[str, Any]

T = TypeVar("T")

_ABSENT = frozenset({"NoSuchKey", "NoSuchVersion"})
# What a HEAD says of an absent key, for its answer has no body.
_ABSENT_TO_HEAD = frozenset({*_ABSENT, "404"})
_ARCHIVED = "InvalidObjectState"
# Never '*' or a list, which a server takes for something else than one version.
_VERSION = re.compile(r"[A-Za-z0-9._:+/=-]{1,256}")
# An ETag that no object has: the MD5 of nobody knows what.
_NO_VERSION = '"00000000000000000000000000000000"'
# One that a server can compare: RFC 9110, section 13.1.1, compares no weak ones.
_ETAG = re.compile(r'"[^"]+"')
# Seconds before a save is sent again that the server refused since another one was under way.
_PAUSES = (0.01, 0.05, 0.2, 0.5, 1.0)
_LOOKS = 16
# Entries of which is remembered what was seen last, so that a change of theirs is one request.
_REMEMBERED = 10_000
# Refusals of what has not changed, after which the server is tried, for it may not compare as S3 does.
_TRIES = 3
_TRIED_WITH = b"what a store of dagonizer tries the server with; remove it"
# Seconds that an operation may take longer to remove that.
_TIDYING = 2.0
_PUT, _DELETE = "put_object", "delete_object"

_TO_SAVE = "s3:PutObject, s3:GetObject and s3:ListBucket, and use of the KMS key if one encrypts the object,"
_TO_LOAD = "s3:GetObject, and s3:ListBucket, without which the server says the same of an absent key"
_TO_DELETE = "s3:DeleteObject, s3:GetObject and s3:ListBucket"
_TO_LIST = "s3:ListBucket, and s3:GetObject"
_TO_SWAP = "s3:PutObject, s3:GetObject and s3:ListBucket, and s3:DeleteObject for what a server stores wrongly,"


class S3CheckpointStore:
    """A store in a bucket of S3 or of a server that speaks its protocol, which any number of processes may share.

    It keeps the whole contract, and lists keys and compares-and-swaps. Making a store does no I/O, and each event loop
    gets a client of its own, with a pool of connections. ``client`` is one of aioboto3's or aiobotocore's that the
    caller made, is used instead, and is never closed; it must be used in its own event loop only, and repeats requests
    as it was configured, also those that may have taken effect.

    Errors, besides those of ``dagonizer.keys``: ``StoreAccessError``, ``StoreLimitError``, ``StoreUnavailableError``,
    ``StoreConflictError``, ``StoreCorruptedError``, ``StoreClosedError``, and ``StoreError`` for a compressed value
    where ``zstandard`` is not installed.
    """

    def __init__(self, config: S3Config, *, client: S3Client | None = None) -> None:
        self._config = config
        self._base = f"{config.prefix}/" if config.prefix else ""
        self._connections: Connections[S3Client] = Connections(
            (lambda: connected(config)) if client is None else (lambda: _borrowed(client)),
            timeout=config.timeout,
            owner=type(self),
            distrust=close_idle,
            limit=config.max_connections if client is None else client.meta.config.max_pool_connections,
        )
        self._encryption: dict[str, Any] = {
            name: value
            for name, value in (("ServerSideEncryption", config.sse), ("SSEKMSKeyId", config.sse_kms_key_id))
            if value is not None
        }
        self._compares = False
        # The ETag of each entry as it was seen last, None for one that was absent.
        self._seen: dict[str, str | None] = {}
        # Methods of the client, of whose conditions the server knows nothing, or not enough.
        self._unconditional: set[str] = set()
        # Those that were tried, and whose conditions it knows.
        self._conditional: set[str] = set()

    async def save(self, key: str, json: str) -> None:
        """Put ``json`` under ``key``, replacing what is there."""
        self._connections.check_open()
        place = self._place(key_bytes(key))
        parameters = self._object(key, json)

        async def save(client: S3Client) -> None:
            answer = await self._change(client, _PUT, key, place, await self._stored(parameters))
            self._remember(key, self._etag(answer))

        with translated("save to", _TO_SAVE, self._config.place):
            await self._connections.write(key, save)

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``, or None. Raises ``StoreCorruptedError`` if it is damaged."""
        entry = await self._load(key)
        return None if entry is None else entry[0]

    async def delete(self, key: str) -> None:
        """Remove the entry under ``key``, if there is one."""
        self._connections.check_open()
        place = self._place(key_bytes(key))

        async def delete(client: S3Client) -> None:
            try:
                answer = await self._change(client, _DELETE, key, place, place)
            except ClientError as exc:
                if code_of(exc) not in _ABSENT:
                    raise
            else:
                if answer is not None:
                    self._expect_deletion(answer)
            self._remember(key, None)

        with translated("delete from", _TO_DELETE, self._config.place):
            await self._connections.write(key, delete)

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version, or None. Raises ``StoreCorruptedError`` like ``load``."""
        entry = await self._load(key)
        if entry is None:
            return None
        text, answer = entry
        return VersionedJson(text, self._version(answer))

    async def save_if(self, key: str, json: str, *, expected: str | None) -> str:
        """Save if the entry has the version ``expected`` (None: no entry), and return its new version.

        Raises ``StoreConflictError``. The store's first one asks the server for something that it must refuse, and
        raises ``StoreAccessError`` if it does not: a server that ignores conditions would let saves be lost.
        """
        self._connections.check_open()
        parameters = self._object(key, json)
        conflict = f"the entry under {key!r} is not at the expected version; load it again"
        if expected is None:
            parameters["IfNoneMatch"] = "*"
        elif _VERSION.fullmatch(expected):
            parameters["IfMatch"] = f'"{expected}"'
        else:
            raise StoreConflictError(conflict)

        async def swap(client: S3Client) -> str:
            await self._expect_comparison(client)
            try:
                answer = await _settled(client.put_object, await self._stored(parameters))
            except ClientError as exc:
                if status_of(exc) in {409, 412} or (expected is not None and code_of(exc) in _ABSENT):
                    raise StoreConflictError(conflict) from exc
                raise
            self._remember(key, self._etag(answer))
            return self._version(answer)

        with translated("save to", _TO_SWAP, self._config.place):
            return await self._connections.write(key, swap)

    async def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield every key that starts with ``prefix``, page by page.

        The server filters. Objects that are not the store's are passed over. A key whose name is longer than a file
        name may be costs a request of its own. Raises ``StoreCorruptedError`` if such an object does not tell its key.
        """
        self._connections.check_open()
        beginning = names.beginning_of(prefix_bytes(prefix))
        more: dict[str, str] = {}
        while True:
            with translated("list", _TO_LIST, self._config.place):
                page = await self._read(partial(self._page, beginning=beginning, more=more))
            for key in await self._keys_on(page):
                self._connections.check_open()
                if key.startswith(prefix):
                    yield key
            if not page.get("IsTruncated"):
                return
            token = page.get("NextContinuationToken")
            if not token or token == more.get("ContinuationToken"):
                raise StoreUnavailableError(f"could not list {self._config.place}: the server tells no next page")
            more = {"ContinuationToken": token}

    async def aclose(self) -> None:
        """Let operations that are under way finish, then close the connections of all event loops."""
        await self._connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        await self.aclose()

    def _place(self, key: bytes) -> dict[str, Any]:
        return self._at(names.segment_of(key))

    def _at(self, segment: str) -> dict[str, Any]:
        return {"Bucket": self._config.bucket, "Key": self._base + segment}

    def _object(self, key: str, json: str) -> dict[str, Any]:
        encoded = key_bytes(key)
        metadata = names.metadata_of(encoded)
        return {
            **self._place(encoded),
            "Body": value_bytes(json),
            "ContentType": "application/json",
            **({"Metadata": metadata} if metadata else {}),
            **self._encryption,
        }

    async def _stored(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        body = await compress_in_steps(parameters["Body"], self._config.compression)
        if body is parameters["Body"]:
            return parameters
        # A type, and no encoding of content, which whoever passes it on might undo.
        return {**parameters, "Body": body, "ContentType": "application/zstd"}

    async def _change(
        self, client: S3Client, method: str, key: str, place: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> Answer | None:
        """Change the object once it is as it was seen last. Return None if it is to be deleted, but is absent."""
        call = getattr(client, method)
        seen = self._seen.get(key)
        if method == _DELETE and seen is None and method not in self._unconditional:
            seen = await self._look(client, place)
            self._remember(key, seen)
        in_vain = 0
        for pause in itertools.chain((0.0,), _PAUSES, itertools.repeat(_PAUSES[-1])):
            if in_vain == _TRIES and method not in self._conditional:
                # Others who change it and change it back look like a server that does not compare.
                in_vain = 0
                await self._try_conditions(client, method)
            if method in self._unconditional:
                break
            if method == _DELETE and seen is None:
                return None
            try:
                return await _settled(call, {**parameters, **_condition(seen)})
            except ClientError as exc:
                if code_of(exc) in UNSUPPORTED:
                    break
                if not _is_unmet(exc, seen):
                    raise
            await asyncio.sleep(pause * random.random())  # noqa: S311 - as below
            before, seen = seen, await self._look(client, place)
            self._remember(key, seen)
            in_vain = in_vain + 1 if seen == before else 0
        answer = await _settled(call, parameters)
        self._unconditional.add(method)
        return answer

    async def _try_conditions(self, client: S3Client, method: str) -> None:
        """Learn from an object that nobody else knows whether the server refuses conditions that are true."""
        place = self._at(names.new_probe())
        probe = {**place, **self._encryption, "Body": _TRIED_WITH}
        try:
            if method == _DELETE:
                await _settled(client.put_object, probe)
                refused = await self._refuses(client, method, place, place)
            else:
                refused = await self._refuses(client, method, place, probe)
                # Once more, now that it is there.
                refused = refused or await self._refuses(client, method, place, probe)
            (self._unconditional if refused else self._conditional).add(method)
        except ClientError:
            # Nothing is known then. Who may delete, for one, need not be allowed to put.
            return
        finally:
            # Nothing depends on it.
            with suppress(*DRIVER_ERRORS):
                async with asyncio.timeout(min(_TIDYING, self._config.timeout)):
                    await client.delete_object(**place)

    async def _refuses(
        self, client: S3Client, method: str, place: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> bool:
        """Return whether the server refuses to change an object under the condition that it is as it is."""
        seen = await self._look(client, place)
        if method == _DELETE and seen is None:
            return False
        try:
            await _settled(getattr(client, method), {**parameters, **_condition(seen)})
        except ClientError as exc:
            if code_of(exc) in UNSUPPORTED:
                return True
            if not _is_unmet(exc, seen):
                raise
            # The change is made if it was sent twice, by the caller's client or a proxy, and the second was refused.
            return await self._look(client, place) == seen
        return False

    async def _look(self, client: S3Client, place: Mapping[str, Any]) -> str | None:
        """Return the object's ETag, or None if there is none."""
        try:
            # Not by HEAD, whose answer says neither why it is refused nor whether it is the bucket that is absent.
            answer = await client.get_object(**place, Range="bytes=0-0")
            async with answer["Body"]:
                return self._etag(answer)
        except ClientError as exc:
            if code_of(exc) == _ARCHIVED or status_of(exc) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return await self._look_again(client, place, exc)
            if code_of(exc) not in _ABSENT:
                raise
        return None

    async def _look_again(self, client: S3Client, place: Mapping[str, Any], refusal: ClientError) -> str | None:
        """Return the ETag of an object that was there, but has no bytes, or none that can be read."""
        try:
            return self._etag(await client.head_object(**place))
        except ClientError as exc:
            if code_of(exc) not in _ABSENT_TO_HEAD:
                raise refusal from exc
        return None

    def _remember(self, key: str, etag: str | None) -> None:
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen[key] = etag

    async def _load(self, key: str) -> tuple[str, Answer] | None:
        self._connections.check_open()
        place = self._place(key_bytes(key))
        with translated("load from", _TO_LOAD, self._config.place):
            found = await self._read(partial(self._get, place=place))
        if found is None:
            self._remember(key, None)
            return None
        stored, answer = found
        self._remember(key, answer["ETag"])
        return value_text(expand(stored, key=key), key=key), answer

    async def _get(self, client: S3Client, place: Mapping[str, Any]) -> tuple[bytes, Answer] | None:
        try:
            answer = self._checked(await client.get_object(**place), "ETag")
        except ClientError as exc:
            if code_of(exc) in _ABSENT:
                return None
            raise
        async with answer["Body"] as body:
            return await body.read(), answer

    async def _read(self, operation: Callable[[S3Client], Awaitable[T]]) -> T:
        """Do what changes nothing, once more if the connection breaks."""

        async def twice(client: S3Client) -> T:
            try:
                return await operation(client)
            except Exception as exc:
                if not is_broken(exc):
                    raise
            return await operation(client)

        return await self._connections.read(twice)

    async def _page(self, client: S3Client, *, beginning: str, more: Mapping[str, str]) -> Answer:
        # The delimiter keeps what lies below, such as other stores, out of the answer.
        parameters: dict[str, Any] = {"Prefix": self._base + beginning, "Delimiter": "/", **more}
        return self._checked(await client.list_objects_v2(Bucket=self._config.bucket, **parameters), "IsTruncated")

    async def _keys_on(self, page: Answer) -> list[str]:
        segments = [entry["Key"].removeprefix(self._base) for entry in page.get("Contents", ())]
        keys = [key for segment in segments if (key := names.key_in(segment)) is not None]
        long = [segment for segment in segments if names.is_long(segment)]
        for start in range(0, len(long), _LOOKS):
            found = await asyncio.gather(*map(self._key_of_long, long[start : start + _LOOKS]))
            keys += [key for key in found if key is not None]
        return keys

    async def _key_of_long(self, segment: str) -> str | None:
        """Return the key that the object's metadata tells, or None if the object is gone."""
        name = self._base + segment

        async def look(client: S3Client) -> Answer | None:
            try:
                return await client.head_object(Bucket=self._config.bucket, Key=name)
            except ClientError as exc:
                if code_of(exc) in _ABSENT_TO_HEAD:
                    return None
                raise

        with translated("list", _TO_LIST, self._config.place):
            answer = await self._read(look)
        if answer is None:
            return None
        key = names.key_of_long(segment, answer["Metadata"])
        if key is None:
            raise StoreCorruptedError(
                f"the metadata of the object {name!r} in {self._config.place} do not tell its key; save it again"
            )
        return key

    async def _expect_comparison(self, client: S3Client) -> None:
        """Raise ``StoreAccessError`` if the server does not compare versions. Asked once, of an object there is not."""
        if self._compares:
            return
        probe = self._at(names.PROBE)
        try:
            await client.put_object(**probe, **self._encryption, Body=b"", IfMatch=_NO_VERSION)
        except ClientError as exc:
            if status_of(exc) not in {409, 412} and code_of(exc) not in _ABSENT:
                raise
            self._compares = True
            return
        await client.delete_object(**probe)
        raise StoreAccessError(
            f"could not save to {self._config.place}: the server ignores If-Match, so compare-and-swap would lose "
            "saves; use a server with conditional writes"
        )

    def _expect_deletion(self, answer: Answer) -> None:
        """Raise ``StoreUnavailableError`` if what answered is no S3 server: an empty 200 may be anybody's."""
        said = answer["ResponseMetadata"]
        if said["HTTPStatusCode"] != 204 and not said.get("RequestId"):  # noqa: PLR2004 - the status has no other name
            raise StoreUnavailableError(
                f"{self._config.place} answered a deletion with {said['HTTPStatusCode']} and no request's id, so not "
                "as an S3 server does; check endpoint_url"
            )

    def _checked(self, answer: T, field: str) -> T:
        """Return ``answer`` if it has the field that S3's has: other servers may say 200 to everything."""
        if not isinstance(answer, dict) or answer.get(field) in {None, ""}:
            raise StoreUnavailableError(
                f"{self._config.place} answered without {field}, so not as an S3 server does; check endpoint_url"
            )
        return answer

    def _etag(self, answer: Answer | None) -> str:
        checked: Any = self._checked(answer, "ETag")
        return str(checked["ETag"])

    def _version(self, answer: Answer) -> str:
        version = str(answer["ETag"]).removeprefix('"').removesuffix('"')
        if not _VERSION.fullmatch(version):
            raise StoreAccessError(
                f"{self._config.place} answered with the ETag {version!r}, which cannot be compared; "
                "use a server with strong ETags"
            )
        return version


@asynccontextmanager
async def _borrowed(client: S3Client) -> AsyncIterator[S3Client]:
    """Give a client that is the caller's to close."""
    yield client


async def _settled(call: Callable[..., Awaitable[Answer]], parameters: Mapping[str, Any]) -> Answer:
    """Make a change. An answer of 409 says that the server did nothing, and wants to be asked again."""
    for pause in _PAUSES:
        try:
            return await call(**parameters)
        except ClientError as exc:
            if status_of(exc) != HTTPStatus.CONFLICT:
                raise
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - only to come at another time than others
    return await call(**parameters)


def _is_unmet(refusal: ClientError, seen: str | None) -> bool:
    """Return whether the server says that the object has not the ETag ``seen``. An absent one matches none."""
    return status_of(refusal) == HTTPStatus.PRECONDITION_FAILED or (seen is not None and code_of(refusal) in _ABSENT)


def _condition(seen: str | None) -> Mapping[str, str]:
    """Return the condition that the object has the ETag ``seen``, or is absent; none if the ETag is not comparable."""
    if seen is None:
        return {"IfNoneMatch": "*"}
    return {"IfMatch": seen} if _ETAG.fullmatch(seen) else {}
