"""The span of one execution of a node."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from lockstep.costs import Usage, total
from lockstep.records import Task
from lockstep.telemetry.spans import RunTrace, Span, SpanContext


def context_of(task: Task) -> SpanContext:
    """The span of this execution."""
    return RunTrace(task.run_id, task.trace_context).node(task.path, task.delivery)


def node_span(
    task: Task,
    *,
    outcome: str,
    error: str | None,
    usage: Iterable[Usage],
    started_ns: int,
    latency_ms: float,
    worker: str,
) -> Span:
    """A node has been executed. A later delivery (a retry, an answered question, a lost worker) links to the one before."""
    trace = RunTrace(task.run_id, task.trace_context)
    before = (trace.node(task.path, task.delivery - 1),) if task.delivery > 1 else ()
    return Span(
        name=f"node {task.node_id}",
        context=trace.node(task.path, task.delivery),
        parent=trace.step(task.step_id),
        start_ns=started_ns,
        end_ns=started_ns + int(latency_ms * 1e6),
        attributes={**attributes_of(task, usage, latency_ms), "outcome": outcome, "worker": worker},
        links=before,
        error=error,
    )


def replay_span(task: Task, *, usage: Iterable[Usage], started_ns: int, end_ns: int) -> Span:
    """A node was replayed: beside the step that it was in, with a link to its execution."""
    trace = RunTrace(task.run_id, task.trace_context)
    attributes = attributes_of(task, usage, (end_ns - started_ns) / 1e6)
    return Span(
        name=f"replay {task.node_id}",
        context=trace.replayed(task.path),
        parent=trace.step(task.step_id),
        start_ns=started_ns,
        end_ns=end_ns,
        attributes={**attributes, "outcome": "replayed", "worker": "replay"},
        links=(trace.node(task.path, task.delivery),),
    )


def attributes_of(task: Task, usage: Iterable[Usage], latency_ms: float) -> dict[str, str | int | float | bool]:
    """The nine that every node's span has. Without calls to models, tokens and costs are 0."""
    calls = list(usage)
    return {
        "run_id": task.run_id,
        "step_id": task.step_id,
        "node_id": task.node_id,
        "attempt": task.attempt,
        "order_key": task.order_key.hex(),
        "tokens_in": sum(call.tokens_in or 0 for call in calls),
        "tokens_out": sum(call.tokens_out or 0 for call in calls),
        "latency_ms": latency_ms,
        "cost_usd": float(total(call.cost or Decimal(0) for call in calls)),
        "delivery": task.delivery,
    }
