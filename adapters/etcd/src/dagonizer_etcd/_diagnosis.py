"""What is found of a cluster: what can hurt later, and what an acknowledged save outlives there.

It reads, and sends transactions under a condition that never holds: those tell what the server permits and accepts.
Even without their condition they would do no more than delete keys that no entry has. They put nothing, for a value
that does not fit into the quota raises an alarm, and ends all saves.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing, closing
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dagonizer.diagnosis import DURABILITY, Finding
from dagonizer.errors import StoreAccessError, StoreLimitError
from dagonizer_etcd._config import address
from dagonizer_etcd._errors import COMPACTED, NO_LEADER, NO_SPACE, NO_USER, Code, Failure, translated
from dagonizer_etcd._store import Names, connector, end_of
from dagonizer_etcd._transport import Condition, Delete, Range, Status, Txn, tls_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Mapping, Sequence
    from typing import TypeAlias

    from dagonizer.url import Host
    from dagonizer_etcd._config import EtcdConfig
    from dagonizer_etcd._transport import Alarm, Cluster, Member

    Metrics: TypeAlias = Mapping[str, Mapping[str, float]]

T = TypeVar("T")

_OLDEST = (3, 4)
_FIRST_LOSING, _FIRST_MENDED = (3, 5, 0), (3, 5, 3)
# The first of each minor version that outlives a client that is cut off in a transaction of reads.
_FIRST_OUTLIVING = {(3, 4): 23, (3, 5): 7}
_GOOD_VERSION = "use etcd 3.5.7 or later, or 3.4.23 or later of 3.4"
_NUMBERS = re.compile(r"(\d+)\.(\d+)\.(\d+)")
# No revision is so, and no entry has so long a key.
_NEVER = -1
_NOWHERE = b"x" * 1025
_SMALLEST_CHUNK = 1024
_MORE_BYTES = 100 << 10
_TIGHT = 0.8
_MUCH = 32 << 20
_LONG_HISTORY = 10_000
_PAIR, _ENOUGH = 2, 3
_METRIC = re.compile(
    rb"^(etcd_[a-z_]+|process_start_time_seconds|etcd_server_id\{[^{}]*\}) ([-0-9.e+]+)$", re.MULTILINE
)
# What tells one process from others. The second has the member's number in its label.
_PROCESS = ("process_start_time_seconds", "etcd_server_id{")
_MOST_METRICS = 16 << 20
_QUOTA = "etcd_server_quota_backend_bytes"
_FLUSHED = ("etcd_disk_wal_fsync_duration_seconds_count", "etcd_server_proposals_applied_total")
# The flush of a write may come after its answer, but not after that of a later one.
_WRITES, _ROUNDS = 3, 3
_AUTO_COMPACTION = "start the members with --auto-compaction-mode=revision --auto-compaction-retention=1000"
_MAKE_ROOM = "etcdctl compact REVISION, etcdctl defrag, etcdctl alarm disarm; then"
_CORRUPT = "CORRUPT"
_REPLACE = (
    "replace that member: etcdctl member remove, etcdctl member add, start it with an empty data directory; "
    "then etcdctl alarm disarm"
)
_AS_ROOT = "examine it as a user with the role root, or see"


class _Told(NamedTuple):
    """What a host says of itself."""

    where: str
    status: Status


class _Flushing(NamedTuple):
    """The hosts that were seen to flush what they write, and those that were seen not to."""

    does: frozenset[str]
    does_not: frozenset[str]


async def diagnose(config: EtcdConfig) -> AsyncIterator[Finding]:
    """Yield what is found of the cluster that ``config`` names. Raises ``StoreError`` when nothing more can be found.

    A request may take as long as an operation of the store.
    """
    yield _tls(config)
    with translated("examine the cluster", config.where):
        async with connector(config)() as cluster, aclosing(_Examination(cluster, config).findings()) as findings:
            async for finding in findings:
                yield finding


class _Examination:
    """The questions to one cluster. Every method raises ``Failure``."""

    def __init__(self, cluster: Cluster, config: EtcdConfig) -> None:
        self._cluster = cluster
        self._config = config
        self._names = Names(config.prefix)

    async def findings(self) -> AsyncGenerator[Finding, None]:
        """Yield what is found, as it is found."""
        statuses = await self._within(self._cluster.statuses())
        told = [_Told(where, said) for where, said in statuses if isinstance(said, Status)]
        failures = [said for _, said in statuses if isinstance(said, Failure)]
        leaderless = [failure.where for failure in failures if failure.details.startswith(NO_LEADER)]
        if not told and not leaderless and not all(map(_is_kept_back, failures)):
            raise failures[0]
        for finding in (*_hosts(told, failures), _version(told), _leader(told, leaderless)):
            yield finding
        if leaderless and not told:
            yield Finding(DURABILITY, "bad", "no save is acknowledged while the cluster has no leader")
            return
        members = await self._members()
        for finding in _members(members, told, self._config):
            yield finding
        alarms = await self._alarms()
        yield _alarms(alarms)
        if not isinstance(alarms, Failure) and any(alarm.kind == _CORRUPT for alarm in alarms):
            yield Finding(DURABILITY, "bad", "nothing can be saved while the data of a member are corrupt", _REPLACE)
            return
        yield await self._auth()
        permissions = await self._permissions()
        yield permissions
        metrics = await self._metrics()
        flushing = _Flushing(frozenset(), frozenset())
        if permissions.verdict == "good":
            yield await self._request_limit()
            yield await self._compaction()
            flushing = await self._flushing(metrics)
        yield _quota(told, metrics)
        yield _fragmentation(told)
        yield _durability(members, flushing)

    async def _members(self) -> list[Member] | Failure:
        """Return the members, or why nobody tells them."""
        try:
            return await self._within(self._cluster.members())
        except Failure as failure:
            if not _is_kept_back(failure):
                raise
            return failure

    async def _alarms(self) -> list[Alarm] | Failure:
        """Return the alarms that are on, or why nobody tells them."""
        try:
            return await self._within(self._cluster.alarms())
        except Failure as failure:
            if not _is_kept_back(failure):
                raise
            return failure

    async def _auth(self) -> Finding:
        if not await self._within(self._cluster.has_users()):
            return Finding(
                "auth",
                "note",
                "authentication is not enabled: whoever reaches the port can read and change every checkpoint",
                "let trusted machines only reach the port, or make a user as the README does, and: etcdctl auth enable",
            )
        return Finding("auth", "good", "authentication is enabled: the server asks for a user")

    async def _permissions(self) -> Finding:
        prefix = f"{self._config.prefix}//"
        for verb, attempt in (("read", self._read_everywhere), ("write", self._write_nothing)):
            try:
                await attempt()
            except Failure as failure:
                if NO_SPACE in failure.details:
                    message = f"whether the store may {verb} below {prefix}: it is full, and refuses everything"
                    return _untold("permissions", message, "etcdctl role get, until there is room")
                if failure.verdict[0] is not StoreAccessError:
                    raise
                message = f"the store may not {verb} below {prefix}: {failure.details}"
                grant = f"etcdctl role grant-permission ROLE readwrite --prefix {prefix}"
                remedy = failure.verdict[1] if NO_USER in failure.details else grant
                return Finding("permissions", "bad", message, remedy)
        return Finding("permissions", "good", f"the store may read and write below {prefix}")

    async def _read_everywhere(self) -> None:
        """Read where the store may read."""
        for root in self._names.roots:
            await self._within(self._cluster.range(Range(root, end_of(root), limit=1, keys_only=True)))

    async def _request_limit(self) -> Finding:
        chunk = accepted = self._config.chunk_bytes
        while accepted >= _SMALLEST_CHUNK and not await self._accepts(accepted):
            accepted //= 2
        if accepted == chunk:
            return Finding("request-limit", "good", f"the server accepts requests with chunk_bytes={chunk}")
        smaller = f"?chunk_bytes={accepted}, which it accepts, or " if accepted >= _SMALLEST_CHUNK else ""
        return Finding(
            "request-limit",
            "bad",
            f"the server refuses requests with chunk_bytes={chunk}: saves of texts about as long or longer fail",
            f"{smaller}start the members with --max-request-bytes={chunk + _MORE_BYTES}",
        )

    async def _compaction(self) -> Finding:
        entries = self._names.entry_root
        present = await self._within(self._cluster.range(Range(entries)))
        try:
            await self._within(self._cluster.range(Range(entries, revision=1)))
        except Failure as failure:
            if COMPACTED not in failure.details:
                raise
            return Finding("compaction", "good", f"of the {present.revision} revisions old ones have been compacted")
        return Finding(
            "compaction",
            "warning" if present.revision > _LONG_HISTORY else "note",
            f"none of the revisions up to {present.revision} was compacted: etcd keeps every old value until it is",
            f"{_AUTO_COMPACTION}, unless they are",
        )

    async def _metrics(self) -> Metrics:
        """Return the metrics of each host that tells them."""
        context = await asyncio.to_thread(tls_context, self._config) if self._config.tls else None
        hosts = self._config.hosts
        told = await asyncio.gather(*(_metrics_of(host, self._config, context) for host in hosts))
        return {address(host): metrics for host, metrics in zip(hosts, told, strict=True) if metrics}

    async def _flushing(self, before: Metrics) -> _Flushing:
        """Find out who flushes, by writes that change nothing but the log."""
        does: set[str] = set()
        does_not: set[str] = set()
        # Behind one address there may be several members, each of which counts for itself, from its start on.
        first = {(where, _process(metrics)): metrics for where, metrics in before.items()}
        # A member that has fallen behind may not have got to the first ones yet.
        for _ in range(_ROUNDS):
            if before.keys() <= does | does_not:
                break
            for _ in range(_WRITES):
                await self._write_nothing()
            for where, now in (await self._metrics()).items():
                then = first.setdefault((where, _process(now)), now)
                flushes, applied = (now.get(name, 0) - then.get(name, 0) for name in _FLUSHED)
                if flushes > 0:
                    does.add(where)
                elif not flushes and applied >= _WRITES:
                    does_not.add(where)
        return _Flushing(frozenset(does), frozenset(does_not))

    async def _accepts(self, size: int) -> bool:
        """Return whether the server accepts a request with a value of ``size`` bytes."""
        key = self._names.entry(_NOWHERE)
        try:
            await self._within(self._cluster.txn(Txn((Condition(key, "VALUE", "EQUAL", bytes(size)),), (Delete(key),))))
        except Failure as failure:
            if failure.verdict[0] is not StoreLimitError:
                raise
            return False
        return True

    async def _write_nothing(self) -> None:
        """Write wherever the store may write, and change nothing."""
        # The roots themselves are keys of nothing.
        roots = self._names.roots
        txn = Txn((Condition(roots[0], "MOD", "EQUAL", _NEVER),), tuple(map(Delete, roots)))
        await self._within(self._cluster.txn(txn))

    async def _within(self, call: Awaitable[T]) -> T:
        async with asyncio.timeout(self._config.timeout):
            return await call


def _tls(config: EtcdConfig) -> Finding:
    if config.tls:
        return Finding("tls", "good", "the connections are encrypted")
    afar = [host.name for host in config.hosts if not _is_loopback(host.name)]
    if not afar:
        return Finding("tls", "good", "the connections are not encrypted, and do not leave this machine")
    secret = ", the password among it" if config.password is not None else ""
    secure = "etcd+https" if config.gateway else "etcds"
    return Finding(
        "tls",
        "warning",
        f"the connections to {', '.join(afar)} are not encrypted: the network sees all that is sent{secret}",
        f"give the members a certificate (--cert-file, --key-file), and write {secure}:",
    )


def _hosts(told: Sequence[_Told], failures: Sequence[Failure]) -> Iterator[Finding]:
    silent = [failure for failure in failures if failure.is_unavailability and NO_LEADER not in failure.details]
    for failure in silent:
        message = f"{failure.where} does not answer: {failure.details or failure.code.name}"
        yield Finding("hosts", "warning", message, "start that member, or take it out of the URL")
    for failure in failures:
        if not failure.is_unavailability:
            yield _untold("hosts", f"what {failure.where} is: {failure.details}", "etcdctl endpoint status")
    if len({status.cluster for _, status in told}) > 1:
        wheres = ", ".join(where for where, _ in told)
        yield Finding(
            "hosts",
            "bad",
            f"{wheres} are not members of one cluster: what is saved in one is not found in another",
            "name members of one cluster only",
        )
    if told and not failures and len({status.cluster for _, status in told}) == 1:
        yield Finding("hosts", "good", f"each host of the URL answers: {', '.join(where for where, _ in told)}")


def _version(told: Sequence[_Told]) -> Finding:
    versions = sorted({status.version for _, status in told})
    if not versions:
        return _untold("version", "its version", "etcdctl endpoint status")
    shown = " and ".join(versions)
    numbers = [tuple(map(int, found.groups())) for found in map(_NUMBERS.match, versions) if found]
    if any(number < _OLDEST for number in numbers):
        return Finding("version", "bad", f"etcd is {shown}, too old for this store", _GOOD_VERSION)
    if any(_FIRST_LOSING <= number < _FIRST_MENDED for number in numbers):
        return Finding(
            "version",
            "warning",
            f"etcd is {shown}: 3.5.0 to 3.5.2 may lose what they have acknowledged when they are killed under load "
            "(https://github.com/etcd-io/etcd/issues/13766)",
            _GOOD_VERSION,
        )
    if any(patch < _FIRST_OUTLIVING.get((major, minor), 0) for major, minor, patch in numbers):
        return Finding(
            "version",
            "note",
            f"etcd is {shown}: before 3.4.23 and 3.5.7 it ends when a client is cut off in a transaction that only "
            "reads (https://github.com/etcd-io/etcd/issues/14110); this store sends none, but other programs may",
            _GOOD_VERSION,
        )
    if len(versions) > 1:
        return Finding("version", "note", f"the members run several versions: {shown}", "end the upgrade")
    return Finding("version", "good", f"etcd is {shown}")


def _leader(told: Sequence[_Told], leaderless: Sequence[str]) -> Finding:
    without = [*leaderless, *(where for where, status in told if not status.leader)]
    leaders = sorted({f"{status.leader:x}" for _, status in told if status.leader})
    if not without:
        return Finding("leader", "good", f"the cluster has a leader: {', '.join(leaders) or 'it is not told which'}")
    return Finding(
        "leader",
        "warning" if leaders else "bad",
        f"{', '.join(without)} has no leader: it does not reach a majority of the members, and refuses everything",
        "start the members that are down, and see that they reach each other's peer URLs",
    )


def _members(members: Sequence[Member] | Failure, told: Sequence[_Told], config: EtcdConfig) -> Iterator[Finding]:
    if isinstance(members, Failure):
        yield _untold("members", f"its members: {members.details}", "etcdctl member list")
        return
    voters = [member for member in members if not member.is_learner]
    yield _size(len(voters))
    for member in members:
        if not member.name:
            counts = "and does not count" if member.is_learner else "but counts for the majority"
            yield Finding(
                "members",
                "note" if member.is_learner else "warning",
                f"the member {member.number:x} was added and never started, {counts}",
                f"start it, or: etcdctl member remove {member.number:x}",
            )
    learners = {member.number: member.name for member in members if member.is_learner and member.name}
    asked = {status.member: where for where, status in told}
    for number, name in learners.items():
        yield Finding(
            "members",
            "warning" if number in asked else "note",
            f"the member {name!r} is a learner: it counts for no majority"
            + (f", and {asked[number]} of the URL refuses what it is asked" if number in asked else ""),
            f"etcdctl member promote {number:x}, when it has caught up",
        )
    named = len(set(config.hosts))
    if named < len(voters):
        yield Finding(
            "failover",
            "note",
            f"the URL names {named} of {len(voters)} members: when those fail, the store does not try the others",
            "name every member, host1,host2,host3, unless the host stands for all of them",
        )
    else:
        yield Finding("failover", "good", "the URL names as many hosts as the cluster has members")


def _size(voters: int) -> Finding:
    spare = _spare(voters)
    remedy = "use three members, or five"
    if voters == 1:
        return Finding("members", "note", "the cluster has one member: nothing can be saved while it is down", remedy)
    if voters == _PAIR:
        message = "the cluster has two members: nothing can be saved while one of them is down, so it fails more often"
        return Finding("members", "warning", f"{message} than one alone", "add a third member")
    message = f"the cluster has {voters} members, and works without {spare} of them"
    if voters % 2 == 0:
        return Finding("members", "note", f"{message}, as it would with {voters - 1}", remedy)
    return Finding("members", "good", message)


def _spare(voters: int) -> int:
    """Return how many of the members may fail."""
    return (voters - 1) // 2


def _alarms(alarms: Sequence[Alarm] | Failure) -> Finding:
    if isinstance(alarms, Failure):
        return _untold("alarms", f"whether an alarm is on: {alarms.details}", "etcdctl alarm list")
    if not alarms:
        return Finding("alarms", "good", "no alarm is on")
    shown = ", ".join(f"{alarm.kind} of the member {alarm.member:x}" for alarm in alarms)
    if not any(alarm.kind == _CORRUPT for alarm in alarms):
        message = f"an alarm is on, {shown}: the quota is used up, and every save is refused"
        return Finding("alarms", "bad", message, f"{_MAKE_ROOM} raise --quota-backend-bytes, or {_AUTO_COMPACTION}")
    message = f"an alarm is on, {shown}: a member holds other data than the rest, and the cluster refuses everything"
    return Finding("alarms", "bad", message, _REPLACE)


def _quota(told: Sequence[_Told], metrics: Metrics) -> Finding:
    quotas = [(where, status, metrics[where][_QUOTA]) for where, status in told if _QUOTA in metrics.get(where, {})]
    if not quotas:
        sizes = f"; {_shown(max(status.size for _, status in told))} are used" if told else ""
        message = f"its quota, for it does not serve /metrics here{sizes}. Without --quota-backend-bytes it is 2 GiB"
        return _untold("quota", message, "its command line")
    unlimited = [where for where, _, quota in quotas if quota <= 0]
    if unlimited:
        message = f"{', '.join(unlimited)} has no quota: the file grows until the disk is full"
        return Finding("quota", "note", message, "start the members with --quota-backend-bytes=8589934592")
    where, status, quota = max(quotas, key=lambda told: told[1].size / told[2])
    message = f"{where} uses {_shown(status.size)} of its quota of {_shown(quota)} ({status.size / quota:.0%})"
    if status.size < _TIGHT * quota:
        return Finding("quota", "good", message)
    remedy = f"{_MAKE_ROOM} raise --quota-backend-bytes, and {_AUTO_COMPACTION}"
    return Finding("quota", "warning", f"{message}: when it is used up, every save is refused", remedy)


def _fragmentation(told: Sequence[_Told]) -> Finding:
    if not told:
        return _untold("fragmentation", "how much of its file is in use", "etcdctl endpoint status")
    where, status = max(told, key=lambda told: told.status.size - told.status.used)
    free = status.size - status.used
    message = f"of the {_shown(status.size)} of the file of {where}, {_shown(free)} are free"
    if free < _MUCH or free < status.used:
        return Finding("fragmentation", "good", message)
    remedy = f"etcdctl --endpoints={where} defrag, one member after the other, for it stops meanwhile"
    return Finding("fragmentation", "note", f"{message}, which count for the quota", remedy)


def _durability(members: Sequence[Member] | Failure, flushing: _Flushing) -> Finding:
    if flushing.does_not:
        return Finding(
            DURABILITY,
            "warning",
            f"{', '.join(sorted(flushing.does_not))} acknowledges without flushing its log: an acknowledged save "
            "outlives the member's process, but may be lost with its machine",
            "start the members without --unsafe-no-fsync",
        )
    voters = 0 if isinstance(members, Failure) else sum(not member.is_learner for member in members)
    saved = "an acknowledged save is flushed to"
    if not 0 < voters <= len(flushing.does):
        saved = f"unless members run with --unsafe-no-fsync, which not all of them tell, {saved}"
    if not voters:
        message = f"{saved} the disks of a majority of the members, however many there are, and outlives the others"
        return Finding(DURABILITY, "note", message, f"{_AS_ROOT} etcdctl member list")
    if voters < _ENOUGH:
        outlives = "the one member's disk, and outlives its process and machine, but not the loss of that disk"
        if voters == _PAIR:
            outlives = "the disks of both members, and outlives their processes and machines, and the loss of one disk"
        return Finding(DURABILITY, "note", f"{saved} {outlives}", "use three members, or five")
    spare = _spare(voters)
    message = f"{saved} the disks of at least {voters - spare} of {voters} members, and outlives all their processes"
    return Finding(DURABILITY, "good", f"{message}, and the loss of any {spare} of them")


def _is_kept_back(failure: Failure) -> bool:
    """Return whether the server, or a proxy, answers this question to others, or to nobody."""
    return failure.code in {Code.PERMISSION_DENIED, Code.UNIMPLEMENTED} or NO_USER in failure.details


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name.rstrip(".").lower() == "localhost"


async def _metrics_of(host: Host, config: EtcdConfig, context: ssl.SSLContext | None) -> dict[str, float]:
    """Return the metrics of a server; none, if it does not tell them at this port.

    Neither transport can ask for them, and older servers tell their quota nowhere else.
    """
    name = config.tls_server_name if context is not None else None
    request = f"GET /metrics HTTP/1.0\r\nHost: {address(host)}\r\n\r\n".encode("ascii")
    said = bytearray()
    try:
        async with asyncio.timeout(config.connect_timeout):
            reader, writer = await asyncio.open_connection(host.name, host.port, ssl=context, server_hostname=name)
            with closing(writer):
                writer.write(request)
                while len(said) < _MOST_METRICS and (piece := await reader.read(1 << 16)):
                    said += piece
    except OSError:
        # No answer in time is one, too.
        return {}
    return {name.decode(): float(value) for name, value in _METRIC.findall(bytes(said))}


def _process(metrics: Mapping[str, float]) -> frozenset[tuple[str, float]]:
    """Return what tells the process of ``metrics`` from others."""
    return frozenset((name, value) for name, value in metrics.items() if name.startswith(_PROCESS))


def _shown(size: float) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.1f} MiB"


def _untold(check: str, what: str, see: str) -> Finding:
    return Finding(check, "note", f"the server does not tell {what}", f"{_AS_ROOT} {see}")
