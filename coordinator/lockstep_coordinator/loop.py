"""The coordinator's loop: drain what has arrived -> merge -> ONE transaction for all runs that moved -> dispatch.

Under load a turn carries many runs, so it batches by itself; idle it adds nothing. A task is handed out only after the commit
that created it.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Protocol, TypeVar, assert_never

from lockstep.compiled import CompiledGraph, served
from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.core.records import WorkItem
from lockstep.core.superstep import Step
from lockstep.errors import ConflictError, GraphVersionError, LockstepError, RunCancelledError
from lockstep.ports import Broker, Clock, Store
from lockstep.records import (
    AlreadyCommitted,
    Command,
    Committed,
    HandedBack,
    Outstanding,
    Refused,
    RunRow,
    Superseded,
    TaskResult,
    Transition,
    Unreadable,
    Wake,
)
from lockstep.telemetry.counts import Counts
from lockstep.telemetry.spans import Spans
from lockstep_coordinator.dispatch import Dispatcher
from lockstep_coordinator.families import Families
from lockstep_coordinator.items import Retry, Unusable, Verdict
from lockstep_coordinator.lease import is_dead
from lockstep_coordinator.questions import Due
from lockstep_coordinator.recovery import load
from lockstep_coordinator.run import ActiveRun
from lockstep_coordinator.threads import NotItsTurn, first_of_threads
from lockstep_coordinator.tracing import emit_run, emit_step

A = TypeVar("A", TaskResult, HandedBack, Outstanding)

SWEEP_SECONDS = 1.0
"""How often the store is asked for work that no message announced."""


class LoopObserver(Protocol):
    """Is told what the loop does; called from the loop's thread, so it must be quick and must not raise."""

    def failing(self, run: ActiveRun) -> None:
        """The run's failure, with `run.cause`, is about to be committed: whoever then reads of it may ask for the cause."""

    def moved(self, run: ActiveRun) -> None:
        """A change of the run's row is committed."""

    def emitted(self) -> None:
        """Events are committed."""

    def stuck(self, run: ActiveRun, error: LockstepError) -> None:
        """The database refuses even the run's failure; this coordinator has dropped it."""

    def stopped(self, error: Exception | None) -> None:
        """The loop has ended: by `stop`, or with this error; then its runs wait for another owner."""


