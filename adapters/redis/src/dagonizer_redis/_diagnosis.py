"""What ``dagonizer doctor`` finds in Redis or Valkey: settings, rights, replicas, and what a save outlives.

Everything is asked of the primaries that the store writes to. What the user may do is tried: what reads is run, and
what writes is queued after ``MULTI`` and given up, so that it is refused or not, and nothing is changed.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from redis.exceptions import NoPermissionError, ResponseError

from dagonizer.connections import Connections
from dagonizer.diagnosis import DURABILITY, Finding
from dagonizer.errors import StoreError
from dagonizer_redis._config import shown
from dagonizer_redis._errors import translated
from dagonizer_redis._store import RedisCheckpointStore
from dagonizer_redis._topology import Cluster, Connector, OwnLinks, Topology, topology

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

    from dagonizer.diagnosis import Verdict
    from dagonizer.url import Host
    from dagonizer_redis._config import RedisConfig
    from dagonizer_redis._topology import Link, Links

_ACTION = "look around"
_GONE = "start it, or CLUSTER FAILOVER FORCE at a replica of it"
_ORDER: tuple[Verdict, ...] = ("good", "note", "warning", "bad")
# The oldest that the store is tested with.
_OLDEST = {"Redis": 7, "Valkey": 9}
_SETTINGS = (
    "appendfsync",
    "maxclients",
    "min-replicas-to-write",
    "no-appendfsync-on-rewrite",
    "save",
    "stop-writes-on-bgsave-error",
)
# Of a limit, above which it is near.
_NEAR = 0.9
_PATTERN_CHARACTERS = re.compile(r"([*?\[\]\\])")
# What INFO counts in a database.
_KEPT = ("keys", "expires")
_UNKNOWN = ("unknown command", "unknown subcommand")
_KEY_REFUSED = re.compile(r" to access .*\bkey", re.IGNORECASE)
# What only a listing needs.
_TO_LIST = {"info", "scan"}


@dataclass(frozen=True)
class _Server:
    """What a primary has told.

    ``info`` and ``cluster`` are the replies to INFO and CLUSTER INFO, ``settings`` what CONFIG GET has shown;
    ``hidden`` is why it has not. ``refused`` holds the commands that the user may not run, or not on the store's keys,
    ``absent`` those that there are none of.
    """

    info: Mapping[str, str]
    settings: Mapping[str, str]
    hidden: str | None
    cluster: Mapping[str, str]
    user: str
    refused: tuple[str, ...]
    absent: tuple[str, ...]
    keys_refused: bool

    def number(self, name: str) -> int:
        """Return what INFO or CONFIG say, 0 where they do not."""
        text = self.settings.get(name) or self.info.get(name) or "0"
        return int(text) if text.isdigit() else 0

    @property
    def replicas(self) -> int:
        """How many replicas are in step."""
        return sum(name.startswith("slave") and "state=online" in text for name, text in self.info.items())

    @property
    def evicts(self) -> bool:
        """Whether entries are dropped when the memory is full."""
        return self.info.get("maxmemory_policy", "").startswith("allkeys") and self.number("maxmemory") > 0

    @property
    def logs(self) -> bool:
        """Whether there is an append-only file."""
        return self.info.get("aof_enabled") == "1"


async def diagnose(config: RedisConfig) -> AsyncIterator[Finding]:
    """Yield what is found at the servers of ``config``."""
    if config.service is not None:
        for finding in await _sentinels(config):
            yield finding
    async with aclosing(_connections(config)) as connections:
        with translated(_ACTION, config.where):
            primaries, unserved = await connections.read(partial(_primaries, config=config))
        if config.cluster:
            yield _slots(unserved, len(primaries))
        answers = await asyncio.gather(
            *(_answer(connections, name, links, config) for name, links in primaries.items())
        )
    servers = {name: server for name, server in zip(primaries, answers, strict=True) if isinstance(server, _Server)}
    for failure in answers:
        if isinstance(failure, StoreError):
            if not config.cluster:
                raise failure
            yield Finding("primaries", "bad", f"a primary of the cluster cannot be asked: {failure}", _GONE)
    if servers:
        yield _prefix(servers.values(), config)
    judged = {name: [*_judge(server, config)] for name, server in servers.items()}
    for finding in _merged(judged):
        yield finding


def _connections(config: RedisConfig) -> Connections[Topology]:
    @asynccontextmanager
    async def connect() -> AsyncIterator[Topology]:
        there = topology(config)
        try:
            yield there
        finally:
            await there.aclose()

    return Connections(
        connect, timeout=config.timeout, owner=RedisCheckpointStore, distrust=lambda there: there.disconnect()
    )


async def _primaries(there: Topology, config: RedisConfig) -> tuple[dict[str, Links], int]:
    """Return links to each primary by what messages call it, and how many slots of a cluster have none."""
    if isinstance(there, Cluster):
        primaries, unserved = await there.primaries()
        return {shown(host): links for host, links in primaries.items()}, unserved
    (links,) = await there.servers()
    return {config.where: links}, 0


async def _answer(
    connections: Connections[Topology], name: str, links: Links, config: RedisConfig
) -> _Server | StoreError:
    try:
        with translated(_ACTION, name):
            return await connections.read(lambda _there: _ask(links, config))
    except StoreError as exc:
        return exc


# Asking.


async def _ask(links: Links, config: RedisConfig) -> _Server:
    async with links.link() as link:
        user = await _reply(link, b"ACL", b"WHOAMI")
        info = _fields(await _reply(link, b"INFO"))
        cluster = _fields(await _reply(link, b"CLUSTER", b"INFO")) if _mode(info) == "cluster" else {}
        settings, hidden = await _settings(link)
    refusals = await _refusals(links, config)
    refused = {name: exc for name, exc in refusals.items() if _is_refused(exc)}
    return _Server(
        info=info,
        settings=settings,
        hidden=hidden,
        cluster=cluster,
        user=user.decode(errors="replace") if isinstance(user, bytes) else config.username or "default",
        refused=tuple(refused),
        absent=tuple(name for name, exc in refusals.items() if str(exc).startswith(_UNKNOWN)),
        # It refuses either a command or a key, and may name the user.
        keys_refused=any(_KEY_REFUSED.search(str(exc)) for exc in refused.values()),
    )


async def _reply(link: Link, *command: bytes | int) -> Any:  # noqa: ANN401 - what the server answers
    """Return the reply to ``command``, or the refusal."""
    try:
        (reply,) = await link.run(command)
    except ResponseError as exc:
        return exc
    return reply


async def _settings(link: Link) -> tuple[dict[str, str], str | None]:
    """Return what CONFIG GET shows, or why it does not."""
    settings: dict[str, str] = {}
    # Redis 6 takes one name at a time.
    for name in _SETTINGS:
        reply = await _reply(link, b"CONFIG", b"GET", name.encode())
        if isinstance(reply, ResponseError):
            return {}, str(reply)
        settings |= {reply[n].decode(): reply[n + 1].decode() for n in range(0, len(reply), 2)}
    return settings, None


async def _refusals(links: Links, config: RedisConfig) -> dict[str, ResponseError]:
    """Return what the server says against each command that the store needs, if it says anything."""
    name = config.beginning + f"doctor {secrets.token_hex(8)}".encode()
    reads: list[tuple[bytes | int, ...]] = [
        (b"GET", name),
        (b"WATCH", name),
        (b"UNWATCH",),
        (b"INFO", b"server"),
        (b"SCAN", 0, b"MATCH", name, b"COUNT", 1),
    ]
    if config.wait:
        reads.append((b"WAIT", 0, 1))
    if config.cluster:
        reads.append((b"ASKING",))
    refusals: dict[str, ResponseError] = {}

    async def ask(link: Link, *command: bytes | int) -> bool:
        reply = await _reply(link, *command)
        if isinstance(reply, ResponseError):
            refusals[_word(command)] = reply
        return not isinstance(reply, ResponseError)

    # Who may not DISCARD raises, and then the connection is closed, which does as well.
    with suppress(ResponseError):
        async with links.link() as link:
            for command in reads:
                await ask(link, *command)
            if await ask(link, b"MULTI"):
                await ask(link, b"EXEC")
            # What writes is sent only where it is queued.
            if await ask(link, b"MULTI"):
                await ask(link, b"SET", name, b"")
                await ask(link, b"DEL", name)
                await link.run((b"DISCARD",))
    return refusals


def _is_refused(exc: ResponseError) -> bool:
    # The second is what EXEC says, which drops the transaction.
    return isinstance(exc, NoPermissionError) or "NOPERM" in str(exc)


def _word(command: Sequence[bytes | int]) -> str:
    word = command[0]
    return word.decode().lower() if isinstance(word, bytes) else str(word)


def _fields(reply: object) -> dict[str, str]:
    """Return the lines of INFO or CLUSTER INFO, none if it was refused."""
    if not isinstance(reply, bytes):
        return {}
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: text for name, colon, text in lines if colon}


def _mode(info: Mapping[str, str]) -> str:
    # Valkey, then Redis.
    return info.get("server_mode") or info.get("redis_mode") or "standalone"


# Sentinels.


async def _sentinels(config: RedisConfig) -> list[Finding]:
    connect = Connector(config)
    asked = await asyncio.gather(*(_sentinel(connect, host, config) for host in config.addresses))
    findings = [answer for answer in asked if isinstance(answer, Finding)]
    told = {host: answer for host, answer in zip(config.addresses, asked, strict=True) if isinstance(answer, dict)}
    named = {f"{state['ip']}:{state['port']}": shown(host) for host, state in told.items()}
    if len(named) > 1:
        told_by = "; ".join(f"{primary} by {host}" for primary, host in named.items())
        findings.append(
            Finding(
                "sentinels",
                "bad",
                f"the sentinels name different primaries of {config.service} ({told_by})",
                "wait until a failover is over; else SENTINEL RESET the service at those that are wrong",
            )
        )
    for host, state in told.items():
        findings.append(_quorum(shown(host), state))
    return findings


async def _sentinel(connect: Connector, host: Host, config: RedisConfig) -> dict[str, str] | Finding:
    """Return what a sentinel knows of the service, or what keeps it from telling."""
    links = OwnLinks(lambda: connect(host, sentinel=True), 1)
    service = (config.service or "").encode()
    try:
        # As the store does, which asks the next one then.
        with translated(_ACTION, shown(host)):
            async with asyncio.timeout(config.timeout / (len(config.addresses) + 1)), links.link() as link:
                reply = await _reply(link, b"SENTINEL", b"MASTER", service)
                agreement = await _reply(link, b"SENTINEL", b"CKQUORUM", service)
    except StoreError as exc:
        remedy = "start it, or take it out of the URL"
        return Finding("sentinels", "warning", f"a sentinel of the URL cannot be asked: {exc}", remedy)
    finally:
        await links.aclose()
    if isinstance(reply, NoPermissionError):
        user = config.sentinel_username or "default"
        return Finding(
            "sentinels",
            "note",
            f"the sentinel {shown(host)} does not tell {user} about quorum and other sentinels: {reply}",
            f"ACL SETUSER {user} +sentinel|master +sentinel|ckquorum there",
        )
    if isinstance(reply, ResponseError):
        return Finding(
            "sentinels",
            "warning",
            f"the sentinel {shown(host)} knows nothing of {config.service}: {reply}",
            f"SENTINEL MONITOR {config.service} host port quorum there, or take it out of the URL",
        )
    words = [word.decode(errors="replace") for word in reply]
    state = dict(zip(words[::2], words[1::2], strict=True))
    # Who may not ask this is told what the numbers say.
    refusal = str(agreement) if isinstance(agreement, ResponseError) else ""
    return state | ({"no-quorum": refusal} if refusal.startswith("NOQUORUM") else {})


def _quorum(name: str, state: Mapping[str, str]) -> Finding:
    sentinels, quorum = int(state["num-other-sentinels"]) + 1, int(state["quorum"])
    said = f"the sentinel {name} knows of {_counted(sentinels, 'sentinel')}, and quorum is {quorum}"
    if "down" in state["flags"]:
        return Finding(
            "sentinels",
            "bad",
            f"{name} takes the primary for down (flags {state['flags']})",
            "see the log of the primary",
        )
    if quorum > sentinels:
        return Finding(
            "sentinels",
            "bad",
            f"{said}: they never agree on a failover",
            f"SENTINEL SET the quorum to {sentinels // 2 + 1} at each, or start the sentinels that are missing",
        )
    if "no-quorum" in state:
        return Finding(
            "sentinels",
            "bad",
            f"{said}, but there is no failover now: {state['no-quorum']}",
            "start the sentinels that are down",
        )
    majority = sentinels // 2 + 1
    if max(majority, quorum) == sentinels:
        return Finding(
            "sentinels",
            "warning",
            f"{said}: without one of them there is no failover",
            "run three sentinels or more, on machines of their own, with a quorum of most of them",
        )
    return Finding("sentinels", "good", f"{said}: a failover needs {max(majority, quorum)} of them")


# Judging.


def _judge(server: _Server, config: RedisConfig) -> Iterator[Finding]:
    """Yield what is found at one primary."""
    if _mode(server.info) == "sentinel":
        # It has no other setting of a server.
        yield _version(server, config)
        yield _role(server, config)
        yield _durability(server, config)
        return
    if not server.info:
        yield _grants(server, config)
        yield Finding(
            "info",
            "note",
            f"INFO is refused to {server.user}, so that neither memory nor disk nor replicas can be seen",
            f"ACL SETUSER {server.user} +info",
        )
        yield Finding(DURABILITY, "note", "what an acknowledged save outlives cannot be seen: INFO is refused")
        return
    if server.hidden is not None:
        yield Finding(
            "config",
            "note",
            f"CONFIG GET is refused, so that appendfsync and save cannot be seen: {server.hidden}",
            f"ACL SETUSER {server.user} +config|get; of a managed server, see the provider's console",
        )
    for check in _CHECKS:
        finding = check(server, config)
        if finding is not None:
            yield finding


def _grants(server: _Server, config: RedisConfig) -> Finding:
    if server.absent:
        return Finding(
            "grants",
            "warning" if _TO_LIST.issuperset(server.absent) else "bad",
            f"the server offers no {', '.join(map(str.upper, server.absent))}, which the store needs",
            "take rename-command out of redis.conf, or use a server that has them",
        )
    if not server.refused:
        return Finding("grants", "good", f"{server.user} may run all commands that the store needs")
    only_listing = _TO_LIST.issuperset(server.refused)
    # Without MULTI these could not be tried.
    untried = ("exec", "set", "del") if "multi" in server.refused else ()
    granted = [f"+{name}" for name in (*server.refused, *untried)]
    said = f"{server.user} may not run {', '.join(map(str.upper, server.refused))}"
    if server.keys_refused:
        beginning = config.beginning.decode()
        said += f", or not on keys that begin with {beginning}"
        granted.append(shlex.quote("~" + _PATTERN_CHARACTERS.sub(r"\\\1", beginning) + "*"))
    return Finding(
        "grants",
        "warning" if only_listing else "bad",
        said + (", which a listing needs" if only_listing else ""),
        f"ACL SETUSER {server.user} {' '.join(granted)}",
    )


def _version(server: _Server, _config: RedisConfig) -> Finding:
    valkey = server.info.get("valkey_version")
    name, version = ("Valkey", valkey) if valkey else ("Redis", server.info.get("redis_version", "?"))
    return version_finding(name, version)


def version_finding(name: str, version: str) -> Finding:
    """Judge the version of Redis or Valkey."""
    oldest = _OLDEST[name]
    major = version.partition(".")[0]
    if major.isdigit() and int(major) < oldest:
        return Finding(
            "version",
            "note",
            f"it is {name} {version}; the oldest that the store is tested with is {name} {oldest}",
            "upgrade the server",
        )
    return Finding("version", "good", f"it is {name} {version}")


def _role(server: _Server, config: RedisConfig) -> Finding:
    if _mode(server.info) == "sentinel":
        return Finding(
            "role",
            "bad",
            f"{config.where} is a sentinel, which keeps no keys",
            f"write redis+sentinel://{config.where}/service",
        )
    if server.info.get("role") == "slave":
        primary = f"{server.info.get('master_host')}:{server.info.get('master_port')}"
        writable = "" if server.info.get("slave_read_only") == "1" else ", and what is saved there is lost"
        return Finding(
            "role",
            "bad",
            f"it is a replica of {primary}, and no place to save{writable}",
            f"name {primary} in the URL, or find the primary by redis+sentinel: or redis+cluster:",
        )
    return Finding("role", "good", "it is a primary")


def _cluster(server: _Server, config: RedisConfig) -> Finding | None:
    if _mode(server.info) != "cluster":
        return None
    if not config.cluster:
        alone = server.cluster.get("cluster_size") == "1"
        return Finding(
            "cluster",
            "note" if alone else "bad",
            "it is the only primary of a cluster" if alone else "it is one node of a cluster, and refuses others' keys",
            "write redis+cluster:",
        )
    if not server.cluster:
        return Finding(
            "cluster",
            "note",
            f"CLUSTER INFO is refused to {server.user}, so that cluster_state cannot be seen",
            f"ACL SETUSER {server.user} +cluster|info",
        )
    state = server.cluster.get("cluster_state")
    if state != "ok":
        return Finding(
            "cluster",
            "bad",
            f"cluster_state is {state}: operations are refused",
            "see CLUSTER NODES for the nodes that fail, and CLUSTER SHARDS for the slots that nobody serves",
        )
    return Finding("cluster", "good", "cluster_state is ok")


def _slots(unserved: int, primaries: int) -> Finding:
    if unserved:
        return Finding(
            "slots",
            "bad",
            f"no node serves {unserved} of the 16384 hash slots: saves to keys there are refused",
            "start the nodes that had them, or redis-cli --cluster fix",
        )
    return Finding("slots", "good", f"all hash slots are served, by {primaries} primaries")


def _eviction(server: _Server, _config: RedisConfig) -> Finding:
    policy, most = server.info.get("maxmemory_policy"), server.number("maxmemory")
    if policy is None:
        return Finding("eviction", "note", "the server does not tell its maxmemory-policy; it must be noeviction")
    said = f"maxmemory-policy is {policy}"
    remedy = "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"
    if server.evicts:
        evicted = f"; {_counted(server.number('evicted_keys'), 'key')} since it was started"
        return Finding("eviction", "bad", f"{said}: checkpoints are evicted when memory is full{evicted}", remedy)
    if policy.startswith("allkeys"):
        return Finding(
            "eviction", "note", f"{said}: once maxmemory is set, it is {most}, checkpoints are evicted", remedy
        )
    if policy.startswith("volatile"):
        return Finding(
            "eviction", "good", f"{said}: only keys with an expiry are evicted, which those of the store have not"
        )
    return Finding("eviction", "good", f"{said}: nothing is evicted, and saves are refused when memory is full")


def _memory(server: _Server, _config: RedisConfig) -> Finding:
    most = server.number("maxmemory")
    used = max(0, server.number("used_memory") - server.number("mem_not_counted_for_evict"))
    if not most:
        return Finding(
            "memory", "note", "maxmemory is 0: the server takes what the machine has, and may be killed for it"
        )
    said = f"{used / most:.0%} of maxmemory is used ({used:,} of {most:,} bytes)"
    if used < most * _NEAR:
        return Finding("memory", "good", said)
    remedy = "CONFIG SET maxmemory to more, and the same in redis.conf; or delete what is not needed"
    if server.evicts:
        return Finding("memory", "warning", f"{said}: soon checkpoints are evicted", remedy)
    if used < most:
        return Finding("memory", "warning", f"{said}: soon saves are refused", remedy)
    return Finding("memory", "bad", f"{said}: saves are refused", remedy)


def _append_only(server: _Server, _config: RedisConfig) -> Finding:
    if server.logs:
        return Finding(
            "append-only", "good", "appendonly is yes: what is saved is in the log before it is acknowledged"
        )
    remedy = "CONFIG SET appendonly yes while it runs, then CONFIG REWRITE; and CONFIG SET appendfsync always"
    points = server.settings.get("save")
    if points is None:
        return Finding(
            "append-only", "warning", "appendonly is no: whoever ends the server loses what no snapshot has", remedy
        )
    if not points:
        return Finding("append-only", "bad", "appendonly is no and save is empty: nothing is written to a disk", remedy)
    return Finding(
        "append-only",
        "warning",
        f"appendonly is no: a server that is killed loses what was saved since the last snapshot, and one is made "
        f"{_save_points(points)}",
        remedy,
    )


def _save_points(points: str) -> str:
    words = points.split()
    pairs = zip(words[::2], words[1::2], strict=False)
    return " or ".join(f"{seconds} s after {_counted(int(changes), 'change')}" for seconds, changes in pairs)


def _fsync(server: _Server, _config: RedisConfig) -> Finding | None:
    policy = server.settings.get("appendfsync")
    if not server.logs or policy is None:
        return None
    if policy == "always" and server.settings.get("no-appendfsync-on-rewrite") == "yes":
        return Finding(
            "fsync",
            "warning",
            "appendfsync is always, but no-appendfsync-on-rewrite is yes: while the log is rewritten none is flushed",
            "CONFIG SET no-appendfsync-on-rewrite no, then CONFIG REWRITE",
        )
    if policy == "always":
        return Finding(
            "fsync", "good", "appendfsync is always: a save is flushed to the disk before it is acknowledged"
        )
    when = "about a second" if policy == "everysec" else "half a minute, as the operating system likes"
    return Finding(
        "fsync",
        "warning",
        f"appendfsync is {policy}: a machine that fails loses what was saved within {when}",
        "CONFIG SET appendfsync always, then CONFIG REWRITE",
    )


def _disk(server: _Server, _config: RedisConfig) -> Finding:
    remedy = "free space on the disk, see the permissions of dir and the log of the server"
    if server.info.get("aof_last_write_status", "ok") != "ok":
        said = f"aof_last_write_status is {server.info['aof_last_write_status']}"
        return Finding("disk", "bad", f"{said}: the log cannot be written, and saves are refused", remedy)
    if server.info.get("rdb_last_bgsave_status", "ok") != "ok":
        refuses = server.settings.get("save") and server.settings.get("stop-writes-on-bgsave-error") == "yes"
        return Finding(
            "disk",
            "bad" if refuses else "warning",
            f"rdb_last_bgsave_status is {server.info['rdb_last_bgsave_status']}: the last snapshot could not be written"
            + (", and saves are refused (stop-writes-on-bgsave-error)" if refuses else ""),
            remedy,
        )
    if server.info.get("aof_last_bgrewrite_status", "ok") != "ok":
        said = f"aof_last_bgrewrite_status is {server.info['aof_last_bgrewrite_status']}"
        return Finding("disk", "warning", f"{said}: the log cannot be rewritten, and grows without end", remedy)
    return Finding("disk", "good", "the last snapshot and the last write of the log were well")


def _replicas(server: _Server, config: RedisConfig) -> Finding:
    online, wait = server.replicas, config.wait
    said = _in_step(online)
    if wait > online:
        return Finding(
            "replicas",
            "bad",
            f"{said}, but ?wait={wait}: every save raises StoreUnavailableError",
            f"start replicas, or write ?wait={online}",
        )
    if not online and (config.cluster or config.service is not None):
        return Finding(
            "replicas",
            "warning",
            f"{said}: there is none to take over when the primary fails",
            "start a replica of it on another machine",
        )
    if not online:
        return Finding("replicas", "good", said)
    if wait:
        return Finding("replicas", "good", f"{said}, and ?wait={wait}: a save waits for {wait} of them")
    return Finding("replicas", "note", f"{said}, and ?wait=0: no save waits for any", _wait_for(online))


def _wait_for(replicas: int) -> str:
    return f"write ?wait={replicas}; while fewer are in step, saves raise StoreUnavailableError then"


def _min_replicas(server: _Server, config: RedisConfig) -> Finding | None:
    least, online = server.settings.get("min-replicas-to-write"), server.replicas
    if least is None:
        return None
    if int(least) > online:
        return Finding(
            "min-replicas",
            "bad",
            f"min-replicas-to-write is {least}, and {_in_step(online)}: saves are refused",
            f"start replicas, or CONFIG SET min-replicas-to-write {online}",
        )
    if config.service is not None and online and least == "0":
        return Finding(
            "min-replicas",
            "warning",
            "min-replicas-to-write is 0: a primary that is cut off from its sentinels acknowledges saves that the next "
            "one does not have",
            "CONFIG SET min-replicas-to-write 1, then CONFIG REWRITE, at every server of the service",
        )
    return Finding("min-replicas", "good", f"min-replicas-to-write is {least}")


def _clients(server: _Server, config: RedisConfig) -> Finding | None:
    most, connected = server.number("maxclients"), server.number("connected_clients")
    if not most:
        return None
    # One of them is this one.
    free = most - connected + 1
    said = f"{connected} of maxclients {most} are connected"
    if free >= config.max_connections:
        return Finding("clients", "good", said)
    return Finding(
        "clients",
        "warning",
        f"{said}: that leaves {free} to this store, whose max_connections is {config.max_connections} for each process "
        "and event loop, so saves may be refused",
        "CONFIG SET maxclients to more, and the same in redis.conf; or lower ?max_connections=",
    )


def _durability(server: _Server, config: RedisConfig) -> Finding:
    if server.info.get("role") != "master":
        return Finding(DURABILITY, "bad", "no save is kept here: it is no primary", "see role above")
    if server.evicts:
        return Finding(
            DURABILITY,
            "bad",
            "an acknowledged save does not even outlive a full memory: it is evicted",
            "see eviction above",
        )
    if config.wait > server.replicas:
        return Finding(DURABILITY, "bad", "no save is acknowledged: ?wait= is more than replicas", "see replicas above")
    verdict, disk, remedy = _on_disk(server)
    failover_verdict, failover = _at_failover(server, config)
    worst = max(verdict, failover_verdict, key=_ORDER.index)
    if remedy is None and worst not in {"good", "note"}:
        remedy = _wait_for(server.replicas)
    return Finding(DURABILITY, worst, f"an acknowledged save {disk}; {failover}", remedy)


def _on_disk(server: _Server) -> tuple[Verdict, str, str | None]:
    """Return what a save outlives by the disk of the primary."""
    if not server.logs:
        if server.settings.get("save") == "":
            return (
                "bad",
                "is in memory only, and outlives its client, but no end of the server",
                "see append-only above",
            )
        return "warning", "outlives the end of the server only once it is in a snapshot", "see append-only above"
    logged = "is in the primary's log: it outlives its client and a killed server"
    policy = server.settings.get("appendfsync")
    if policy is None:
        return "note", f"{logged}, and a failure of the machine once it is flushed: appendfsync cannot be seen", None
    if policy == "always" and server.settings.get("no-appendfsync-on-rewrite") != "yes":
        return "good", "is flushed to the primary's disk: it outlives its client, a killed server and machine", None
    if policy == "always":
        return "warning", f"{logged}, and a failure of the machine but during a rewrite of the log", "see fsync above"
    return "warning", f"{logged}, but a failure of the machine only once it is flushed ({policy})", "see fsync above"


def _at_failover(server: _Server, config: RedisConfig) -> tuple[Verdict, str]:
    """Return what a save outlives by replicas."""
    online, wait = server.replicas, config.wait
    if not online:
        return "good", "not the loss of the disk, for no replica is in step"
    if not wait:
        return "warning", f"a failover loses what the replica had not received ({_in_step(online)}, ?wait=0)"
    if wait < online:
        return "note", f"a failover to one that is not among the {wait} of {online} replicas that have it loses it"
    return (
        "good",
        f"{'its replica has' if online == 1 else f'all {online} replicas have'} received it before a failover",
    )


_CHECKS: tuple[Callable[[_Server, RedisConfig], Finding | None], ...] = (
    _version,
    _role,
    _cluster,
    _grants,
    _eviction,
    _memory,
    _append_only,
    _fsync,
    _disk,
    _replicas,
    _min_replicas,
    _clients,
    _durability,
)


def _prefix(servers: Iterable[_Server], config: RedisConfig) -> Finding:
    said = f"entries are the keys {config.beginning.decode()}… of database {config.db}"
    told = [server.info.get(f"db{config.db}", "") for server in servers if server.info]
    keys, expiring = (sum(int(n) for space in told for n in re.findall(rf"\b{name}=(\d+)", space)) for name in _KEPT)
    if told:
        said += f", which has {_counted(keys, 'key')}"
    if expiring:
        said += f"; those that expire, {expiring}, are none of the store's"
    return Finding("prefix", "good", said)


def _merged(judged: Mapping[str, Sequence[Finding]]) -> Iterator[Finding]:
    """Yield what is found at every primary once, and else with the name of the primary."""
    for check in dict.fromkeys(finding.check for findings in judged.values() for finding in findings):
        by_name = {name: [f for f in findings if f.check == check] for name, findings in judged.items()}
        first, *others = by_name.values()
        if all(other == first for other in others):
            yield from first
        else:
            for name, findings in by_name.items():
                for finding in findings:
                    yield msgspec.structs.replace(finding, message=f"{name}: {finding.message}")


def _counted(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _in_step(replicas: int) -> str:
    return f"{_counted(replicas, 'replica')} {'is' if replicas == 1 else 'are'} in step"
