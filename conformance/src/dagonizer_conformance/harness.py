"""How the kit gets at a store: by URL, by a factory, or by a harness with hooks for what only its author can do."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import ipaddress
import os
import re
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final
from urllib.parse import quote

from dagonizer import StoreError, StoreURL, open_store
from dagonizer.registry import installed_schemes, store_endpoints
from dagonizer_conformance.outcomes import TargetError, Unverified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from dagonizer import CheckpointStore, VersionedJson
    from dagonizer_conformance.results import Capability

    Factory = Callable[[str], CheckpointStore | Awaitable[CheckpointStore]]

_LONGEST_DEVIATION = timedelta(days=366)
_REFERENCE = re.compile(r"([A-Za-z_][\w.]*|.+\.py):[A-Za-z_][\w.]*")
_NAMESPACE = "{namespace}"
# Replacing shorter ones would garble what they stand in.
_SHORTEST_SECRET = 6


def _today() -> date:
    return datetime.now(UTC).date()


@final
@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A case that a store is known to fail, tolerated until a date.

    It is strict: a case that passes in spite of its deviation fails, and so does one whose date is past. A tolerated
    failure is XFAIL, and earns no level.
    """

    reason: str
    """Why the store does not do it, for those who read the report."""
    until: date
    """The last day on which the failure is tolerated, at most a year from now."""

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str) or not self.reason.strip():
            raise TargetError("a deviation needs a reason: Deviation(reason='…', until=date(…))")
        if not isinstance(self.until, date) or isinstance(self.until, datetime):
            raise TargetError("a deviation needs the date until which it is tolerated: until=date(2027, 3, 31)")
        if self.until > _today() + _LONGEST_DEVIATION:
            raise TargetError(f"a deviation may last a year at most, not until {self.until}")

    @property
    def expired(self) -> bool:
        """Whether its date is past (UTC)."""
        return _today() > self.until


class Harness(ABC):
    """What the kit knows of a store. Only ``open`` is required; each further hook lets more cases run.

    The hooks may be called from several threads and event loops, for this is how stores are tested that block theirs.
    """

    deviations: Mapping[str, Deviation] = {}
    """Cases, by id, that the store is known to fail."""

    capabilities: frozenset[Capability] | None = None
    """The capabilities that the store declares; None stands for those whose methods it has."""

    @abstractmethod
    async def open(self, namespace: str) -> CheckpointStore:
        """Return a new store, an independent client of the data called ``namespace``.

        Stores of one namespace share their data; those of different namespaces must not meet. A namespace is text of
        at most 80 characters out of ``a-z``, ``0-9``, ``-`` and ``:``.
        """

    async def close(self, store: CheckpointStore) -> None:
        """Release what ``store`` holds."""
        aclose = getattr(store, "aclose", None)
        if aclose is not None:
            await aclose()

    async def start(self) -> None:  # noqa: B027 - most harnesses need nothing
        """Prepare, before the first case."""

    async def stop(self) -> None:  # noqa: B027
        """Clean up, after the last case."""

    def address(self) -> str | None:
        """Return where another process finds the same data, or None.

        Either a store URL, which may hold ``{namespace}``, or the reference ``module:name`` or ``path.py:name`` of a
        factory or a harness; environment variables tell it what it must know of this process.
        """
        return None

    async def kill(self) -> None:
        """Kill the backend (SIGKILL) and bring it back. The kit kills the client processes itself.

        A store without a process of its own, as files are, does nothing here.
        """
        raise Unverified("the harness has no hook to kill the backend")

    async def down(self) -> None:
        """Let the backend stop answering, until ``up``."""
        raise Unverified("the harness has no hook to take the backend down")

    async def up(self) -> None:
        """Let the backend answer again."""
        raise Unverified("the harness has no hook to bring the backend up")

    async def peek(self, namespace: str, key: str) -> str | None:
        """Read what the backend holds under ``key``, around the store; None when there is nothing."""
        raise Unverified("the harness has no hook to read around the store")

    async def poke(self, namespace: str, key: str, text: str) -> None:
        r"""Put ``text`` where the backend holds the value of ``key``, around the store.

        Characters from U+DC80 to U+DCFF stand for bytes that are not UTF-8, as
        ``text.encode(errors="surrogateescape")`` gives them.
        """
        raise Unverified("the harness has no hook to write around the store")

    def describe(self) -> str:
        """Return what is tested, for the report, without secrets."""
        return self.reference() or _named(type(self))

    def reference(self) -> str | None:
        """Return how the command line names what is tested, without secrets; None when it cannot."""
        return _shown_reference(type(self))

    def describe_namespaces(self) -> str:
        """Return how the data of two namespaces are kept apart, for the report."""
        return "by the harness"


