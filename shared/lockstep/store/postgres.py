"""PostgreSQL: how its connections are set up, and its group commit in one exchange.

The commit sends whole columns as arrays and all statements in one pipeline, so a group of any size costs one round trip. No
answer is read before the end; so each statement that depends on what it finds fails by itself, and the transaction with it,
when it finds something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.records import FORMAT_VERSION, NewRun, Transition
from lockstep.store import schema
from lockstep.store.clock import now_ms
from lockstep.store.commit import Conflict, Consumed, GroupCommit, Snapshot

CONNECT_TIMEOUT_SECONDS = 5
"""How long a new connection may take."""

LOCK_TIMEOUT_MS = 5_000
"""How long a statement waits for a lock, and how long a transaction may lie idle. Both are shorter than a lease: whoever hangs
has given up before others take over."""

SILENCE = {
    "tcp_user_timeout": 5000,
    "keepalives": 1,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
}
"""When a server that says nothing counts as gone (milliseconds, then seconds and a number): within 5 s, which is less than a
lease. By default a machine waits for a quarter of an hour, or for two hours."""

SCHEMA_LOCK = 0x10C657E9
"""The key of the advisory lock under which the schema is migrated: any number that others are unlikely to use."""

# The type of each column in an array, by SQLAlchemy's name of it.
_ARRAYS = {"BIGINT": "bigint[]", "INTEGER": "integer[]", "BYTEA": "bytea[]"}


class PostgresDatabase:
    """A PostgreSQL database. See `lockstep.store.database.Database`."""

    remedy = "check that its server runs and has room, and that the URL's host, database, user and password are right"

    def __init__(self, url: sa.URL) -> None:
        options = (
            f"-c lock_timeout={LOCK_TIMEOUT_MS} -c idle_in_transaction_session_timeout={LOCK_TIMEOUT_MS} "
            "-c default_transaction_isolation=read\\ committed"
        )
        self.engine = sa.create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            pool_reset_on_return=None,  # Nothing is left open: whoever begins a transaction ends it.
            connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS, "options": options, **SILENCE},
        )
        constants = {"status": f"'{RunStatus.PENDING.value}'", "step_id": "-1", "version": "0", "retries": "0"}
        constants |= {"format_version": str(FORMAT_VERSION), "created_at": "now", "updated_at": "now"}
        self._insert_runs = Arrays(
            schema.runs,
            NewRun.__struct_fields__,
            f"WITH given AS (SELECT *, {now_ms().compile(dialect=self.engine.dialect)} AS now "
            "FROM unnest({arrays}) AS rows ({names})), "
            f"new AS (INSERT INTO runs ({{names}}, {', '.join(constants)}) "
            f"SELECT {{names}}, {', '.join(constants.values())} FROM given "
            "RETURNING run_id, partition_id, graph_hash, created_at), "
            "due AS (INSERT INTO unfinished (run_id, partition_id, graph_hash, pending) "
            "SELECT run_id, partition_id, graph_hash, 1 FROM new) "
            "SELECT run_id, created_at FROM new",
        )

    def check_exists(self) -> None:
        pass  # Connecting makes none.

    @contextmanager
    def writing(self, connection: sa.Connection) -> Iterator[None]:
        connection.exec_driver_sql("BEGIN")
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
        with self.writing(connection):
            self.take_turns(connection)
            yield

    def take_turns(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})")

    def is_deadlock(self, error: BaseException | None) -> bool:
        return isinstance(error, psycopg.errors.DeadlockDetected)

    def insert_or_update(
        self, table: sa.Table, rows: sa.Select[Any], given: Sequence[str], constants: Mapping[str, Any]
    ) -> sa.Insert:
        statement = postgresql.insert(table).from_select(list(rows.selected_columns.keys()), rows)
        changes = {name: statement.excluded[name] for name in given} | dict(constants)
        return statement.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=changes)

    def insert_runs(self, connection: sa.Connection, runs: Sequence[NewRun]) -> dict[str, int]:
        statement = self._insert_runs.on(runs)
        assert statement is not None
        sql, arrays = statement
        # One statement is a transaction of its own, and one exchange.
        return {row.run_id: row.created_at for row in connection.exec_driver_sql(sql, tuple(arrays))}

    def insert_unless_taken(self, table: sa.Table) -> sa.Insert:
        return postgresql.insert(table).on_conflict_do_nothing(index_elements=list(table.primary_key.columns))

    def identity(self, connection: sa.Connection) -> Any:
        query = "SELECT pg_postmaster_start_time(), current_database(), to_regclass('runs')::oid::bigint"
        return tuple(connection.exec_driver_sql(query).one())

    def group_commit(self, lease_seconds: float) -> GroupCommit:
        return PostgresCommit(self.engine, lease_seconds)


class PostgresCommit(GroupCommit):
    """The group commit on PostgreSQL, over the driver's arrays and pipeline."""

    integrity_error = psycopg.IntegrityError
    operational_error = psycopg.OperationalError
    error = psycopg.Error

    def __init__(self, engine: sa.Engine, lease_seconds: float) -> None:
        super().__init__(engine, lease_seconds)
        now = str(now_ms().compile(dialect=engine.dialect))
        # An update that finds other rows than it should divides by zero, which ends the transaction within the pipeline.
        self._fence = (
            f"WITH held AS (UPDATE leases SET expires_at = greatest(expires_at, {now} + %s), last_commit_id = %s "
            f"WHERE lease_id = %s RETURNING 1) "
            f"SELECT 1 / count(*) FROM held"
        )
        # Of a run that was deleted, results may still come. A transition with an update finds out by its version.
        self._exist = Arrays(
            schema.runs,
            ("run_id",),
            "WITH given AS (SELECT DISTINCT unnest({arrays}) AS run_id) SELECT 1 / (CASE WHEN (SELECT count(*) FROM given) = "
            "(SELECT count(*) FROM runs JOIN given USING (run_id)) THEN 1 ELSE 0 END)",
        )
        self._journal = Inserted(schema.journal)
        self._steps = Inserted(schema.steps, committed_at=now)
        self._snapshots = Inserted(schema.snapshots)
        self._events = Inserted(schema.outbox)
        self._undelivered = Arrays(
            schema.outbox,
            ("run_id", "sequence"),
            "INSERT INTO undelivered "
            "(sink, run_id, since, next_sequence, next_position, last_sequence, free_at, attempts, parked) "
            f"SELECT sinks.name, run_id, {now}, sequence, 0, sequence, 0, 0, 0 "
            "FROM sinks, unnest({arrays}) AS rows ({names}) "
            "ON CONFLICT (sink, run_id) DO UPDATE SET last_sequence = excluded.last_sequence",
        )
        changed = ("status", "step_id", "state_hash", "error", "options", "retries")
        self._runs = Arrays(
            schema.runs,
            ("run_id", "expected_version", *changed),
            "WITH given AS (SELECT * FROM unnest({arrays}) AS rows ({names})), "
            f"moved AS (UPDATE runs SET version = runs.version + 1, updated_at = {now}, "
            f"{', '.join(f'{name} = given.{name}' for name in changed)} "
            "FROM given WHERE runs.run_id = given.run_id AND runs.version = given.expected_version RETURNING 1) "
            "SELECT 1 / (CASE WHEN (SELECT count(*) FROM moved) = (SELECT count(*) FROM given) THEN 1 ELSE 0 END)",
        )
        self._revived = Arrays(
            schema.runs,
            ("run_id",),
            "INSERT INTO unfinished (run_id, partition_id, graph_hash, pending) "
            "SELECT run_id, partition_id, graph_hash, 0 FROM runs WHERE run_id = ANY ({arrays})",
        )
        self._migrated = [
            Arrays(
                schema.runs,
                ("run_id", "graph_hash"),
                f"UPDATE {table} SET graph_hash = given.graph_hash "
                f"FROM unnest({{arrays}}) AS given ({{names}}) WHERE {table}.run_id = given.run_id",
            )
            for table in ("runs", "unfinished")
        ]
        self._begun = Arrays(schema.runs, ("run_id",), "UPDATE unfinished SET pending = 0 WHERE run_id = ANY ({arrays})")
        self._finished = Arrays(schema.runs, ("run_id",), "DELETE FROM unfinished WHERE run_id = ANY ({arrays})")
        self._consumed = Arrays(
            schema.inbox, ("command_id",), "UPDATE inbox SET consumed = 1 WHERE command_id = ANY ({arrays})"
        )

    def _connect(self) -> None:
        super()._connect()
        self._driver.prepare_threshold = 0  # The same few statements again and again.

    def _is_lost(self, error: Exception) -> bool:
        return bool(self._driver.closed)

    def _is_deadlock(self, error: Exception) -> bool:
        return isinstance(error, psycopg.errors.DeadlockDetected)

    def _attempt(self, lease_id: str, number: int, transitions: Sequence[Transition]) -> bool:
        updates = [t.update for t in transitions if t.update is not None]
        driver: psycopg.Connection[Any] = self._driver
        statements = [
            self._exist.on([t for t in transitions if t.update is None]),
            self._journal.on([row for t in transitions for row in t.journal]),
            self._steps.on([t.step for t in transitions if t.step is not None]),
            self._snapshots.on([Snapshot(t) for t in transitions if t.snapshot is not None]),
            self._events.on([event for t in transitions for event in t.events]),
            self._undelivered.on([t.events[0] for t in transitions if t.events]),
            self._runs.on(updates),
            *[each.on([u for u in updates if u.graph_hash is not None]) for each in self._migrated],
            self._revived.on([u for u in updates if u.revives]),
            self._begun.on([u for u in updates if u.step_id == 0 and u.status not in FINISHED]),
            self._finished.on([u for u in updates if u.status in FINISHED]),
            self._consumed.on([Consumed(c) for t in transitions for c in t.consumed]),
        ]
        try:
            with driver.pipeline():
                self._unprepared("BEGIN")
                driver.execute(self._fence, (self._lease_ms, number, lease_id))
                for statement in statements:
                    if statement is not None:
                        driver.execute(*statement)
                self._unprepared("COMMIT")
        except psycopg.errors.DivisionByZero:
            self._unprepared("ROLLBACK")
            held = driver.execute("SELECT 1 FROM leases WHERE lease_id = %s", (lease_id,)).fetchone()
            if held is None:
                return False
            raise Conflict from None
        except BaseException:
            if driver.info.pipeline_status is not psycopg.pq.PipelineStatus.OFF:
                driver.close()  # Nothing can be sent over it any more, not even ROLLBACK: it is lost.
            elif not driver.closed and driver.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                self._unprepared("ROLLBACK")
            raise
        return True

    def _unprepared(self, command: str) -> None:
        """Execute BEGIN, COMMIT or ROLLBACK.

        The pool may have executed it on this connection before. Of such a statement, psycopg does not notice that a pipeline
        ended before it was prepared, and would from then on ask the server for what it does not have.
        """
        self._driver.execute(command, prepare=False)


