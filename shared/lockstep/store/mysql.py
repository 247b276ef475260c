"""MySQL and MariaDB: how their connections are set up, and their group commit.

Both are spoken to in the subset of SQL that both know: no RETURNING (MySQL), no alias for the row of an INSERT (MariaDB), and
nothing in a JSON column. What else they do differently from the others stands here, each with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import pymysql
import sqlalchemy as sa
from pymysql.constants import CR, ER
from sqlalchemy.dialects import mysql

from lockstep.core.lifecycle import FINISHED
from lockstep.errors import StoreUnavailableError
from lockstep.records import Event, NewRun, RunUpdate, Transition
from lockstep.store import schema
from lockstep.store.clock import now_ms
from lockstep.store.commit import Conflict, Consumed, GroupCommit, RefusedValue, Snapshot
from lockstep.store.insertion import insert_runs

CONNECT_TIMEOUT_SECONDS = 5
"""How long a new connection may take."""

LOCK_TIMEOUT_SECONDS = 5
"""How long a statement waits for a lock, and how long a transaction may lie idle. Both are shorter than a lease: whoever hangs
has given up before others take over."""

ANSWER_TIMEOUT_SECONDS = 30
"""How long a statement may take; a server that has vanished without a word is noticed after that."""

ROWS_PER_UPDATE = 50
BYTES_PER_UPDATE = 1 << 20
"""What one statement updates: so many rows, and no more than so many bytes of errors and options unless one row alone has them.
They stand in its text, which the server bounds by max_allowed_packet."""

PACKET_MARGIN_BYTES = 64 * 1024
"""What a statement may take beside the largest value in it."""

ESCAPED = b"\0\n\r\x1a\"'\\"
"""Bytes that take two in the text of a statement."""

SCHEMA_LOCK = "lockstep.schema"
"""The name of the lock under which the schema is migrated; that of the database follows, for names are the server's."""

DEADLOCKS = {ER.LOCK_DEADLOCK}
LOST = {CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST, 0}
"""Errors of a connection that has ended; 0 is PyMySQL's own, for one that was closed before."""
REFUSED = {ER.WARN_DATA_OUT_OF_RANGE, ER.DATA_TOO_LONG, ER.TRUNCATED_WRONG_VALUE_FOR_FIELD}
"""Errors of a value, which concern its run alone. PyMySQL raises some of them as errors of the database."""


class MysqlDatabase:
    """A MySQL or MariaDB database. See `lockstep.store.database.Database`."""

    remedy = (
        "check that its server runs and has room, that the database exists (CREATE DATABASE), "
        "and that the URL's host, database, user and password are right"
    )

    def __init__(self, url: sa.URL) -> None:
        self.engine = sa.create_engine(
            # Else the server's default, which in MariaDB cannot hold every text.
            url.update_query_dict({"charset": "utf8mb4"}),
            isolation_level="AUTOCOMMIT",
            pool_reset_on_return=None,  # Nothing is left open: whoever begins a transaction ends it.
            connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS, "read_timeout": ANSWER_TIMEOUT_SECONDS},
        )
        sa.event.listen(self.engine, "connect", _set_up)

    def check_exists(self) -> None:
        pass  # Connecting makes none.

    @contextmanager
    def writing(self, connection: sa.Connection) -> Iterator[None]:
        connection.exec_driver_sql("START TRANSACTION")
        try:
            yield
        except BaseException:
            # A connection that the server has ended has nothing to roll back, and would only hide why.
            if not connection.invalidated:
                connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")

    @contextmanager
    def upgrading(self, connection: sa.Connection) -> Iterator[None]:
        # Each statement that changes a table commits by itself, so no transaction holds the lock; and the migrations can be
        # begun again after a crash between two of them.
        name = f"{SCHEMA_LOCK}.{self.engine.url.database}"[:64]
        if connection.exec_driver_sql("SELECT GET_LOCK(%s, %s)", (name, ANSWER_TIMEOUT_SECONDS - 1)).scalar() != 1:
            raise StoreUnavailableError(
                f"another process has been changing the schema for {ANSWER_TIMEOUT_SECONDS - 1} s; try again when it is done"
            )
        try:
            yield
        finally:
            if not connection.invalidated:
                connection.exec_driver_sql("SELECT RELEASE_LOCK(%s)", (name,))

    def take_turns(self, connection: sa.Connection) -> None:
        # A row's lock ends with the transaction; the named locks of the server do not.
        connection.exec_driver_sql("SELECT version_num FROM alembic_version FOR UPDATE")

    def is_deadlock(self, error: BaseException | None) -> bool:
        return _number(error) in DEADLOCKS

    def insert_or_update(
        self, table: sa.Table, rows: sa.Select[Any], given: Sequence[str], constants: Mapping[str, Any]
    ) -> sa.Insert:
        statement = mysql.insert(table).from_select(list(rows.selected_columns.keys()), rows)
        return statement.on_duplicate_key_update({name: statement.inserted[name] for name in given} | dict(constants))

    def insert_runs(self, connection: sa.Connection, runs: Sequence[NewRun]) -> dict[str, int]:
        with self.writing(connection):
            return insert_runs(connection, runs)

    def insert_unless_taken(self, table: sa.Table) -> sa.Insert:
        # ON DUPLICATE KEY UPDATE would count a row that it leaves alone like one that it inserts.
        return sa.insert(table).prefix_with("IGNORE")

    def identity(self, connection: sa.Connection) -> Any:
        return tuple(connection.exec_driver_sql("SELECT @@hostname, @@port, @@datadir, DATABASE()").one())

    def group_commit(self, lease_seconds: float) -> GroupCommit:
        return MysqlCommit(self.engine, lease_seconds)


