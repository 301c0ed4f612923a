"""What is found of a bucket: what can hurt later, and what an acknowledged save outlives there.

The rights, the conditions and the encryption are tried with one object of its own under the prefix, whose name no key
has, and which is removed again with all its versions.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from contextlib import aclosing
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from dagonizer.diagnosis import DURABILITY, Finding
from dagonizer.errors import StoreUnavailableError
from dagonizer_s3 import _names as names
from dagonizer_s3._client import connected
from dagonizer_s3._errors import DENIED, UNSUPPORTED, code_of, status_of, translated

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
    from typing import TypeAlias

    from types_aiobotocore_s3 import S3Client

    from dagonizer_s3._config import S3Config

    Answer: TypeAlias = Mapping[str, Any]

_BODY = b"what dagonizer doctor tries the bucket with; remove it"
# An ETag that no object has.
_NO_VERSION = '"00000000000000000000000000000000"'
_STRONG = re.compile(r'"[A-Za-z0-9._:+/=-]{1,256}"')
_ABSENT = "NoSuchKey"
_NO_BUCKET = "NoSuchBucket"
_SKEWED = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_UNMET = 412
_HELD = frozenset({409, _UNMET})
# S3 refuses what was signed a quarter of an hour ago.
_SKEW, _MOST_SKEW = 300, 900
_NOT_FOUND = 404
_ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
_AMAZON = "AmazonS3"
_SEAWEED = "SeaweedFS"
_DIRECTORY_BUCKET = "--x-s3"
_TO_EXAMINE = "s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket"
_TO_PURGE = "grant s3:ListBucketVersions and s3:DeleteObjectVersion, and remove them"
_LIFECYCLE = "s3:GetLifecycleConfiguration"
_CREATE = "create the bucket, or correct its name: the store never creates one"
_SET_CLOCK = "set this machine's clock, or the server's: timedatectl set-ntp true"
_LATE = "what was given up and is carried out late may undo a later save"
_CONDITIONAL = "use a server with conditional writes and deletions"
_OTHER_PREFIX = "take the prefix of the store out of the rule, or give the store a bucket or prefix of its own"
_NO_RETENTION = "use a bucket without a default retention"


class _Said(NamedTuple):
    """What the server answered: its code, which is empty if it did what it was asked, its status, and the rest."""

    code: str
    status: int
    answer: Answer

    @property
    def is_denied(self) -> bool:
        """Whether the caller may not."""
        return self.code in DENIED or self.status in {401, 403}

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the answer, their names in lower case."""
        headers: Mapping[str, str] = self.answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return headers

    def __str__(self) -> str:
        return " ".join(dict.fromkeys((str(self.status), self.code)))


class _Tried(NamedTuple):
    """A condition of a save, what the server answered, and whether the condition holds."""

    name: str
    said: _Said
    holds: bool

    @property
    def is_ignored(self) -> bool:
        """Whether the server has done what it must not."""
        return not self.said.code and not self.holds

    @property
    def is_unmet(self) -> bool:
        """Whether the server says that the condition does not hold. An absent object matches no version."""
        return self.said.status == _UNMET or self.said.code == _ABSENT

    @property
    def is_refused(self) -> bool:
        """Whether the server has not done what it must, or refuses it for another reason than the condition."""
        return bool(self.said.code) and (self.holds or not (self.is_unmet or self.said.status in _HELD))


async def diagnose(config: S3Config) -> AsyncIterator[Finding]:
    """Yield what is found of the bucket of ``config``. Raises ``StoreError`` when nothing more can be found.

    A request may take as long as an operation of the store.
    """
    with translated("examine", _TO_EXAMINE, config.place):
        async with connected(config) as client, aclosing(_Examination(client, config).findings()) as findings:
            # The environment or the profile may name another server than the URL does.
            yield _tls(client.meta.endpoint_url)
            async for finding in findings:
                yield finding


