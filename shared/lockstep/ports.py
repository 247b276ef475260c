"""The contracts between the engine and the world: stores, brokers, sinks, clocks, and what a node is given.

A method of a store is one whole operation and one transaction. Times are milliseconds since 1970 by the database's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

from lockstep.core.lifecycle import RunStatus
from lockstep.records import (
    Backlog,
    Chunk,
    Command,
    CommitOutcome,
    Defect,
    Event,
    GraphVersion,
    JournalRow,
    Message,
    NewRun,
    Outstanding,
    PendingEvents,
    Progress,
    Pruned,
    PrunedTo,
    PublishedEvent,
    Retention,
    RunRow,
    StepRow,
    StoredRow,
    Submitted,
    Task,
    TaskResult,
    ThreadPlace,
    Transition,
    WaitingRun,
    Work,
)

if TYPE_CHECKING:
    from random import Random

    from lockstep.errors import LockstepError


class Reader(Protocol):
    """What anyone may ask of a store. Nothing here changes anything, and none of it needs the graph."""

    def find_runs(
        self,
        *,
        run_ids: Collection[str] | None = None,
        status: RunStatus | None = None,
        graph: str | None = None,
        parent: str | None = None,
        thread_id: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[RunRow]:
        """Runs that meet all conditions given, ascending by run_id and above `after`; at most `limit`."""

    def before_in_thread(self, row: RunRow) -> ThreadPlace:
        """What is before a run in its thread, among the runs of the same graph."""

    def steps(self, run_id: str, first: int, last: int) -> list[StepRow]:
        """The step records first..last, inclusive, that are committed; ascending."""

    def snapshot(self, run_id: str, step_id: int) -> tuple[bytes, list[bytes]]:
        """The latest snapshot at or before the step (an empty object where there is none), and the patches from it on."""

    def journal(self, run_id: str, paths: Collection[bytes]) -> list[JournalRow]:
        """All journal rows of these work items, ascending by (path, kind, n)."""

    def usage(self, run_id: str) -> list[JournalRow]:
        """The run's journal rows of kind `usage`, ascending by (step_id, path, n)."""

    def events(self, run_id: str, after_sequence: int = 0) -> list[Event]:
        """The run's outbox events with a sequence above the given one, in order."""

    def graphs(self) -> list[str]:
        """The graphs of which there are runs, ascending."""

    def defects(self) -> list[Defect]:
        """What is wrong between the rows of different runs and tables, see `lockstep.fsck`; at most some of each kind."""

    def loaded_graphs(self) -> dict[str, str]:
        """The graphs that coordinators have loaded: the hash of the version loaded last, by name."""

    def versions(self) -> list[GraphVersion]:
        """All versions of all graphs, by name, the one loaded last first, those never loaded last."""

    def holder_of(self, partition_id: str) -> str | None:
        """Who has the right to write a partition's runs; None: nobody."""

    def partitions(self) -> dict[str, tuple[int, int]]:
        """The partitions that cover all shards, with the first and the last shard of each; none before the first `share`."""