def _set_up(connection: Any, _: Any) -> None:
    is_mariadb = "mariadb" in connection.get_server_info().lower()
    # Only MariaDB can end an idle transaction; MySQL ends the idle connection, which the pool notices.
    idle = "idle_transaction_timeout" if is_mariadb else "wait_timeout"
    with connection.cursor() as cursor:
        # REPEATABLE READ, the default, would lock gaps between rows, and show what was there when the transaction began.
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute(
            f"SET SESSION innodb_lock_wait_timeout = {LOCK_TIMEOUT_SECONDS}, {idle} = {LOCK_TIMEOUT_SECONDS}, "
            # Without it, values that don't fit would be cut off instead of refused.
            "sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION', "
            # Else the hour that comes twice a year would make a lease end an hour late.
            "time_zone = '+00:00'"
        )


def _number(error: BaseException | None) -> int | None:
    """The server's number of an error; None: it has none."""
    return error.args[0] if isinstance(error, pymysql.Error) and error.args and isinstance(error.args[0], int) else None


class MysqlCommit(GroupCommit):
    """The group commit on MySQL and MariaDB: a few statements, each for all rows of a table."""

    integrity_error = pymysql.IntegrityError
    operational_error = pymysql.OperationalError
    error = pymysql.Error

    def __init__(self, engine: sa.Engine, lease_seconds: float) -> None:
        super().__init__(engine, lease_seconds)
        self._now = str(now_ms().compile(dialect=engine.dialect))
        self._journal = Inserted(schema.journal)
        self._steps = Inserted(schema.steps, last="committed_at")
        self._snapshots = Inserted(schema.snapshots)
        self._events = Inserted(schema.outbox)
        with self._driver.cursor() as cursor:
            cursor.execute("SELECT @@max_allowed_packet")
            # MariaDB ends the connection for a statement of more than half of it: measured with 10.11, at 4, 16 and 64 MiB.
            self._max_packet_bytes = cursor.fetchone()[0] // 2

    def _is_lost(self, error: Exception) -> bool:
        return _number(error) in LOST

    def _is_deadlock(self, error: Exception) -> bool:
        return _number(error) in DEADLOCKS

    def _attempt(self, lease_id: str, number: int, transitions: Sequence[Transition]) -> bool:
        updates = [t.update for t in transitions if t.update is not None]
        self._check_sizes(transitions)
        cursor = self._driver.cursor()
        cursor.execute("START TRANSACTION")
        try:
            now = self._renew(cursor, lease_id, number)
            if now is None:
                cursor.execute("ROLLBACK")
                return False
            self._check_existence(cursor, {t.run_id for t in transitions if t.update is None})
            self._journal.execute(cursor, [row for t in transitions for row in t.journal])
            self._steps.execute(cursor, [t.step for t in transitions if t.step is not None], now)
            self._snapshots.execute(cursor, [Snapshot(t) for t in transitions if t.snapshot is not None])
            self._events.execute(cursor, [event for t in transitions for event in t.events])
            for transition in transitions:
                if transition.events:
                    self._note_undelivered(cursor, transition.events[0])
            for some in _portions(updates):
                self._move(cursor, some)
            for update in updates:
                if update.graph_hash is not None:
                    self._migrate(cursor, update)
            self._revive(cursor, [u.run_id for u in updates if u.revives])
            begun = [u.run_id for u in updates if u.step_id == 0 and u.status not in FINISHED]
            finished = [u.run_id for u in updates if u.status in FINISHED]
            consumed = [Consumed(c).command_id for t in transitions for c in t.consumed]
            _execute_for(cursor, "UPDATE unfinished SET pending = 0 WHERE run_id IN %s", begun)
            _execute_for(cursor, "DELETE FROM unfinished WHERE run_id IN %s", finished)
            _execute_for(cursor, "UPDATE inbox SET consumed = 1 WHERE command_id IN %s", consumed)
            cursor.execute("COMMIT")
        except BaseException as error:
            if _number(error) not in LOST:
                cursor.execute("ROLLBACK")
            if _number(error) in REFUSED:
                raise RefusedValue(str(error)) from error
            raise
        return True

    def _check_sizes(self, transitions: Sequence[Transition]) -> None:
        """Refuse what the server would answer by ending the connection, before anything is sent."""
        for transition in transitions:
            for values in _large_values(transition):
                size = sum(map(len, values))
                if size * 2 + PACKET_MARGIN_BYTES <= self._max_packet_bytes:
                    continue  # Even if every byte had to be escaped.
                if sum(map(_escaped_length, values)) + PACKET_MARGIN_BYTES > self._max_packet_bytes:
                    raise RefusedValue(
                        f"{size} bytes in one row are more than the server takes; raise max_allowed_packet "
                        f"to more than twice that, now {2 * self._max_packet_bytes}, or keep large data elsewhere"
                    )

    def _renew(self, cursor: Any, lease_id: str, number: int) -> int | None:
        """The fence, and the database's time; None: the lease is lost."""
        held = cursor.execute(
            f"UPDATE leases SET expires_at = GREATEST(expires_at, {self._now} + %s), last_commit_id = %s WHERE lease_id = %s",
            (self._lease_ms, number, lease_id),
        )
        if not held:
            return None
        cursor.execute(f"SELECT {self._now}")
        return int(cursor.fetchone()[0])

    @staticmethod
    def _check_existence(cursor: Any, run_ids: set[str]) -> None:
        """Of a run that was deleted, results may still come. A transition with an update finds out by its version."""
        if run_ids:
            cursor.execute("SELECT COUNT(*) FROM runs WHERE run_id IN %s", (sorted(run_ids),))
            if cursor.fetchone()[0] != len(run_ids):
                raise Conflict

    @staticmethod
    def _migrate(cursor: Any, update: RunUpdate) -> None:
        for table in ("runs", "unfinished"):
            cursor.execute(f"UPDATE {table} SET graph_hash = %s WHERE run_id = %s", (update.graph_hash, update.run_id))

    def _move(self, cursor: Any, updates: Sequence[Any]) -> None:
        changed = ("status", "step_id", "state_hash", "error", "options", "retries")
        values = attrgetter("run_id", "expected_version", *changed)
        # The names compare as the column does: else the server would convert the column, and look at every row.
        row = "SELECT _ascii %s COLLATE ascii_bin AS run_id, %s AS expected_version" + "".join(f", %s AS {n}" for n in changed)
        given = " UNION ALL ".join([row] * len(updates))
        moved = cursor.execute(
            f"UPDATE runs JOIN ({given}) AS given ON runs.run_id = given.run_id AND runs.version = given.expected_version "
            f"SET runs.version = runs.version + 1, runs.updated_at = {self._now}, "
            + ", ".join(f"runs.{name} = given.{name}" for name in changed),
            [value for update in updates for value in values(update)],
        )
        if moved != len(updates):
            raise Conflict

    def _note_undelivered(self, cursor: Any, first: Event) -> None:
        cursor.execute(
            "INSERT INTO undelivered "
            "(sink, run_id, since, next_sequence, next_position, last_sequence, free_at, attempts, parked) "
            f"SELECT name, %s, {self._now}, %s, 0, %s, 0, 0, 0 FROM sinks "
            "ON DUPLICATE KEY UPDATE last_sequence = VALUES(last_sequence)",
            (first.run_id, first.sequence, first.sequence),
        )

    @staticmethod
    def _revive(cursor: Any, run_ids: Sequence[str]) -> None:
        _execute_for(
            cursor,
            "INSERT INTO unfinished (run_id, partition_id, graph_hash, pending) "
            "SELECT run_id, partition_id, graph_hash, 0 FROM runs WHERE run_id IN %s",
            run_ids,
        )


