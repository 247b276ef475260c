"""What a run has done, read from the store alone: no graph, no user code."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lockstep.core.frontier import decode_frontier, stand_in
from lockstep.core.lifecycle import FINISHED
from lockstep.core.ordering import ROOT_PATH, order_key_of
from lockstep.core.outside import Outside, outside_kind, outside_path
from lockstep.core.records import Frontier, WorkItem, Write
from lockstep.core.state import State, apply_patches
from lockstep.costs import Costs, Usage, used_of
from lockstep.errors import StateError
from lockstep.interrupts import Interrupt, open_question, question_id, timer_of
from lockstep.ports import Reader
from lockstep.records import JournalRow, RunRow, StepRow
from lockstep.subgraphs import child_run_id, children_of, open_call
from lockstep.wire import JournalMeta, decode_meta, decode_outcome

STEPS_PER_READ = 100
"""Steps that are read from the store at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One work item of a step. Paths and keys are lower-case hex.

    `delta` maps the fields that the node wrote to their JSON values. `targets` are the nodes that its Command and routers
    named, in index order; static edges are the graph's. `status` is done, failed, pending, interrupted (it has asked
    something), or called (the run of its subgraph goes on). `error` is the last failure of an item that failed. `started_at` is
    in milliseconds since 1970, by the worker's clock. The record of an error handler has the handler's name as `node_id`; the
    node that failed, in whose place it ran, is `stands_for`, its item the parent, and its last failure the `error`. `usage` is
    what calls to models have used, those of attempts that failed included.
    """

    node_id: str
    path: str
    parent_path: str
    edge_index: int
    order_key: str
    status: str
    attempt: int
    delivery: int
    delta: dict[str, Any]
    targets: list[str]
    error: dict[str, Any] | None
    started_at: int
    latency_ms: float
    worker: str
    stands_for: str | None = None
    usage: list[Usage] = dataclasses.field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """Commit `step_id` of a run; record 0 is the input and has no tasks. Tasks are in ascending order_key.

    `committed_at` is in milliseconds since 1970, by the database's clock.
    """

    step_id: int
    state_hash: str
    idempotency_key: str
    tasks: list[TaskRecord]
    committed_at: int


def read_history(reader: Reader, run_id: str, first: int, last: int) -> Iterator[StepRecord]:
    """The step records first..last, oldest first, read in bounded portions."""
    for start in range(first, last + 1, STEPS_PER_READ):
        end = min(start + STEPS_PER_READ - 1, last)
        rows = {row.step_id: row for row in reader.steps(run_id, start - 1, end)}
        ran = {
            step_id: decode_frontier(rows[step_id - 1].frontier, step_id - 1).items if step_id else ()
            for step_id in range(start, end + 1)
            if step_id in rows
        }
        in_place, journal = items_in_place(reader, run_id, [item for items in ran.values() for item in items])
        ordered = iter(in_place)
        for step_id, items in ran.items():
            tasks = [task_record(item, journal) for item in itertools.islice(ordered, len(items))]
            kind = outside_kind(run_id, step_id, rows[step_id].state_hash, rows[step_id].idempotency_key)
            if kind is not None:
                tasks = [_record_from_outside(kind, step_id)]
            yield _step_record(rows[step_id], tasks)


def items_in_place(
    reader: Reader, run_id: str, items: Sequence[WorkItem], retries: int | None = None
) -> tuple[list[WorkItem], dict[bytes, list[JournalRow]]]:
    """The items in their order, each that failed for good replaced by its error handler's, and the journal of all by path.

    A handler that has a result is in place; one that has none is while its run is at this number of `retries`: a later retry
    begins with the node again.
    """
    journal = journal_of(reader, run_id, items)
    handlers: dict[bytes, tuple[WorkItem, int]] = {}
    for item in items:
        for row in journal.get(item.path, ()):
            if row.kind == "failed" and (meta := decode_meta(row.meta)).handler is not None:
                handlers[item.path] = stand_in(item, meta.handler), meta.retries
    if not handlers:
        return list(items), journal
    journal |= journal_of(reader, run_id, [handler for handler, _ in handlers.values()])

    def in_place(item: WorkItem) -> WorkItem:
        if item.path not in handlers or is_done(journal[item.path]):
            return item
        handler, of_retries = handlers[item.path]
        return handler if of_retries == retries or is_done(journal.get(handler.path, ())) else item

    return list(map(in_place, items)), journal


def is_done(rows: Sequence[JournalRow]) -> bool:
    """Whether an item has a result."""
    return any(row.kind == "done" for row in rows)


def journal_of(reader: Reader, run_id: str, items: Sequence[WorkItem]) -> dict[bytes, list[JournalRow]]:
    """The journal rows of some items by path."""
    by_path: dict[bytes, list[JournalRow]] = {}
    for row in reader.journal(run_id, [item.path for item in items]):
        by_path.setdefault(row.path, []).append(row)
    return by_path


def task_record(item: WorkItem, journal: Mapping[bytes, Sequence[JournalRow]]) -> TaskRecord:
    """What an item's journal rows say of it; one without rows is still to be done."""
    rows = journal.get(item.path, ())
    done = next((row for row in rows if row.kind == "done"), None)
    failed = _last_failure(rows)
    handled = _last_failure(journal.get(item.parent_path, ())) if item.stands_for is not None else None
    last = done or failed
    meta = decode_meta(last.meta) if last else JournalMeta()
    error = handled if done else failed
    finished = decode_outcome(done.payload)[0] if done else None
    return TaskRecord(
        node_id=item.node_id,
        path=item.path.hex(),
        parent_path=item.parent_path.hex(),
        edge_index=item.edge_index,
        order_key=item.order_key.hex(),
        status=_status(done, failed, rows),
        attempt=meta.attempt,
        delivery=meta.delivery,
        delta=delta_of(finished.writes) if finished else {},
        targets=[route.node_id for route in finished.routes] if finished else [],
        error=json.loads(error.payload) if error else None,
        started_at=meta.started_at,
        latency_ms=meta.latency_ms,
        worker=meta.worker,
        stands_for=item.stands_for,
        usage=[usage for used in used_of(rows) for usage in used.calls],
    )


