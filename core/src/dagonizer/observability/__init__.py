"""What stores do, as spans and metrics of OpenTelemetry, or as records of ``logging``.

    from dagonizer.observability import logged, open_traced_store

    async with open_traced_store("redis://localhost") as store:  # pip install "dagonizer[otel]"
        ...
    store = logged(MemoryCheckpointStore())

Neither tells keys, or messages of errors, which may name keys, unless ``record_keys`` is set. Documents are never told,
nor are messages of what is not a ``StoreError``, which may hold anything.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar, cast

from dagonizer import registry
from dagonizer.contracts import CheckpointStore, ClosableStore
from dagonizer.errors import StoreError
from dagonizer.observability._observed import Observed
from dagonizer.observability._records import Record
from dagonizer.url import StoreURL

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from dagonizer.url import Host

__all__ = ["logged", "open_traced_store", "traced"]

S = TypeVar("S", CheckpointStore, ClosableStore)

# Of the schemes whose first part, as in redis+cluster, is not the system's name in the conventions.
_SYSTEM_BY_SCHEME = {"postgres": "postgresql", "rediss": "redis", "etcds": "etcd", "s3": "aws.s3"}


def open_traced_store(
    url: str | StoreURL,
    *,
    namespace: str | None = None,
    record_keys: bool = False,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> ClosableStore:
    """Open the store that ``url`` names and trace it: ``system`` and ``server`` of ``traced`` are what the URL says.

    With several hosts no ``server`` is told, for which one answers is unknown. Raises what ``open_store`` and
    ``traced`` raise.
    """
    parsed = url if isinstance(url, StoreURL) else StoreURL.parse(url)
    store = registry.open_store(parsed)
    hosts = registry.store_endpoints(parsed)
    return traced(
        store,
        system=_SYSTEM_BY_SCHEME.get(parsed.scheme, parsed.scheme.partition("+")[0]),
        server=hosts[0] if len(hosts) == 1 else None,
        namespace=namespace,
        record_keys=record_keys,
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
    )


def traced(
    store: S,
    *,
    system: str,
    server: Host | None = None,
    namespace: str | None = None,
    record_keys: bool = False,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> S:
    """Return ``store`` with a span and a measurement for every operation; it has the methods that ``store`` has.

    Both follow OpenTelemetry's conventions for databases (1.33 and later): a span of kind CLIENT, and the histogram
    ``db.client.operation.duration`` in seconds. ``db.operation.name`` is the method (``save``, ``list_keys``, …), and
    with ``namespace`` behind it the name of the span. ``system`` is ``db.system.name`` (postgresql, redis, …),
    ``namespace`` ``db.namespace``, ``server`` ``server.address`` and ``server.port``. A span also has the document's
    size in UTF-8 bytes as ``dagonizer.document.size``, and with ``record_keys`` the key, or a listing's prefix, as
    ``dagonizer.key`` and the message of a ``StoreError`` as its status.

    An operation that raises has failed, and ``error.type`` is the class of what it raised, be it ``StoreConflictError``
    or ``CancelledError``. An absent entry is no failure. The span of a listing lasts from its first key to its last, or
    until the caller leaves it; its measurement leaves out what the caller does between two keys.

    Without providers, OpenTelemetry's global ones are used. Raises ``StoreError`` when its package is missing.
    """
    try:
        from dagonizer.observability._spans import Spans  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as exc:
        raise StoreError('tracing needs a package that is not installed; run: pip install "dagonizer[otel]"') from exc
    spans = Spans(
        system=system,
        server=server,
        namespace=namespace,
        record_keys=record_keys,
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
    )
    # It has the methods that the store has, which no type says.
    return cast("S", Observed(store, spans.begin))


def logged(
    store: S, *, logger: logging.Logger | None = None, level: int = logging.DEBUG, record_keys: bool = False
) -> S:
    """Return ``store`` with a log record for every operation; it has the methods that ``store`` has.

    A record has as attributes, and in its message, ``operation``, ``duration`` (the seconds that the store took),
    ``outcome`` (``ok``, or the class of what was raised) and ``size`` (of the document in UTF-8 bytes, or None); with
    ``record_keys`` also ``key`` and, of a ``StoreError``, its message as ``error``. Errors are logged as WARNING, all
    else with ``level``, cancellations too. The default ``logger`` is ``dagonizer.observability``.
    """
    chosen = logging.getLogger(__name__) if logger is None else logger

    def begin(operation: str, key: str) -> Record:
        return Record(chosen, level, operation, repr(key) if record_keys else None)

    return cast("S", Observed(store, begin))
