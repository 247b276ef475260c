"""The items of a run's step, and what has become of each: ready, handed out, resting, asking, failed, done.

Each answer of a worker is one change here and one row for the journal; what the step and the run make of that is `run`'s.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from decimal import Decimal
from enum import Enum
from typing import Any

import msgspec

from lockstep.compiled import CompiledGraph
from lockstep.core.canonical import canonical_bytes
from lockstep.core.frontier import stand_in
from lockstep.core.lifecycle import RunStatus
from lockstep.core.policy import ONCE
from lockstep.core.records import Failure, Finished, Frontier, WorkItem
from lockstep.core.state import State
from lockstep.costs import Usage, Used, decode_usage, total
from lockstep.errors import LockstepError, PoisonError, StateError
from lockstep.interrupts import decode_timer, question_id
from lockstep.options import Options
from lockstep.recording import decode_calls, encode_calls
from lockstep.records import HandedBack, JournalRow, Outstanding, RunRow, Task, TaskResult
from lockstep.wire import EmittedEvent, JournalMeta, decode_meta, decode_outcome
from lockstep_coordinator.questions import Call, Questions
from lockstep_coordinator.ready import Lane, Ready
from lockstep_coordinator.tasks import TaskMaker

FIRST_RETURN_PAUSE_SECONDS = 0.05
MAX_RETURN_PAUSE_SECONDS = 5.0
"""How long a task rests that a worker did not want: short at first, for another worker may; each time twice as long."""

MAX_REDELIVERIES = 5
"""How often a task may get lost before its run fails."""

Execution = tuple[bytes, int, str, int, float]
"""One execution of an item: path, delivery, worker, started_at, latency_ms.

