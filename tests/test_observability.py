"""The conformance kit through stores that are observed."""

from __future__ import annotations

import logging

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dagonizer import MemoryCheckpointStore
from dagonizer.observability import logged, traced
from dagonizer_conformance import Capability, Level, run

SPANS = InMemorySpanExporter()
PROVIDER = TracerProvider(shutdown_on_exit=False)
PROVIDER.add_span_processor(SimpleSpanProcessor(SPANS))


def traced_store(namespace):
    store = MemoryCheckpointStore(namespace)
    return traced(store, system="memory", record_keys=True, tracer_provider=PROVIDER)


def logged_store(namespace):
    return logged(MemoryCheckpointStore(namespace), record_keys=True)


@pytest.mark.parametrize("opened", [traced_store, logged_store])
async def test_an_observed_store_keeps_the_contract(opened, caplog):
    caplog.set_level(logging.DEBUG, "dagonizer.observability")
    SPANS.clear()
    report = await run(opened, budget="smoke")
    failed = [result for result in report.results if result.status not in {"PASS", "UNVERIFIED"}]
    assert not failed
    assert report.levels == (Level.CORE, Level.CONCURRENT)
    assert report.chips == (Capability.CLOSE, Capability.LISTING, Capability.COMPARE_AND_SWAP)
    operations = {span.attributes["db.operation.name"] for span in SPANS.get_finished_spans()}
    operations |= {record.operation for record in caplog.records if record.name == "dagonizer.observability"}
    assert operations == {"save", "load", "delete", "list_keys", "load_versioned", "save_if"}
