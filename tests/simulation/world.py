"""Coordinators, workers and relays over one store and one network, in one thread, on a clock that only the schedule moves.

The coordinator's loop, the relay, the execution of nodes and the memory store are the product's; the network, and what kills,
freezes and delays, are the simulation's. Whenever somebody commits or hands out, what must always hold is looked at.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from tests.history import steps_of, violations
from tests.simulation.flows import BY_HASH, GRAPHS, SHAPES, undisturbed
from tests.simulation.network import Claimed, Network, SimulatedBroker, key_of

from lockstep.core.frontier import decode_frontier
from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.core.ordering import shard_of
from lockstep.costs import Usage, encode_usage, used_of
from lockstep.errors import LockstepError, StoreUnavailableError
from lockstep.history import is_done, items_in_place
from lockstep.records import Command, CommitOutcome, Committed, NewRun, PublishedEvent, StepRow, Task, TaskResult, Transition
from lockstep.store.memory import MemoryStore
from lockstep.store.sharing import partition_ranges
from lockstep_coordinator.lease import LEASE_SECONDS, RENEWALS_PER_LEASE
from lockstep_coordinator.loop import Coordinator
from lockstep_coordinator.relay import SinkRelay
from lockstep_coordinator.run import ActiveRun
from lockstep_worker.context import NodeContext
from lockstep_worker.execute import execute, failure_of, without_loop

EPOCH_SECONDS = 1_700_000_000.0
COORDINATORS, WORKERS, SLOTS, QUEUE_DEPTH = 2, 2, 2, 3
RENEWAL_SECONDS = LEASE_SECONDS / RENEWALS_PER_LEASE
CALM_ROUNDS = 400
"""After the faults, all must have ended within so many rounds, in each of which everybody does what there is to do."""
CALM_SECONDS = 0.25
"""How far the clock goes on in a round."""
SINK = "sink"


class Violation(Exception):
    """Something that must never be."""


class Killed(BaseException):
    """Ends a relay in the middle of what it does, as SIGKILL would."""


class Clock:
    """Virtual time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return EPOCH_SECONDS + self.now

    def milliseconds(self) -> int:
        return int(self.time() * 1000)


class FaultyStore:
    """The store as one incarnation of a coordinator has it: commits may not arrive, or their answers may not."""

    def __init__(self, world: World, lease_id: str) -> None:
        self._world = world
        self._lease_id = lease_id
        self.accident: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world.store, name)

    def commit(self, lease_id: str, transitions: Sequence[Transition]) -> list[CommitOutcome]:
        accident, self.accident = self.accident, None
        if accident == "before":
            raise StoreUnavailableError("the commit did not arrive")
        outcomes = self._world.store.commit(lease_id, transitions)
        self._world.committed(self._lease_id, transitions, outcomes)
        if accident == "after":
            raise StoreUnavailableError("the answer did not arrive")
        return outcomes