class Store(Reader, Protocol):
    """The truth. Every change happens in one of these methods, whole or not at all, whatever dies meanwhile."""

    def open_lease(self, lease_id: str, holder: str, seconds: float, *, embedded: bool = True) -> None:
        """Give `lease_id` the right to write for this long. `holder` says who has it.

        An embedded engine gets a partition of that name, for its own runs; a coordinator takes part of the others, see `share`.
        """

    def share(self, lease_id: str, graphs: Mapping[str, str], is_dead: Callable[[str], bool]) -> dict[str, int]:
        """Take this coordinator's part of the partitions that cover all shards; those that it has now, with their epochs.

        Ends leases as `adopt` does, makes the partitions if there are none, takes those without an owner, and gives back what
        is above a fair share. `graphs` are the hashes of the coordinator's graphs by name, for clients to submit.
        """

    def unfinished(self, partition_ids: Collection[str]) -> list[RunRow]:
        """The unfinished runs of these partitions, ascending by run_id."""

    def renew_lease(self, lease_id: str, seconds: float) -> bool:
        """Prolong a lease; False: it was taken away, and its holder must stop."""

    def close_lease(self, lease_id: str) -> None:
        """Give a lease back; unfinished runs of its partition wait for `adopt`. Idempotent."""

    def submit(self, runs: Sequence[NewRun]) -> list[Submitted]:
        """Store new runs, durably. A run_id that is taken is left alone, and its row returned; the caller compares."""

    def submit_within(self, connection: object, run: NewRun) -> Submitted:
        """Store a new run, as `submit` does, in the transaction that is open on the caller's connection to the same database.

        Raises ConfigurationError if the store has none, the connection is of another kind or leads elsewhere, or has no
        transaction; then nothing was done to it.
        """

    def commit(self, lease_id: str, transitions: Sequence[Transition]) -> list[CommitOutcome]:
        """Store all transitions in one transaction, and say of each run what became of it.

        The first statement renews the lease where it is held; where it is not, all are Superseded. A transition that conflicts
        or is refused fails alone: the others are stored. After a crash each run has all of its transition, or nothing.
        A transaction whose answer was lost is looked up, not repeated. Raises StoreUnavailableError if that cannot be done:
        then each transition may be stored or not, and the caller has to load its runs anew.
        """

    def adopt(
        self,
        lease_id: str,
        graph_hashes: Collection[str],
        run_ids: Collection[str] | None,
        is_dead: Callable[[str], bool],
    ) -> list[str]:
        """Take over runs whose lease has ended: the unfinished ones, or those of `run_ids` in whatever status; their ids.

        Without `run_ids`, runs of shared partitions are left alone: they wait for a coordinator, see `share`.
        Leases past their time, and those whose holder `is_dead`, end first, so their holders' open commits are waited for and
        later ones are Superseded. Runs of other graphs stay as they are.
        """

    def poll(self, lease_id: str) -> Work:
        """The runs of this lease that are not begun, and the commands to its runs; ascending by run_id and age."""

    def send(self, command: Command) -> None:
        """Put a command into a run's inbox. Idempotent by command_id. Raises RunNotFoundError."""

    def delete(self, run_id: str) -> bool:
        """Remove a finished run and all that belongs to it; False: there is none, or it is not finished."""

    def restore(self, row: RunRow, rows: Iterable[StoredRow]) -> bool:
        """Store a run as it was in another store, with all `rows` that belong to it, in their order; False: its id is taken.

        It belongs to the partition that covers its shard here, if there is one, counts as changed now, and its events do not
        wait for any sink. What the iteration raises is passed on; then nothing is stored.
        """

    def prune(
        self, graph: str, retention: Retention, *, after: PrunedTo | None = None, limit: int = 100, dry_run: bool = False
    ) -> Pruned:
        """Remove finished runs of a graph that `retention` does not keep, oldest first, and say which.

        A run goes when it was created and last changed longer ago than `max_age_seconds`, or when `max_runs` others of its
        graph are newer. What is not finished stays, as does a run of which any sink has not got all events, be it parked or
        not, and one that somebody is changing. Looks at no more than `limit` runs, those behind `after`; what is old, and
        what is newer, is decided by the call that began the pass. With `dry_run` nothing is changed.
        """

    @property
    def outbox(self) -> Outbox:
        """The part that relays use."""

    def close(self) -> None:
        """Close all connections. Idempotent."""


