"""From a work item to the task that hands it out, or that replays it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lockstep.core.canonical import canonical_bytes
from lockstep.core.ordering import run_seed_of
from lockstep.core.records import WorkItem
from lockstep.graph import CompiledGraph
from lockstep.options import Options
from lockstep.records import RunRow, Task


def task_of(
    row: RunRow,
    graph: CompiledGraph,
    options: Options,
    item: WorkItem,
    *,
    step_id: int,
    state: bytes,
    attempt: int,
    delivery: int,
    error: dict[str, Any] | None,
    answers: Iterable[bytes],
    recorded: Iterable[bytes],
) -> Task:
    """The task of an item of step `step_id`, on S(step_id - 1): what its node sees depends on nothing else."""
    node = graph.nodes[item.place]
    return Task(
        run_id=row.run_id,
        partition_id=row.partition_id,
        graph_hash=graph.hash,
        step_id=step_id,
        node_id=item.node_id,
        path=item.path,
        order_key=item.order_key,
        scheduled_step=item.scheduled_step,
        queue=node.queue,
        attempt=attempt,
        delivery=delivery,
        run_seed=run_seed_of(row.run_id) if options.seed is None else options.seed,
        timeout_seconds=node.timeout_seconds or options.default_timeout_seconds,
        max_payload_bytes=options.max_payload_bytes,
        state=state,
        payload=item.payload,
        max_concurrent=node.max_concurrent,
        stands_for=item.stands_for,
        error=error,
        answers=tuple(answers),
        recorded=tuple(recorded),
        context=canonical_bytes(options.context) if options.context is not None else None,
    )