def _status(done: JournalRow | None, failed: JournalRow | None, rows: Sequence[JournalRow]) -> str:
    if done is not None:
        return "done"
    if open_question(rows) is not None:
        return "interrupted"
    if open_call(rows) is not None:
        return "called"
    return "failed" if failed is not None else "pending"


def _record_from_outside(kind: Outside, step_id: int) -> TaskRecord:
    """The one item of a step that came from outside; no worker had it."""
    path = outside_path(kind, step_id)
    item = WorkItem(kind, path, ROOT_PATH, step_id, order_key_of("edge", 0, path), step_id)
    return dataclasses.replace(task_record(item, {}), status="done")


def _last_failure(rows: Sequence[JournalRow]) -> JournalRow | None:
    return max((row for row in rows if row.kind == "failed"), key=lambda row: row.n, default=None)


def delta_of(writes: tuple[Write, ...]) -> dict[str, Any]:
    """A delta as a dict; where a node wrote a field several times, its last value."""
    return {write.field: write.value for write in writes}


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands after a step: S(n), F(n+1), and the bytes of the patches since the last snapshot of it."""

    state: State
    frontier: Frontier
    patch_bytes: int


def read_position(reader: Reader, run_id: str, step_id: int) -> Position:
    """What the commit of a step left, from the nearest snapshot and the patches after it.

    Raises StateError if there is no such step, or what is stored of it is not what was committed.
    """
    rows = reader.steps(run_id, step_id, step_id)
    if not rows:
        raise _no_step(run_id, step_id)
    snapshot, patches = reader.snapshot(run_id, step_id)
    try:
        state, frontier = apply_patches(snapshot, patches), decode_frontier(rows[0].frontier, step_id)
    except Exception as error:  # There is no end to what damaged bytes can be taken for.
        raise _damaged(reader, run_id, step_id, "cannot be read") from error
    if state.hash() != rows[0].state_hash:
        raise _damaged(reader, run_id, step_id, "does not have its committed hash")
    return Position(state, frontier, sum(map(len, patches)))


def read_state(reader: Reader, run_id: str, step_id: int) -> dict[str, Any]:
    """The JSON values of S(step_id). Raises StateError, see `read_position`."""
    return read_position(reader, run_id, step_id).state.values


def read_interrupts(reader: Reader, row: RunRow) -> list[Interrupt]:
    """What the items of a run's step ask, in their order, and nobody has answered; subgraphs ask what their nodes do."""
    steps = reader.steps(row.run_id, row.step_id, row.step_id)
    if not steps or row.status in FINISHED:
        return []  # It was removed while it was read, or it is the run of a subgraph that has ended.
    items, journal = items_in_place(reader, row.run_id, decode_frontier(steps[0].frontier, row.step_id).items, row.retries)
    asked: list[Interrupt] = []
    for item in items:
        rows = journal.get(item.path, ())
        if is_done(rows):
            continue
        if (one := open_question(rows)) is not None and not sleeps(rows, one):
            asked.append(Interrupt(question_id(item.path, one.n), item.node_id, json.loads(one.payload), row.run_id))
        elif open_call(rows) is not None:
            for child in reader.find_runs(run_ids=[child_run_id(row.run_id, item.path)]):
                below = read_interrupts(reader, child)
                asked += [dataclasses.replace(one, node_id=f"{item.node_id}/{one.node_id}") for one in below]
    return asked


def read_costs(reader: Reader, row: RunRow) -> Costs:
    """What a run and its subgraphs have used."""
    costs = Costs()
    _count(costs, reader, row, "")
    return costs


def _count(costs: Costs, reader: Reader, row: RunRow, within: str) -> None:
    costs.count(reader.usage(row.run_id), within)
    for child in children_of(reader, row.run_id):
        _count(costs, reader, child, f"{within}{child.graph.removeprefix(row.graph + '/')}/")


def sleeps(rows: Sequence[JournalRow], question: JournalRow) -> bool:
    """Whether an item that has asked waits for time to pass, and for nobody."""
    timer = timer_of(rows, question)
    return timer is not None and timer.sleeps


def _no_step(run_id: str, step_id: int) -> StateError:
    return StateError(f"run {run_id} has no committed step {step_id}", run_id=run_id, step_id=step_id)


def _damaged(reader: Reader, run_id: str, step_id: int, how: str) -> StateError:
    if not reader.steps(run_id, step_id, step_id):
        return _no_step(run_id, step_id)  # The run was removed while it was read.
    text = f"the stored state of run {run_id} at step {step_id} {how}; restore a backup"
    return StateError(text, run_id=run_id, step_id=step_id)


def _step_record(row: StepRow, tasks: list[TaskRecord]) -> StepRecord:
    return StepRecord(
        step_id=row.step_id,
        state_hash=row.state_hash.hex(),
        idempotency_key=row.idempotency_key.hex(),
        tasks=tasks,
        committed_at=row.committed_at,
    )
