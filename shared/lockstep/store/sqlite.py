"""SQLite: how its connections are set up, and its group commit.

The statements of the commit are SQLAlchemy's, compiled once; the driver executes them. Six statements in a transaction take
138 us through Connection.execute, 41 us through the driver's cursor. Every step of every run pays this price.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from operator import attrgetter
from typing import Any
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import sqlite

from lockstep.core.lifecycle import FINISHED, SETTLED
from lockstep.errors import ConfigurationError
from lockstep.records import NewRun, Transition
from lockstep.store import schema
from lockstep.store.clock import now_ms, prolonged
from lockstep.store.commit import Conflict, Consumed, GroupCommit, Snapshot
from lockstep.store.insertion import insert_runs
from lockstep.store.outbox import row_for_each_sink

BUSY_TIMEOUT_SECONDS = 30.0
"""How long a writer waits for the others on one file before StoreUnavailableError."""


class SqliteDatabase:
    """A SQLite file. See `lockstep.store.database.Database`.

    `?synchronous=full` in its URL makes every commit wait for the disk, not only those that somebody outside relies on.
    """

    remedy = "check that its folder exists, can be written and has room"

    def __init__(self, url: sa.URL) -> None:
        synchronous = url.query.get("synchronous", "relied")
        if synchronous not in ("relied", "full"):
            raise ConfigurationError(f"synchronous={synchronous} is not one of relied, full", option="store")
        self._always_wait = synchronous == "full"
        self.engine = sa.create_engine(url.difference_update_query(["synchronous"]))
        sa.event.listen(self.engine, "connect", _set_up)

    def check_exists(self) -> None:
        name = self.engine.url.database or ""
        # SQLite's own form of a name is a URL too.
        file = os.path.abspath(unquote(urlsplit(name).path) if name.startswith("file:") else name)
        if not os.path.exists(file):
            raise ConfigurationError(
                f"there is no database file {file}; check the store's URL and the working directory, "
                f"or make the file with `lockstep migrate`",
                option="store",
            )

    @contextmanager
    def writing(self, connection: sa.Connection) -> Iterator[None]:
        # IMMEDIATE: it waits for its turn at the start, so no later statement finds the file locked.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")

    def upgrading(self, connection: sa.Connection) -> AbstractContextManager[None]:
        return self.writing(connection)

    def take_turns(self, connection: sa.Connection) -> None:
        pass  # Its writers exclude each other anyway.

    def is_deadlock(self, error: BaseException | None) -> bool:
        return False  # Writers wait for their turn before they lock anything.

    def insert_or_update(
        self, table: sa.Table, rows: sa.Select[Any], given: Sequence[str], constants: Mapping[str, Any]
    ) -> sa.Insert:
        statement = sqlite.insert(table).from_select(list(rows.selected_columns.keys()), rows)
        changes = {name: statement.excluded[name] for name in given} | dict(constants)
        return statement.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=changes)

    def insert_runs(self, connection: sa.Connection, runs: Sequence[NewRun]) -> dict[str, int]:
        with self.writing(connection):
            return insert_runs(connection, runs)

    def insert_unless_taken(self, table: sa.Table) -> sa.Insert:
        return sqlite.insert(table).on_conflict_do_nothing(index_elements=list(table.primary_key.columns))

    def identity(self, connection: sa.Connection) -> Any:
        [file] = [row.file for row in connection.exec_driver_sql("PRAGMA database_list") if row.name == "main"]
        return os.path.realpath(file)

    def group_commit(self, lease_seconds: float) -> GroupCommit:
        return SqliteCommit(self, lease_seconds, self._always_wait)


def _set_up(connection: sqlite3.Connection, _: Any) -> None:
    try:
        _configure(connection)
    except BaseException:
        connection.close()  # The pool does not know it yet.
        raise


def _configure(connection: sqlite3.Connection) -> None:
    # Autocommit: the driver's own BEGIN would be deferred, and a deferred transaction that turns to writing fails at once
    # instead of waiting for its turn.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_SECONDS * 1000)}")
    connection.execute("PRAGMA synchronous = FULL")
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # While another process makes the same switch, SQLite answers "locked" without waiting for busy_timeout.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class Prepared:
    """A statement compiled once, executed by the driver for many rows; its parameters are attributes of the rows."""

    def __init__(self, statement: sa.Insert | sa.Update | sa.Delete, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        names = compiled.positiontup or []
        self._sql = str(compiled)
        self._values: Callable[[Any], Any] = attrgetter(*names) if len(names) > 1 else lambda row: (getattr(row, names[0]),)

    def execute(self, cursor: sqlite3.Cursor, rows: Sequence[Any]) -> bool:
        """Execute for each row; whether each changed exactly one row of the database."""
        if not rows:
            return True
        values = self._values
        if len(rows) == 1:
            cursor.execute(self._sql, values(rows[0]))
        else:
            cursor.executemany(self._sql, [values(row) for row in rows])
        return bool(cursor.rowcount == len(rows))


class Fence:
    """The row of the first statement: who commits, and how long the lease is renewed for."""

    __slots__ = ("duration_ms", "holder_of", "number")

    def __init__(self, lease_id: str, number: int, duration_ms: int) -> None:
        self.holder_of = lease_id
        self.number = number
        self.duration_ms = duration_ms


class SqliteCommit(GroupCommit):
    """The group commit on SQLite, over the driver's cursor."""

    integrity_error = sqlite3.IntegrityError
    operational_error = sqlite3.OperationalError
    error = sqlite3.Error

    def __init__(self, database: SqliteDatabase, lease_seconds: float, always_wait: bool) -> None:
        engine = database.engine
        super().__init__(engine, lease_seconds)
        self._always_wait = always_wait
        self._waits = True
        t, dialect = schema, engine.dialect
        self._fence = Prepared(
            sa.update(t.leases)
            .where(t.leases.c.lease_id == bindparam("holder_of"))
            .values(
                expires_at=prolonged(t.leases.c.expires_at, bindparam("duration_ms", type_=sa.BigInteger)),
                last_commit_id=bindparam("number"),
            ),
            dialect,
        )
        # Of a run that was deleted, results may still come. A transition with an update finds out by its version.
        self._exists = "SELECT 1 FROM runs WHERE run_id = ?"
        self._journal = Prepared(sa.insert(t.journal), dialect)
        self._steps = Prepared(sa.insert(t.steps).values(schema.bound(t.steps, committed_at=now_ms())), dialect)
        self._snapshots = Prepared(sa.insert(t.snapshots), dialect)
        self._events = Prepared(sa.insert(t.outbox), dialect)
        self._undelivered = Prepared(
            database.insert_or_update(t.undelivered, row_for_each_sink(), ["last_sequence"], {}), dialect
        )
        self._runs = Prepared(
            sa.update(t.runs)
            .where(t.runs.c.run_id == bindparam("run_id"), t.runs.c.version == bindparam("expected_version"))
            .values(
                version=t.runs.c.version + sa.literal_column("1"),
                updated_at=now_ms(),
                **{name: bindparam(name) for name in ("status", "step_id", "state_hash", "error", "options", "retries")},
            ),
            dialect,
        )
        self._migrated = [
            Prepared(
                sa.update(table).where(table.c.run_id == bindparam("run_id")).values(graph_hash=bindparam("graph_hash")),
                dialect,
            )
            for table in (t.runs, t.unfinished)
        ]
        self._begun = Prepared(
            sa.update(t.unfinished).where(t.unfinished.c.run_id == bindparam("run_id")).values(pending=sa.literal_column("0")),
            dialect,
        )
        self._finished = Prepared(sa.delete(t.unfinished).where(t.unfinished.c.run_id == bindparam("run_id")), dialect)
        self._revived = Prepared(
            sa.insert(t.unfinished).from_select(
                ["run_id", "partition_id", "graph_hash", "pending"],
                sa.select(t.runs.c.run_id, t.runs.c.partition_id, t.runs.c.graph_hash, sa.literal_column("0")).where(
                    t.runs.c.run_id == bindparam("run_id")
                ),
            ),
            dialect,
        )
        self._consumed = Prepared(
            sa.update(t.inbox).where(t.inbox.c.command_id == bindparam("command_id")).values(consumed=sa.literal_column("1")),
            dialect,
        )

    def _attempt(self, lease_id: str, number: int, transitions: Sequence[Transition]) -> bool:
        updates = [t.update for t in transitions if t.update is not None]
        cursor = self._driver.cursor()
        self._choose_durability(cursor, transitions)
        cursor.execute("BEGIN IMMEDIATE")
        try:
            if not self._fence.execute(cursor, [Fence(lease_id, number, self._lease_ms)]):
                cursor.execute("ROLLBACK")
                return False
            for transition in transitions:
                if transition.update is None and cursor.execute(self._exists, (transition.run_id,)).fetchone() is None:
                    raise Conflict
            self._journal.execute(cursor, [row for t in transitions for row in t.journal])
            self._steps.execute(cursor, [t.step for t in transitions if t.step is not None])
            self._snapshots.execute(cursor, [Snapshot(t) for t in transitions if t.snapshot is not None])
            self._events.execute(cursor, [event for t in transitions for event in t.events])
            self._undelivered.execute(cursor, [t.events[0] for t in transitions if t.events])
            if not self._runs.execute(cursor, updates):
                raise Conflict
            for statement in self._migrated:
                statement.execute(cursor, [u for u in updates if u.graph_hash is not None])
            self._revived.execute(cursor, [u for u in updates if u.revives])
            self._begun.execute(cursor, [u for u in updates if u.step_id == 0 and u.status not in FINISHED])
            self._finished.execute(cursor, [u for u in updates if u.status in FINISHED])
            self._consumed.execute(cursor, [Consumed(c) for t in transitions for c in t.consumed])
            cursor.execute("COMMIT")
        except BaseException:
            if self._driver.in_transaction:
                cursor.execute("ROLLBACK")
            raise
        return True

    def _choose_durability(self, cursor: Any, transitions: Sequence[Transition]) -> None:
        """Wait for the disk when somebody outside relies on this commit: a result, a question, an event, a command's answer.

        Other commits are safe from the death of any process at once, and from power loss with the next one that waits.
        """
        relied_on = any(t.events or t.consumed or (t.update and t.update.status in SETTLED) for t in transitions)
        waits = self._always_wait or relied_on
        if waits != self._waits:
            cursor.execute(f"PRAGMA synchronous = {'FULL' if waits else 'NORMAL'}")
            self._waits = waits
