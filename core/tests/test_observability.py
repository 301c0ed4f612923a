"""Spans, measurements and log records of what stores do, and what they keep to themselves."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from contextlib import asynccontextmanager, suppress

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from dagonizer import (
    InvalidKeyError,
    InvalidValueError,
    MemoryCheckpointStore,
    StoreConflictError,
    StoreError,
    SupportsClose,
    SupportsCompareAndSwap,
    SupportsListing,
    registry,
)
from dagonizer.blocking import BlockingStore
from dagonizer.connections import Connections
from dagonizer.observability import logged, open_traced_store, traced
from dagonizer.url import Host

SECRET = "hunter2"
KEY = "customer-4711"


class Bare:
    """Three methods, and nothing else."""

    async def save(self, key, json): ...

    async def load(self, key): ...

    async def delete(self, key): ...


class Listing(Bare):
    async def list_keys(self, prefix=""):
        yield KEY


class Swapping(Bare):
    async def load_versioned(self, key): ...

    async def save_if(self, key, json, *, expected): ...


class Failing(Bare):
    """Raises what it is given."""

    def __init__(self, error):
        self._error = error

    async def load(self, key):
        raise self._error

    async def list_keys(self, prefix=""):
        yield KEY
        raise self._error


class Blocked(Bare):
    """Waits for ever."""

    def __init__(self):
        self.begun = asyncio.Event()

    async def save(self, key, json):
        self.begun.set()
        await asyncio.Event().wait()


class Telemetry:
    """What was told, in memory."""

    def __init__(self):
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meter_provider = MeterProvider(metric_readers=[self._reader])
        self.providers = {"tracer_provider": self.tracer_provider, "meter_provider": self.meter_provider}
        self.tracer = self.tracer_provider.get_tracer("test")

    def traced(self, store, **options):
        return traced(store, **{"system": "memory", **self.providers, **options})

    @property
    def spans(self):
        return self._exporter.get_finished_spans()

    @property
    def histogram(self):
        [resource] = self._reader.get_metrics_data().resource_metrics
        [scope] = resource.scope_metrics
        [metric] = scope.metrics
        return metric

    @property
    def points(self):
        return points_of(self.histogram)

    def everything(self):
        return "".join(span.to_json() for span in self.spans) + self._reader.get_metrics_data().to_json()


def points_of(histogram):
    return {
        (point.attributes["db.operation.name"], point.attributes.get("error.type")): point
        for point in histogram.data.data_points
    }


@pytest.fixture
def telemetry():
    told = Telemetry()
    yield told
    told.tracer_provider.shutdown()
    told.meter_provider.shutdown()


def observations(store):
    return traced(store, system="memory"), logged(store)


async def test_each_operation_has_a_span_by_the_conventions(telemetry):
    store = telemetry.traced(MemoryCheckpointStore(), server=Host("h", 7), namespace="checkpoints")
    await store.save(KEY, "é")
    assert await store.load(KEY) == "é"
    assert await store.load("absent") is None
    version = await store.save_if("another", "xyz", expected=None)
    assert (await store.load_versioned("another")).version == version
    assert await store.load_versioned("absent") is None
    assert [key async for key in store.list_keys("cust")] == [KEY]
    await store.delete(KEY)
    shown = {"db.system.name": "memory", "db.namespace": "checkpoints", "server.address": "h", "server.port": 7}
    expected = [
        ("save", 2),
        ("load", 2),
        ("load", None),
        ("save_if", 3),
        ("load_versioned", 3),
        ("load_versioned", None),
        ("list_keys", None),
        ("delete", None),
    ]
    assert len(telemetry.spans) == len(expected)
    for span, (operation, size) in zip(telemetry.spans, expected, strict=True):
        assert span.name == f"{operation} checkpoints"
        assert span.kind is SpanKind.CLIENT
        assert span.status.status_code is StatusCode.UNSET
        assert span.attributes == {
            **shown,
            "db.operation.name": operation,
            **({} if size is None else {"dagonizer.document.size": size}),
        }
        assert not span.events
        assert (span.instrumentation_scope.name, span.instrumentation_scope.version) == ("dagonizer", "0.1.0")


async def test_each_operation_is_measured_by_the_conventions(telemetry):
    store = telemetry.traced(MemoryCheckpointStore(), server=Host("h", None))
    for _ in range(3):
        await store.save(KEY, "text")
    with pytest.raises(InvalidKeyError):
        await store.save("", "text")
    # Read once, for exemplars are told once.
    histogram = telemetry.histogram
    assert (histogram.name, histogram.unit) == ("db.client.operation.duration", "s")
    points = points_of(histogram)
    assert {about: point.count for about, point in points.items()} == {
        ("save", None): 3,
        ("save", "InvalidKeyError"): 1,
    }
    point = points["save", None]
    assert point.attributes == {"db.system.name": "memory", "server.address": "h", "db.operation.name": "save"}
    assert point.explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
    assert 0 < point.sum < 1
    assert point.exemplars[0].span_id in {span.context.span_id for span in telemetry.spans}


@pytest.mark.parametrize("store", [Bare(), Listing(), Swapping(), MemoryCheckpointStore()])
async def test_an_observed_store_has_the_methods_of_the_store(store):
    for observed in observations(store):
        for protocol in (SupportsListing, SupportsCompareAndSwap, SupportsClose):
            assert isinstance(observed, protocol) == isinstance(store, protocol)
        async with observed as entered:
            assert entered is observed


async def test_leaving_it_closes_the_store(telemetry):
    store = MemoryCheckpointStore()
    async with telemetry.traced(store):
        pass
    assert store._closed
    assert not telemetry.spans


async def test_arguments_may_be_named(telemetry):
    store = telemetry.traced(MemoryCheckpointStore())
    await store.save(key="k", json="text")
    assert await store.load(key="k") == "text"
    assert (await store.load_versioned(key="k")).json == "text"
    assert [key async for key in store.list_keys(prefix="k")] == ["k"]
    await store.delete(key="k")
    await store.save_if(key="k", json="text", expected=None)


async def test_a_lost_compare_and_swap_has_failed(telemetry):
    store = telemetry.traced(MemoryCheckpointStore())
    await store.save_if(KEY, "text", expected=None)
    with pytest.raises(StoreConflictError):
        await store.save_if(KEY, "text", expected=None)
    span = telemetry.spans[-1]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert span.attributes["error.type"] == "StoreConflictError"
    assert telemetry.points["save_if", "StoreConflictError"].count == 1


async def test_neither_keys_nor_documents_nor_messages_are_told(telemetry, caplog):
    caplog.set_level(logging.DEBUG)
    errors = [StoreError(f"{KEY} {SECRET}"), RuntimeError(f"{KEY} {SECRET}")]
    for store in (MemoryCheckpointStore(), *map(Failing, errors)):
        for observed in (telemetry.traced(store), logged(store)):
            await observed.save(KEY, SECRET)
            with suppress(StoreError, RuntimeError):
                await observed.load(KEY)
            with suppress(StoreError, RuntimeError):
                assert [key async for key in observed.list_keys(KEY)] == [KEY]
            await observed.delete(KEY)
    told = telemetry.everything() + "".join(str(vars(record)) for record in caplog.records)
    assert "RuntimeError" in told
    assert len(caplog.records) == len(telemetry.spans) == 12
    for unwanted in (KEY, SECRET, "Traceback"):
        assert unwanted not in told


async def test_keys_and_messages_of_store_errors_are_told_if_asked_for(telemetry, caplog):
    caplog.set_level(logging.DEBUG)
    for error in (StoreError(f"about {KEY}"), RuntimeError(SECRET)):
        for store in (telemetry.traced(Failing(error), record_keys=True), logged(Failing(error), record_keys=True)):
            with pytest.raises(type(error)):
                await store.load(KEY)
    first, second = telemetry.spans
    assert first.attributes["dagonizer.key"] == KEY
    assert first.status.description == f"about {KEY}"
    assert second.status.description is None
    assert [record.key for record in caplog.records] == [repr(KEY)] * 2
    assert caplog.records[0].getMessage().endswith(f"{KEY}', error 'about {KEY}'")
    assert caplog.records[0].error == f"'about {KEY}'"
    assert SECRET not in telemetry.everything() + "".join(str(vars(record)) for record in caplog.records)


async def test_what_cannot_be_encoded_is_refused_by_the_store_and_can_be_told_all_the_same(telemetry, caplog):
    caplog.set_level(logging.DEBUG)
    for store in (
        telemetry.traced(MemoryCheckpointStore(), record_keys=True),
        logged(MemoryCheckpointStore(), record_keys=True),
    ):
        with pytest.raises(InvalidKeyError):
            await store.load("\ud83d\n")
        with pytest.raises(InvalidValueError):
            await store.save("k", "\ud83d")
    with pytest.raises(StoreError):
        await logged(Failing(StoreError("a\nb\ud83d")), record_keys=True).load("k")
    assert telemetry.spans[0].attributes["dagonizer.key"] == "\\ud83d\n"
    assert telemetry.spans[1].attributes["dagonizer.document.size"] == 3
    telemetry.everything().encode()
    for record in caplog.records:
        assert "\n" not in record.getMessage()
        record.getMessage().encode()


async def test_a_cancelled_operation_has_ended_without_a_message(telemetry, caplog):
    caplog.set_level(logging.DEBUG)
    for observe in (telemetry.traced, logged):
        store = Blocked()
        task = asyncio.create_task(observe(store).save(KEY, "text"))
        await store.begun.wait()
        task.cancel(SECRET)
        with pytest.raises(asyncio.CancelledError):
            await task
    [span] = telemetry.spans
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert span.attributes["error.type"] == "CancelledError"
    assert telemetry.points["save", "CancelledError"].count == 1
    [record] = caplog.records
    assert (record.levelno, record.outcome) == (logging.DEBUG, "CancelledError")


async def test_spans_of_a_driver_become_children(telemetry):
    @asynccontextmanager
    async def connect():
        yield telemetry.tracer

    class Networked(Bare):
        def __init__(self):
            self._connections = Connections(connect, timeout=5, owner=Networked)

        async def save(self, key, json):
            await self._connections.write(key, self._send)

        async def load(self, key):
            await self._connections.read(self._send)

        async def _send(self, tracer):
            tracer.start_span("driver").end()

    store = telemetry.traced(Networked())
    with telemetry.tracer.start_as_current_span("caller") as caller:
        await store.save("k", "text")
        await store.load("k")
        assert trace.get_current_span() is caller
    for driver, operation in (telemetry.spans[:2], telemetry.spans[2:4]):
        assert (driver.name, operation.parent.span_id) == ("driver", caller.context.span_id)
        assert driver.parent.span_id == operation.context.span_id


def test_the_span_of_a_blocking_call_is_a_child_of_its_caller(telemetry):
    with (
        BlockingStore(lambda: open_traced_store("memory://n", **telemetry.providers)) as store,
        telemetry.tracer.start_as_current_span("caller") as caller,
    ):
        store.save("k", "text")
    assert telemetry.spans[0].parent.span_id == caller.context.span_id


async def test_a_listing_is_one_span_that_is_current_only_while_the_store_works(telemetry):
    class Paged(Bare):
        async def list_keys(self, prefix=""):
            for page in range(3):
                telemetry.tracer.start_span("page").end()
                yield str(page)

    before = trace.get_current_span()
    async for _ in telemetry.traced(Paged()).list_keys():
        assert trace.get_current_span() is before
        telemetry.tracer.start_span("caller").end()
    *inner, listing = telemetry.spans
    assert listing.name == "list_keys"
    assert [span.name for span in inner] == ["page", "caller"] * 3
    for span in inner:
        assert (span.parent is not None) == (span.name == "page")
    assert {span.parent.span_id for span in inner if span.parent} == {listing.context.span_id}


async def test_the_time_of_a_listing_is_the_stores(telemetry):
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()

    class Slow(Bare):
        async def list_keys(self, prefix=""):
            for page in range(3):
                clock.now += 2
                yield str(page)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dagonizer.observability._observed.time", clock)
        async for _ in telemetry.traced(Slow()).list_keys():
            clock.now += 100
    assert telemetry.points["list_keys", None].sum == 6


async def test_a_listing_that_is_left_ends_the_span_and_the_stores_listing_without_an_error(telemetry):
    ended = []

    class Endless(Bare):
        async def list_keys(self, prefix=""):
            try:
                while True:
                    yield "k"
            finally:
                ended.append(trace.get_current_span())

    keys = telemetry.traced(Endless()).list_keys()
    assert await anext(keys) == "k"
    assert not telemetry.spans
    await keys.aclose()
    [span] = telemetry.spans
    assert span.status.status_code is StatusCode.UNSET
    assert [current.get_span_context().span_id for current in ended] == [span.context.span_id]
    keys = telemetry.traced(Endless()).list_keys()
    await anext(keys)
    with pytest.raises(RuntimeError):
        await keys.athrow(RuntimeError("the caller's"))
    assert telemetry.spans[-1].status.status_code is StatusCode.UNSET


async def test_a_listing_that_fails_has_failed(telemetry):
    keys = telemetry.traced(Failing(StoreError("no"))).list_keys()
    assert await anext(keys) == KEY
    with pytest.raises(StoreError):
        await anext(keys)
    assert telemetry.spans[0].attributes["error.type"] == "StoreError"


@pytest.mark.parametrize(
    ("url", "system", "server"),
    [
        ("postgresql://u:hunter2@h:7/db", "postgresql", ("h", 7)),
        ("postgres://u:hunter2@h/db?schema=hunter2", "postgresql", ("h", None)),
        ("redis://:hunter2@h", "redis", ("h", None)),
        ("rediss://h:7", "redis", ("h", 7)),
        ("redis+cluster://a,b", "redis", None),
        ("s3://bucket?region=r", "aws.s3", ("s", 9)),
        ("etcds://h", "etcd", ("h", None)),
        ("etcd+http://h", "etcd", ("h", None)),
        ("file:///somewhere", "file", None),
        ("acme://h:1", "acme", ("h", 1)),
    ],
)
async def test_a_url_says_what_system_and_server_it_is(url, system, server, telemetry, monkeypatch):
    monkeypatch.setattr(registry, "open_store", lambda _: MemoryCheckpointStore())
    monkeypatch.setattr(registry, "store_endpoints", lambda url: (Host("s", 9),) if url.scheme == "s3" else url.hosts)
    async with open_traced_store(url, **telemetry.providers) as store:
        await store.save("k", "text")
    [span] = telemetry.spans
    assert span.name == "save"
    assert span.attributes["db.system.name"] == system
    shown = (span.attributes.get("server.address"), span.attributes.get("server.port"))
    assert shown == (server or (None, None))
    assert SECRET not in telemetry.everything()


async def test_without_an_sdk_it_does_nothing(monkeypatch):
    store = traced(MemoryCheckpointStore(), system="memory", record_keys=True)
    await store.save("k", "text")
    assert await store.load("k") == "text"


def test_opentelemetry_is_imported_only_to_trace():
    program = """
