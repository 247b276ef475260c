"""The reference model: the shortest correct reading of the `Store` contract, in dictionaries under one lock.

SQL stores are compared with it, operation by operation. It lives as long as its process.
"""

from __future__ import annotations

import bisect
import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.errors import ConfigurationError, RunNotFoundError
from lockstep.records import (
    AlreadyCommitted,
    Command,
    CommitOutcome,
    Committed,
    Defect,
    Event,
    GraphVersion,
    JournalRow,
    NewRun,
    Pruned,
    PrunedTo,
    PublishedEvent,
    Retention,
    RunRow,
    SnapshotRow,
    StepRow,
    StoredRow,
    Submitted,
    Superseded,
    ThreadPlace,
    Transition,
    Work,
)
from lockstep.store.memory_outbox import MemoryOutbox
from lockstep.store.retention import limits_of
from lockstep.store.sharing import fair_share, partition_ranges

Clock = Callable[[], int]


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Lease:
    """The right to write, until `expires_at`."""

    def __init__(self, holder: str, seconds: float, embedded: bool) -> None:
        self.holder = holder
        self.embedded = embedded
        self.seconds = seconds
        self.expires_at = 0

    def prolong(self, now: int, seconds: float) -> None:
        """Renew it; this never shortens it."""
        self.expires_at = max(self.expires_at, now + int(seconds * 1000))


class StoredRun:
    """A run and all that belongs to it."""

    def __init__(self, row: RunRow) -> None:
        self.row = row
        self.steps: list[StepRow] = []
        self.snapshots: dict[int, bytes] = {}
        self.journal: dict[bytes, dict[tuple[str, int], JournalRow]] = {}
        self.events: list[Event] = []

    def dated(self, event: Event) -> int:
        """When an event's step was committed; of a run that ended before its first step, when it was submitted."""
        return self.steps[event.step_id].committed_at if event.step_id >= 0 else self.row.created_at


