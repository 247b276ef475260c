"""The reference model against each SQL store: the same operations, whatever they are, get the same answers and leave the same.

Times are left out, since the clocks differ. A failure prints the operations that lead to it, and a line that repeats them.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Collection, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from lockstep.core.lifecycle import FINISHED, TRANSITIONS, RunStatus
from lockstep.errors import LockstepError
from lockstep.ports import Store
from lockstep.records import (
    Command,
    Event,
    JournalRow,
    NewRun,
    PendingEvents,
    Progress,
    Retention,
    RunRow,
    RunUpdate,
    SnapshotRow,
    StepRow,
    StoredRow,
    Transition,
)
from lockstep.store.memory import MemoryStore

if TYPE_CHECKING:
    from conftest import Adapter

# No deadline: a pause of the machine would fail what holds. No database: nothing is written beside the tests. On CI it tries
# the same examples every time, so a red build is red for its change.
SETTINGS = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    derandomize="CI" in os.environ,
)

HOUR = 3600.0
# Few names, so that operations meet. The last of each is never used by a store: what is not there is asked for too.
RUNS = ["run-1", "run-2", "Run-2", "nowhere"]
HASHES = ["hash-1", "hash-2"]
GRAPHS = ["one", "two"]
HOLDERS = ["holder-1", "holder-2"]
COMMANDS = [f"command-{n}" for n in range(6)]
PATHS = [sha256(b"path %d" % n).digest() for n in range(3)]
TIMES = {"created_at": 0, "updated_at": 0, "committed_at": 0, "age_seconds": 0, "lag_seconds": 0, "loaded_at": 0}

run_ids = st.sampled_from(RUNS)
sinks = st.sampled_from(["sink-1", "sink-2"])
numbers = st.integers(0, 9)
seeds = st.integers(0, 2**32)
KINDS = ["step", "step", "end", "revive", "journal", "stale", "again", "other key", "same key", "ahead"]
kinds = st.sampled_from(KINDS)


def timeless(answer: Any) -> Any:
    """An answer without its times, deeply."""
    if isinstance(answer, msgspec.Struct):
        fields = {name: timeless(getattr(answer, name)) for name in answer.__struct_fields__}
        return type(answer).__name__, {name: TIMES.get(name, value) for name, value in fields.items()}
    if isinstance(answer, list | tuple):
        return [timeless(one) for one in answer]
    return answer


def by_run(pending: Sequence[PendingEvents]) -> Sequence[PendingEvents]:
    """In an order that does not depend on when anything was committed."""
    return sorted(pending, key=lambda each: each.run_id)


def dump(store: Store) -> Any:
    """All that readers see of all runs."""
    rows = store.find_runs()
    return timeless(
        [
            rows,
            [
                [
                    store.steps(row.run_id, 0, 1000),
                    [store.snapshot(row.run_id, step_id) for step_id in range(row.step_id + 1)],
                    store.journal(row.run_id, PATHS),
                    store.events(row.run_id),
                ]
                for row in rows
            ],
            store.versions(),
            store.defects(),
            store.outbox.backlogs(),
            sorted(store.outbox.waiting(), key=lambda row: (row.sink, row.run_id)),
            sorted(store.outbox.waiting("sink-1", parked=True), key=lambda row: row.run_id),
        ]
    )


class Machine(RuleBasedStateMachine):
    """Does the same to both stores. Transitions are made on what the reference model holds, or on what it held before."""

    fresh: Callable[[], Store]
    expire: Callable[[Store, str], None]
    expire_in_model: Callable[[Store, str], None]

    @initialize()
    def begin(self) -> None:
        self.model = MemoryStore()
        self.store = type(self).fresh()
        self.leases: list[str] = ["never"]
        self.sent: list[tuple[str, str]] = []
        self.past: list[Transition] = []
        self.keys = itertools.count()
        self.open_lease("holder-1", HOUR)
        self.submit([(run_id, "one", HASHES[n % 2]) for n, run_id in enumerate(RUNS)], 0, b"input")

    def teardown(self) -> None:
        if hasattr(self, "store"):
            try:
                assert dump(self.model) == dump(self.store)
            finally:
                self.store.close()

    def both(self, operation: Callable[[Store], Any]) -> Any:
        """The reply of both stores, which is the same."""
        expected, actual = (self.reply(operation, store) for store in (self.model, self.store))
        assert timeless(actual) == timeless(expected)
        return expected

    @staticmethod
    def reply(operation: Callable[[Store], Any], store: Store) -> Any:
        try:
            return operation(store)
        except LockstepError as error:
            return type(error).__name__, error.run_id

    def row(self, run_id: str) -> RunRow | None:
        return next(iter(self.model.find_runs(run_ids=[run_id])), None)

    def lease(self, number: int) -> str:
        """One of the leases that are held; for high numbers, any of those ever opened, or one that never was."""
        held = [lease for lease in self.leases if lease in self.model._leases]
        return held[number % len(held)] if held and number < 8 else self.leases[number % len(self.leases)]

    # Leases.

    @rule(
        number=numbers,
        what=st.sampled_from(["open", "open expired", "replace", "renew", "shorten", "let expire"]),
        holder=st.sampled_from(HOLDERS),
    )
    def change_leases(self, number: int, what: str, holder: str) -> None:
        lease = self.lease(number)
        match what:
            case "open" | "open expired":
                self.open_lease(holder, -HOUR if what == "open expired" else HOUR)
            case "replace":
                self.both(lambda store: store.close_lease(lease))
                self.open_lease(holder, HOUR)
            case "renew" | "shorten":
                self.both(lambda store: store.renew_lease(lease, HOUR if what == "renew" else -HOUR))
            case _:
                if self.both(lambda store: store.renew_lease(lease, HOUR)):
                    type(self).expire_in_model(self.model, lease)
                    type(self).expire(self.store, lease)

    def open_lease(self, holder: str, seconds: float) -> None:
        lease = f"lease-{len(self.leases)}"
        self.leases.append(lease)
        self.both(lambda store: store.open_lease(lease, holder, seconds))

    @rule(
        number=numbers,
        ended=numbers,
        hashes=st.sampled_from([HASHES, HASHES, ["hash-1"], []]),
        some=st.none() | st.lists(run_ids),
        dead=st.sampled_from(["nobody", *HOLDERS]),
    )
    def adopt(self, number: int, ended: int, hashes: Collection[str], some: Collection[str] | None, dead: str) -> None:
        """Some lease ends, in most cases, and somebody takes over."""
        lease, adopter = self.lease(ended), self.lease(number)
        if ended < 7:
            self.both(lambda store: store.close_lease(lease))
        self.both(lambda store: store.adopt(adopter, hashes, some, lambda holder: holder == dead))
        if not self.model._leases:
            self.open_lease("holder-1", HOUR)

    # Runs.

    @rule(
        some=st.lists(st.tuples(run_ids, st.sampled_from(GRAPHS), st.sampled_from(HASHES)), max_size=4),
        number=numbers,
        input=st.sampled_from([b"", b"1", b"2"]),
    )
    def submit(self, some: Sequence[tuple[str, str, str]], number: int, input: bytes) -> None:
        partition = self.lease(number)
        runs = [
            NewRun(
                run_id=run_id,
                graph=graph,
                graph_hash=graph_hash,
                input=input + b"%d" % n,
                options=b"{}",
                partition_id=partition,
                shard=n,
                thread_id="thread" if n else None,
            )
            for n, (run_id, graph, graph_hash) in enumerate(some)
            if run_id != "nowhere"
        ]
        self.both(lambda store: store.submit(runs))

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        finished = [row.run_id for row in self.model.find_runs() if row.status in FINISHED]
        some = finished if finished and number < 8 else RUNS
        self.both(lambda store: store.delete(some[number % len(some)]))

    @rule(graph=st.sampled_from(GRAPHS), number=numbers)
    def prune(self, graph: str, number: int) -> None:
        """All or nothing that may go: which runs are how old differs, as the clocks do."""
        retention = Retention(max_runs=0 if number < 3 else 1000, max_age_seconds=HOUR)
        self.both(lambda store: sorted(store.prune(graph, retention, dry_run=number == 0).run_ids))
        self.both(lambda store: store.graphs())

    @rule(run_id=run_ids, command_id=st.sampled_from(COMMANDS), kind=st.sampled_from(["cancel", "retry"]))
    def send(self, run_id: str, command_id: str, kind: str) -> None:
        self.sent.append((run_id, command_id))
        command = Command(run_id=run_id, command_id=command_id, kind=kind, payload=kind.encode())
        self.both(lambda store: store.send(command))

    @rule(number=numbers)
    def poll(self, number: int) -> None:
        lease = self.lease(number)
        self.both(lambda store: store.poll(lease))

    # Commits.

    @rule(number=numbers, run_id=run_ids, times=st.integers(1, 4), seed=seeds)
    def take_steps(self, number: int, run_id: str, times: int, seed: int) -> None:
        for n in range(times):
            self.commit(number, [(run_id, "step")], seed + n)

    @rule(number=numbers, some=st.lists(run_ids, min_size=1, unique=True), kind=kinds, seed=seeds)
    def commit_alike(self, number: int, some: Sequence[str], kind: str, seed: int) -> None:
        self.commit(number, [(run_id, kind) for run_id in some], seed)

    @rule(
        number=numbers,
        moves=st.lists(st.tuples(run_ids, kinds), min_size=2, max_size=6, unique_by=lambda move: move[0]),
        seed=seeds,
    )
    def commit(self, number: int, moves: Sequence[tuple[str, str]], seed: int) -> None:
        chance = random.Random(seed)
        group = [self.transition(self.row(run_id), run_id, kind, chance) for run_id, kind in moves]
        lease = self.lease(number)
        self.both(lambda store: store.commit(lease, group))
        self.past += group
        some = [run_id for run_id, _ in moves]
        self.both(lambda store: store.find_runs(run_ids=some))

    def transition(self, row: RunRow | None, run_id: str, kind: str, chance: random.Random) -> Transition:
        """A transition of this kind, as a coordinator could make it, or one that has lost its way."""
        mine = [old for old in self.past if old.run_id == run_id]
        if kind == "again" and mine:
            return chance.choice(mine)
        version, step_id, status = (row.version, row.step_id, row.status) if row else (0, -1, RunStatus.PENDING)
        journal = self.journal(run_id, step_id + 1, chance)
        if kind == "journal":
            return Transition(run_id=run_id, journal=journal)
        consumed = [command_id for sent_to, command_id in self.sent if sent_to == run_id and chance.random() < 0.4]
        if kind == "end":
            ends = sorted(TRANSITIONS[status] & {RunStatus.FAILED, RunStatus.CANCELLED})
            update = self.update(run_id, version if ends else version + 1, chance.choice(ends or [RunStatus.FAILED]), step_id)
            return Transition(run_id=run_id, update=update, journal=journal, consumed=consumed)
        if kind == "revive":
            expected = version if status is RunStatus.FAILED else version - 1
            update = self.update(run_id, expected, RunStatus.RUNNING, step_id, retries=1, revives=True)
            return Transition(run_id=run_id, update=update, consumed=consumed)
        if status in FINISHED:
            kind = "stale"  # A finished run has no next step: somebody makes one who has not seen the end.
        nexts = sorted(TRANSITIONS[status] - {RunStatus.FAILED, RunStatus.CANCELLED} | {RunStatus.RUNNING})
        return self.step(run_id, version, step_id + 1, chance.choice(nexts), kind, journal, consumed, chance)

    def step(
        self,
        run_id: str,
        version: int,
        step_id: int,
        status: RunStatus,
        kind: str,
        journal: Sequence[JournalRow],
        consumed: Sequence[str],
        chance: random.Random,
    ) -> Transition:
        key = sha256(b"key %d" % next(self.keys)).digest()
        match kind:
            case "stale":
                version -= 1
            case "ahead":
                version += 1
            case "other key" if step_id > 0:
                step_id -= 1
            case "same key" if known := [old.step.idempotency_key for old in self.past if old.step]:
                key = chance.choice(known)
        row = StepRow(
            run_id=run_id,
            step_id=step_id,
            idempotency_key=key,
            state_hash=key[::-1],
            patch=b"patch %b" % key[:2],
            frontier=b"frontier %b" % key[:2],
        )
        return Transition(
            run_id=run_id,
            step=row,
            update=self.update(run_id, version, status, step_id),
            snapshot=b"snapshot %b" % key[:2] if chance.random() < 0.3 else None,
            journal=journal,
            consumed=consumed,
            events=[
                Event(
                    run_id=run_id,
                    sequence=version + 1,
                    position=position,
                    step_id=step_id,
                    node_id="node",
                    type=f"type {position}",
                    data=key[:2],
                )
                for position in range(chance.choice([0, 0, 1, 3]))
            ],
        )

    @staticmethod
    def update(
        run_id: str, version: int, status: RunStatus, step_id: int, *, retries: int = 0, revives: bool = False
    ) -> RunUpdate:
        return RunUpdate(
            run_id=run_id,
            expected_version=version,
            status=status,
            step_id=step_id,
            state_hash=bytes(32),
            error=b"error" if status is RunStatus.FAILED else None,
            options=b'{"version":%d}' % version,
            retries=retries,
            revives=revives,
        )

    @staticmethod
    def journal(run_id: str, step_id: int, chance: random.Random) -> list[JournalRow]:
        keys = [(path, kind, n) for path in PATHS for kind, n in (("done", 0), ("failed", 1), ("failed", 2))]
        return [
            JournalRow(
                run_id=run_id, path=path, kind=kind, n=n, step_id=step_id, payload=b"%d" % chance.randrange(99), meta=b"{}"
            )
            for path, kind, n in chance.sample(keys, chance.choice([0, 0, 1, 2]))
        ]

    # The outbox. Claims end at once or never, so that both stores agree on whether they have ended.

    @rule(sink=sinks, what=st.sampled_from(["add", "add", "add from now", "remove"]))
    def change_sinks(self, sink: str, what: str) -> None:
        if what == "remove":
            self.both(lambda store: store.outbox.remove_sink(sink))
        else:
            self.both(lambda store: store.outbox.add_sink(sink, from_now=what == "add from now"))

    @rule(
        relay=st.sampled_from(["relay-1", "relay-2"]),
        sink=sinks,
        lasting=st.booleans(),
        seed=seeds,
        marked_by=st.sampled_from(["relay-1", "relay-2"]),
    )
    def relay(self, relay: str, sink: str, lasting: bool, seed: int, marked_by: str) -> None:
        """Claim, and mark what a relay that gets through to some of it would mark; or another relay does."""
        claimed = self.both(lambda store: by_run(store.outbox.claim(relay, sink, 10, HOUR if lasting else -1)))
        chance = random.Random(seed)
        progress = [self.progress(pending, chance) for pending in claimed if chance.random() < 0.9]
        self.both(lambda store: store.outbox.mark(marked_by, sink, progress))

    @staticmethod
    def progress(pending: PendingEvents, chance: random.Random) -> Progress:
        arrived = chance.randrange(len(pending.events) + 1)
        last = pending.events[arrived - 1] if arrived else None
        if arrived == len(pending.events) or chance.random() < 0.3:
            return Progress(run_id=pending.run_id, last=last)
        pause = chance.choice([None, -1.0, HOUR])
        return Progress(run_id=pending.run_id, last=last, error="no", pause_seconds=pause)

    @rule(sink=sinks, run_id=run_ids, what=st.sampled_from(["replay", "unpark", "skip"]), sequence=numbers)
    def repeat(self, sink: str, run_id: str, what: str, sequence: int) -> None:
        if what == "replay":
            self.both(lambda store: store.outbox.replay(sink, run_id, sequence))
        else:
            self.both(lambda store: store.outbox.unpark(sink, run_id, skip=what == "skip"))

    @rule(run_id=st.sampled_from([*RUNS, "copy-1", "copy-2"]), copied=run_ids)
    def restore(self, run_id: str, copied: str) -> None:
        """What is stored of a run is stored once more, as that of another, or of one that was deleted."""
        run = self.model._runs.get(copied)
        if run is None:
            return
        rows: list[StoredRow] = [*run.events, *[row for rows in run.journal.values() for row in rows.values()]]
        rows += [SnapshotRow(run_id=copied, step_id=step_id, state=state) for step_id, state in run.snapshots.items()]
        rows = [msgspec.structs.replace(row, run_id=run_id) for row in rows]
        for step in run.steps:
            key = sha256(run_id.encode() + step.idempotency_key).digest()
            rows.append(msgspec.structs.replace(step, run_id=run_id, idempotency_key=key))
        self.both(lambda store: store.restore(msgspec.structs.replace(run.row, run_id=run_id), rows))

    # Reading.

    @rule(
        some=st.none() | st.lists(run_ids),
        status=st.none() | st.sampled_from(RunStatus),
        graph=st.none() | st.sampled_from(GRAPHS),
        after=st.none() | run_ids,
        limit=st.integers(0, 4),
    )
    def find_runs(
        self, some: Collection[str] | None, status: RunStatus | None, graph: str | None, after: str | None, limit: int
    ) -> None:
        self.both(lambda store: store.find_runs(run_ids=some, status=status, graph=graph, after=after, limit=limit))

    @rule(
        run_id=run_ids,
        first=st.integers(-2, 5),
        last=st.integers(-3, 6),
        sequence=st.integers(-1, 6),
        paths=st.lists(st.sampled_from([*PATHS, bytes(32)])),
    )
    def read(self, run_id: str, first: int, last: int, sequence: int, paths: Collection[bytes]) -> None:
        self.both(lambda store: [store.steps(run_id, first, last), store.snapshot(run_id, last)])
        self.both(lambda store: [store.events(run_id, sequence), store.journal(run_id, paths)])


# To find the shortest operations that fail takes minutes, and pytest's own limit would keep them from being shown.
@pytest.mark.timeout(600)
def test_a_sql_store_does_what_the_reference_model_does(
    sql_adapter: Adapter, memory_adapter: Adapter, tmp_path: Path, connections: object
) -> None:
    folders = itertools.count()

    def fresh() -> Store:
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        return sql_adapter.fresh(folder)()

    class Compared(Machine):
        pass

    Compared.fresh = staticmethod(fresh)
    Compared.expire = staticmethod(sql_adapter.expire)
    Compared.expire_in_model = staticmethod(memory_adapter.expire)
    run_state_machine_as_test(Compared, settings=SETTINGS)


@pytest.fixture
def memory_adapter(adapters: Sequence[Adapter]) -> Adapter:
    return next(adapter for adapter in adapters if adapter.name == "memory")