def has_hook(harness: Harness, name: str) -> bool:
    """Return whether the author of ``harness`` wrote the hook ``name``."""
    return getattr(type(harness), name) is not getattr(Harness, name)


class URLHarness(Harness):
    """A store by URL.

    ``{namespace}`` in the URL is replaced by the namespace. Without it, the kit puts the namespace before every key,
    so that a run in a store with other entries touches none of them.
    """

    def __init__(self, url: str, *, allow_remote: bool = False) -> None:
        self._url = url
        try:
            self._parsed = StoreURL.parse(url.replace(_NAMESPACE, "namespace"))
            endpoints = store_endpoints(self._parsed)
        except StoreError as exc:
            raise TargetError(str(exc)) from exc
        for host in endpoints:
            if not allow_remote and not _is_loopback(host.name):
                raise TargetError(
                    f"{self._parsed}: {host.name} is not this machine; the kit writes, deletes and provokes faults, so "
                    "it tests a remote store only with --allow-remote (run(…, allow_remote=True))"
                )

    async def open(self, namespace: str) -> CheckpointStore:
        """Open the store, for ``namespace``."""
        if _NAMESPACE in self._url:
            return open_store(self._url.replace(_NAMESPACE, quote(namespace, safe="")))
        return PrefixedStore(open_store(self._url), f"{quote(namespace, safe='')}/")

    def address(self) -> str:
        """Return the URL."""
        return self._url

    def secrets(self) -> tuple[str, ...]:
        """Return the parts of the URL that may be secret, to be taken out of what a store says of it."""
        values = [value for _, value in self._parsed.query if len(value) >= _SHORTEST_SECRET and value != "namespace"]
        return tuple(part for part in (self._parsed.password, *values) if part)

    def describe(self) -> str:
        """Return the URL without credentials and parameters."""
        return str(self._parsed).replace("/namespace", "/{namespace}") if _NAMESPACE in self._url else str(self._parsed)

    def reference(self) -> str:
        """Return the URL; when it has credentials or parameters, with asterisks for what must be filled in again."""
        secret = self._parsed.username or self._parsed.password or self._parsed.query
        return self.describe() if secret else self._url

    def describe_namespaces(self) -> str:
        """Say whether the URL or the keys tell namespaces apart."""
        return "in the URL" if _NAMESPACE in self._url else "by the kit, as a prefix of every key"


class FactoryHarness(Harness):
    """A store by a factory: a callable that takes a namespace and returns a store, or an awaitable of one."""

    def __init__(self, factory: Factory) -> None:
        try:
            inspect.signature(factory).bind("namespace")
        except TypeError as exc:
            raise TargetError(
                f"{_named(factory)} must take one argument, the namespace, and return a store for it: {exc}"
            ) from exc
        self._factory = factory

    async def open(self, namespace: str) -> CheckpointStore:
        """Call the factory."""
        made = self._factory(namespace)
        return await made if inspect.isawaitable(made) else made

    def address(self) -> str | None:
        """Return a reference to the factory, if it can be found by name."""
        return _reference(self._factory)

    def reference(self) -> str | None:
        """Return where the factory is."""
        return _shown_reference(self._factory)

    def describe(self) -> str:
        """Return where the factory is, or its name."""
        return self.reference() or _named(self._factory)

    def describe_namespaces(self) -> str:
        """Say that the factory does it."""
        return "by the factory"


