"""Spans by OpenTelemetry's SDK."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, Status, StatusCode, TraceFlags

from lockstep.telemetry.spans import Span, SpanContext

FLUSH_SECONDS = 3.0
"""How long the end of a process waits for the collector to take what is left."""

SCOPE = InstrumentationScope("lockstep")


class OtelSpans:
    """`Spans` to a span processor: one that batches takes them without blocking, and drops those that it has no room for.

    `service` names this process's role where OTEL_SERVICE_NAME does not.
    """

    def __init__(self, processor: SpanProcessor, service: str) -> None:
        self._processor = processor
        self._resource = Resource.create()
        if self._resource.attributes.get(SERVICE_NAME, "").startswith("unknown_service"):  # type: ignore[union-attr]
            self._resource = self._resource.merge(Resource({SERVICE_NAME: service}))

    def emit(self, span: Span) -> None:
        """See `Spans`."""
        if not span.context.sampled:
            return
        self._processor.on_end(
            ReadableSpan(
                name=span.name,
                context=_context(span.context),
                parent=None if span.parent is None else _context(span.parent),
                resource=self._resource,
                attributes=span.attributes,
                links=[Link(_context(link)) for link in span.links],
                status=Status(StatusCode.OK) if span.error is None else Status(StatusCode.ERROR, span.error),
                start_time=span.start_ns,
                end_time=max(span.start_ns, span.end_ns),
                instrumentation_scope=SCOPE,
            )
        )

    @contextmanager
    def inside(self, context: SpanContext) -> Iterator[None]:
        """See `Spans`."""
        with trace.use_span(NonRecordingSpan(_context(context)), end_on_exit=False):
            yield


class ExportedSpans(OtelSpans):
    """To an exporter of this process's own, in batches, from a thread of its own."""

    def __init__(self, exporter: SpanExporter, service: str) -> None:
        self._exporter = exporter
        self._batches = BatchSpanProcessor(exporter)
        super().__init__(self._batches, service)

    def close(self) -> None:
        """Send what is left, for a bounded time: a collector that is away must not keep a process from ending."""
        giving_up = threading.Timer(FLUSH_SECONDS, self._exporter.shutdown)
        giving_up.daemon = True
        giving_up.start()
        self._batches.shutdown()  # type: ignore[no-untyped-call]
        giving_up.cancel()


def export_by_environment(service: str) -> ExportedSpans:
    """Spans over OTLP (HTTP), as the standard's OTEL_* variables say."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return ExportedSpans(OTLPSpanExporter(), service)


def _context(context: SpanContext) -> trace.SpanContext:
    return trace.SpanContext(
        trace_id=int.from_bytes(context.trace_id, "big"),
        span_id=int.from_bytes(context.span_id, "big"),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT),
    )
