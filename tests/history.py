"""Whether what is stored of runs is what their graphs make of their nodes' results: computed again, step by step.

`lockstep.fsck` needs no graph; this one has it, so it can say that no delta was lost, that they were merged in order, that the
frontier is the one that follows, and that the outbox holds what the committed nodes have emitted, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import msgspec

from lockstep.compiled import CompiledGraph
from lockstep.core.canonical import canonical_bytes
from lockstep.core.frontier import decode_frontier
from lockstep.core.outside import outside_kind
from lockstep.core.records import Finished, Frontier, Write
from lockstep.core.state import State
from lockstep.core.superstep import Step, advance, begin
from lockstep.fsck import check_store
from lockstep.history import items_in_place
from lockstep.options import decode_options
from lockstep.ports import Reader
from lockstep.records import RunRow, StepRow
from lockstep.subgraphs import begins_with
from lockstep.wire import ENGINE_EVENTS, decode_outcome

RUNS_PER_READ = 500
Emitted = tuple[int, str, str, bytes]
"""The step, node, type and data of an event."""


def violations(reader: Reader, graphs: Mapping[str, CompiledGraph]) -> Iterator[str]:
    """What is wrong with any run; of those whose graph is not among these, only what `fsck` finds."""
    yield from (f"{defect.run_id}: {defect.what}" for defect in check_store(reader))
    after: str | None = None
    while rows := reader.find_runs(after=after, limit=RUNS_PER_READ):
        for row in rows:
            if row.graph_hash in graphs:
                yield from (f"{row.run_id}: {what}" for what in _recomputed(reader, row, graphs[row.graph_hash]))
        after = rows[-1].run_id


def _recomputed(reader: Reader, row: RunRow, graph: CompiledGraph) -> Iterator[str]:
    state, frontier, emitted = State(), Frontier(), list[Emitted]()
    for step in reader.steps(row.run_id, 0, row.step_id):
        if outside_kind(row.run_id, step.step_id, step.state_hash, step.idempotency_key) is not None:
            state, frontier = state.patched(step.patch), decode_frontier(step.frontier, step.step_id)
            continue
        if step.step_id == 0 and row.thread_id is not None:  # What it began with is the run's before.
            state, frontier = state.patched(step.patch), decode_frontier(step.frontier, 0)
            continue
        items, journal = items_in_place(reader, row.run_id, frontier.items)
        finished: dict[bytes, Finished] = {}
        for item in items:
            done = [entry for entry in journal.get(item.path, ()) if entry.kind == "done"]
            if len(done) != 1:
                yield f"step {step.step_id} was committed with {len(done)} results of {item.node_id}"
                return
            finished[item.path], events = decode_outcome(done[0].payload)
            emitted += [(step.step_id, item.node_id, kind, canonical_bytes(data)) for kind, data in events]
        frontier = msgspec.structs.replace(frontier, items=tuple(items))
        computed = _step(row, graph, step.step_id, state, frontier, finished)
        if computed.state_hash != step.state_hash:
            yield f"step {step.step_id} is not what its results give, merged in order"
        if computed.encoded_frontier != step.frontier:
            yield f"step {step.step_id} does not lead where its results say"
        if computed.idempotency_key != step.idempotency_key:
            yield f"step {step.step_id} has another key"
        state, frontier = computed.state, computed.frontier
    yield from _outbox(reader, row, emitted)


def _step(
    row: RunRow, graph: CompiledGraph, step_id: int, state: State, frontier: Frontier, finished: Mapping[bytes, Finished]
) -> Step:
    options, program = decode_options(json.loads(row.options)), graph.program
    if step_id == 0:
        values, root = begins_with(row)
        writes = [Write(name, value) for name, value in values.items()]
        return begin(program, options.conflict_policy, row.run_id, writes, root=root)
    return advance(program, options.conflict_policy, options.max_steps, row.run_id, step_id, state, frontier, finished)


def _outbox(reader: Reader, row: RunRow, emitted: list[Emitted]) -> Iterator[str]:
    stored = reader.events(row.run_id)
    places = [(event.sequence, event.position) for event in stored]
    if places != sorted(set(places)):
        yield "the places of its events do not rise"
    of_nodes = [
        (event.step_id, event.node_id, event.type, event.data) for event in stored if not event.type.startswith(ENGINE_EVENTS)
    ]
    if of_nodes != emitted:
        yield f"its outbox holds {of_nodes}, and its committed nodes have emitted {emitted}"


def steps_of(reader: Reader, run_id: str) -> list[StepRow]:
    """All steps of a run, without the times."""
    return [msgspec.structs.replace(step, committed_at=0) for step in reader.steps(run_id, 0, 10_000)]