class _Examination:
    """The questions to one bucket. Every method raises what the SDK raises."""

    def __init__(self, client: S3Client, config: S3Config) -> None:
        self._client: Any = client
        self._config = config
        self._base = f"{config.prefix}/" if config.prefix else ""
        self._key = self._base + names.new_probe()
        encryption = (("ServerSideEncryption", config.sse), ("SSEKMSKeyId", config.sse_kms_key_id))
        self._object = {"Key": self._key, "Body": _BODY, **{name: value for name, value in encryption if value}}

    async def findings(self) -> AsyncGenerator[Finding, None]:
        """Yield what is found, as it is found."""
        absent = await self._ask("get_object", Key=self._key)
        now = time.time()
        if not absent.code:
            raise StoreUnavailableError(
                f"{self._config.place} answered with an object where there is none, so not as an S3 server does; "
                "check endpoint_url"
            )
        if absent.code == _NO_BUCKET:
            yield Finding("bucket", "bad", f"there is no {self._config.bucket!r} at this server", _CREATE)
            yield Finding(DURABILITY, "bad", "nothing can be saved without the bucket", _CREATE)
            return
        yield _clock(absent, now)
        if absent.code in _SKEWED:
            yield Finding(DURABILITY, "bad", "the server refuses every save for its time", _SET_CLOCK)
            return
        if absent.code not in {_ABSENT, *DENIED}:
            # It says itself what is wrong.
            raise self._error(absent)
        head = await self._ask("head_bucket")
        yield _bucket(self._config, absent, head)
        yield _absent_keys(absent)
        yield _region(str(self._client.meta.region_name), head)
        lifecycle = await self._ask("get_bucket_lifecycle_configuration")
        rules = [rule for rule in lifecycle.answer.get("Rules", ()) if _covers(rule, self._base)]
        yield _lifecycle(lifecycle, rules)
        versioning = await self._ask("get_bucket_versioning")
        yield _versioning(versioning, rules)
        lock = await self._ask("get_object_lock_configuration")
        server = absent.headers.get("server", "")
        is_amazon = _is_amazon(_name_in(str(self._client.meta.endpoint_url)), server)
        yield _object_lock(lock, is_amazon=is_amazon)
        if _retention(lock):
            message = "not tried, for what is put into this bucket cannot be removed before its time"
            yield Finding("permissions", "note", message, _NO_RETENTION)
        else:
            for finding in await self._try_an_object(absent, versioned="Status" in versioning.answer):
                yield finding
        yield _durability(self._config.bucket, server, is_amazon=is_amazon)

    async def _try_an_object(self, absent: _Said, *, versioned: bool) -> list[Finding]:
        """Put, get and delete an object, and return what is found of it."""
        findings: list[Finding] = []
        try:
            # First what is needed to tidy up.
            deleted = await self._ask("delete_object", Key=self._key)
            if deleted.is_denied:
                findings.append(_may_not("delete", "s3:DeleteObject", deleted))
            else:
                self._expect_done(deleted)
                findings += await self._use_the_object(absent=absent)
        finally:
            left = await self._remove(versioned=versioned)
        if left:
            message = f"something of the object {self._key!r} stays: {left}"
            findings.append(Finding("probe", "note", message, _TO_PURGE))
        return findings

    async def _use_the_object(self, *, absent: _Said) -> list[Finding]:
        tried: list[_Tried] = []
        if absent.code == _ABSENT:
            # A server that does not tell what is absent does not say either what it compares with.
            tried.append(await self._put_if("If-Match at an absent object", holds=False, IfMatch=_NO_VERSION))
            if not tried[0].said.code:
                self._expect_done(await self._ask("delete_object", Key=self._key))
        first = await self._put_if("If-None-Match: * at an absent object", holds=True, IfNoneMatch="*")
        put = await self._ask("put_object", **self._object) if first.said.code else first.said
        if put.is_denied:
            return [_may_not("put", "s3:PutObject, and use of the KMS key if one encrypts the object", put)]
        self._expect_done(put)
        got = await self._ask("get_object", Key=self._key)
        if got.is_denied:
            return [_may_not("get", "s3:GetObject", got)]
        self._expect_done(got)
        listed = await self._ask("list_objects_v2", Prefix=self._key, MaxKeys=1)
        if not listed.is_denied:
            self._expect_done(listed)
        head = await self._ask("head_object", Key=self._key)
        tried += [first, *await self._replace_under_conditions(str(put.answer.get("ETag")))]
        return [
            _may_not("list", "s3:ListBucket on the bucket", listed)
            if listed.is_denied
            else Finding("permissions", "good", "the store may put, get, delete and list objects"),
            _conditional_writes(tried),
            _conditional_deletes(await self._ask("delete_object", Key=self._key, IfMatch=_NO_VERSION)),
            _etag(str(put.answer.get("ETag"))),
            _at_rest(head),
        ]

    async def _replace_under_conditions(self, version: str) -> list[_Tried]:
        """Try the conditions at the object, which has ``version``."""
        tried = [
            await self._put_if("If-None-Match: *", holds=False, IfNoneMatch="*"),
            await self._put_if("If-Match with another version", holds=False, IfMatch=_NO_VERSION),
        ]
        if _STRONG.fullmatch(version):
            tried.append(await self._put_if("If-Match with its version", holds=True, IfMatch=version))
        return tried

    async def _put_if(self, name: str, *, holds: bool, **condition: str) -> _Tried:
        return _Tried(name, await self._ask("put_object", **self._object, **condition), holds)

    async def _remove(self, *, versioned: bool) -> str:
        """Remove the object with all its versions, and return why some stay."""
        deleted = await self._ask("delete_object", Key=self._key)
        if deleted.code:
            # A caller who may not delete has put nothing.
            return "" if deleted.is_denied else str(deleted)
        if not versioned and not {"VersionId", "DeleteMarker"} & deleted.answer.keys():
            return ""
        # Some servers say that they have removed a marker, and have not.
        for remove in (True, False):
            versions = await self._ask("list_object_versions", Prefix=self._key)
            if versions.code:
                return f"its versions are not told, {versions}"
            for version in (*versions.answer.get("Versions", ()), *versions.answer.get("DeleteMarkers", ())):
                removed = await self._ask("delete_object", Key=self._key, VersionId=version["VersionId"])
                if removed.code or not remove:
                    return f"the version {version['VersionId']!r}, {removed}"
        return ""

    async def _ask(self, operation: str, **parameters: Any) -> _Said:  # noqa: ANN401 - untyped
        async with asyncio.timeout(self._config.timeout):
            try:
                answer = await getattr(self._client, operation)(Bucket=self._config.bucket, **parameters)
                if "Body" in answer:
                    async with answer["Body"] as body:
                        answer = {**answer, "Body": await body.read()}
            except ClientError as exc:
                return _Said(code_of(exc), status_of(exc), exc.response)
        return _Said("", 200, answer)

    def _expect_done(self, said: _Said) -> None:
        if said.code:
            raise self._error(said)

    def _error(self, said: _Said) -> ClientError:
        return ClientError(dict(said.answer), "examination")


