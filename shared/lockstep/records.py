"""What crosses the ports, as frozen records: rows, transitions and their outcomes, tasks and messages.

Times are milliseconds since 1970; those in rows are the database's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.core.records import Failure
from lockstep.errors import LockstepError

FORMAT_VERSION = 1
"""Of everything stored: rows written under another number are migrated or refused, never guessed at."""


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run as submitted. `input` and `options` are canonical JSON; `partition_id` names the partition that will own it."""

    run_id: str
    graph: str
    graph_hash: str
    input: bytes
    options: bytes
    partition_id: str
    shard: int
    thread_id: str | None = None
    parent_run_id: str | None = None
    trace_context: str | None = None

    def row(self, created_at: int) -> RunRow:
        """The row of this run when it has just been stored."""
        return RunRow(
            **msgspec.structs.asdict(self),
            status=RunStatus.PENDING,
            step_id=-1,
            version=0,
            retries=0,
            state_hash=None,
            error=None,
            created_at=created_at,
            updated_at=created_at,
        )


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """A run as stored. `version` counts the changes of this row, `retries` how often the run was revived."""

    run_id: str
    graph: str
    graph_hash: str
    status: RunStatus
    step_id: int
    version: int
    retries: int
    input: bytes
    options: bytes
    state_hash: bytes | None
    error: bytes | None
    partition_id: str
    shard: int
    thread_id: str | None
    parent_run_id: str | None
    trace_context: str | None
    created_at: int
    updated_at: int
    format_version: int = FORMAT_VERSION

    def updated(self, update: RunUpdate) -> RunRow:
        """This row after an update of it; only the database knows when that was."""
        return msgspec.structs.replace(
            self,
            version=update.expected_version + 1,
            status=update.status,
            step_id=update.step_id,
            state_hash=update.state_hash,
            error=update.error,
            options=update.options,
            retries=update.retries,
            graph_hash=update.graph_hash or self.graph_hash,
        )


class StepRow(msgspec.Struct, frozen=True, kw_only=True):
    """Commit `step_id`: the patch from the state before, and the frontier of the step after."""

    run_id: str
    step_id: int
    idempotency_key: bytes
    state_hash: bytes
    patch: bytes
    frontier: bytes
    committed_at: int = 0


class SnapshotRow(msgspec.Struct, frozen=True, kw_only=True):
    """The canonical bytes of the whole state after a step, so that reading one takes few patches."""

    run_id: str
    step_id: int
    state: bytes


