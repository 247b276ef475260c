"""From an item that is a subgraph to the run that is its work, and from the end of that run to the item's answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from lockstep.compiled import CompiledGraph, Subgraph
from lockstep.core.canonical import canonical_bytes
from lockstep.core.frontier import decode_frontier
from lockstep.core.lifecycle import RunStatus
from lockstep.core.outside import outside_kind
from lockstep.core.records import Finished, Write
from lockstep.core.state import State
from lockstep.errors import LockstepError, ParentEndedError, RunCancelledError, StateError
from lockstep.history import STEPS_PER_READ, items_in_place, read_position
from lockstep.options import encode_options
from lockstep.ports import Reader
from lockstep.records import NewRun, RunRow, Top
from lockstep.subgraphs import CallInput, Failed, Result, call_input_of, child_run_id, decode_end
from lockstep.telemetry.spans import RunTrace
from lockstep.wire import decode_outcome
from lockstep_coordinator.questions import Call
from lockstep_coordinator.run import ActiveRun


def child_of(parent: ActiveRun, call: Call) -> NewRun:
    """The run that is the work of an item of `parent`. It stays with the parent's owner, and spends the parent's budget."""
    item = parent.item_at(call.path)
    subgraph = subgraph_at(parent, call)
    options = msgspec.structs.replace(
        parent.options,
        max_cost_usd=None,
        deadline_seconds=None,
        interrupt_before=_within(parent.options.interrupt_before, item.place),
        interrupt_after=_within(parent.options.interrupt_after, item.place),
    )
    return NewRun(
        run_id=child_run_id(parent.run_id, call.path),
        graph=subgraph.graph.name,
        graph_hash=subgraph.graph.hash,
        input=CallInput(path=call.path, input=json.loads(call.input), top=_top(parent, item.place)).encoded(),
        options=canonical_bytes(encode_options(options)),
        partition_id=parent.row.partition_id,
        shard=parent.row.shard,
        parent_run_id=parent.run_id,
        trace_context=RunTrace(parent.run_id, parent.row.trace_context).step(parent.row.step_id + 1).traceparent,
    )


def _top(parent: ActiveRun, node: str) -> Top:
    above = call_input_of(parent.row)
    if above is None:
        return Top(parent.run_id, parent.row.step_id + 1, node)
    return Top(above.top.run_id, above.top.step_id, f"{above.top.node}/{node}")


def subgraph_at(parent: ActiveRun, call: Call) -> Subgraph:
    """The subgraph that an item is."""
    subgraph = parent.graph.nodes[parent.item_at(call.path).place].subgraph
    assert subgraph is not None, "only a subgraph asks for the end of a run"
    return subgraph


def _within(names: tuple[str, ...], node: str) -> tuple[str, ...]:
    return tuple(name.removeprefix(f"{node}/") for name in names if name.startswith(f"{node}/"))


def is_to_be_revived(row: RunRow, answers: tuple[bytes, ...]) -> bool:
    """Whether a run is to go on that has failed: it ended with its parent, or its parent has heard of this failure before."""
    if row.status is not RunStatus.FAILED:
        return False
    last = decode_end(answers[-1]) if answers else None
    heard = isinstance(last, Failed) and last.version == row.version
    return heard or json.loads(row.error or b"{}").get("type") == ParentEndedError.__name__


def end_of(reader: Reader, parent: ActiveRun, call: Call, row: RunRow) -> bytes:
    """The answer that the end of a run is to the item whose work it is."""
    attempt = parent.attempt_of(call.path)
    if row.status is not RunStatus.SUCCEEDED:
        error: dict[str, Any] = json.loads(row.error or b"{}")
        return _failed(row, str(error.get("type")), str(error.get("message")), attempt)
    try:
        data = _result(reader, parent.graph, subgraph_at(parent, call), row).encoded()
    except StateError as damage:
        return _failed(row, type(damage).__name__, str(damage), attempt)
    if len(data) > parent.options.max_payload_bytes:
        text = (
            f"what it has come to takes {len(data)} bytes, more than max_payload_bytes={parent.options.max_payload_bytes}; "
            f"name the fields that are needed with output=, or raise the option"
        )
        return _failed(row, StateError.__name__, text, attempt)
    return data


def _failed(row: RunRow, error_type: str, message: str, attempt: int) -> bytes:
    return Failed(
        run_id=row.run_id,
        status=row.status.value,
        version=row.version,
        error_type=error_type,
        message=message,
        attempt=attempt,
    ).encoded()


def _result(reader: Reader, graph: CompiledGraph, subgraph: Subgraph, row: RunRow) -> Result:
    state = read_position(reader, row.run_id, row.step_id).state
    steps = list(_steps(reader, row))
    last = steps[-1][0] if steps else []
    if ups := [finished.up for finished in last if finished.up is not None]:
        writes, routes = ([part for up in ups for part in parts(up)] for parts in (_writes_of, _routes_of))
        return Result(up=Finished(tuple(writes), tuple(routes)))
    if not isinstance(subgraph.output, Mapping):
        return Result(state=state.values)
    return Result(writes=tuple(_writes(graph, subgraph, subgraph.output, state, steps)))


def _writes_of(finished: Finished) -> tuple[Any, ...]:
    return finished.writes


def _routes_of(finished: Finished) -> tuple[Any, ...]:
    return finished.routes


def _steps(reader: Reader, row: RunRow) -> Iterator[tuple[list[Finished], set[str]]]:
    """Of each step, what its items came to, in their order; and the fields that somebody has changed from outside."""
    for first in range(1, row.step_id + 1, STEPS_PER_READ):
        steps = {
            step.step_id: step for step in reader.steps(row.run_id, first - 1, min(first + STEPS_PER_READ - 1, row.step_id))
        }
        for step_id in range(first, first + len(steps) - 1):
            step = steps[step_id]
            if outside_kind(row.run_id, step_id, step.state_hash, step.idempotency_key) is not None:
                yield [], {field for _, field, *_ in json.loads(step.patch)}
                continue
            due = decode_frontier(steps[step_id - 1].frontier, step_id - 1).items
            items, journal = items_in_place(reader, row.run_id, due)
            payloads = [next(row.payload for row in journal[item.path] if row.kind == "done") for item in items]
            yield [decode_outcome(payload)[0] for payload in payloads], set()


def _writes(
    graph: CompiledGraph,
    subgraph: Subgraph,
    output: Mapping[str, str],
    state: State,
    steps: list[tuple[list[Finished], set[str]]],
) -> Iterator[Write]:
    """What counts as written by the item: each write, where both graphs reduce the field; else the value that came of them."""
    writes = [write for finished, _ in steps for one in finished for write in one.writes if write.field in output]
    replaced = {write.field for write in writes if write.overwrite}.union(*(changed for _, changed in steps))
    ours, theirs = graph.program.schema, subgraph.graph.program.schema
    reduced = {their for their, our in output.items() if theirs.fields[their].reducer and ours.fields[our].reducer}
    yield from (write for write in writes if write.field in reduced - replaced)
    for field in dict.fromkeys([*(write.field for write in writes), *sorted(replaced & output.keys())]):
        if field in state.values and field not in reduced - replaced:
            yield Write(field, state.values[field], field in reduced)


def ended_with(parent: RunRow) -> LockstepError:
    """Why the run of a subgraph ends when its parent does: with one that has failed it goes on when that is tried again."""
    text = f"run {parent.run_id}, of which it is a subgraph, is {parent.status}"
    if parent.status is RunStatus.FAILED:
        return ParentEndedError(text, parent_run_id=parent.run_id)
    return RunCancelledError(text, reason=text)


def not_needed(parent: RunRow) -> LockstepError:
    """Why the run of a subgraph ends that no item waits for any more."""
    text = f"what is due in run {parent.run_id}, of which it is a subgraph, was changed"
    return RunCancelledError(text, reason=text)