class Seat:
    """A coordinator's process: one incarnation after another."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self._numbers = itertools.count(1)
        self.frozen_until = 0.0
        self._renews_at = 0.0
        self.restart()

    def restart(self) -> None:
        """A new incarnation; the lease of the one before runs out, unless `close` has given it back."""
        self.lease_id = f"{self._name}-{next(self._numbers)}"
        self.store = FaultyStore(self._world, self.lease_id)
        self._world.store.open_lease(self.lease_id, f"{self.lease_id}:1:1", LEASE_SECONDS, embedded=False)
        self.broker = SimulatedBroker(self._world.network)
        self.coordinator = Coordinator(
            self.store,  # type: ignore[arg-type] # It is all that a store is, but for what it does itself.
            self.broker,
            self.lease_id,
            BY_HASH,
            self,
            shares=True,
            clock=self._world.clock,
        )
        self.coordinator._set_timer(0.0, self.coordinator._sweep)

    @property
    def is_frozen(self) -> bool:
        return self._world.clock.now < self.frozen_until

    def turn(self) -> None:
        """One turn of the loop. What ends an incarnation begins the next one, as in a real process."""
        if self.is_frozen:
            return
        try:
            self.coordinator.turn(0.0)
        except StoreUnavailableError:
            self.close()

    def freeze(self, seconds: float) -> None:
        """Do nothing for so long, and then go on as if nothing had been; the lease is looked after a while later."""
        self.frozen_until = self._world.clock.now + seconds
        self._renews_at = self.frozen_until + RENEWAL_SECONDS

    def renew(self) -> None:
        """What the thread does that holds the lease."""
        if self._world.clock.now < self._renews_at:
            return
        self._renews_at = self._world.clock.now + RENEWAL_SECONDS
        if not self._world.store.renew_lease(self.lease_id, LEASE_SECONDS):
            self._world.counts["zombies that were told"] += 1
            self.close()

    def close(self) -> None:
        """End the incarnation, and give its lease back."""
        self._world.store.close_lease(self.lease_id)
        self.restart()

    def kill(self) -> None:
        """As SIGKILL: what is known of it is that its process is gone."""
        self._world.dead.add(f"{self.lease_id}:1:1")
        self.frozen_until = 0.0
        self.restart()

    def failing(self, run: ActiveRun) -> None: ...

    def moved(self, run: ActiveRun) -> None: ...

    def emitted(self) -> None: ...

    def stuck(self, run: ActiveRun, error: LockstepError) -> None:
        raise Violation(f"the store refuses even the failure of {run.run_id}: {error}")

    def stopped(self, error: Exception | None) -> None: ...


class World:
    """All there is. Its methods with two numbers are the events of a schedule; which of several is meant, they say modulo."""

    name = SINK

    def __init__(self, runs: int) -> None:
        self.clock = Clock()
        self.store = MemoryStore(self.clock.milliseconds)
        self.network = Network(QUEUE_DEPTH, lambda: self.clock.now)
        self.network.offered = self._offered
        self.dead: set[str] = set()
        self.counts: Counter[str] = Counter()
        self._winners: dict[str, list[StepRow]] = {}
        self._epochs: dict[str, int] = {}
        self._results: list[tuple[str, Any]] = []
        self._relay_dies_after: int | None = None
        self._published: dict[str, list[PublishedEvent]] = {}
        self._cancelled: set[str] = set()
        self._failures: Counter[tuple[str, bytes]] = Counter()
        self.store.outbox.add_sink(SINK)
        self.seats = [Seat(self, f"c{number}") for number in range(COORDINATORS)]
        for number in range(WORKERS):
            self.network.workers[f"w{number}"] = Claimed(f"w{number}")
        self._names = itertools.count(WORKERS)
        self._new_relay()
        self.runs: dict[str, tuple[str, dict[str, Any]]] = {}
        for number in range(runs):
            self.runs[f"run-{number}"] = SHAPES[number % len(SHAPES)]
            self.submit(number, 0)

    # Events

    def submit(self, which: int, _: int) -> None:
        """Submit a run, again if it is there."""
        run_id = f"run-{which % len(self.runs)}"
        graph, value = self.runs[run_id]
        shard = shard_of(None, None, run_id)
        partition = next(name for name, (first, last) in partition_ranges().items() if first <= shard <= last)
        self.store.submit(
            [
                NewRun(
                    run_id=run_id,
                    graph=graph,
                    graph_hash=GRAPHS[graph].hash,
                    input=msgspec.json.encode(value),
                    options=b"{}",
                    partition_id=partition,
                    shard=shard,
                )
            ]
        )

    def turn(self, which: int, _: int) -> None:
        """A coordinator's loop turns once."""
        self.seats[which % len(self.seats)].turn()

    def claim(self, which: int, queue: int) -> None:
        """A worker with a free slot takes the first task of a queue."""
        worker = self._worker(which)
        waiting = [tasks for _, tasks in sorted(self.network.queues.items()) if tasks]
        if not worker.silent and waiting and len(worker.tasks) < SLOTS:
            task = waiting[queue % len(waiting)].popleft()
            worker.tasks[key_of(task)] = task

    def finish(self, which: int, place: int) -> None:
        """A worker, also one that counts as dead, ends one of its tasks, and sends the result."""
        worker = self._worker(which)
        if worker.tasks:
            key = list(worker.tasks)[place % len(worker.tasks)]
            self._send(worker.tasks.pop(key), worker.name)

    def hand_back(self, which: int, place: int) -> None:
        """A worker does not want one of its tasks."""
        worker = self._worker(which)
        if worker.tasks:
            task = worker.tasks.pop(list(worker.tasks)[place % len(worker.tasks)])
            self.network.send(task.partition_id, task.handed_back("simulated"))

    def deliver_again(self, which: int, _: int) -> None:
        """A result that was sent arrives once more."""
        if self._results:
            self.network.send(*self._results[which % len(self._results)])

    def pass_time(self, tenths: int, _: int) -> None:
        """The clock goes on for up to 2 s; living coordinators renew their leases."""
        self._advance((1 + tenths % 20) / 10)

    def kill_worker(self, which: int, _: int) -> None:
        """A worker and all that it has is gone; another one comes."""
        name = list(self.network.workers)[which % len(self.network.workers)]
        del self.network.workers[name]
        another = f"w{next(self._names)}"
        self.network.workers[another] = Claimed(another)

    def silence_worker(self, which: int, _: int) -> None:
        """A worker counts as dead, or no more."""
        worker = self._worker(which)
        worker.silent = not worker.silent

    def kill_coordinator(self, which: int, _: int) -> None:
        """Gone in the middle of everything; a new one comes."""
        self.seats[which % len(self.seats)].kill()

    def freeze_coordinator(self, which: int, others: int) -> None:
        """It does nothing until after the end of its lease, while others may take over; then it is a zombie."""
        self.seats[which % len(self.seats)].freeze(LEASE_SECONDS + 0.5)
        self._advance(LEASE_SECONDS + 0.6)
        for _ in range(others % 8):
            for seat in self.seats:
                if seat is not self.seats[which % len(self.seats)]:
                    seat.turn()

    def break_commit(self, which: int, how: int) -> None:
        """The next commit of a coordinator does not arrive, or its answer does not."""
        self.seats[which % len(self.seats)].store.accident = ("before", "after")[how % 2]

    def forget_everything(self, _: int, __: int) -> None:
        """FLUSHALL."""
        self.network.forget_everything()

    def relay_events(self, deaths: int, _: int) -> None:
        """A relay publishes what there is; every third time, it dies after some events, and before it says how far it got."""
        self._relay_dies_after = deaths // 3 % 3 if deaths % 3 == 0 else None
        try:
            self.relay.turn()
        except Killed:
            self.counts["relays that died"] += 1
            self._new_relay()
        finally:
            self._relay_dies_after = None

    def cancel(self, which: int, rarely: int) -> None:
        """One of few runs is cancelled."""
        run_id = f"run-{which % len(self.runs)}"
        if rarely % 4 == 0:
            self._cancelled.add(run_id)
            self._command(run_id, "cancel", b'"simulated"')

    def retry(self, which: int, _: int) -> None:
        """Somebody asks for a failed run to go on."""
        self._command(f"run-{which % len(self.runs)}", "retry", b"{}")

    # What they are made of

    def _worker(self, which: int) -> Claimed:
        return list(self.network.workers.values())[which % len(self.network.workers)]

    def _advance(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + RENEWAL_SECONDS)
            for seat in self.seats:
                seat.renew()

    def _command(self, run_id: str, kind: str, payload: bytes) -> None:
        self.counts[kind] += 1
        self.store.send(Command(run_id=run_id, command_id=f"{kind}-{self.counts[kind]}", kind=kind, payload=payload))

    def _send(self, task: Task, worker: str) -> None:
        self.counts["executions"] += 1
        context = NodeContext(task)
        try:
            outcome = without_loop(execute(BY_HASH[task.graph_hash], task, context, _not_isolated))
            given: dict[str, Any] = {"outcome": outcome}
        except Exception as error:
            given = {"failure": failure_of(error, task)}
            self._failures[task.run_id, task.path] += 1
        started_at = self.clock.milliseconds()
        key = {"run_id": task.run_id, "path": task.path, "delivery": task.delivery}
        usage = encode_usage([Usage("m", 1, 1, cost_usd=str(self.counts["executions"]))])
        result = TaskResult(**key, worker=worker, started_at=started_at, usage=usage, **given)
        self._results.append((task.partition_id, result))
        self.network.send(task.partition_id, result)

    def _new_relay(self) -> None:
        self.relay = SinkRelay(self.store.outbox, self)

    def publish(self, events: Sequence[PublishedEvent]) -> int:
        """The sink: it takes one event after the other, until its relay is killed."""
        for number, event in enumerate(events):
            if self._relay_dies_after == number:
                raise Killed
            self._published.setdefault(event.event.run_id, []).append(event)
        if self._relay_dies_after is not None:
            raise Killed
        return len(events)

    # What must always hold

    def _offered(self, broker: SimulatedBroker, task: Task) -> None:
        """A task is handed out: only what is committed, and not what has a result, whoever does that."""
        [row] = self.store.find_runs(run_ids=[task.run_id])
        steps = self.store.steps(task.run_id, task.step_id - 1, task.step_id - 1)
        if not steps:
            raise Violation(f"{task.run_id}: {task.node_id} of step {task.step_id} is handed out before that is committed")
        items, journal = items_in_place(
            self.store, task.run_id, decode_frontier(steps[0].frontier, task.step_id - 1).items, row.retries
        )
        if task.path not in {item.path for item in items}:
            raise Violation(f"{task.run_id}: {task.node_id} is handed out in step {task.step_id}, to which it does not belong")
        rows = journal.get(task.path, [])
        if any(entry.kind == "done" for entry in rows):
            raise Violation(f"{task.run_id}: {task.node_id} is handed out though it has a result")
        if task.attempt > 1 + sum(entry.kind == "failed" for entry in rows):
            raise Violation(f"{task.run_id}: attempt {task.attempt} of {task.node_id} begins before the failures are stored")
        if len(self.network.queues[task.queue]) >= QUEUE_DEPTH:
            raise Violation(f"queue {task.queue} holds more than {QUEUE_DEPTH} tasks")

    def committed(self, lease_id: str, transitions: Sequence[Transition], outcomes: Sequence[CommitOutcome]) -> None:
        """Somebody has committed: only who owns the runs may, and nothing that was there has changed."""
        for transition, outcome in zip(transitions, outcomes, strict=True):
            self.counts[type(outcome).__name__] += 1
            [row] = self.store.find_runs(run_ids=[transition.run_id])
            owner = self.store._owners.get(row.partition_id)
            if isinstance(outcome, Committed) and (owner != lease_id or lease_id not in self.store._leases):
                raise Violation(f"{transition.run_id}: {lease_id} has committed, and {owner} owns it")
            steps = steps_of(self.store, transition.run_id)
            known = self._winners.get(transition.run_id, [])
            if steps[: len(known)] != known:
                raise Violation(f"{transition.run_id}: a step that was committed has changed")
            self._winners[transition.run_id] = steps
        for name, epoch in self.store._epochs.items():
            if epoch < self._epochs.get(name, 0):
                raise Violation(f"the epoch of {name} falls")
            self._epochs[name] = epoch

    # The end

    def calm(self) -> None:
        """No more faults: everything ends, as if there had been none."""
        for worker in self.network.workers.values():
            worker.silent = False
        for seat in self.seats:
            seat.store.accident = None
        for _ in range(CALM_ROUNDS):
            if self._is_quiet():
                break
            self._advance(CALM_SECONDS)
            for seat in self.seats:
                seat.turn()
            for name in range(len(self.network.workers)):
                while self._worker(name).tasks:
                    self.finish(name, 0)
                for queue in range(SLOTS):
                    self.claim(name, queue)
            self.relay_events(1, 0)
            for row in self.store.find_runs(status=RunStatus.FAILED):
                self._command(row.run_id, "retry", b"{}")
        else:
            rows = [(row.run_id, row.status.value, row.step_id) for row in self.store.find_runs()]
            raise Violation(f"it does not end: {rows}, {self.store.outbox.waiting(SINK)}")
        for what in self._wrong():
            raise Violation(what)

    def _results_of(self, run_id: str) -> Iterator[set[bytes]]:
        """The paths of the items that have a result, step by step."""
        for step in self.store.steps(run_id, 0, 10_000):
            items, journal = items_in_place(self.store, run_id, decode_frontier(step.frontier, step.step_id).items)
            yield {item.path for item in items if is_done(journal.get(item.path, ()))}

    def _is_quiet(self) -> bool:
        ended = all(row.status in FINISHED - {RunStatus.FAILED} for row in self.store.find_runs())
        return ended and not self.store.outbox.waiting(SINK)

    def _wrong(self) -> Iterator[str]:
        yield from violations(self.store, BY_HASH)
        for row in self.store.find_runs():
            graph, value = self.runs[row.run_id]
            if row.status is RunStatus.CANCELLED and row.run_id not in self._cancelled:
                yield f"{row.run_id} was cancelled by nobody"
            if row.status is RunStatus.SUCCEEDED and row.state_hash != undisturbed(graph, row.run_id, value.get("n")):
                yield f"{row.run_id} ends in another state than without faults"
            stored = [event.event_id for event in self.store.outbox._stored().get(row.run_id, ())]
            published = [event.event_id for event in self._published.get(row.run_id, [])]
            if list(dict.fromkeys(published)) != stored:
                yield f"{row.run_id}: of the events {stored}, {published} were published"
            used = [usage.cost_usd for used in used_of(self.store.usage(row.run_id)) for usage in used.calls]
            if len(used) > len(set(used)):
                yield f"{row.run_id}: what an execution has used is counted twice"
            results = {path for items in self._results_of(row.run_id) for path in items}
            if len({entry.path for entry in self.store.usage(row.run_id)} & results) < len(results):
                yield f"{row.run_id}: what the execution of a result has used is not counted"
        for (run_id, path), failures in self._failures.items():
            journalled = [entry for entry in self.store.journal(run_id, [path]) if entry.kind == "failed"]
            if len(journalled) > failures:
                yield f"{run_id}: {len(journalled)} failures of an item are journalled that has failed {failures} times"


def _not_isolated(*_: object) -> Any:
    raise AssertionError("no simulated node is isolated")


EVENTS: dict[str, tuple[int, Callable[[World, int, int], None]]] = {
    "turn": (40, World.turn),
    "claim": (22, World.claim),
    "finish": (22, World.finish),
    "pass_time": (8, World.pass_time),
    "relay_events": (6, World.relay_events),
    "deliver_again": (3, World.deliver_again),
    "hand_back": (2, World.hand_back),
    "kill_worker": (2, World.kill_worker),
    "silence_worker": (2, World.silence_worker),
    "kill_coordinator": (2, World.kill_coordinator),
    "freeze_coordinator": (2, World.freeze_coordinator),
    "break_commit": (3, World.break_commit),
    "forget_everything": (1, World.forget_everything),
    "cancel": (1, World.cancel),
    "retry": (1, World.retry),
    "submit": (1, World.submit),
}
"""How often each comes, and what it does."""
