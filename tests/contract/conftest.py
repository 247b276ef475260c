"""What the contract suite shares: the list of adapters, fresh stores with a second handle, and `World`, which uses them.

A store joins the suite by joining `ADAPTERS`. What the reference model does not do, a test asks of `sql_adapter` alone.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import pytest
import sqlalchemy as sa
from msgspec.structs import replace
from tests.servers import MYSQL, POSTGRES, empty_database_on

from lockstep.core.lifecycle import RunStatus
from lockstep.ports import Store
from lockstep.records import Command, CommitOutcome, Event, JournalRow, NewRun, RunRow, RunUpdate, StepRow, Transition
from lockstep.store import open_store
from lockstep.store.memory import MemoryStore
from lockstep.store.schema import leases
from lockstep.store.sql import SqlStore

HOUR = 3600.0

T = TypeVar("T")


@dataclass(frozen=True)
class Adapter:
    """An implementation of the port, and what the suite has to know of it."""

    name: str
    fresh: Callable[[Path], Callable[[], Store]]
    """Makes an empty database, in the folder if it needs files, and returns what opens one more handle on it."""
    expire: Callable[[Store, str], None]
    """Lets the time of a lease run out at once, so that no test waits for it."""


def fresh_memory(_: Path) -> Callable[[], Store]:
    store = MemoryStore()
    return lambda: store


def expire_in_memory(store: Store, lease_id: str) -> None:
    cast("MemoryStore", store)._leases[lease_id].expires_at = 0


@functools.cache
def migrated_sqlite() -> bytes:
    """The file of an empty database. Copying it takes a millisecond; migrating each time would be most of the suite's time."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "empty.db")
        open_store(f"sqlite:///{file}").close()
        return file.read_bytes()


def fresh_sqlite(folder: Path) -> Callable[[], Store]:
    file = folder / "lockstep.db"
    file.write_bytes(migrated_sqlite())
    return lambda: open_store(f"sqlite:///{file}")


def fresh_on(server: str) -> Callable[[Path], Callable[[], Store]]:
    """`fresh` of a store on a server: each test finds the same database, empty."""

    def fresh(_: Path) -> Callable[[], Store]:
        url = empty_database_on(server)
        return lambda: open_store(url)

    return fresh


def expire_in_sql(store: Store, lease_id: str) -> None:
    with cast("SqlStore", store)._access.database.engine.begin() as connection:
        connection.execute(sa.update(leases).where(leases.c.lease_id == lease_id).values(expires_at=0))