class MemoryStore:
    """A `Store` in this process's memory. `clock` gives milliseconds since 1970."""

    def __init__(self, clock: Clock = wall_clock_ms) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._leases: dict[str, Lease] = {}
        self._owners: dict[str, str] = {}
        self._epochs: dict[str, int] = {}
        self._graphs: dict[str, str] = {}
        self._loaded_at: dict[tuple[str, str], int] = {}
        self._runs: dict[str, StoredRun] = {}
        self._pending: set[str] = set()
        self._inbox: dict[str, Command] = {}
        self._known_commands: dict[str, str] = {}
        self._known_keys: set[bytes] = set()
        self.outbox = MemoryOutbox(self._lock, clock, self._published)

    def _published(self) -> dict[str, list[PublishedEvent]]:
        return {
            run_id: [PublishedEvent(graph=run.row.graph, committed_at=run.dated(event), event=event) for event in run.events]
            for run_id, run in self._runs.items()
            if run.events
        }

    def open_lease(self, lease_id: str, holder: str, seconds: float, *, embedded: bool = True) -> None:
        with self._lock:
            lease = self._leases[lease_id] = Lease(holder, seconds, embedded)
            lease.prolong(self._clock(), seconds)
            if embedded:
                self._owners[lease_id] = lease_id

    def share(self, lease_id: str, graphs: Mapping[str, str], is_dead: Callable[[str], bool]) -> dict[str, int]:
        with self._lock:
            if lease_id not in self._leases or self._leases[lease_id].embedded:
                return {}
            self._end_leases(lease_id, is_dead)
            self._graphs |= graphs
            self._loaded_at |= dict.fromkeys(graphs.items(), self._clock())
            shared = list(partition_ranges())
            coordinators = [other for other, lease in self._leases.items() if not lease.embedded]
            mine = [name for name in shared if self._owners.get(name) == lease_id]
            free = [name for name in shared if self._owners.get(name) not in self._leases]
            kept, given = fair_share(mine, free, len(shared), lease_id, coordinators)
            self._owners |= dict.fromkeys([*free, *given], "") | dict.fromkeys(kept, lease_id)
            for name in {*given, *kept} - ({*mine} - {*given}):
                self._epochs[name] = self._epochs.get(name, 0) + 1
            return {name: self._epochs[name] for name in kept}

    def unfinished(self, partition_ids: Collection[str]) -> list[RunRow]:
        with self._lock:
            rows = (run.row for _, run in sorted(self._runs.items()))
            return [row for row in rows if row.partition_id in partition_ids and row.status not in FINISHED]

    def defects(self) -> list[Defect]:
        return []  # There is one place for each thing here, so nothing can differ from another.

    def loaded_graphs(self) -> dict[str, str]:
        with self._lock:
            return dict(self._graphs)

    def versions(self) -> list[GraphVersion]:
        with self._lock:
            rows = [run.row for run in self._runs.values()]
            known = {(row.graph, row.graph_hash) for row in rows} | self._loaded_at.keys()
            found = []
            for graph, graph_hash in known:
                own = [row.status for row in rows if (row.graph, row.graph_hash) == (graph, graph_hash)]
                version = GraphVersion(
                    graph=graph,
                    graph_hash=graph_hash,
                    loaded_at=self._loaded_at.get((graph, graph_hash)),
                    runs=len(own),
                    unfinished=sum(status not in FINISHED for status in own),
                    failed=own.count(RunStatus.FAILED),
                )
                found.append(version)
            return sorted(found, key=lambda version: version.place)

    def holder_of(self, partition_id: str) -> str | None:
        with self._lock:
            lease = self._leases.get(self._owners.get(partition_id, ""))
            return lease.holder if lease is not None else None

    def partitions(self) -> dict[str, tuple[int, int]]:
        with self._lock:
            return {name: bounds for name, bounds in partition_ranges().items() if name in self._owners}

    def renew_lease(self, lease_id: str, seconds: float) -> bool:
        with self._lock:
            lease = self._leases.get(lease_id)
            if lease is None:
                return False
            lease.prolong(self._clock(), seconds)
            return True

    def close_lease(self, lease_id: str) -> None:
        with self._lock:
            self._leases.pop(lease_id, None)

    def submit(self, runs: Sequence[NewRun]) -> list[Submitted]:
        with self._lock:
            return [self._submit(run) for run in runs]

    def _submit(self, run: NewRun) -> Submitted:
        known = self._runs.get(run.run_id)
        if known is not None:
            return Submitted(known.row, created=False)
        row = run.row(self._clock())
        self._runs[run.run_id] = StoredRun(row)
        self._pending.add(run.run_id)
        return Submitted(row, created=True)

    def submit_within(self, connection: object, run: NewRun) -> Submitted:
        raise ConfigurationError("memory:// has no transactions that a run could be part of", option="connection")

    def commit(self, lease_id: str, transitions: Sequence[Transition]) -> list[CommitOutcome]:
        with self._lock:
            lease = self._leases.get(lease_id)
            if lease is None:
                return [Superseded()] * len(transitions)
            lease.prolong(self._clock(), lease.seconds)
            return [self._commit(transition) for transition in transitions]

    def _commit(self, transition: Transition) -> CommitOutcome:
        run = self._runs.get(transition.run_id)
        if run is None:
            return Superseded()
        known = any((row.kind, row.n) in run.journal.get(row.path, ()) for row in transition.journal)
        update, step = transition.update, transition.step
        stale = update is not None and update.expected_version != run.row.version
        taken = step is not None and (step.step_id != len(run.steps) or step.idempotency_key in self._known_keys)
        if stale or known or taken:
            same = step and any(
                (step.step_id, step.idempotency_key) == (other.step_id, other.idempotency_key) for other in run.steps
            )
            return AlreadyCommitted() if same else Superseded()
        now = self._clock()
        for row in transition.journal:
            run.journal.setdefault(row.path, {})[row.kind, row.n] = row
        run.events.extend(transition.events)
        for command_id in transition.consumed:
            self._inbox.pop(command_id, None)
        if step is not None:
            run.steps.append(msgspec.structs.replace(step, committed_at=now))
            self._known_keys.add(step.idempotency_key)
            if transition.snapshot is not None:
                run.snapshots[step.step_id] = transition.snapshot
        if transition.events:
            self.outbox.note(transition.events[0])
        if update is not None:
            self._pending.discard(transition.run_id)
            run.row = msgspec.structs.replace(run.row.updated(update), updated_at=now)
        return Committed()

    def adopt(
        self,
        lease_id: str,
        graph_hashes: Collection[str],
        run_ids: Collection[str] | None,
        is_dead: Callable[[str], bool],
    ) -> list[str]:
        with self._lock:
            self._end_leases(lease_id, is_dead)
            shared = partition_ranges().keys() & self._owners.keys()
            adopted = []
            for run_id, run in self._runs.items():
                lost = run.row.status not in FINISHED and run.row.partition_id not in shared
                wanted = lost if run_ids is None else run_id in run_ids
                orphan = self._owners.get(run.row.partition_id) not in self._leases
                if wanted and orphan and run.row.graph_hash in graph_hashes:
                    run.row = msgspec.structs.replace(run.row, partition_id=lease_id)
                    adopted.append(run_id)
            return sorted(adopted)

    def _end_leases(self, lease_id: str, is_dead: Callable[[str], bool]) -> None:
        now = self._clock()
        self._leases = {
            other: lease
            for other, lease in self._leases.items()
            if other == lease_id or not (lease.expires_at < now or is_dead(lease.holder))
        }

    def poll(self, lease_id: str) -> Work:
        with self._lock:

            def is_mine(run_id: str) -> bool:
                return lease_id in self._leases and self._owners.get(self._runs[run_id].row.partition_id) == lease_id

            return Work(
                [self._runs[run_id].row for run_id in sorted(self._pending) if is_mine(run_id)],
                [command for command in self._inbox.values() if is_mine(command.run_id)],
            )

    def send(self, command: Command) -> None:
        with self._lock:
            if command.run_id not in self._runs:
                raise RunNotFoundError(f"no run {command.run_id!r}", run_id=command.run_id)
            if command.command_id not in self._known_commands:
                self._known_commands[command.command_id] = command.run_id
                self._inbox[command.command_id] = command

    def delete(self, run_id: str) -> bool:
        with self._lock:
            run = self._runs.get(run_id)
            if run is None or run.row.status not in FINISHED:
                return False
            del self._runs[run_id]
            self.outbox.forget(run_id)
            self._known_keys -= {step.idempotency_key for step in run.steps}
            self._known_commands = {key: of for key, of in self._known_commands.items() if of != run_id}
            self._inbox = {key: command for key, command in self._inbox.items() if command.run_id != run_id}
            return True

    def restore(self, row: RunRow, rows: Iterable[StoredRow]) -> bool:
        run = StoredRun(row)
        for stored in rows:
            match stored:
                case StepRow():
                    run.steps.append(stored)
                case SnapshotRow():
                    run.snapshots[stored.step_id] = stored.state
                case JournalRow():
                    run.journal.setdefault(stored.path, {})[stored.kind, stored.n] = stored
                case Event():
                    run.events.append(stored)
        with self._lock:
            if row.run_id in self._runs:
                return False
            partitions = [name for name, (first, last) in self.partitions().items() if first <= row.shard <= last]
            partition_id = next(iter(partitions), row.partition_id)
            run.row = msgspec.structs.replace(row, partition_id=partition_id, updated_at=self._clock())
            self._runs[row.run_id] = run
            self._known_keys |= {step.idempotency_key for step in run.steps}
            if row.status not in FINISHED:
                self._pending.add(row.run_id)
            return True

    def prune(
        self, graph: str, retention: Retention, *, after: PrunedTo | None = None, limit: int = 100, dry_run: bool = False
    ) -> Pruned:
        with self._lock:
            rows = sorted((row for row in self._rows() if row.graph == graph), key=_age)
            limits = limits_of(
                retention, after, self._clock, lambda newest: rows[-newest].created_at if newest <= len(rows) else None
            )
            behind = (after.created_at, after.run_id) if after is not None else (-1, "")
            old = [row for row in rows if row.created_at <= limits.newest and _age(row) > behind]
            seen = old[:limit]
            gone = [row.run_id for row in seen if limits.passed_by(row) and not self.outbox.holds(row.run_id)]
            if not dry_run:
                for run_id in gone:
                    self.delete(run_id)
            return Pruned(gone, limits.reached(seen[-1]) if len(seen) == limit else None)

    def graphs(self) -> list[str]:
        with self._lock:
            return sorted({row.graph for row in self._rows()})

    def _rows(self) -> list[RunRow]:
        return [run.row for run in self._runs.values()]

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
        with self._lock:
            rows = (
                self._runs[run_id].row for run_id in sorted(self._runs if run_ids is None else set(run_ids) & self._runs.keys())
            )
            found = (
                row
                for row in rows
                if (status is None or row.status is status)
                and (graph is None or row.graph == graph)
                and (parent is None or row.parent_run_id == parent)
                and (thread_id is None or row.thread_id == thread_id)
                and (after is None or row.run_id > after)
            )
            return list(itertools.islice(found, limit))

    def before_in_thread(self, row: RunRow) -> ThreadPlace:
        with self._lock:
            others = [
                other.row
                for other in self._runs.values()
                if (other.row.thread_id, other.row.graph) == (row.thread_id, row.graph) and other.row.run_id != row.run_id
            ]
        busy = any(other.step_id >= 0 and other.status not in FINISHED for other in others)
        return ThreadPlace(max((other for other in others if _age(other) < _age(row)), key=_age, default=None), busy)

    def steps(self, run_id: str, first: int, last: int) -> list[StepRow]:
        with self._lock:
            run = self._runs.get(run_id)
            return run.steps[max(first, 0) : max(last + 1, 0)] if run else []

    def snapshot(self, run_id: str, step_id: int) -> tuple[bytes, list[bytes]]:
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                return b"{}", []
            taken = sorted(run.snapshots)
            index = bisect.bisect_right(taken, step_id)
            base = taken[index - 1] if index else -1
            return run.snapshots.get(base, b"{}"), [step.patch for step in run.steps[base + 1 : max(step_id + 1, 0)]]

    def journal(self, run_id: str, paths: Collection[bytes]) -> list[JournalRow]:
        with self._lock:
            run = self._runs.get(run_id)
            return [row for path in sorted(set(paths)) for _, row in sorted(run.journal.get(path, {}).items())] if run else []

    def usage(self, run_id: str) -> list[JournalRow]:
        with self._lock:
            run = self._runs.get(run_id)
            rows = [row for entries in run.journal.values() for row in entries.values() if row.kind == "usage"] if run else []
            return sorted(rows, key=lambda row: (row.step_id, row.path, row.n))

    def events(self, run_id: str, after_sequence: int = 0) -> list[Event]:
        with self._lock:
            run = self._runs.get(run_id)
            return [event for event in run.events if event.sequence > after_sequence] if run else []

    def close(self) -> None:
        pass


def _age(row: RunRow) -> tuple[int, str]:
    return row.created_at, row.run_id
