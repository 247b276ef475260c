"""The group commit: one transaction for all runs that moved, on a connection of its own.

The statements are SQLAlchemy's, compiled once; the driver executes them. Measured on SQLite, six statements in a transaction:
138 us through Connection.execute, 41 us through the driver's cursor. Every step of every run pays this price.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from lockstep.core.lifecycle import FINISHED, SETTLED
from lockstep.errors import StateError
from lockstep.records import AlreadyCommitted, CommitOutcome, Committed, Refused, Superseded, Transition
from lockstep.store import schema
from lockstep.store.dialects import now_ms


class Prepared:
    """A statement compiled once, executed by the driver for many rows; its parameters are attributes of the rows."""

    def __init__(self, statement: sa.Insert | sa.Update | sa.Delete, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        names = compiled.positiontup or []
        self._sql = str(compiled)
        self._values: Callable[[Any], Any] = attrgetter(*names) if len(names) > 1 else lambda row: (getattr(row, names[0]),)

    def execute(self, cursor: Any, rows: Sequence[Any]) -> bool:
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
    """The row of the first statement: who commits, and until when the lease is renewed."""

    __slots__ = ("commit_id", "duration_ms", "holder_of")

    def __init__(self, lease_id: str, commit_id: int, duration_ms: int) -> None:
        self.holder_of = lease_id
        self.commit_id = commit_id
        self.duration_ms = duration_ms


class Conflict(Exception):
    """Some row was not as expected: one of the group's runs has moved."""


class GroupCommit:
    """Commits groups of transitions for one coordinator, one group at a time."""

    def __init__(self, engine: sa.Engine, lease_seconds: float) -> None:
        self._connection = engine.connect()
        self._driver: Any = self._connection.connection.driver_connection
        self._errors: Any = engine.dialect.loaded_dbapi
        self._lease_ms = int(lease_seconds * 1000)
        self._relied_on = True
        t, dialect = schema, engine.dialect
        self._fence = Prepared(
            sa.update(t.leases)
            .where(t.leases.c.lease_id == bindparam("holder_of"))
            .values(expires_at=now_ms() + bindparam("duration_ms", type_=sa.BigInteger), last_commit_id=bindparam("commit_id")),
            dialect,
        )
        self._journal = Prepared(sa.insert(t.journal), dialect)
        self._steps = Prepared(sa.insert(t.steps).values(bound(t.steps, committed_at=now_ms())), dialect)
        self._snapshots = Prepared(sa.insert(t.snapshots), dialect)
        self._events = Prepared(sa.insert(t.outbox), dialect)
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

    def commit(self, lease_id: str, commit_id: int, transitions: Sequence[Transition]) -> list[CommitOutcome]:
        """See `Store.commit`. A group that fails is halved, until the culprit stands alone."""
        try:
            if self._try(Fence(lease_id, commit_id, self._lease_ms), transitions):
                return [Committed()] * len(transitions)
            return [Superseded()] * len(transitions)
        except (Conflict, self._errors.IntegrityError):
            if len(transitions) == 1:
                return [self._outcome_of_conflict(transitions[0])]
        except self._errors.OperationalError:
            raise  # The database as a whole; the caller knows what to say of it.
        except (self._errors.Error, OverflowError) as error:
            if len(transitions) == 1:
                run_id = transitions[0].run_id
                return [Refused(StateError(f"the database refuses the run's data: {error}", run_id=run_id))]
        middle = len(transitions) // 2
        halves = transitions[:middle], transitions[middle:]
        return [outcome for half in halves for outcome in self.commit(lease_id, commit_id, half)]

    def _try(self, fence: Fence, transitions: Sequence[Transition]) -> bool:
        """The transaction; False: the lease is lost. Raises Conflict or a driver's error: then nothing is stored."""
        updates = [t.update for t in transitions if t.update is not None]
        cursor = self._driver.cursor()
        self._choose_durability(cursor, transitions)
        cursor.execute("BEGIN IMMEDIATE")
        try:
            if not self._fence.execute(cursor, [fence]):
                cursor.execute("ROLLBACK")
                return False
            self._journal.execute(cursor, [row for t in transitions for row in t.journal])
            self._steps.execute(cursor, [t.step for t in transitions if t.step is not None])
            self._snapshots.execute(cursor, [Snapshot(t) for t in transitions if t.snapshot is not None])
            self._events.execute(cursor, [event for t in transitions for event in t.events])
            if not self._runs.execute(cursor, updates):
                raise Conflict
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
        if relied_on != self._relied_on:
            cursor.execute(f"PRAGMA synchronous = {'FULL' if relied_on else 'NORMAL'}")
            self._relied_on = relied_on

    def _outcome_of_conflict(self, transition: Transition) -> CommitOutcome:
        """Whether a transition that conflicts alone was stored before, or lost to another."""
        if transition.step is not None:
            key = sa.select(schema.steps.c.idempotency_key).where(
                schema.steps.c.run_id == transition.run_id, schema.steps.c.step_id == transition.step.step_id
            )
            if self._connection.execute(key).scalar() == transition.step.idempotency_key:
                return AlreadyCommitted()
        return Superseded()

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()


class Snapshot:
    """The row of a snapshot."""

    __slots__ = ("run_id", "state", "step_id")

    def __init__(self, transition: Transition) -> None:
        assert transition.step is not None
        self.run_id = transition.run_id
        self.step_id = transition.step.step_id
        self.state = transition.snapshot


class Consumed:
    """The row of a consumed command."""

    __slots__ = ("command_id",)

    def __init__(self, command_id: str) -> None:
        self.command_id = command_id


def bound(table: sa.Table, **expressions: Any) -> dict[str, Any]:
    """All columns of a table as parameters, but for those given as expressions."""
    return {column.name: expressions.get(column.name, bindparam(column.name)) for column in table.columns}
