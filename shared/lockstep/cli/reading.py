"""What each role has to say to Prometheus and to probes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lockstep.errors import BrokerUnavailableError
from lockstep.telemetry.metrics import Reading, reading_of
from lockstep_coordinator.process import CoordinatorProcess


def read_coordinator(process: CoordinatorProcess) -> Reading:
    """What a coordinator counts, and what it holds."""
    current = process.current
    reading: dict[str, Any] = {**reading_of(process.counts), "lockstep_dropped_spans_total": process.dropped_spans}
    if current is not None:
        reading |= {
            "langgraph_inflight_nodes": current.in_flight,
            "lockstep_active_runs": current.active,
            "lockstep_oldest_run_seconds": current.oldest_seconds,
            "lockstep_partitions": current.partitions,
        }
    return reading


def read_queues(queues: Iterable[str], depth: Callable[[str], int], oldest: Callable[[str], float] | None = None) -> Reading:
    """How many tasks wait in each queue, and how long the first has; nothing where Redis does not answer."""
    try:
        reading = {"langgraph_queue_depth": {queue: depth(queue) for queue in queues}}
        if oldest is not None:
            return {**reading, "lockstep_oldest_task_seconds": {queue: oldest(queue) for queue in queues}}
    except BrokerUnavailableError:
        return {}
    return reading


def coordinates(process: CoordinatorProcess) -> str | None:
    """Why a coordinator moves nothing at the moment; None: it has a lease."""
    return None if process.current is not None else "it has no lease: the database or Redis does not answer"