import sys
sys.modules["opentelemetry"] = None
from dagonizer import MemoryCheckpointStore, StoreError
from dagonizer.observability import logged, traced
logged(MemoryCheckpointStore())
try:
    traced(MemoryCheckpointStore(), system="memory")
except StoreError as exc:
    print(exc)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 'run: pip install "dagonizer[otel]"' in ran.stdout


async def test_each_operation_is_logged(caplog):
    caplog.set_level(logging.DEBUG, logger="dagonizer.observability")
    store = logged(MemoryCheckpointStore())
    await store.save(KEY, "é")
    await store.load("absent")
    with pytest.raises(StoreConflictError):
        await store.save_if(KEY, "text", expected=None)
    assert [key async for key in store.list_keys()] == [KEY]
    told = [(r.levelno, r.operation, r.outcome, r.size) for r in caplog.records]
    assert told == [
        (logging.DEBUG, "save", "ok", 2),
        (logging.DEBUG, "load", "ok", None),
        (logging.WARNING, "save_if", "StoreConflictError", 4),
        (logging.DEBUG, "list_keys", "ok", None),
    ]
    first, second, third, _ = caplog.records
    assert first.getMessage() == f"save: ok in {first.duration:.6f} s, 2 bytes"
    assert second.getMessage() == f"load: ok in {second.duration:.6f} s"
    assert third.getMessage() == f"save_if: StoreConflictError in {third.duration:.6f} s, 4 bytes"
    assert all(0 < record.duration < 1 for record in caplog.records)
    assert {record.name for record in caplog.records} == {"dagonizer.observability"}


async def test_logger_and_level_are_the_callers(caplog):
    caplog.set_level(logging.INFO)
    logger = logging.getLogger("mine")
    await logged(Bare(), logger=logger, level=logging.INFO).load("50%s")
    await logged(Bare(), logger=logger, level=logging.INFO, record_keys=True).load("50%s")
    await logged(Bare(), logger=logger).load("k")
    assert [(record.name, record.levelno) for record in caplog.records] == [("mine", logging.INFO)] * 2
    assert caplog.records[1].getMessage().endswith(", key '50%s'")