def _large_values(transition: Transition) -> Iterator[list[bytes]]:
    """For each row that a transition makes, those of its values that have no other bound."""
    for row in transition.journal:
        yield [row.payload, row.meta]
    for event in transition.events:
        yield [event.data]
    if transition.step is not None:
        yield [transition.step.patch, transition.step.frontier]
        yield [transition.snapshot or b""]
    if transition.update is not None:
        yield [transition.update.error or b"", transition.update.options]


def _escaped_length(value: bytes) -> int:
    return len(value) + sum(value.count(byte) for byte in ESCAPED)


def _portions(updates: Sequence[RunUpdate]) -> Iterator[list[RunUpdate]]:
    portion: list[RunUpdate] = []
    size = 0
    for update in updates:
        bytes_of_row = len(update.error or b"") + len(update.options)
        if portion and (len(portion) == ROWS_PER_UPDATE or size + bytes_of_row > BYTES_PER_UPDATE):
            yield portion
            portion, size = [], 0
        portion.append(update)
        size += bytes_of_row
    if portion:
        yield portion


def _execute_for(cursor: Any, sql: str, values: Sequence[str]) -> None:
    if values:
        cursor.execute(sql, (values,))


class Inserted:
    """An insert of many rows. The driver makes statements of bounded size of them. `last` is a column given apart."""

    def __init__(self, table: sa.Table, last: str | None = None) -> None:
        names = [column.name for column in table.columns if column.name != last]
        columns = [*names, last] if last else names
        quoted = ", ".join(f"`{name}`" for name in columns)
        self._sql = f"INSERT INTO {table.name} ({quoted}) VALUES ({', '.join(['%s'] * len(columns))})"
        self._values = attrgetter(*names)

    def execute(self, cursor: Any, rows: Sequence[Any], *last: int) -> None:
        """Insert the rows, if there are any."""
        if rows:
            cursor.executemany(self._sql, [(*self._values(row), *last) for row in rows])
