"""Spans of runs, steps and nodes. Their ids are computed, so every process knows those of the spans above and before its own.

    trace_id = what the submission's traceparent says, else SHA256("trace" || run_id)[0:16]
    span_id  = SHA256(kind || BE_u32(len(run_id)) || run_id || what tells it from others of its kind)[0:8]

A run taken over, retried or resumed so goes on in the trace that it had, and nothing has to be kept for that.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec

TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class SpanContext(msgspec.Struct, frozen=True):
    """Which span of which trace: W3C Trace Context."""

    trace_id: bytes
    span_id: bytes
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """As a W3C header's value."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{self.sampled:02x}"


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """What has happened, from when to when (nanoseconds since 1970). `error` is what failed; None: nothing."""

    name: str
    context: SpanContext
    parent: SpanContext | None
    start_ns: int
    end_ns: int
    attributes: dict[str, str | int | float | bool]
    links: tuple[SpanContext, ...] = ()
    error: str | None = None


class Spans(Protocol):
    """Where spans go. Neither method blocks or raises; what cannot be sent is dropped, and counted."""

    dropped: int

    def emit(self, make: Callable[[], Span]) -> None:
        """Send a span that has ended; it is made when there is room for it, perhaps in another thread."""

    def inside(self, context: Callable[[], SpanContext]) -> AbstractContextManager[None]:
        """While this lasts, spans that others make in this thread or coroutine are children of this one."""


class RunTrace:
    """The contexts of one run's spans."""

    def __init__(self, run_id: str, traceparent: str | None) -> None:
        self._run_id = run_id
        self.above = parsed(traceparent)
        """The span in which the run was submitted, or that of the step whose subgraph it is; None: there is none."""
        self.trace_id = self.above.trace_id if self.above else hashlib.sha256(b"trace" + run_id.encode()).digest()[:16]
        self.sampled = self.above is None or self.above.sampled

    def run(self, retries: int) -> SpanContext:
        """The run, for the n-th time."""
        return self._context("run", retries.to_bytes(4, "big"))

    def step(self, step_id: int) -> SpanContext:
        """A step."""
        return self._context("step", step_id.to_bytes(8, "big"))

    def node(self, path: bytes, delivery: int) -> SpanContext:
        """One execution of an item."""
        return self._context("node", path + delivery.to_bytes(4, "big"))

    def replayed(self, path: bytes) -> SpanContext:
        """An item's replay."""
        return self._context("replay", path)

    def _context(self, kind: str, of: bytes) -> SpanContext:
        run_id = self._run_id.encode()
        digest = hashlib.sha256(kind.encode() + len(run_id).to_bytes(4, "big") + run_id + of).digest()
        return SpanContext(self.trace_id, digest[:8], self.sampled)


def parsed(traceparent: str | None) -> SpanContext | None:
    """What a W3C header's value says; None for no value, and for one that is none."""
    found = TRACEPARENT.fullmatch(traceparent or "")
    if found is None or set(found[1]) == {"0"} or set(found[2]) == {"0"}:
        return None
    return SpanContext(bytes.fromhex(found[1]), bytes.fromhex(found[2]), bool(int(found[3], 16) & 1))


def current_traceparent() -> str | None:
    """The span that is open where this is called, by OpenTelemetry; None: none is, or nobody here uses that."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    found: Any = sys.modules["opentelemetry.trace"].get_current_span().get_span_context()
    if not found.is_valid:
        return None
    context = SpanContext(found.trace_id.to_bytes(16, "big"), found.span_id.to_bytes(8, "big"), bool(found.trace_flags & 1))
    return context.traceparent
