"""Spans and measurements of operations, named as OpenTelemetry's conventions for databases name them (1.33 and later).

Only this module imports OpenTelemetry.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from opentelemetry.metrics import Histogram, MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from dagonizer.observability._observed import Outcome
    from dagonizer.url import Host

    Attributes = dict[str, str | int]

# In seconds; they are the conventions' own.
_DURATIONS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)


class Spans:
    """Begins a span for every operation of a store; see ``dagonizer.observability.traced``."""

    def __init__(
        self,
        *,
        system: str,
        server: Host | None,
        namespace: str | None,
        record_keys: bool,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
    ) -> None:
        self._attributes: Attributes = {"db.system.name": system}
        if namespace is not None:
            self._attributes["db.namespace"] = namespace
        if server is not None:
            self._attributes["server.address"] = server.name
            if server.port is not None:
                self._attributes["server.port"] = server.port
        self._target = "" if namespace is None else f" {namespace}"
        self._record_keys = record_keys
        self._tracer = trace.get_tracer("dagonizer", version("dagonizer"), tracer_provider)
        self._histogram = metrics.get_meter("dagonizer", version("dagonizer"), meter_provider).create_histogram(
            "db.client.operation.duration",
            unit="s",
            description="Duration of database client operations.",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )

    def begin(self, operation: str, key: str) -> OperationSpan:
        """Begin a span, a child of the one that is current."""
        attributes = {**self._attributes, "db.operation.name": operation}
        span = self._tracer.start_span(f"{operation}{self._target}", kind=trace.SpanKind.CLIENT, attributes=attributes)
        if self._record_keys and span.is_recording():
            span.set_attribute("dagonizer.key", _sendable(str(key)))
        return OperationSpan(span, self._histogram, attributes, record_message=self._record_keys)


class OperationSpan:
    """One operation: its span, and at its end its measurement."""

    def __init__(self, span: Span, histogram: Histogram, attributes: Attributes, *, record_message: bool) -> None:
        self._span = span
        self._histogram = histogram
        self._attributes = attributes
        self._record_message = record_message

    def working(self) -> AbstractContextManager[object]:
        """Return the context in which the span is current, so that a driver's own spans become its children."""
        # What is raised is told by ended, which knows what may be told of it.
        return trace.use_span(self._span, record_exception=False, set_status_on_exception=False)

    def ended(self, outcome: Outcome) -> None:
        """End the span, and measure."""
        if outcome.raised is not None:
            error = outcome.raised.__qualname__
            self._attributes["error.type"] = error
            self._span.set_attribute("error.type", error)
            told = _sendable(outcome.message) if self._record_message else None
            self._span.set_status(trace.StatusCode.ERROR, told or None)
        if self._span.is_recording() and (size := outcome.document_bytes()) is not None:
            self._span.set_attribute("dagonizer.document.size", size)
        # In its context, to be the span's measurement in exemplars.
        self._histogram.record(outcome.seconds, self._attributes, trace.set_span_in_context(self._span))
        self._span.end()


def _sendable(text: str) -> str:
    r"""Return ``text`` with lone surrogates as ``\udXXX``: an exporter could not send them, nor what goes with them."""
    return text.encode(errors="backslashreplace").decode()
