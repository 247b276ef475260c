"""From a work item to the task that hands it out, or that replays it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lockstep.compiled import CompiledGraph
from lockstep.core.canonical import canonical_bytes
from lockstep.core.ordering import run_seed_of
from lockstep.core.records import WorkItem
from lockstep.options import Options
from lockstep.records import RunRow, Task
from lockstep.subgraphs import call_input_of


class TaskMaker:
    """Makes the tasks of one run. What all of them share is made once: a step may have 10,000."""

    def __init__(self, row: RunRow, graph: CompiledGraph, options: Options) -> None:
        self._row = row
        self._graph = graph
        self._options = options
        self._seed = run_seed_of(row.run_id) if options.seed is None else options.seed
        called = call_input_of(row)
        self._top = called.top if called is not None else None
        self._context = canonical_bytes(options.context) if options.context is not None else None

    def task(
        self,
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
        node = self._graph.nodes[item.place]
        return Task(
            run_id=self._row.run_id,
            partition_id=self._row.partition_id,
            graph_hash=self._graph.hash,
            step_id=step_id,
            node_id=item.node_id,
            path=item.path,
            order_key=item.order_key,
            scheduled_step=item.scheduled_step,
            queue=node.queue,
            attempt=attempt,
            delivery=delivery,
            run_seed=self._seed,
            timeout_seconds=node.timeout_seconds or self._options.default_timeout_seconds,
            max_payload_bytes=self._options.max_payload_bytes,
            state=state,
            payload=item.payload,
            max_concurrent=node.max_concurrent,
            stands_for=item.stands_for,
            error=error,
            answers=tuple(answers),
            recorded=tuple(recorded),
            context=self._context,
            trace_context=self._row.trace_context,
            top=self._top,
        )