def _tls(endpoint_url: str) -> Finding:
    if endpoint_url.startswith("https:"):
        return Finding("tls", "good", "the connections are encrypted")
    name = _name_in(endpoint_url)
    if _is_loopback(name):
        return Finding("tls", "good", "the connections are not encrypted, and do not leave this machine")
    message = f"the connections to {name} are not encrypted: the network sees every checkpoint"
    return Finding("tls", "warning", message, "?endpoint_url=https://…, and ?ca_bundle= if its authority is your own")


def _clock(said: _Said, now: float) -> Finding:
    date = said.headers.get("date", "")
    try:
        ahead = now - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return Finding("clock", "note", "the server does not tell its time", _SET_CLOCK)
    message = f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if said.code in _SKEWED or abs(ahead) >= _MOST_SKEW:
        return Finding("clock", "bad", f"{message}, which refuses what differs by more than 15 minutes", _SET_CLOCK)
    if abs(ahead) >= _SKEW:
        return Finding("clock", "warning", f"{message}: beyond 15 minutes it refuses everything", _SET_CLOCK)
    return Finding("clock", "good", "this machine's clock agrees with the server's")


def _bucket(config: S3Config, absent: _Said, head: _Said) -> Finding:
    if absent.code == _ABSENT or not head.code:
        return Finding("bucket", "good", f"the bucket {config.bucket!r} exists")
    if head.status == _NOT_FOUND:
        return Finding("bucket", "bad", f"there is no {config.bucket!r} at this server", _CREATE)
    return _untold("bucket", f"whether {config.bucket!r} exists", "s3:ListBucket", head)


def _absent_keys(absent: _Said) -> Finding:
    if absent.code == _ABSENT:
        return Finding("absent-keys", "good", "the server says of an absent key that it is absent")
    return Finding(
        "absent-keys",
        "bad",
        f"the server answers {absent} for an absent key: a load of one raises StoreAccessError and does not say None",
        "grant s3:ListBucket on the bucket, without a condition, and s3:GetObject",
    )