class JournalRow(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to a work item: `done` once (n = 0), or `failed` (n = attempt).

    `payload` is what the run depends on (outcome or failure, canonical); `meta` is what only people look at (worker, latency).
    """

    run_id: str
    path: bytes
    kind: str
    n: int
    step_id: int
    payload: bytes
    meta: bytes


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An outbox row. (`sequence`, `position`) is its place in the run, rising in commit order; the three make its stable id."""

    run_id: str
    sequence: int
    position: int
    step_id: int
    node_id: str
    type: str
    data: bytes


StoredRow = StepRow | SnapshotRow | JournalRow | Event
"""What belongs to a run beside its own row."""


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long finished runs of a graph are kept: so long, and at most so many of its newest runs. None: without end."""

    max_age_seconds: float | None = None
    max_runs: int | None = None

    @property
    def keeps_all(self) -> bool:
        """Whether nothing ever goes."""
        return self.max_age_seconds is None and self.max_runs is None


class Retentions(msgspec.Struct, frozen=True):
    """What holds for each graph: its own retention, or else the default."""

    default: Retention
    by_graph: dict[str, Retention] = {}

    def of(self, graph: str) -> Retention:
        """The graph's retention."""
        return self.by_graph.get(graph, self.default)


class PrunedTo(msgspec.Struct, frozen=True):
    """How far a pass over old runs has come: the last one that was looked at, and the limits that hold for the whole pass."""

    created_at: int
    run_id: str
    too_old: int
    beyond: int


class Pruned(msgspec.Struct, frozen=True):
    """What one call of `prune` has removed, and where to go on; None: it has seen all."""

    run_ids: Sequence[str]
    last: PrunedTo | None = None


class GraphVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a graph that coordinators have loaded, or that runs are pinned to, and how many of its runs are where.

    `loaded_at` is when it was loaded last, None: never by a coordinator of this store.
    """

    graph: str
    graph_hash: str
    loaded_at: int | None
    runs: int
    unfinished: int
    failed: int

    @property
    def place(self) -> tuple[str, int, str]:
        """Where it stands in a list: by name, the one loaded last first."""
        return self.graph, -(self.loaded_at or 0), self.graph_hash


class Defect(msgspec.Struct, frozen=True):
    """Something that must not be: of which run, what, and what to do about it."""

    run_id: str
    what: str
    remedy: str


class PublishedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event as a sink gets it. `committed_at` is when its step was committed, in milliseconds by the database's clock; of a
    run that ended before its first step, when it was submitted."""

    graph: str
    committed_at: int
    event: Event

    @property
    def event_id(self) -> str:
        """The same whenever this event is published: run_id/sequence/position."""
        return f"{self.event.run_id}/{self.event.sequence}/{self.event.position}"


class PendingEvents(msgspec.Struct, frozen=True, kw_only=True):
    """The next events of one run for one sink, in order. `attempts` is how often the first of them could not be published."""

    run_id: str
    attempts: int
    events: Sequence[PublishedEvent]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run has got on a sink: `last` is its newest event that arrived, None if none did.

    `error` says why the one after it did not; it is tried again after `pause_seconds`, or, if that is None, parked.
    """

    run_id: str
    last: PublishedEvent | None
    error: str | None = None
    pause_seconds: float | None = None


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for a sink. `lag_seconds` is the age of the oldest event that waits, parked ones left out; 0: none waits."""

    sink: str
    runs: int
    parked: int
    lag_seconds: float


class WaitingRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run of which events wait for a sink, from (sequence, position) on. `error` is what the last attempt said."""

    sink: str
    run_id: str
    sequence: int
    position: int
    attempts: int
    parked: bool
    error: str | None
    age_seconds: float


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A request to a run's owner (an inbox row); `command_id` is unique, so sending one twice is sending it once."""

    run_id: str
    command_id: str
    kind: str
    payload: bytes = b"null"


class RunUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """The new values of a run's row; valid only on top of `expected_version`, which it raises by one.

    `revives` says that a finished run needs an owner again; `graph_hash` is that of the version that it is pinned to from now
    on, None: as before.
    """

    run_id: str
    expected_version: int
    status: RunStatus
    step_id: int
    state_hash: bytes | None
    error: bytes | None
    options: bytes
    retries: int
    revives: bool = False
    graph_hash: str | None = None


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """All that one run changes in one transaction.

    `journal` rows may come alone, while their step waits for siblings. `step` and `snapshot` (canonical bytes of the whole
    state) come with an `update`. `consumed` are the commands that this transition answers.
    """

    run_id: str
    journal: Sequence[JournalRow] = ()
    step: StepRow | None = None
    snapshot: bytes | None = None
    update: RunUpdate | None = None
    events: Sequence[Event] = ()
    consumed: Sequence[str] = ()


class Committed(msgspec.Struct, frozen=True):
    """The transition is stored."""


class AlreadyCommitted(msgspec.Struct, frozen=True):
    """This very step was stored before, under the same idempotency key; nothing was written now."""


class Superseded(msgspec.Struct, frozen=True):
    """Somebody else moved the run, or the lease is lost; nothing was written. Adopt what is stored."""


class Refused(msgspec.Struct, frozen=True):
    """The database refuses this transition alone; nothing of it was written."""

    error: LockstepError


CommitOutcome = Committed | AlreadyCommitted | Superseded | Refused


class Submitted(msgspec.Struct, frozen=True):
    """What became of a submission: the row that now has the run_id, and whether this call created it."""

    row: RunRow
    created: bool


class ThreadPlace(msgspec.Struct, frozen=True):
    """Where a run is in its thread: the run that was submitted before it, and whether any other one is under way."""

    previous: RunRow | None
    is_busy: bool

    @property
    def is_free(self) -> bool:
        """Whether the run may begin."""
        return not self.is_busy and (self.previous is None or self.previous.status in FINISHED)


class Work(msgspec.Struct, frozen=True):
    """What an owner has to look at: runs that it has not begun, and commands to its runs."""

    new: Sequence[RunRow] = ()
    commands: Sequence[Command] = ()


class Top(msgspec.Struct, frozen=True):
    """The run at the top of a subgraph's: which of its steps waits for it, and the node there, "node/theirs" of deeper ones."""

    run_id: str
    step_id: int
    node: str


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A work item handed to a worker, with all that the worker needs to execute it.

    `state` is S(k-1) as canonical bytes; `payload` a Send's, which then replaces it. Results go to the partition's owner.
    Of a node with `max_concurrent`, no more tasks than that are handed out at a time.
    `answers` are those to the questions that the item has asked, in order; `recorded` the calls that it made before each that
    made some, see `encode_calls`. `context` is what was submitted as such, as canonical bytes. `trace_context` is that of the
    run's row; `top` is where what a subgraph's nodes stream belongs. The task of an error handler `stands_for` the node that
    failed, with this `error`.
    """

    run_id: str
    partition_id: str
    graph_hash: str
    step_id: int
    node_id: str
    path: bytes
    order_key: bytes
    scheduled_step: int
    queue: str
    attempt: int
    delivery: int
    run_seed: int
    timeout_seconds: float
    max_payload_bytes: int
    state: bytes
    payload: bytes | None = None
    max_concurrent: int | None = None
    stands_for: str | None = None
    error: dict[str, Any] | None = None
    answers: tuple[bytes, ...] = ()
    recorded: tuple[bytes, ...] = ()
    context: bytes | None = None
    trace_context: str | None = None
    top: Top | None = None

    @property
    def place(self) -> str:
        """The node of the graph that this task belongs to."""
        return self.stands_for or self.node_id

    def handed_back(self, reason: str) -> HandedBack:
        """The answer of a worker that did not start this task."""
        return HandedBack(run_id=self.run_id, path=self.path, delivery=self.delivery, reason=reason)


class TaskResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a task: an `outcome` (see `encode_outcome`), a `failure`, or a `question`: its number and canonical bytes.

    `timer` says how long the question waits, see `Timer`; `calls` are those that were made before it; of a node that is a
    `subgraph`, the question is the input of its run. `usage` is what models have used, see `encode_usage`. `cause` is the
    exception itself, which only an engine in the same process can hand on.
    """

    run_id: str
    path: bytes
    delivery: int
    outcome: bytes | None = None
    failure: Failure | None = None
    question: tuple[int, bytes] | None = None
    timer: bytes | None = None
    calls: bytes | None = None
    usage: bytes | None = None
    subgraph: bool = False
    started_at: int = 0
    latency_ms: float = 0.0
    worker: str = ""
    cause: Any = None


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """What a node has streamed: `number` counts the chunks of one `execution` from 0. `data` is canonical JSON."""

    run_id: str
    step_id: int
    node_id: str
    path: bytes
    attempt: int
    delivery: int
    execution: str
    number: int
    data: bytes


class HandedBack(msgspec.Struct, frozen=True, kw_only=True):
    """A task that a worker did not start: it is to be handed out again, and no attempt is lost."""

    run_id: str
    path: bytes
    delivery: int
    reason: str = ""


class Wake(msgspec.Struct, frozen=True):
    """Somebody wants the coordinator's attention; `look` says that there is something new in the store."""

    look: bool = False


class Unreadable(msgspec.Struct, frozen=True):
    """Something arrived that nobody can read; the broker has kept it aside."""


class Outstanding(msgspec.Struct, frozen=True, kw_only=True):
    """A task that was handed out and is not answered. `forgotten` says that it got lost with the memory of the broker."""

    run_id: str
    path: bytes
    delivery: int
    forgotten: bool = False


Message = TaskResult | HandedBack | Wake | Unreadable