A delivery's number does not name it: numbers begin at 1 again with an owner that has seen none, so two copies may share one.
"""


class Retry(msgspec.Struct, frozen=True):
    """An item that is to run again after a pause."""

    item: WorkItem
    pause_seconds: float


class Verdict(Enum):
    """What else can become of a result."""

    TAKEN = "taken"
    DROPPED = "dropped"


class Unusable(msgspec.Struct, frozen=True):
    """A result that no worker of ours can have sent."""

    reason: str


class ItemsUnderWay:
    """The items of the step that follows `row.step_id`. `state` and `frontier` are S(k-1) and F(k) of it."""

    def __init__(self, row: RunRow, graph: CompiledGraph, options: Options) -> None:
        self.row = row
        self.graph = graph
        self._go_by(options)
        self.state = State()
        self.frontier = Frontier()
        self.ready = Ready(graph)
        self.in_flight: dict[bytes, int] = {}
        self.refused: dict[bytes, float] = {}
        self._held_back: Counter[str] = Counter()
        self._items: dict[bytes, WorkItem] = {}
        self._outcomes: dict[bytes, Finished] = {}
        self._events: dict[bytes, list[EmittedEvent]] = {}
        self._failures: dict[bytes, int] = {}
        self._budget_used: dict[bytes, int] = {}
        self._pausing: set[bytes] = set()
        self._deliveries: dict[bytes, int] = {}
        self._counted: set[Execution] = set()
        self._losses: dict[bytes, int] = {}
        self._returns: dict[bytes, int] = {}
        self._dead: dict[bytes, tuple[LockstepError, BaseException | None]] = {}
        self._to_handle: dict[bytes, dict[str, Any]] = {}
        self._handled: dict[bytes, dict[str, Any]] = {}
        self.questions = Questions()
        self._usages: Counter[bytes] = Counter()
        self._usage_of: set[Execution] = set()
        self.spent_usd = Decimal(0)
        self.moved_at = 0.0
        self.moved_ns = row.updated_at * 1_000_000
        self._used: list[Usage] = []
        self._answered = False
        self._journal: list[JournalRow] = []
        self._state_bytes: bytes | None = None

    def _go_by(self, options: Options) -> None:
        """Use these options from now on."""
        self.options = options
        self._tasks = TaskMaker(self.row, self.graph, options)

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.row.run_id

    def item_at(self, path: bytes) -> WorkItem:
        """The item of this path."""
        return self._items[path]

    def attempt_of(self, path: bytes) -> int:
        """The attempt that an item is at."""
        return self._failures.get(path, 0) + 1

    def _go_on(self, state: State, frontier: Frontier, journal: Iterable[JournalRow], now: float) -> list[Retry]:
        """Take up a step that was begun before, from its journal; the items whose pause has not ended at `now`.

        `frontier` has error handlers in the place of the nodes that they stand in for, see `items_in_place`.
        """
        self._stand_at(state, frontier)
        last: dict[bytes, tuple[dict[str, Any], JournalMeta]] = {}
        for row in journal:
            self.questions.restore(row, now)
            if row.kind == "done":
                self._outcomes[row.path], self._events[row.path] = decode_outcome(row.payload)
            elif row.kind == "failed":
                meta = decode_meta(row.meta)
                self._failures[row.path] = row.n
                self._note_delivery(row.path, meta.delivery)
                self._counted.add(_execution_of(row.path, meta))
                if meta.retries == self.row.retries:
                    self._budget_used[row.path] = self._budget_used.get(row.path, 0) + 1
                    last[row.path] = json.loads(row.payload), meta
            elif row.kind in ("interrupted", "called"):
                self._note_delivery(row.path, decode_meta(row.meta).delivery)
            elif row.kind == "usage":
                self._usages[row.path] += 1
                self._usage_of.add(_execution_of(row.path, decode_meta(row.meta)))
        self.questions.settle()
        for item in frontier.items:
            if item.stands_for is not None and item.parent_path in last:
                self._handled[item.path] = last[item.parent_path][0]
        pausing = list(self._pauses(last, now))
        idle = self._outcomes.keys() | self._pausing | self._dead.keys() | self.questions.open.keys()
        self.ready.discard(idle)
        return pausing

    def _pauses(self, failures: Mapping[bytes, tuple[dict[str, Any], JournalMeta]], now: float) -> Iterator[Retry]:
        """What the last failures say: which items wait for their next attempt, and which have none."""
        for item in self.frontier.items:
            if item.path not in failures or item.path in self._outcomes:
                continue
            error, meta = failures[item.path]
            if meta.pause_seconds is None:
                self._dead[item.path] = (LockstepError.from_record(error), None)
            elif (left := meta.next_attempt_at / 1000 - now) > 0:
                self._pausing.add(item.path)
                # Never longer than the whole pause, whatever the clocks of two machines say.
                yield Retry(item, min(left, meta.pause_seconds))

    def _stand_at(self, state: State, frontier: Frontier) -> None:
        """Make S(k-1) and F(k) the current ones; every item of F(k) is ready."""
        self.state, self.frontier = state, frontier
        self._state_bytes = None
        self._items = {item.path: item for item in frontier.items}
        self.ready = Ready(self.graph)
        for item in frontier.items:
            self.ready.add(item)
        self.refused.clear()
        self._held_back.clear()
        self._outcomes, self._events, self._failures, self._budget_used = {}, {}, {}, {}
        self._deliveries, self._losses, self._returns = {}, {}, {}
        self._counted.clear()
        self._usages.clear()
        self._usage_of.clear()
        self._handled.clear()
        self.questions = Questions()

    def task_for(self, item: WorkItem) -> Task:
        """The task that hands out an item."""
        if self._state_bytes is None:
            self._state_bytes = self.state.to_bytes()
        return self._tasks.task(
            item,
            step_id=self.row.step_id + 1,
            state=self._state_bytes,
            attempt=self.attempt_of(item.path),
            delivery=self.in_flight[item.path],
            error=self._handled.get(item.path),
            answers=self.questions.answers_of(item.path),
            recorded=self.questions.calls_of(item.path),
        )

    def next_item(self, full: Collection[Lane]) -> WorkItem | None:
        """The first ready item whose lane is not full, in flight from now on; None: there is none, or enough are in flight."""
        if len(self.in_flight) >= self.options.in_flight or self.row.status is not RunStatus.RUNNING or self.is_halted:
            return None
        item = self.ready.take(full)
        if item is None:
            return None
        self.in_flight[item.path] = self._deliveries[item.path] = self._deliveries.get(item.path, 0) + 1
        return item

    def limited_in_flight(self) -> list[WorkItem]:
        """The items that are handed out and whose nodes have max_concurrent, in order."""
        nodes = self.graph.nodes
        return [
            item for item in self.frontier.items if item.path in self.in_flight and nodes[item.place].max_concurrent is not None
        ]

    def take_back(self, item: WorkItem) -> None:
        """An item was not handed out after all: it is ready again, before the others of its queue."""
        del self.in_flight[item.path]
        self._deliveries[item.path] -= 1
        self.ready.add_first(item)

    def hold_back(self, item: WorkItem, queue: str, now: float) -> bool:
        """The item found its queue full, and waits; False: it does so already."""
        if item.path in self.refused:
            return False
        self.refused[item.path] = now
        self._held_back[queue] += 1
        return True

    def absorb(self, result: TaskResult) -> Retry | Verdict | Unusable:
        """Take in a result: the first `done` of an item wins, failures count from the current delivery; the rest is dropped.

        Of one that is unusable or dropped, nothing is taken in but what it has used: that is paid.
        """
        item = self._items.get(result.path)
        if item is None or self.row.status is not RunStatus.RUNNING:
            return Verdict.DROPPED
        if result.usage is not None:
            try:
                self._count_usage(item, decode_usage(result.usage), result)
            except ValueError as error:
                return Unusable(f"what it says of its usage cannot be read: {error}")
        if result.path in self._outcomes:
            return Verdict.DROPPED
        if result.outcome is not None:
            if len(result.outcome) > self.options.max_payload_bytes:
                return Unusable(f"it takes {len(result.outcome)} bytes, more than max_payload_bytes")
            try:
                outcome, events = decode_outcome(result.outcome)
            except ValueError as error:
                return Unusable(f"its outcome cannot be read: {error}")
            self._end_flight(item)
            self._pausing.discard(result.path)
            self._dead.pop(result.path, None)
            self._to_handle.pop(result.path, None)
            self.questions.close(result.path)
            self._outcomes[result.path], self._events[result.path] = outcome, events
            self._note(item, "done", 0, result.outcome, result)
            return Verdict.TAKEN
        if result.failure is None and result.question is None:
            return Verdict.DROPPED
        if not self._is_current(result.path, result.delivery):
            return Verdict.DROPPED
        if result.question is not None:
            return self._absorb_question(item, *result.question, result)
        assert result.failure is not None
        execution = _execution_of(item.path, result)
        if execution in self._counted:
            return Verdict.DROPPED
        said = result.failure.error
        if not (isinstance(said.get("type"), str) and isinstance(said.get("message"), str)):
            return Unusable("its failure has no type and message")
        self._end_flight(item)
        self._note_delivery(item.path, result.delivery)
        self._counted.add(execution)
        return self._absorb_failure(item, result.failure, result)

    def _note_delivery(self, path: bytes, delivery: int) -> None:
        """The item was handed out with this number; later ones are higher."""
        self._deliveries[path] = max(self._deliveries.get(path, 0), delivery)

    def _is_current(self, path: bytes, delivery: int) -> bool:
        """Whether a delivery is the one in flight, or, of an item that is not, one that an earlier owner of its run made."""
        if path in self.in_flight:
            return self.in_flight[path] == delivery
        return self._deliveries.get(path, 0) < delivery

    def _end_flight(self, item: WorkItem) -> None:
        """The item is answered. Of a run taken over, it may not be known here that it was in flight."""
        if self.in_flight.pop(item.path, None) is None:
            self.ready.discard({item.path})

    def expect(self, task: Outstanding) -> None:
        """An earlier owner of this run has handed out the task, and it will be answered."""
        item = self._items.get(task.path)
        if item is not None and task.path not in self._outcomes:
            self._end_flight(item)
            self.in_flight[task.path] = self._deliveries[task.path] = task.delivery

    def take_again(self, task: HandedBack) -> Retry | Verdict:
        """A worker did not start the task: hand it out again after a pause, so that this cannot become a busy loop."""
        item = self._items.get(task.path)
        if item is None or self.in_flight.get(task.path) != task.delivery:
            return Verdict.DROPPED
        del self.in_flight[task.path]
        self._pausing.add(task.path)
        returns = self._returns[task.path] = self._returns.get(task.path, 0) + 1
        return Retry(item, min(FIRST_RETURN_PAUSE_SECONDS * 2 ** min(returns - 1, 10), MAX_RETURN_PAUSE_SECONDS))

    def lose(self, task: Outstanding) -> Retry | Verdict:
        """The task is nowhere any more: its worker died, or Redis forgot it. This costs no attempt, but has a bound."""
        item = self._items.get(task.path)
        if item is None or self.in_flight.get(task.path) != task.delivery:
            return Verdict.DROPPED
        del self.in_flight[task.path]
        # What Redis has forgotten has ended no worker.
        losses = self._losses[task.path] = self._losses.get(task.path, 0) + (not task.forgotten)
        if losses <= MAX_REDELIVERIES:
            self._pausing.add(task.path)
            return Retry(item, 0.0)
        text = (
            f"node {item.node_id!r} was handed out {losses} times, and no usable result came back: most likely it ends its "
            f"worker (look at the workers' exit codes and memory), or its tasks or results are kept aside (see "
            f"`lockstep quarantine`); mend that, then `lockstep retry {self.run_id}`"
        )
        self._dead[task.path] = (PoisonError(text, step_id=self.row.step_id + 1, node_id=item.node_id), None)
        return Verdict.TAKEN

    def end_pause(self, item: WorkItem) -> bool:
        """Make an item ready that waited for its next attempt, before the others of its queue; False: it does not wait here."""
        if item.path not in self._pausing:
            return False
        self._pausing.remove(item.path)
        self.ready.add_first(item)
        return True

    def _absorb_question(self, item: WorkItem, number: int, value: bytes, result: TaskResult) -> Verdict | Unusable:
        """The item asks somebody. This costs a delivery, and no attempt."""
        answered = self.questions.answered(item.path)
        if result.subgraph and self.graph.nodes[item.node_id].subgraph is None:
            return Unusable("it calls a subgraph, and its node is none")
        if number != answered:
            return Unusable(f"it asks question {number} of an item with {answered} answers")
        size = len(value) + len(result.calls or b"")
        if size > self.options.max_payload_bytes:
            return Unusable(f"what it asks and has recorded takes {size} bytes, more than max_payload_bytes")
        try:
            payload = canonical_bytes(json.loads(value))
            timer = decode_timer(result.timer) if result.timer is not None else None
            calls = encode_calls(decode_calls(result.calls)) if result.calls is not None else None
        except (ValueError, RecursionError, StateError) as error:
            return Unusable(f"what it asks cannot be read: {error}")
        self._end_flight(item)
        self._note_delivery(item.path, result.delivery)
        if item.path in self.questions.open:
            return Verdict.DROPPED  # Another copy of it has asked the same.
        if result.subgraph:
            self.questions.call(Call(item.path, number, payload))
            self._note(item, "called", number, payload, result)
            return Verdict.TAKEN
        self.questions.ask(item.path, number, timer, calls)
        self._note(item, "interrupted", number, payload, result)
        if timer is not None:
            self._note(item, "timer", number, timer.encoded(), result)
        if calls is not None:
            self._note(item, "recorded", number, calls, result)
        return Verdict.TAKEN

    def _answer(self, answers: Mapping[str, Any]) -> None:
        """Take in answers by the ids of questions; those that nobody waits for are left alone."""
        for item in self.frontier.items:
            number = self.questions.open.get(item.path)
            if number is None or (asked := question_id(item.path, number)) not in answers:
                continue
            payload = canonical_bytes(answers[asked])
            self.questions.answer(item.path, payload)
            self._note(item, "answer", number, payload, TaskResult(run_id=self.run_id, path=item.path, delivery=0))
            self.ready.add(item)
            self._answered = True

    def answer_call(self, call: Call, payload: bytes) -> None:
        """The run has ended that an item waited for."""
        if self.questions.open.get(call.path) != call.number:
            return
        item = self._items[call.path]
        self.questions.answer(call.path, payload)
        self._note(item, "answer", call.number, payload, TaskResult(run_id=self.run_id, path=call.path, delivery=0))
        self.ready.add(item)
        self._answered = True

    def _absorb_failure(self, item: WorkItem, failure: Failure, result: TaskResult) -> Retry | Verdict:
        attempt = self._failures[item.path] = self._failures.get(item.path, 0) + 1
        used = self._budget_used[item.path] = self._budget_used.get(item.path, 0) + 1
        node = self.graph.nodes[item.place]
        pause_seconds = (node.retry or self.options.retry or ONCE).pause_seconds(failure, used, item.path)
        # A handler that fails has none of its own.
        handler = node.handler.name if node.handler and pause_seconds is None and item.stands_for is None else None
        error = canonical_bytes(failure.error)
        self._note(item, "failed", attempt, error, result, pause_seconds=pause_seconds, handler=handler)
        if pause_seconds is not None:
            self._pausing.add(item.path)
            return Retry(item, pause_seconds)
        if handler is not None:
            self._to_handle[item.path] = failure.error
        else:
            self._dead[item.path] = (LockstepError.from_record(failure.error), result.cause)
        return Verdict.TAKEN

    def _let_handlers_stand_in(self) -> None:
        """Put error handlers in the place of nodes that have failed for good. Not at once: in one tick, done beats failed."""
        if not self._to_handle:
            return
        items = []
        for item in self.frontier.items:
            if item.path in self._to_handle:
                handler = self.graph.nodes[item.node_id].handler
                assert handler is not None, "only the failure of a node with a handler waits for one"
                failed, item = item, stand_in(item, handler.name)
                self._items[item.path] = item
                self._handled[item.path] = self._to_handle[failed.path]
                del self._items[failed.path]
                self.ready.add_first(item)
            items.append(item)
        self._to_handle.clear()
        self.frontier = msgspec.structs.replace(self.frontier, items=tuple(items))

    def _count_usage(self, item: WorkItem, usage: list[Usage], result: TaskResult) -> None:
        """Journal what an execution has used, whatever becomes of its result: it is paid. The same message counts once."""
        execution = _execution_of(item.path, result)
        if execution in self._usage_of:
            return
        self._usage_of.add(execution)
        self._usages[item.path] += 1
        self._note(item, "usage", self._usages[item.path], Used(item.node_id, usage).encoded(), result)
        self._used += usage
        self.spend([one.cost for one in usage if one.cost is not None])

    def take_usage(self) -> list[Usage]:
        """The calls to models that were counted since this was called last."""
        used, self._used = self._used, []
        return used

    def spend(self, amounts: list[Decimal]) -> None:
        """Count what was paid."""
        self.spent_usd = total([self.spent_usd, *amounts])

    @property
    def is_over_budget(self) -> bool:
        """Whether the run has spent what it may."""
        return self.options.max_cost_usd is not None and self.spent_usd >= self.options.max_cost_usd

    @property
    def is_halted(self) -> bool:
        """Whether nothing is to be handed out."""
        return self.is_over_budget

    def _note(
        self,
        item: WorkItem,
        kind: str,
        n: int,
        payload: bytes,
        result: TaskResult,
        *,
        pause_seconds: float | None = 0.0,
        handler: str | None = None,
    ) -> None:
        meta = JournalMeta(
            attempt=self._failures.get(item.path, 0) + (kind in ("done", "usage")),
            delivery=result.delivery,
            retries=self.row.retries,
            started_at=result.started_at,
            latency_ms=result.latency_ms,
            worker=result.worker,
            pause_seconds=pause_seconds,
            handler=handler,
        )
        self._journal.append(
            JournalRow(
                run_id=self.row.run_id,
                path=item.path,
                kind=kind,
                n=n,
                step_id=self.row.step_id + 1,
                payload=payload,
                meta=meta.encoded(),
            )
        )


def _execution_of(path: bytes, of: TaskResult | JournalMeta) -> Execution:
    return path, of.delivery, of.worker, of.started_at, of.latency_ms