class Outbox(Protocol):
    """The events that are stored and not everywhere yet: what relays ask of a store, and tell it.

    A sink is a place that events go to, known by its name. What it has not got yet is one row for each run, made by the very
    transaction that stores the events, so nothing is looked for among runs that have nothing left to send. A relay claims whole
    runs: while it has one, no other relay sends that run's events to that sink.
    """

    def add_sink(self, sink: str, *, from_now: bool = False) -> None:
        """Send all events to this sink: those that are stored already, unless `from_now`, and all that are committed after this
        call began. Idempotent: of a sink that is known, nothing changes."""

    def remove_sink(self, sink: str) -> bool:
        """Forget a sink and what it has not got; False: it is not known."""

    def claim(self, relay_id: str, sink: str, runs: int, seconds: float) -> list[PendingEvents]:
        """The next events of at most so many runs that wait for this sink, longest waiting first, each run's in order.

        For so long no other relay gets these runs. Those that are parked, that rest until their next attempt, or that others
        have claimed are left out.
        """

    def mark(self, relay_id: str, sink: str, progress: Sequence[Progress]) -> None:
        """Store how far runs have got that this relay has claimed, and give them back. Of those that it has no more, nothing
        changes: another relay sends these events again."""

    def replay(self, sink: str, run_id: str, sequence: int = 0) -> bool:
        """Send a run's events from this sequence on once more; False: it has none, or the sink is not known."""

    def unpark(self, sink: str, run_id: str, *, skip: bool = False) -> bool:
        """Try a parked run's event again now, or go on with the one after it; False: nothing of the run is parked there."""

    def backlogs(self) -> list[Backlog]:
        """What waits for each sink; ascending by name."""

    def waiting(self, sink: str | None = None, *, parked: bool = False, limit: int = 100) -> list[WaitingRun]:
        """The runs of which events wait, longest waiting first: for this sink, or all; only what is parked, or everything."""


class Broker(Protocol):
    """Carries tasks to workers and messages back. May lose everything: the store is the truth.

    Raises BrokerUnavailableError when it does not work: then each task may have been enqueued or not.
    """

    def own(self, partitions: Mapping[str, int]) -> None:
        """Receive what is sent to the owner of these partitions, from the oldest message on, and nothing else. Epochs by id."""

    def permit(self, tasks: Sequence[Task]) -> list[bool]:
        """Say of each task, of a node with max_concurrent, whether it may be offered now, whoever offers others of that node.

        A permit is a lease: held until the task is answered, refused or lost, renewed by `lost`, and gone by itself when its
        holder has died. A task that has one gets it again. When the broker has lost its memory, there may be too many for a
        moment: what is under way goes on.
        """

    def offer(self, tasks: Sequence[Task]) -> list[bool]:
        """Put tasks at the ends of their queues, in order, and say of each whether it is there.

        False: the queue holds `queue_depth` tasks already. Then the later ones for that queue are refused as well.
        """

    def receive(self, timeout_seconds: float) -> list[Message]:
        """All messages that have arrived, in order; waits for the first one at most this long."""

    def acknowledge(self) -> None:
        """What was received until now is stored, or needs no storing: it may be forgotten."""

    def wake(self) -> None:
        """Make `receive` return."""

    def outstanding(self, run_ids: Collection[str]) -> list[Outstanding]:
        """The tasks of these runs that wait in queues or are with living workers, whoever dispatched them; their results come.

        Call it for runs taken over, before `receive`: a task that is neither here nor answered there must be handed out again.
        """

    def lost(self) -> list[Outstanding]:
        """The tasks offered here, or outstanding, that are nowhere any more; call it about once a second."""

    def set_aside(self, partition_id: str, result: TaskResult, reason: str) -> None:
        """Keep a result for a partition that cannot be used, for people to look at."""

    def withdraw(self, run_id: str) -> list[bytes]:
        """Take a run's tasks out of the queues, and return their paths; those that a worker has taken go on."""

    def forget(self, run_id: str) -> None:
        """The caller follows the run no more; its tasks go on, for its next owner."""

    def cancel(self, run_id: str, partition_id: str) -> None:
        """Nothing of the run is wanted any more: withdraw its tasks, and tell the workers that have some, unless its partition
        has another owner by now."""

    def depth(self, queue: str) -> int:
        """How many tasks a queue holds."""


class LiveReader(Protocol):
    """Reads what the nodes of one run stream, for one reader."""

    @property
    def blocks(self) -> bool:
        """Whether `read` waits; otherwise somebody wakes the reader."""

    def read(self, after: str, seconds: float) -> list[tuple[str, Chunk]]:
        """The next chunks behind the id `after` ("": from the first one that is kept), with the id of each."""

    def close(self) -> None:
        """Close what it has open."""