def _region(signed: str, head: _Said) -> Finding:
    told = head.headers.get("x-amz-bucket-region")
    if told is None:
        return Finding("region", "good", f"the server does not tell the bucket's region; {signed} is signed for")
    if told == signed:
        return Finding("region", "good", f"the bucket is in {told}, which is signed for")
    message = f"the bucket is in {told}, and {signed} is signed for: requests are sent in vain before they arrive"
    return Finding("region", "warning", message, f"?region={told}")


def _covers(rule: Mapping[str, Any], base: str) -> bool:
    """Return whether a lifecycle rule is about objects of the store, which have no tags and no slash after ``base``."""
    chosen = rule.get("Filter") or {}
    chosen = chosen.get("And") or chosen
    if rule.get("Status") != "Enabled" or chosen.get("Tag") or chosen.get("Tags"):
        return False
    prefix = str(chosen.get("Prefix", rule.get("Prefix", "")))
    return base.startswith(prefix) or (prefix.startswith(base) and "/" not in prefix.removeprefix(base))


def _lifecycle(said: _Said, rules: Sequence[Mapping[str, Any]]) -> Finding:
    if said.code == "NoSuchLifecycleConfiguration":
        return Finding("lifecycle", "good", "the bucket has no lifecycle rule")
    if said.code:
        return _untold("lifecycle", "its lifecycle rules, of which one may expire checkpoints", _LIFECYCLE, said)
    for rule in rules:
        expiration = rule.get("Expiration", {})
        if "Days" in expiration or "Date" in expiration:
            time_of = f"{expiration['Days']} days after their last save" if "Days" in expiration else expiration["Date"]
            message = f"the lifecycle rule {rule.get('ID', '')!r} deletes checkpoints: {time_of}"
            return Finding("lifecycle", "bad", message, _OTHER_PREFIX)
    for rule in rules:
        archives = _ARCHIVES.intersection(move.get("StorageClass") for move in rule.get("Transitions", ()))
        if archives:
            message = f"the lifecycle rule {rule.get('ID', '')!r} archives checkpoints in {', '.join(sorted(archives))}"
            return Finding("lifecycle", "warning", f"{message}, from where they are not loaded", _OTHER_PREFIX)
    return Finding("lifecycle", "good", "no lifecycle rule deletes or archives checkpoints")


def _versioning(said: _Said, rules: Sequence[Mapping[str, Any]]) -> Finding:
    if said.code:
        return _untold("versioning", "whether it keeps old versions", "s3:GetBucketVersioning", said)
    status = said.answer.get("Status")
    if status is None:
        return Finding("versioning", "good", "the bucket keeps no old versions")
    if any("NoncurrentVersionExpiration" in rule for rule in rules):
        return Finding("versioning", "good", f"versioning is {status}, and a lifecycle rule removes old versions")
    stay = "every checkpoint that is replaced or deleted stays" if status == "Enabled" else "the old versions stay"
    return Finding(
        "versioning",
        "note",
        f"versioning is {status}, and no lifecycle rule is known that removes old versions: {stay}",
        "a lifecycle rule with NoncurrentVersionExpiration, and ExpiredObjectDeleteMarker, for the prefix",
    )


def _retention(said: _Said) -> str | None:
    """Return how long each object is locked by default."""
    rule = said.answer.get("ObjectLockConfiguration", {}).get("Rule", {}).get("DefaultRetention")
    if not rule:
        return None
    time_of = f"{rule['Days']} days" if rule.get("Days") else f"{rule.get('Years')} years"
    return f"{rule.get('Mode')}, {time_of}"


def _object_lock(said: _Said, *, is_amazon: bool) -> Finding:
    if said.code == "ObjectLockConfigurationNotFoundError":
        return Finding("object-lock", "good", "the bucket locks no objects")
    if said.code:
        return _untold("object-lock", "whether it locks objects", "s3:GetBucketObjectLockConfiguration", said)
    retention = _retention(said)
    if retention is None:
        return Finding("object-lock", "good", "the bucket locks no objects by default")
    if is_amazon:
        message = f"every object is locked ({retention}): S3 refuses what is put without a checksum, and so every save"
        return Finding("object-lock", "bad", message, _NO_RETENTION)
    message = f"every version of a checkpoint is locked ({retention}): what is replaced or deleted stays for that time"
    return Finding("object-lock", "note", message, f"{_NO_RETENTION}, unless that is wanted")


def _may_not(verb: str, permission: str, said: _Said) -> Finding:
    return Finding("permissions", "bad", f"the store may not {verb} objects: {said}", f"grant {permission}")