class PrefixedStore:
    """A store in which every key gets a prefix. It has those optional methods that the store behind it has."""

    def __init__(self, store: CheckpointStore, prefix: str) -> None:
        self._store: Any = store
        self._prefix = prefix
        for method, optional in (
            ("aclose", self._aclose),
            ("list_keys", self._list_keys),
            ("load_versioned", self._load_versioned),
            ("save_if", self._save_if),
        ):
            if hasattr(store, method):
                setattr(self, method, optional)

    async def save(self, key: str, json: str) -> None:
        """Save under the prefixed key."""
        result: None = await self._store.save(self._prefixed(key), json)
        return result

    async def load(self, key: str) -> str | None:
        """Load from the prefixed key."""
        result: str | None = await self._store.load(self._prefixed(key))
        return result

    async def delete(self, key: str) -> None:
        """Delete the prefixed key."""
        result: None = await self._store.delete(self._prefixed(key))
        return result

    @property
    def max_key_bytes(self) -> int:
        """How long a key may be so that with its prefix it is as long as any key may be."""
        return 1024 - len(self._prefix)

    def _prefixed(self, key: str) -> str:
        # What is no key at all must reach the store as it is, for the store to refuse.
        return self._prefix + key if isinstance(key, str) and key else key

    async def _aclose(self) -> None:
        await self._store.aclose()

    async def _list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        async for key in self._store.list_keys(self._prefix + prefix):
            yield key.removeprefix(self._prefix)

    async def _load_versioned(self, key: str) -> VersionedJson | None:
        result: VersionedJson | None = await self._store.load_versioned(self._prefixed(key))
        return result

    async def _save_if(self, key: str, json: str, *, expected: str | None) -> str:
        result: str = await self._store.save_if(self._prefixed(key), json, expected=expected)
        return result


def resolve(target: object, *, allow_remote: bool = False) -> Harness:
    """Return the harness for ``target``.

    A harness or a class of one; a store URL; the reference ``module:name`` or ``path.py:name`` of a harness, a class
    or a factory; or a factory. Raises ``TargetError``.
    """
    if isinstance(target, str):
        if is_url(target):
            return URLHarness(target, allow_remote=allow_remote)
        return resolve(_referenced(*target.rsplit(":", 1)), allow_remote=allow_remote)
    if isinstance(target, type) and issubclass(target, Harness):
        return target()
    if isinstance(target, Harness):
        return target
    if callable(target):
        return FactoryHarness(cast("Factory", target))
    raise TargetError(
        f"cannot test {type(target).__name__}: give a URL, a harness, or a factory that takes a namespace"
    )


def is_url(target: str) -> bool:
    """Return whether ``target`` is a store URL, and not the reference of a harness or a factory."""
    module = target.rpartition(":")[0]
    return _REFERENCE.fullmatch(target) is None or "://" in target or module in installed_schemes()


def _referenced(module: str, name: str) -> object:
    try:
        found: object = _module_from_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, OSError, AttributeError) as exc:
        raise TargetError(f"cannot find {name!r} in {module!r}: {exc}") from exc
    return found


def _module_from_file(path: Path) -> object:
    path = path.absolute()
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return module
    spec = importlib.util.spec_from_file_location(f"{__name__}:{path}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Under a name that no other module has, wherever the file is.
    sys.modules[spec.name] = module
    # For what stands beside it, but never before what Python and installed distributions have.
    sys.path.append(str(path.parent))
    spec.loader.exec_module(module)
    return module


def _reference(thing: object) -> str | None:
    """Return ``path.py:name`` if ``thing`` can be found so."""
    file = getattr(sys.modules.get(getattr(thing, "__module__", "")), "__file__", None)
    name = getattr(thing, "__qualname__", "<")
    return None if "<" in name or file is None else f"{file}:{name}"


def _shown_reference(thing: object) -> str | None:
    """Return the same, relative to the current directory if it is below."""
    reference = _reference(thing)
    return None if reference is None else reference.removeprefix(f"{Path.cwd()}{os.sep}")


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _named(thing: object) -> str:
    return f"{getattr(thing, '__module__', '?')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
