"""Spans by OpenTelemetry's SDK."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import structlog
from opentelemetry import trace
from opentelemetry.context import attach, detach
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, Status, StatusCode, TraceFlags

from lockstep.telemetry.spans import Span, SpanContext

log = structlog.get_logger()

FLUSH_SECONDS = 3.0
"""How long the end of a process waits for the collector to take what is left."""

BATCH_SECONDS = 1.0
BATCH_SPANS = 512
"""How often, and how many spans at a time, are sent."""

MAX_WAITING = 2048
"""Spans that wait to be sent; more are dropped."""

SCOPE = InstrumentationScope("lockstep")


class Shared:
    """What both ways to send spans have in common. `service` names the process's role where OTEL_SERVICE_NAME does not."""

    def __init__(self, service: str) -> None:
        self.dropped = 0
        self._resource = Resource.create()
        if self._resource.attributes.get(SERVICE_NAME, "").startswith("unknown_service"):  # type: ignore[union-attr]
            self._resource = self._resource.merge(Resource({SERVICE_NAME: service}))

    def _readable(self, span: Span) -> ReadableSpan:
        return ReadableSpan(
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


class ProcessedSpans(Shared):
    """To a span processor that is somebody else's."""

    def __init__(self, processor: SpanProcessor, service: str) -> None:
        super().__init__(service)
        self._processor = processor

    def emit(self, make: Callable[[], Span]) -> None:
        """See `Spans`."""
        try:
            span = make()
            if span.context.sampled:
                self._processor.on_end(self._readable(span))
        except Exception as error:  # of somebody else's processor: it must not end the loop that emits
            self.dropped += 1
            log.warning("a span could not be processed", error=repr(error))

    def inside(self, context: Callable[[], SpanContext]) -> AbstractContextManager[None]:
        """See `Spans`."""
        return _attached(context())


class ExportedSpans(Shared):
    """To an exporter of this process's own, in batches, from a thread of its own.

    Not by the SDK's own batches: those are made of finished spans, so that a collector that is away would cost as much as one
    that takes them all.
    """

    def __init__(self, exporter: SpanExporter, service: str) -> None:
        super().__init__(service)
        self._exporter = exporter
        self._waiting: deque[Callable[[], Span]] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._export, name="lockstep-spans", daemon=True)
        self._thread.start()

    def emit(self, make: Callable[[], Span]) -> None:
        """See `Spans`."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(make)
        else:
            self.dropped += 1

    def inside(self, context: Callable[[], SpanContext]) -> AbstractContextManager[None]:
        """See `Spans`. Where nobody has set a provider, there are no spans of others."""
        others = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        return _attached(context()) if others else nullcontext()

    def _export(self) -> None:
        while True:
            closing = self._closing.wait(BATCH_SECONDS)
            while self._waiting:
                self._send([self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_SPANS))])
            if closing:
                return

    def _send(self, makes: list[Callable[[], Span]]) -> None:
        try:
            batch = [self._readable(span) for span in [make() for make in makes] if span.context.sampled]
            if batch and self._exporter.export(batch) is not SpanExportResult.SUCCESS:
                self.dropped += len(batch)
        except Exception as error:  # of somebody else's exporter: the next batch may go
            self.dropped += len(makes)
            log.warning("spans could not be exported", error=repr(error))

    def close(self) -> None:
        """Send what is left, for a bounded time: a collector that is away must not keep a process from ending."""
        self._closing.set()
        self._thread.join(FLUSH_SECONDS)
        self._waiting.clear()
        self._exporter.shutdown()
        self._thread.join(FLUSH_SECONDS)


def export_by_environment(service: str) -> ExportedSpans:
    """Spans over OTLP (HTTP), as the standard's OTEL_* variables say."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return ExportedSpans(OTLPSpanExporter(), service)


@contextmanager
def _attached(context: SpanContext) -> Iterator[None]:
    token = attach(trace.set_span_in_context(NonRecordingSpan(_context(context))))
    try:
        yield
    finally:
        detach(token)


def _context(context: SpanContext) -> trace.SpanContext:
    return trace.SpanContext(
        trace_id=int.from_bytes(context.trace_id, "big"),
        span_id=int.from_bytes(context.span_id, "big"),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT),
    )