class Coordinator:
    """Moves the runs of one lease: an embedded engine's own, or, if it `shares`, its part of those of all shards.

    One thread calls `run`, and that calls `on_turn` at each turn; the other methods may be called from any thread.
    """

    def __init__(
        self,
        store: Store,
        broker: Broker,
        lease_id: str,
        graphs: Mapping[str, CompiledGraph],
        observer: LoopObserver,
        *,
        shares: bool = False,
        counts: Counts | None = None,
        clock: Clock = time,
        on_turn: Callable[[], None] = lambda: None,
        spans: Spans | None = None,
    ) -> None:
        self._store = store
        self._broker = broker
        self._lease_id = lease_id
        self._graphs = graphs
        self._observer = observer
        self._clock = clock
        self._on_turn = on_turn
        self._spans = spans
        self._runs: dict[str, ActiveRun] = {}
        self._shares = shares
        self._owned: dict[str, int] = {} if shares else {lease_id: 1}
        self._gained: dict[str, int] = {}
        self.counts = Counts() if counts is None else counts
        self._dispatcher = Dispatcher(broker, self.counts, clock, self._set_timer, self._expire)
        self._arrivals: queue.SimpleQueue[RunRow] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._moved: dict[str, ActiveRun] = {}
        self._families = Families(store, self._runs, self)
        self._looks_soon = False
        self._stopping = threading.Event()
        self._commands_sent = threading.Event()

    def take(self, rows: Iterable[RunRow]) -> None:
        """Begin or go on with runs that this lease owns."""
        for row in rows:
            self._arrivals.put(row)
        self._broker.wake()

    def adopt(self, run_ids: Collection[str] | None = None) -> list[str]:
        """Take over runs whose owner has ended, see `Store.adopt`; those that are not finished go on at once."""
        adopted = self._store.adopt(self._lease_id, served(self._graphs), run_ids, is_dead)
        self.take(row for row in self._store.find_runs(run_ids=adopted, limit=len(adopted)) if row.status not in FINISHED)
        return adopted

    def stop(self) -> None:
        """Make `run` return after its turn."""
        self._stopping.set()
        self._broker.wake()

    @property
    def active(self) -> int:
        """Runs in memory."""
        return len(self._runs)

    @property
    def in_flight(self) -> int:
        """Tasks that are handed out and not answered."""
        return sum(len(run.in_flight) for run in list(self._runs.values()))

    @property
    def partitions(self) -> int:
        """Partitions that this coordinator moves."""
        return len(self._owned)

    @property
    def oldest_seconds(self) -> float:
        """The longest that a running run has been without a commit."""
        now = self._clock.monotonic()
        moved = [run.moved_at for run in list(self._runs.values()) if run.row.status is RunStatus.RUNNING]
        return max((now - at for at in moved), default=0.0)

    def run(self) -> None:
        """Turn after turn, until `stop` or an error of the store."""
        error: Exception | None = None
        try:
            self._set_timer(0.0 if self._shares else SWEEP_SECONDS, self._sweep)
            while not self._stopping.is_set():
                self.turn(self._until_next_timer())
        except Exception as raised:
            error = raised
        finally:
            self._observer.stopped(error)

    def turn(self, timeout_seconds: float) -> None:
        """One turn of the loop, after waiting at most this long for something to do."""
        self._on_turn()
        self._receive(timeout_seconds)
        self._fire_timers()
        self._take_up()
        all_ours = self._commit()
        self._dispatcher.dispatch()
        if all_ours:
            self._broker.acknowledge()

    def _receive(self, timeout_seconds: float) -> bool:
        """Take in what has arrived; False: nothing has."""
        messages = self._broker.receive(timeout_seconds)
        look = False
        for message in messages:
            match message:
                case TaskResult():
                    self._answered(message, ActiveRun.absorb)
                case HandedBack():
                    self._answered(message, ActiveRun.take_again)
                case Unreadable():
                    self.counts.quarantined += 1
                case Wake():
                    self._take_arrivals()
                    look = look or message.look or self._commands_sent.is_set()
                case _:
                    assert_never(message)
        if look:
            self._commands_sent.clear()
            self._look()
        return bool(messages)

    def drain(self, timeout_seconds: float) -> None:
        """Hand out nothing more; commit what comes of the tasks in flight, waiting at most this long."""
        deadline = self._clock.monotonic() + timeout_seconds
        for run in self._runs.values():
            for path in self._broker.withdraw(run.run_id):
                run.in_flight.pop(path, None)
        while any(run.in_flight for run in self._runs.values()) and (left := deadline - self._clock.monotonic()) > 0:
            for message in self._broker.receive(left):
                if isinstance(message, TaskResult):
                    self._answered(message, ActiveRun.absorb)
            self._commit()

    def _answered(self, answer: A, take_in: Callable[[ActiveRun, A], Retry | Verdict | Unusable]) -> None:
        """Let the run take in what became of one of its tasks."""
        run = self._runs.get(answer.run_id)
        verdict = take_in(run, answer) if run is not None else Verdict.DROPPED
        if run is not None:
            self._moved[run.run_id] = run  # Also of what is dropped, what it has used is to be stored.
            self._moved.update((above.run_id, above) for above in run.ancestors() if above.is_over_budget)
        if run is not None and isinstance(verdict, Unusable):
            assert isinstance(answer, TaskResult)
            self.counts.quarantined += 1
            self._broker.set_aside(run.row.partition_id, answer, verdict.reason)
            # As if it had got lost on its way: the task is handed out again, not for ever.
            verdict = run.lose(Outstanding(run_id=run.run_id, path=answer.path, delivery=answer.delivery))
        if run is None or verdict is Verdict.DROPPED:
            self.counts.dropped_results += 1
            return
        if isinstance(verdict, Retry):
            self.counts.retries += isinstance(answer, TaskResult) and answer.failure is not None
            self._rest(run.run_id, verdict)

    def _try_again(self, run_id: str, item: WorkItem) -> None:
        run = self._runs.get(run_id)
        if run is not None and run.end_pause(item):
            self._dispatcher.add(run)

    def _take_arrivals(self) -> None:
        while True:
            try:
                row = self._arrivals.get_nowait()
            except queue.Empty:
                return
            if row.run_id not in self._runs:
                self.load(row)

    def load(self, row: RunRow, *, to_end_it: bool = False) -> ActiveRun | None:
        """Put a run into memory; None: its graph's version is not loaded here, and it waits for who has it; or it waits for the
        run before in its thread, unless this is `to_end_it`.
        """
        try:
            run, pausing = load(self._store, row, self._graphs, self._clock.time(), to_end_it=to_end_it)
        except (GraphVersionError, NotItsTurn):
            return None
        self._runs[run.run_id] = self._moved[run.run_id] = run
        run.moved_at = self._clock.monotonic()
        self._families.join(run)
        if run.options.deadline_seconds is not None:
            passed = max(0.0, self._clock.time() - row.created_at / 1000)
            self._set_timer(run.options.deadline_seconds - passed, lambda: self._pass_deadline(row.run_id))
        for retry in pausing:
            self._rest(run.run_id, retry)
        self._start_timers(run)
        if run.questions.calls:
            # Not at once: the other runs that are loaded with it may be those that it waits for.
            self._set_timer(0.0, partial(self._families.make_calls, row.run_id))
        self._dispatcher.add(run)
        return run

    def touch(self, run: ActiveRun) -> None:
        """The run may have something to store."""
        self._moved[run.run_id] = run

    def owns(self, row: RunRow) -> bool:
        """Whether the run is in a partition of this coordinator."""
        return row.partition_id in self._owned

    def fetch(self, run_id: str, again: Callable[[], None]) -> None:
        """Take over a run whose owner has died, or will soon be known to have; `again` looks whether it has."""
        self._store.adopt(self._lease_id, served(self._graphs), [run_id], is_dead)
        self._set_timer(SWEEP_SECONDS, again)

    def _start_timers(self, run: ActiveRun) -> None:
        for due in run.questions.new_timers():
            self._set_timer(due.seconds, partial(self._answer_by_timer, run.run_id, due))

    def _answer_by_timer(self, run_id: str, due: Due) -> None:
        run = self._runs.get(run_id)
        if run is not None:
            run.answer_by_timer(due)
            self._moved[run_id] = run

    def _rest(self, run_id: str, retry: Retry) -> None:
        """Let an item wait for its next attempt."""
        self._set_timer(retry.pause_seconds, lambda: self._try_again(run_id, retry.item))

    def _sweep(self) -> None:
        """What no message announces: partitions that come or go, tasks that got lost, new runs and commands."""
        self._set_timer(SWEEP_SECONDS, self._sweep)
        if self._shares:
            self._share()
        for task in self._broker.lost():
            self.counts.redeliveries += 1
            self._answered(task, ActiveRun.lose)
        self._look()

    def _share(self) -> None:
        """Take this coordinator's part of the partitions, and drop the runs of those given away."""
        # Named once: coordinators with two versions of a graph would else take turns in being the last that loaded it.
        names = {} if self._owned or self._gained else {graph.name: graph_hash for graph_hash, graph in self._graphs.items()}
        owned = self._store.share(self._lease_id, names, is_dead)
        kept = {name: epoch for name, epoch in self._owned.items() if owned.get(name) == epoch}
        for run in [run for run in self._runs.values() if run.row.partition_id not in kept]:
            self._drop(run)
            self._broker.forget(run.run_id)
        if kept != self._owned:
            self._own(kept)
        self._gained = {name: epoch for name, epoch in owned.items() if name not in kept}

    def _own(self, partitions: dict[str, int]) -> None:
        self._owned = partitions
        self._broker.own(partitions)

    def _take_up(self) -> None:
        """Go on with the runs of one partition gained. One in a turn: loading takes time, and others' runs move meanwhile."""
        if self._gained:
            name = min(self._gained)
            self.counts.takeovers += 1
            self._own({**self._owned, name: self._gained.pop(name)})
            self.go_on_with(row for row in self._store.unfinished([name]) if row.run_id not in self._runs)

    def go_on_with(self, rows: Iterable[RunRow]) -> None:
        """Load runs that others have moved before. What they have handed out is waited for, not handed out twice."""
        runs = {row.run_id: run for row in rows if (run := self.load(row)) is not None}
        begun = [run_id for run_id, run in runs.items() if run.frontier.items]
        if not begun:
            return
        for task in self._broker.outstanding(begun):
            runs[task.run_id].expect(task)
        self._dispatcher.hold_permits(runs[run_id] for run_id in begun)
        while self._receive(0.0):
            pass  # Results that wait: with them, some items need not be handed out.

    def _look(self) -> None:
        """Look for what no message announced: runs submitted elsewhere, and commands."""
        self._looks_soon = False
        work = self._store.poll(self._lease_id)
        for row in first_of_threads(work.new):
            if row.run_id not in self._runs and row.partition_id in self._owned:
                self.load(row)
        for command in work.commands:
            self._obey(command)

    def _obey(self, command: Command) -> None:
        run = self._runs.get(command.run_id)
        if run is None:
            # None: it was deleted meanwhile, and its commands with it; or its partition has not been taken up yet.
            rows = [row for row in self._store.find_runs(run_ids=[command.run_id]) if row.partition_id in self._owned]
            run = self.load(rows[0], to_end_it=command.kind == "cancel") if rows else None
        if run is not None:
            run.obey(command)
            self._moved[run.run_id] = run

    def wake_for_commands(self) -> None:
        """Look into the inbox now rather than at the next sweep."""
        self._commands_sent.set()
        self._broker.wake()

    def _commit(self) -> bool:
        """Store what all moved runs have to store, in one transaction, and act on each run's outcome.

        False: some run belongs to somebody else by now, who may need the results that it came from.
        """
        all_ours = True
        while self._moved:
            moved, self._moved = self._moved, {}
            pending = [(run, *self._transition(run)) for run in moved.values()]
            pending = [entry for entry in pending if _says_something(entry[1])]
            if not pending:
                break
            transitions = [transition for _, transition, _ in pending]
            for run, transition, _ in pending:
                if transition.update is not None and transition.update.error is not None:
                    self._observer.failing(run)
            began = time.perf_counter()
            outcomes = self._store.commit(self._lease_id, transitions)
            self.counts.commit_seconds.add(time.perf_counter() - began)
            self.counts.commit_runs.add(len(transitions))
            for (run, transition, step), outcome in zip(pending, outcomes, strict=True):
                match outcome:
                    case Committed():
                        self._accept(run, transition, step)
                    case AlreadyCommitted() | Superseded():
                        self.counts.refused_commits += 1
                        all_ours = False
                        self._adopt_stored(run)
                    case Refused(error) if transition.update is not None and transition.update.error is not None:
                        # Not even its failure can be stored: it stays as it was, and does not hold up the others.
                        self._observer.stuck(run, error)
                        self._forget(run)
                    case Refused(error):
                        run.fail(error)
                        self._moved[run.run_id] = run
                    case _:
                        assert_never(outcome)
        return all_ours

    def _transition(self, run: ActiveRun) -> tuple[Transition, Step | None]:
        """What a run has to store; if that is a step, how long it took to make."""
        began = time.perf_counter()
        transition, step = run.transition()
        if step is not None:
            self.counts.merge_seconds.add(time.perf_counter() - began)
        self.counts.use(run.take_usage())
        return transition, step

    def _accept(self, run: ActiveRun, transition: Transition, step: Step | None) -> None:
        before, tasks = run.row.status, len(run.frontier.items)
        now = self._clock.monotonic()
        if step is not None:
            self.counts.step_ms.add((now - run.moved_at) * 1000)
        if transition.update is not None:
            run.moved_at = now
        run.accept(transition, step)
        if self._spans is not None and step is not None:
            emit_step(self._spans, run, step, tasks)
        if run.row.status in FINISHED:
            if self._spans is not None and before is not run.row.status:
                emit_run(self._spans, run)
            self.counts.ended[run.row.status.value, run.error_type] += run.row.status is not before
            self.counts.conflicts += run.row.status is not before and run.error_type == ConflictError.__name__
            self._families.end_children(run)
            self._forget(run)
            self._families.tell_parent_of_end(run.row)
            if run.row.thread_id is not None and not self._looks_soon:
                self._looks_soon = True
                self._set_timer(0.0, self._look)  # The next run of the thread may begin.
        elif transition.update is not None and (transition.update.revives or transition.update.graph_hash is not None):
            self._forget(run)
            self.load(run.row)
        elif step is not None or run.ready:
            self._dispatcher.add(run)  # Of a step that goes on, error handlers and answered items may be ready now.
        # Of what has asked, and that is committed now.
        self._start_timers(run)
        self._families.make_calls(run.run_id)
        if run.row.status is not before:
            self._families.tell_parent(run)
        if step is not None:
            self._families.end_abandoned(run)
        if transition.update is not None:
            self._observer.moved(run)
        if transition.events:
            self._observer.emitted()
        if transition.update is not None and step is None and self._runs.get(run.run_id) is run:
            self._moved[run.run_id] = run  # Of what has arrived with it, a step may be complete.

    def _adopt_stored(self, run: ActiveRun) -> None:
        """Somebody else moved the run: drop what is in memory, and go on from what is stored if the run is still ours."""
        self._forget(run)
        run_id = run.run_id

        def reload() -> None:
            rows = self._store.find_runs(run_ids=[run_id])
            if not rows or run_id in self._runs or not self.owns(rows[0]):
                return
            if rows[0].status in FINISHED:
                self._families.tell_parent_of_end(rows[0])
            else:
                self.go_on_with(rows)

        # Not at once: should the reason last, this must not become a busy loop.
        self._set_timer(SWEEP_SECONDS, reload)

    def _forget(self, run: ActiveRun) -> None:
        """Drop a run whose tasks nobody wants any more: it has ended, or another version of it is moved."""
        self._drop(run)
        if run.in_flight:
            self._broker.cancel(run.run_id, run.row.partition_id)

    def _drop(self, run: ActiveRun) -> None:
        """Take a run out of memory; the store has the truth."""
        self._runs.pop(run.run_id, None)
        self._moved.pop(run.run_id, None)
        self._dispatcher.remove(run)
        run.part()

    def _expire(self, run_id: str, error: LockstepError) -> None:
        """End a run that took too long."""
        run = self._runs.get(run_id)
        if run is not None:
            run.fail(error)
            self._moved[run_id] = run

    def _pass_deadline(self, run_id: str) -> None:
        reason = "it passed its deadline_seconds"
        self._expire(run_id, RunCancelledError(f"run {run_id} was cancelled: {reason}", run_id=run_id, reason=reason))

    def _set_timer(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self._clock.monotonic() + seconds, next(self._timer_numbers), action))

    def _until_next_timer(self) -> float:
        return 0.0 if self._gained else max(0.0, self._timers[0][0] - self._clock.monotonic())

    def _fire_timers(self) -> None:
        now = self._clock.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()


def _says_something(transition: Transition) -> bool:
    return bool(transition.journal or transition.update or transition.consumed)
