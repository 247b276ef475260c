"""`SqlStore`: the `Store` contract over SQLAlchemy Core; what is not here is in the modules whose classes it is made of."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from lockstep.core.lifecycle import FINISHED
from lockstep.errors import RunNotFoundError, StoreUnavailableError
from lockstep.records import Command, CommitOutcome, NewRun, Submitted, Transition, Work
from lockstep.store import schema
from lockstep.store.access import Access, repeatable
from lockstep.store.checking import SqlChecking
from lockstep.store.commit import GroupCommits
from lockstep.store.database import open_database
from lockstep.store.insertion import insert_runs
from lockstep.store.joining import SqlJoining
from lockstep.store.leases import SqlLeases
from lockstep.store.migrate import bring_up_to_date
from lockstep.store.outbox import SqlOutbox
from lockstep.store.pruning import SqlPruning
from lockstep.store.reading import IN_LIST, SqlReader, chunks, rows_of, run_row
from lockstep.store.restoring import SqlRestoring


class SqlStore(SqlChecking, SqlJoining, SqlLeases, SqlPruning, SqlRestoring, SqlReader):
    """A `Store` in a SQL database."""

    def __init__(self, url: str, *, create: bool = True) -> None:
        database = open_database(url)
        if not create:
            database.check_exists()
        self._access = Access(database)
        self._commits = GroupCommits(database.group_commit)
        self.outbox = SqlOutbox(self._access)
        try:
            bring_up_to_date(self._access)
        except BaseException:
            self._access.close()
            raise

    @property
    def url(self) -> str:
        """Where the database is, without the password."""
        return self._access.url

    @repeatable
    def submit(self, runs: Sequence[NewRun]) -> list[Submitted]:
        if not runs:
            return []
        submit = self._submit_new
        while True:
            try:
                return submit(runs)
            except StoreUnavailableError as error:
                if not isinstance(error.__cause__, IntegrityError):
                    raise
                # Another submission of one of these run_ids came first; now it is there to be read.
                submit = self._submit_unless_known

    def _submit_new(self, runs: Sequence[NewRun]) -> list[Submitted]:
        """The usual case: all are new."""
        if len(runs) > IN_LIST or len({run.run_id for run in runs}) < len(runs):
            return self._submit_unless_known(runs)
        with self._access.reading() as connection:
            created = self._access.database.insert_runs(connection, runs)
        return [Submitted(run.row(created[run.run_id]), True) for run in runs]

    def _submit_unless_known(self, runs: Sequence[NewRun]) -> list[Submitted]:
        with self._access.writing() as connection:
            known = {row.run_id for row in rows_of(connection, [run.run_id for run in runs])}
            new = {run.run_id: run for run in reversed(runs) if run.run_id not in known}
            for some in chunks(new.values()):
                insert_runs(connection, some)
            rows = {row.run_id: row for row in rows_of(connection, [run.run_id for run in runs])}
        created = set(new)
        answers = []
        for run in runs:
            answers.append(Submitted(rows[run.run_id], run.run_id in created))
            created.discard(run.run_id)
        return answers

    def commit(self, lease_id: str, transitions: Sequence[Transition]) -> list[CommitOutcome]:
        try:
            return self._commits.of(lease_id).commit(lease_id, transitions)
        except (DBAPIError, self._access.database.engine.dialect.loaded_dbapi.Error) as error:
            raise self._access.unavailable(getattr(error, "orig", error)) from error

    @repeatable
    def poll(self, lease_id: str) -> Work:
        u, r, c, p = schema.unfinished.c, schema.runs.c, schema.inbox.c, schema.partitions.c
        held = sa.select(schema.leases.c.lease_id).where(schema.leases.c.lease_id == lease_id)
        owned = sa.select(p.partition_id).where(p.lease_id.in_(held))
        with self._access.reading() as connection:
            new = connection.execute(
                sa.select(schema.runs)
                .join(schema.unfinished, u.run_id == r.run_id)
                .where(u.partition_id.in_(owned), u.pending == 1)
                .order_by(u.run_id)
            )
            rows = [run_row(row) for row in new]
            sent = connection.execute(
                sa.select(c.run_id, c.command_id, c.kind, c.payload)
                .join(schema.runs, r.run_id == c.run_id)
                .where(c.consumed == 0, r.partition_id.in_(owned))
                .order_by(c.number)
            )
            return Work(rows, [Command(**row._mapping) for row in sent])

    @repeatable
    def send(self, command: Command) -> None:
        row = {name: getattr(command, name) for name in command.__struct_fields__}
        try:
            with self._access.writing() as connection:
                if not rows_of(connection, [command.run_id]):
                    raise RunNotFoundError(f"no run {command.run_id!r} in {self.url}", run_id=command.run_id)
                connection.execute(sa.insert(schema.inbox).values(**row, consumed=0))
        except StoreUnavailableError as error:
            if not isinstance(error.__cause__, IntegrityError):
                raise
            # The command_id is there already: sending a command twice is sending it once.

    @repeatable
    def delete(self, run_id: str) -> bool:
        r = schema.runs.c
        with self._access.writing() as connection:
            finished = sa.select(r.run_id).where(r.run_id == run_id, r.status.in_([status.value for status in FINISHED]))
            # Locked: its owner may be about to revive it.
            if connection.execute(finished.with_for_update()).first() is None:
                return False
            for table in schema.OF_A_RUN:
                connection.execute(sa.delete(table).where(table.c.run_id == run_id))
            return True

    def close(self) -> None:
        self._commits.close_all()
        self._access.close()
