"""The spans of a run and of its steps, made when they have ended."""

from __future__ import annotations

import time
from functools import partial

from lockstep.core.lifecycle import RunStatus
from lockstep.core.superstep import Step
from lockstep.records import RunRow
from lockstep.telemetry.spans import RunTrace, Span, Spans
from lockstep_coordinator.run import ActiveRun


def emit_step(spans: Spans, run: ActiveRun, step: Step, tasks: int) -> None:
    """A step is committed; it had so many items."""
    began, run.moved_ns = run.moved_ns, time.time_ns()
    spans.emit(partial(_step_span, run.row, step.step_id, tasks, began, run.moved_ns))


def emit_run(spans: Spans, run: ActiveRun) -> None:
    """A run has ended; once for each time that it was retried, with a link to the time before."""
    spans.emit(partial(_run_span, run.row, float(run.spent_usd), run.error_type, time.time_ns()))


def _step_span(row: RunRow, step_id: int, tasks: int, start_ns: int, end_ns: int) -> Span:
    trace = RunTrace(row.run_id, row.trace_context)
    return Span(
        name=f"step {step_id}",
        context=trace.step(step_id),
        parent=trace.run(row.retries),
        start_ns=start_ns,
        end_ns=end_ns,
        attributes={"run_id": row.run_id, "step_id": step_id, "graph": row.graph, "nodes": tasks},
    )


def _run_span(row: RunRow, cost_usd: float, error_type: str, end_ns: int) -> Span:
    trace = RunTrace(row.run_id, row.trace_context)
    return Span(
        name=f"run {row.graph}",
        context=trace.run(row.retries),
        parent=trace.above,
        start_ns=row.created_at * 1_000_000,
        end_ns=end_ns,
        attributes={
            "run_id": row.run_id,
            "graph": row.graph,
            "graph_hash": row.graph_hash,
            "status": row.status.value,
            "steps": row.step_id,
            "retries": row.retries,
            "cost_usd": cost_usd,
        },
        links=(trace.run(row.retries - 1),) if row.retries else (),
        error=None if row.status is RunStatus.SUCCEEDED else error_type,
    )