class Sink(Protocol):
    """A place that a relay publishes events to. Each method is called by one thread, and may block for a bounded time.

    `name` is what its progress is stored under: two sinks of one name are one to the store.
    """

    @property
    def name(self) -> str:
        """1 to 64 of A-Z a-z 0-9 . _ : -"""

    def publish(self, events: Sequence[PublishedEvent]) -> int:
        """Publish events of one run, in order, and say how many: at least the first, and as many as go in some seconds.

        The same ones may come again: after a crash, nobody knows what arrived. Raises PublishError, which says how many of them
        arrived; any other exception means that none did.
        """

    def close(self) -> None:
        """Close what it has open. Idempotent."""


class Observer(Protocol):
    """Your own code as a sink: an object that is given events in the relay's process. A subclass may leave the method out."""

    def observe(self, event: PublishedEvent) -> None:
        """An event was committed; those of a run come in order, and any may come again. By default nothing happens.

        Return within some seconds. If it raises, the event is tried again later; PublishError(permanent=True) parks the run.
        """


class Clock(Protocol):
    """What time it is. The standard library's `time` is one; a simulation has another, which it moves itself."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""

    def time(self) -> float:
        """Seconds since 1970."""


class Context(Protocol):
    """What a node may know and do beside its state: the second parameter of a node or router."""

    @property
    def run_id(self) -> str:
        """The run."""

    @property
    def step_id(self) -> int:
        """The step in which the node runs."""

    @property
    def node_id(self) -> str:
        """The node."""

    @property
    def attempt(self) -> int:
        """1 + the journalled failures of this item."""

    @property
    def delivery(self) -> int:
        """How many times this item was handed to a worker, this time included."""

    @property
    def order_key(self) -> str:
        """The item's place in its step, 16 hex digits."""

    @property
    def path(self) -> str:
        """The item's identity, 64 hex digits."""

    @property
    def idempotency_key(self) -> str:
        """The same for all deliveries and attempts of the item: give it to services that deduplicate."""

    @property
    def rng(self) -> Random:
        """Random numbers that are the same on every attempt, after a resume and in replay; see docs/determinism.md."""

    @property
    def error(self) -> LockstepError | None:
        """In an error handler, what the node failed with: NodeFailedError, NodeTimeoutError, ...; else None."""

    @property
    def context(self) -> Any:
        """What was submitted as the run's `context`, as JSON has it; a copy. None: nothing."""

    @property
    def resources(self) -> Any:
        """What the graph's `resources` has opened in this process: clients, pools, models.

        Raises ConfigurationError where there is nothing: for a graph without, for sync nodes if it is async, and for nodes in
        processes of their own.
        """

    @property
    def logger(self) -> Any:
        """A structlog logger that knows trace, run, step, node and attempt."""

    @property
    def cancelled(self) -> bool:
        """Whether the result is no longer wanted; long loops may look and return."""

    def record(self, name: str, request: Any, call: Callable[[], Any]) -> Any:
        """What `call()` returns, journalled with the node's result: `Run.replay` gives it back instead of calling.

        For whatever comes from outside: models, services, clocks, files. If `call` returns an awaitable, so does `record`.
        `request` says what is asked (JSON); in a replay it must be the same, else ReplayMismatchError. What is returned is
        JSON, as a copy; an exception is recorded, too. A node that runs again because its question was answered gets what was
        recorded before it asked. Raises StateError for a request or response that is not JSON.
        """

    def stream(self, chunk: Any) -> None:
        """Give something (JSON) to whoever follows the run with mode "custom", at once, such as a token of a model's answer.

        It is live only: kept for a while, bounded, in no store, and seen again when the node is executed again. Never blocks.
        What must not get lost belongs into what the node returns. Raises StateError for what is not JSON.
        """

    def llm_usage(
        self,
        model: str,
        tokens_in: int | None,
        tokens_out: int | None,
        *,
        tokens_cached: int = 0,
        tokens_cache_written: int = 0,
        cost_usd: Decimal | str | int | None = None,
    ) -> None:
        """Report what a call to a model has used: it is journalled with this execution, also if that fails, see `Run.costs`.

        `tokens_in` counts all of the input, the cached parts included; None: the provider did not say. `usage_of(reply)` reads
        the arguments from a reply. `cost_usd` is for whoever knows the cost; else the price book says it. Raises StateError.
        """

    def emit(self, type: str, data: Any = None) -> None:
        """Add an outbox event, published if and only if this step commits. Raises StateError for data that is not JSON."""