def _conditional_writes(tried: Sequence[_Tried]) -> Finding:
    ignored = [condition.name for condition in tried if condition.is_ignored]
    refused = [condition for condition in tried if condition.is_refused]
    # What holds, and is said not to, the store sends without a condition after some tries.
    failing = [condition for condition in refused if not condition.is_unmet and condition.said.code not in UNSUPPORTED]
    if failing:
        shown = ", ".join(f"{condition.name} ({condition.said})" for condition in failing)
        message = f"the server refuses {shown}, and so saves, which have that condition"
        return Finding("conditional-writes", "bad", message, _CONDITIONAL)
    if ignored or refused:
        unknown = [
            *(f"ignores {name}" for name in ignored),
            *(f"refuses {condition.name} ({condition.said})" for condition in refused),
        ]
        only_conflicts = not ignored and all(condition.is_unmet for condition in refused)
        swaps = "always conflicts" if only_conflicts else "raises StoreAccessError"
        message = f"the server {', '.join(unknown)}: compare-and-swap {swaps}, and {_LATE}"
        return Finding("conditional-writes", "warning", message, _CONDITIONAL)
    return Finding("conditional-writes", "good", "the server honours If-Match and If-None-Match of a save")


def _conditional_deletes(said: _Said) -> Finding:
    if said.status in _HELD:
        return Finding("conditional-deletes", "good", "the server honours If-Match of a deletion")
    if said.code and said.code not in UNSUPPORTED:
        message = f"the server refuses If-Match of a deletion ({said}), and so deletions, which have that condition"
        return Finding("conditional-deletes", "bad", message, _CONDITIONAL)
    what = f"refuses If-Match of a deletion ({said})" if said.code else "ignores If-Match of a deletion"
    return Finding("conditional-deletes", "note", f"the server {what}: {_LATE}", _CONDITIONAL)


def _etag(etag: str) -> Finding:
    if not _STRONG.fullmatch(etag):
        message = f"the ETag {etag!r} cannot be compared: compare-and-swap raises StoreAccessError, and {_LATE}"
        return Finding("etag", "warning", message, "use a server with strong ETags")
    if etag.strip('"') == hashlib.md5(_BODY, usedforsecurity=False).hexdigest():
        message = "a version is the MD5 of the text: who chooses the texts can make two with the same version"
        return Finding("etag", "note", message, "?sse=aws:kms on AWS, if writers do not trust each other")
    return Finding("etag", "good", "a version is more than the MD5 of the text")


def _at_rest(head: _Said) -> Finding:
    by = head.answer.get("ServerSideEncryption")
    if by is not None:
        return Finding("encryption", "good", f"the server encrypts what it stores ({by})")
    message = "the server does not say that it encrypts what it stores"
    return Finding("encryption", "note", message, "?sse=AES256, or a default encryption of the bucket, if it matters")


def _durability(bucket: str, server: str, *, is_amazon: bool) -> Finding:
    if is_amazon:
        if bucket.endswith(_DIRECTORY_BUCKET):
            message = "S3 keeps an acknowledged save in one availability zone: it outlives any machine, not the zone"
            return Finding(DURABILITY, "note", message, "use a general purpose bucket, which has several zones")
        message = "S3 keeps an acknowledged save in several availability zones: it outlives any machine, and a zone"
        return Finding(DURABILITY, "good", message)
    if server.startswith(_SEAWEED):
        return Finding(
            DURABILITY,
            "note",
            f"{server} hands an acknowledged save to the operating system: it outlives the process, and the machine "
            "only if volumes are replicated or flushed",
            f"in weed shell: fs.configure -locationPrefix=/buckets/{bucket}/ -replication=001 -fsync -apply",
        )
    return Finding(
        DURABILITY,
        "note",
        f"an acknowledged save outlives what this server ({server or 'it does not tell its name'}) is configured for",
        "see there how many copies it keeps before it acknowledges, and whether it flushes them",
    )


def _is_amazon(name: str, server: str) -> bool:
    return server == _AMAZON or re.search(r"\.amazonaws\.com(\.cn)?$", name) is not None


def _name_in(endpoint_url: str) -> str:
    return urlsplit(endpoint_url).hostname or ""


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name.rstrip(".").lower() == "localhost"


def _untold(check: str, what: str, permission: str, said: _Said) -> Finding:
    remedy = f"grant {permission} to examine it" if said.is_denied else "see its own documentation and configuration"
    return Finding(check, "note", f"the server does not tell {what}: {said}", remedy)