class Arrays:
    """A statement whose parameters are arrays, one for each of the named attributes of its rows."""

    def __init__(self, table: sa.Table, names: Sequence[str], sql: str) -> None:
        types = [_array_of(table, name) for name in names]
        # Binary: as text, each element is quoted and escaped, which takes the driver 4 us instead of 0.5.
        arrays = ", ".join(f"%b::{kind}" for kind in types)
        self._sql = sql.replace("{arrays}", arrays).replace("{names}", ", ".join(names))
        self._getters = [attrgetter(name) for name in names]

    def on(self, rows: Sequence[Any]) -> tuple[Any, list[list[Any]]] | None:
        """The statement and its parameters for these rows; None: there is nothing to do."""
        if not rows:
            return None
        return self._sql, [[get(row) for row in rows] for get in self._getters]


class Inserted(Arrays):
    """An insert of many rows; `expressions` are columns that the database computes."""

    def __init__(self, table: sa.Table, **expressions: str) -> None:
        names = [column.name for column in table.columns if column.name not in expressions]
        columns = ", ".join([*names, *expressions])
        computed = "".join(f", {expression}" for expression in expressions.values())
        super().__init__(table, names, f"INSERT INTO {table.name} ({columns}) SELECT *{computed} FROM unnest({{arrays}})")


def _array_of(table: sa.Table, name: str) -> str:
    column = table.columns.get(name if name != "expected_version" else "version")
    assert column is not None, f"{table.name} has no column {name}"
    kind = column.type.compile(postgresql.dialect())  # type: ignore[no-untyped-call]
    return _ARRAYS.get(kind, "text[]")
