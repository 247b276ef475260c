"""Replay: execute a stored run's nodes again with what was recorded, and raise where anything differs from what they did."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from lockstep.backend import ReplayReport
from lockstep.compiled import CompiledGraph, NodeSpec
from lockstep.core.frontier import decode_frontier
from lockstep.core.outside import MIGRATION, outside_kind
from lockstep.core.records import Finished, Frontier, WorkItem, Write
from lockstep.core.state import State
from lockstep.core.superstep import Step, advance, begin
from lockstep.errors import GraphVersionError, LockstepError, ReplayMismatchError, StateError, text_of
from lockstep.history import STEPS_PER_READ, items_in_place, read_position
from lockstep.interrupts import Question
from lockstep.options import decode_options
from lockstep.ports import Reader
from lockstep.recording import decode_calls, differences, shown
from lockstep.records import JournalRow, RunRow, StepRow, Task
from lockstep.subgraphs import begins_with, children_of
from lockstep.telemetry.spans import Spans
from lockstep.wire import calls_of, decode_meta, decode_outcome
from lockstep_coordinator.questions import Questions
from lockstep_coordinator.tasks import TaskMaker
from lockstep_worker.context import NodeContext
from lockstep_worker.execute import Isolated, execute, failure_of, timeout_of
from lockstep_worker.isolation import Children, Loan, NodeRaised
from lockstep_worker.resources import LoopResources, Resources, is_async_manager
from lockstep_worker.tracing import replay_span

COMPARED = {"routes": "routes", "writes": "delta", "events": "events"}
"""The parts of an outcome that must be the same, and what a mismatch calls them."""
DIFFERENCES_SHOWN = 5


def replay_run(reader: Reader, row: RunRow, graphs: Mapping[str, CompiledGraph], spans: Spans | None = None) -> ReplayReport:
    """Replay what is stored of a run, with the version of its graph that it is pinned to, or else another one of that name.

    See `Run.replay`. Of a run that was migrated, what came after that. The runs of its subgraphs are replayed and counted, too.
    """
    graph = graphs.get(row.graph_hash) or next((graph for graph in graphs.values() if graph.name == row.graph), None)
    if graph is None:
        raise GraphVersionError(
            f"run {row.run_id} is of graph {row.graph!r}, which is not loaded; load it to replay the run",
            run_id=row.run_id,
            graph=row.graph,
            graph_hash=row.graph_hash,
        )
    replay = Replay(reader, row, graph, spans)
    try:
        report = replay.report()
    finally:
        replay.close()
    for child in children_of(reader, row.run_id):
        below = replay_run(reader, child, graphs, spans)
        report = dataclasses.replace(
            report, steps=report.steps + below.steps, nodes=report.nodes + below.nodes, calls=report.calls + below.calls
        )
    return report


class Replay:
    """Goes through a run's steps in order."""

    def __init__(self, reader: Reader, row: RunRow, graph: CompiledGraph, spans: Spans | None) -> None:
        self._spans = spans
        self._reader = reader
        self._row = row
        self._graph = graph
        self._options = decode_options(json.loads(row.options))
        self._tasks = TaskMaker(row, graph, self._options)
        self._children = Children()
        self._resources = Resources()
        self._nodes = 0
        self._calls = 0

    def close(self) -> None:
        """End the processes of isolated nodes, and close what nodes share."""
        self._children.close()
        self._resources.close()

    def _opens_for(self, task: Task) -> Callable[[], Any] | None:
        opens = self._graph.resources
        if opens is None or is_async_manager(opens):
            return None
        return lambda: self._resources.get(opens)

    async def _executed(self, task: Task, context: NodeContext, isolated: Isolated) -> bytes:
        """The outcome of a node. What async nodes share is opened for each: each runs on a loop of its own."""
        opens, resources = self._graph.resources, LoopResources()
        try:
            if opens is not None and is_async_manager(opens) and self._graph.nodes[task.place].is_async:
                opened = await resources.get(opens)
                context.open_resources = lambda: opened
            return await execute(self._graph, task, context, isolated)
        finally:
            await resources.close()

    def report(self) -> ReplayReport:
        """Replay it all. Raises ReplayMismatchError."""
        state, frontier = State(), Frontier()
        first = 0
        for step in self._steps(0):
            if outside_kind(step.run_id, step.step_id, step.state_hash, step.idempotency_key) == MIGRATION:
                first = step.step_id + 1
        if first:
            position = read_position(self._reader, self._row.run_id, first - 1)
            state, frontier = position.state, position.frontier
        for step in self._steps(first):
            if outside_kind(step.run_id, step.step_id, step.state_hash, step.idempotency_key) is not None:
                self._items(step.step_id, state, frontier)  # What had a result before somebody changed the state.
                state, frontier = state.patched(step.patch), decode_frontier(step.frontier, step.step_id)
                continue
            frontier, finished = self._items(step.step_id, state, frontier)
            if step.step_id == 0 and self._row.thread_id is not None:
                # It began with what the run before in its thread had left, which may be gone by now.
                state, frontier = state.patched(step.patch), decode_frontier(step.frontier, 0)
                continue
            computed = self._computed(step.step_id, state, frontier, finished)
            self._compare_steps(step, computed, decode_frontier(step.frontier, step.step_id))
            state, frontier = computed.state, computed.frontier
        if self._row.step_id >= first:
            # What the step that is under way, or that has failed, has already.
            self._items(self._row.step_id + 1, state, frontier)
        return ReplayReport(
            run_id=self._row.run_id,
            graph=self._graph.name,
            first_step=first,
            steps=self._row.step_id + 1 - first,
            nodes=self._nodes,
            calls=self._calls,
        )

    def _steps(self, first: int) -> Iterator[StepRow]:
        for start in range(first, self._row.step_id + 1, STEPS_PER_READ):
            yield from self._reader.steps(self._row.run_id, start, min(start + STEPS_PER_READ - 1, self._row.step_id))

    def _items(self, step_id: int, state: State, frontier: Frontier) -> tuple[Frontier, dict[bytes, Finished]]:
        """The frontier with error handlers in their places, and what its items came to that have a result, each replayed."""
        items, journal = items_in_place(self._reader, self._row.run_id, frontier.items)
        finished: dict[bytes, Finished] = {}
        encoded = state.to_bytes()
        for item in items:
            rows = journal.get(item.path, ())
            done = next((row for row in rows if row.kind == "done"), None)
            if done is not None:
                self._replay_item(step_id, item, encoded, rows, done, journal.get(item.parent_path, ()))
                finished[item.path], _ = decode_outcome(done.payload)
        return msgspec.structs.replace(frontier, items=tuple(items)), finished

    def _replay_item(
        self,
        step_id: int,
        item: WorkItem,
        state: bytes,
        rows: Sequence[JournalRow],
        done: JournalRow,
        parents: Sequence[JournalRow],
    ) -> None:
        meta, calls = decode_meta(done.meta), calls_of(done.payload)
        at = {"run_id": self._row.run_id, "step_id": step_id, "node_id": item.node_id, "attempt": meta.attempt}
        if item.place not in self._graph.nodes:
            raise ReplayMismatchError(
                f"step {step_id}: node {item.place!r} ran, and graph {self._graph.name!r} has none of that name",
                differs="node",
                expected=item.place,
                **at,
            )
        asked = Questions()
        for row in sorted(rows, key=lambda row: row.n):
            asked.restore(row, 0.0)
        before = asked.calls_of(item.path)
        failed = [row for row in parents if row.kind == "failed"]
        handled = json.loads(max(failed, key=lambda row: row.n).payload) if item.stands_for is not None and failed else None
        task = self._tasks.task(
            item,
            step_id=step_id,
            state=state,
            attempt=meta.attempt,
            delivery=meta.delivery,
            error=handled,
            answers=asked.answers_of(item.path),
            recorded=(*before, _encoded(done.payload)) if calls or before else (),
        )
        context = NodeContext(task, replays=True, open_resources=self._opens_for(task))

        loans: list[Loan] = []

        def isolated(spec: NodeSpec, argument: Any) -> Any:
            return self._children.call(spec, argument, context, loans.append)

        started_ns = time.time_ns()
        outcome = _within(lambda: self._executed(task, context, isolated), task.timeout_seconds)
        if outcome is None:
            outcome = timeout_of(task)
            for loan in loans:
                loan.kill()
        if isinstance(outcome, NodeRaised):
            outcome = LockstepError.from_record(outcome.failure.error)
        outcome = context.recorder.mismatch or outcome
        if isinstance(outcome, ReplayMismatchError):
            raise ReplayMismatchError(f"step {step_id}: {outcome}", **(outcome.fields | at))
        if isinstance(outcome, Question):
            raise self._raised(at, f"a question: {shown(json.loads(outcome.value))}")
        if isinstance(outcome, BaseException):
            raise self._raised(at, text_of(LockstepError.from_record(failure_of(outcome, task).error))) from outcome
        self._compare_outcomes(at, json.loads(done.payload), json.loads(outcome))
        self._nodes += 1
        if self._spans is not None:
            ended_ns = time.time_ns()
            self._spans.emit(partial(replay_span, task, usage=context.usage, started_ns=started_ns, end_ns=ended_ns))
        self._calls += len(calls) + sum(len(decode_calls(some)) for some in before)

    def _raised(self, at: dict[str, Any], what: str) -> ReplayMismatchError:
        text = f"step {at['step_id']}: node {at['node_id']!r} had a result, and now ends with {what}"
        return ReplayMismatchError(text, differs="outcome", expected="a result", actual=what, **at)

    def _compare_outcomes(self, at: dict[str, Any], expected: dict[str, Any], actual: dict[str, Any]) -> None:
        for part, name in COMPARED.items():
            found = list(itertools.islice(differences(expected.get(part, []), actual.get(part, [])), DIFFERENCES_SHOWN))
            if found:
                what = "; ".join(f"{name}{difference}" for difference in found)
                raise ReplayMismatchError(
                    f"step {at['step_id']}: node {at['node_id']!r} does not return what it did: {what}",
                    differs=f"{name}{found[0].place}",
                    expected=found[0].expected,
                    actual=found[0].actual,
                    **at,
                )

    def _computed(self, step_id: int, state: State, frontier: Frontier, finished: Mapping[bytes, Finished]) -> Step:
        program, policy, run_id = self._graph.program, self._options.conflict_policy, self._row.run_id
        missing = [item.node_id for item in frontier.items if item.path not in finished]
        if missing:
            raise StateError(f"run {run_id}: step {step_id} has no result of {missing[0]}; `lockstep fsck` says more")
        try:
            if step_id == 0:
                values, root = begins_with(self._row)
                writes = [Write(name, value) for name, value in values.items()]
                return begin(program, policy, run_id, writes, root=root)
            return advance(program, policy, self._options.max_steps, run_id, step_id, state, frontier, finished)
        except LockstepError as error:
            raise self._step_differs(step_id, "outcome", "a commit", f"{type(error).__name__}: {error}") from error

    def _compare_steps(self, stored: StepRow, computed: Step, due: Frontier) -> None:
        step_id = stored.step_id
        if computed.state_hash != stored.state_hash:
            expected = read_position(self._reader, self._row.run_id, step_id).state
            found = next(differences(expected.values, computed.state.values))
            raise self._step_differs(step_id, f"state.{found.place}", found.expected, found.actual)
        if computed.encoded_frontier != stored.frontier:
            then, now = ([item.node_id for item in one.items] for one in (due, computed.frontier))
            raise self._step_differs(step_id, "frontier", shown(then), shown(now))
        if computed.idempotency_key != stored.idempotency_key:
            expected_key, actual_key = stored.idempotency_key.hex(), computed.idempotency_key.hex()
            raise self._step_differs(step_id, "idempotency_key", expected_key, actual_key)

    def _step_differs(self, step_id: int, what: str, expected: str | None, actual: str | None) -> ReplayMismatchError:
        text = f"step {step_id}: the results of its nodes do not merge to what they did: {what} was {expected}, is {actual}"
        at = {"run_id": self._row.run_id, "step_id": step_id}
        return ReplayMismatchError(text, differs=what, expected=expected, actual=actual, **at)


def _encoded(outcome: bytes) -> bytes:
    """The calls of an outcome, as `encode_calls` writes them."""
    raw = msgspec.json.decode(outcome, type=dict[str, msgspec.Raw])
    return bytes(raw.get("calls", b"[]"))


def _within(make: Any, seconds: float) -> Any:
    """What the coroutine of `make` returns or raises, run in a thread with a loop of its own; None: it took too long."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(asyncio.run(make()))
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, name="lockstep-replay", daemon=True)
    thread.start()
    thread.join(seconds)
    return ended[0] if ended else None