ADAPTERS = [
    Adapter("memory", fresh_memory, expire_in_memory),
    Adapter("sqlite", fresh_sqlite, expire_in_sql),
    Adapter("postgres", fresh_on(POSTGRES), expire_in_sql),
    Adapter("mysql", fresh_on(MYSQL), expire_in_sql),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`adapter` is each of the adapters in turn; `sql_adapter` each but the reference model. Asked for both, they are one.

    A module that is about one database says so as `ADAPTERS_TESTED`.
    """
    asked = [name for name in ("adapter", "sql_adapter") if name in metafunc.fixturenames]
    if asked:
        tested = getattr(metafunc.module, "ADAPTERS_TESTED", [adapter.name for adapter in ADAPTERS])
        if "sql_adapter" in asked:
            tested = [name for name in tested if name != "memory"]
        chosen = [adapter for adapter in ADAPTERS if adapter.name in tested]
        metafunc.parametrize(asked, [[adapter] * len(asked) for adapter in chosen], ids=[adapter.name for adapter in chosen])


@pytest.fixture
def adapters() -> list[Adapter]:
    return ADAPTERS


class Connections:
    """Counts the database connections of this process: those open, and those that somebody has taken out of a pool."""

    def __init__(self) -> None:
        self.open = 0
        self.out = 0
        self._lock = threading.Lock()
        self._steps = {"connect": (1, 0), "close": (-1, 0), "close_detached": (-1, 0)}
        self._steps |= {"checkout": (0, 1), "checkin": (0, -1), "detach": (0, -1)}
        self._listeners = [(event, self._counting(*step)) for event, step in self._steps.items()]

    def _counting(self, opened: int, out: int) -> Callable[..., None]:
        def count(*_: Any) -> None:
            with self._lock:
                self.open += opened
                self.out += out

        return count

    def __enter__(self) -> Connections:
        for event, listener in self._listeners:
            sa.event.listen(sa.pool.Pool, event, listener)
        return self

    def __exit__(self, *_: object) -> None:
        for event, listener in self._listeners:
            sa.event.remove(sa.pool.Pool, event, listener)


@pytest.fixture
def connections() -> Iterator[Connections]:
    """Watches until all fixtures that ask for it are torn down; then nothing may be left over."""
    with Connections() as counted:
        yield counted
        assert (counted.open, counted.out) == (0, 0), "connections left open, and taken out of a pool"


@pytest.fixture
def open_handle(adapter: Adapter, tmp_path: Path, connections: Connections) -> Iterator[Callable[[], Store]]:
    """Opens handles on one fresh, empty database; they are closed after the test."""
    opened: list[Store] = []
    fresh = adapter.fresh(tmp_path)

    def open_one() -> Store:
        opened.append(fresh())
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def world(adapter: Adapter, open_handle: Callable[[], Store]) -> World:
    """A store with two coordinators, each on a handle of its own."""
    return World(adapter, open_handle(), open_handle())


class World:
    """A store as two coordinators see it: A holds lease "A" through the handle `a`, B holds "B" through `b`.

    The builders make what a coordinator would: step k of a run that nothing else has moved expects version k.
    """

    def __init__(self, adapter: Adapter, a: Store, b: Store) -> None:
        self.adapter = adapter
        self.a = a
        self.b = b
        a.open_lease("A", "holder-a", HOUR)
        b.open_lease("B", "holder-b", HOUR)

    def handle(self, lease: str) -> Store:
        return self.b if lease == "B" else self.a

    def expire(self, lease: str) -> None:
        self.adapter.expire(self.handle(lease), lease)

    @staticmethod
    def new(run_id: str, **fields: Any) -> NewRun:
        defaults: dict[str, Any] = {"graph": "research", "graph_hash": "hash-1", "partition_id": "A", "shard": 7}
        return NewRun(run_id=run_id, **({"input": b"{}", "options": b"{}"} | defaults | fields))

    def submit(self, *run_ids: str, **fields: Any) -> list[RunRow]:
        return [submitted.row for submitted in self.a.submit([self.new(run_id, **fields) for run_id in run_ids])]

    def run(self, run_id: str) -> RunRow:
        [row] = self.b.find_runs(run_ids=[run_id])
        return row

    @staticmethod
    def key(*parts: object) -> bytes:
        """32 bytes that stand for a path or an idempotency key."""
        return sha256(repr(parts).encode()).digest()

    @classmethod
    def journal_row(cls, run_id: str, item: str, kind: str = "done", n: int = 0, **fields: Any) -> JournalRow:
        defaults: dict[str, Any] = {"step_id": 1, "payload": f'["{item}"]'.encode(), "meta": b"{}"}
        return JournalRow(run_id=run_id, path=cls.key(item), kind=kind, n=n, **(defaults | fields))

    @staticmethod
    def event(run_id: str, sequence: int, position: int = 0, **fields: Any) -> Event:
        defaults: dict[str, Any] = {"step_id": sequence - 1, "node_id": "node", "type": "found", "data": b"1"}
        return Event(run_id=run_id, sequence=sequence, position=position, **(defaults | fields))

    @staticmethod
    def update(run_id: str, step_id: int, status: RunStatus = RunStatus.RUNNING, **fields: Any) -> RunUpdate:
        defaults: dict[str, Any] = {
            "expected_version": step_id,
            "state_hash": b"h" * 32,
            "error": None,
            "options": b"{}",
            "retries": 0,
        }
        return RunUpdate(run_id=run_id, step_id=step_id, status=status, **(defaults | fields))

    @classmethod
    def step(
        cls,
        run_id: str,
        step_id: int,
        status: RunStatus = RunStatus.RUNNING,
        *,
        key: bytes | None = None,
        version: int | None = None,
        snapshot: bytes | None = None,
        journal: Sequence[JournalRow] = (),
        events: Sequence[Event] = (),
        consumed: Sequence[str] = (),
        **fields: Any,
    ) -> Transition:
        """The commit of a step; `key` is its idempotency key, `fields` are the step row's."""
        defaults: dict[str, Any] = {
            "state_hash": b"h" * 32,
            "patch": b"patch %d" % step_id,
            "frontier": b"frontier %d" % step_id,
        }
        row = StepRow(run_id=run_id, step_id=step_id, idempotency_key=key or cls.key(run_id, step_id), **(defaults | fields))
        expected = step_id if version is None else version
        update = cls.update(run_id, step_id, status, expected_version=expected, state_hash=row.state_hash)
        return Transition(
            run_id=run_id, step=row, update=update, snapshot=snapshot, journal=journal, events=events, consumed=consumed
        )

    @classmethod
    def moved(cls, run_id: str, step_id: int, status: RunStatus, version: int, **fields: Any) -> Transition:
        """A change of the run's row alone."""
        return Transition(run_id=run_id, update=cls.update(run_id, step_id, status, expected_version=version, **fields))

    def commit(self, *transitions: Transition, lease: str = "A") -> list[CommitOutcome]:
        return self.handle(lease).commit(lease, transitions)

    def adopt(
        self,
        lease: str = "B",
        *,
        graph_hashes: Collection[str] = ("hash-1",),
        run_ids: Collection[str] | None = None,
        dead: Collection[str] = (),
    ) -> list[str]:
        return self.handle(lease).adopt(lease, graph_hashes, run_ids, lambda holder: holder in dead)

    def send(self, run_id: str, command_id: str, **fields: Any) -> None:
        self.b.send(Command(run_id=run_id, command_id=command_id, **({"kind": "cancel", "payload": b'"why"'} | fields)))

    def commands(self, lease: str = "A") -> list[str]:
        return [command.command_id for command in self.handle(lease).poll(lease).commands]

    def pending(self, lease: str = "A") -> list[str]:
        return [row.run_id for row in self.handle(lease).poll(lease).new]

    def dump(self, run_id: str, items: Sequence[str] = ("x", "y", "z")) -> dict[str, Any]:
        """All that readers see of a run; of its journal, the rows of these items. Without the times, which differ by store."""
        rows = self.b.find_runs(run_ids=[run_id])
        steps = self.b.steps(run_id, 0, 10_000)
        return {
            "run": [replace(row, created_at=0, updated_at=0) for row in rows],
            "steps": [replace(step, committed_at=0) for step in steps],
            "snapshots": [self.b.snapshot(run_id, step.step_id) for step in steps],
            "journal": self.b.journal(run_id, [self.key(item) for item in items]),
            "events": self.b.events(run_id),
        }

    @staticmethod
    def together(*calls: Callable[[], T]) -> list[T]:
        """The answers of calls that begin at the same moment, each in a thread of its own."""
        barrier = threading.Barrier(len(calls))

        def call(one: Callable[[], T]) -> T:
            barrier.wait(timeout=60)
            return one()

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(call, calls))
