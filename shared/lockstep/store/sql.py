"""`SqlStore`: the `Store` contract over SQLAlchemy Core. The group commit has its own module."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.errors import ConfigurationError, RunNotFoundError, StoreUnavailableError
from lockstep.records import (
    Command,
    CommitOutcome,
    Event,
    JournalRow,
    NewRun,
    RunRow,
    StepRow,
    Submitted,
    Transition,
    Work,
)
from lockstep.store import schema
from lockstep.store.clock import now_ms, prolonged
from lockstep.store.commit import GroupCommit
from lockstep.store.database import open_database
from lockstep.store.insertion import insert_runs
from lockstep.store.migrate import HEAD, current_revision, upgrade
from lockstep.store.sharing import fair_share, partition_ranges

IN_LIST = 500
"""Values in one IN (...): databases bound the parameters of a statement, SQLite of old at 999."""

T = TypeVar("T")


class SqlStore:
    """A `Store` in a SQL database."""

    def __init__(self, url: str, *, create: bool = True) -> None:
        self._database = open_database(url)
        if not create:
            self._database.check_exists()
        self._engine = self._database.engine
        # Without its parameters: some drivers take the password as one.
        self.url = self._engine.url.set(query={}).render_as_string(hide_password=True)
        self._lease_seconds: dict[str, float] = {}
        self._commits: dict[str, GroupCommit] = {}
        self._commits_lock = threading.Lock()
        self._closed = False
        try:
            self.migrate()
        except BaseException:
            self._engine.dispose()
            raise

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                try:
                    yield connection
                finally:
                    # Runs can be read after `close`, or while it is called. Nobody would close what then goes into the pool.
                    if self._closed and not connection.invalidated:
                        connection.detach()
        except DBAPIError as error:
            raise self._unavailable(error.orig) from error
        except PoolTimeoutError as error:
            raise self._unavailable(error) from error

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._reading() as connection, self._database.writing(connection):
            yield connection

    def _unavailable(self, error: BaseException | None) -> StoreUnavailableError:
        reason = " ".join(str(error).split())
        return StoreUnavailableError(f"the database {self.url} does not work: {reason}; {self._database.remedy}", url=self.url)

    def migrate(self) -> None:
        """Bring the schema up to date. Raises ConfigurationError if it was written by a newer release."""
        with self._reading() as connection:
            if current_revision(connection) == HEAD:
                return
        with self._writing() as connection:
            self._database.lock_schema(connection)
            revision = current_revision(connection)
            if revision is not None and revision > HEAD:
                raise ConfigurationError(
                    f"the database {self.url} has schema {revision}, newer than {HEAD} of this release; upgrade lockstep-graph",
                    option="store",
                )
            upgrade(connection)

    def open_lease(self, lease_id: str, holder: str, seconds: float, *, embedded: bool = True) -> None:
        with self._writing() as connection:
            connection.execute(
                sa.insert(schema.leases).values(
                    lease_id=lease_id, holder=holder, expires_at=now_ms() + int(seconds * 1000), last_commit_id=0
                )
            )
            if embedded:
                connection.execute(sa.insert(schema.partitions).values(partition_id=lease_id, lease_id=lease_id, epoch=1))
        self._lease_seconds[lease_id] = seconds

    def share(self, lease_id: str, graphs: Mapping[str, str], is_dead: Callable[[str], bool]) -> dict[str, int]:
        p = schema.partitions.c
        with self._writing() as connection:
            self._database.lock_schema(connection)  # One coordinator shares out at a time.
            alone = sa.select(p.partition_id).where(p.first_shard.is_(None))
            held = sa.select(schema.leases.c.lease_id).where(schema.leases.c.lease_id.not_in(alone))
            if lease_id not in connection.execute(held).scalars().all():
                return {}
            self._end_leases(connection, lease_id, is_dead)
            alive = set(connection.execute(held).scalars())
            if not graphs.items() <= self._loaded_graphs(connection).items():
                self._note_graphs(connection, graphs)
            ranges = partition_ranges()
            shared = sa.select(p.partition_id, p.lease_id).where(p.first_shard.is_not(None)).order_by(p.partition_id)
            owners = {row.partition_id: row.lease_id for row in connection.execute(shared)}
            if not owners:
                rows = [
                    {"partition_id": name, "lease_id": None, "epoch": 0, "first_shard": first, "last_shard": last}
                    for name, (first, last) in ranges.items()
                ]
                connection.execute(sa.insert(schema.partitions), rows)
                owners = dict.fromkeys(ranges)
            mine = [name for name, owner in owners.items() if owner == lease_id]
            free = [name for name, owner in owners.items() if owner not in alive]
            kept, given = fair_share(mine, free, len(owners), lease_id, list(alive))
            for names, owner in ((given, None), (sorted(set(kept) - set(mine)), lease_id)):
                change = sa.update(schema.partitions).where(p.partition_id.in_(names))
                connection.execute(change.values(lease_id=owner, epoch=p.epoch + 1))
            epochs = sa.select(p.partition_id, p.epoch).where(p.partition_id.in_(kept)).order_by(p.partition_id)
            return {row.partition_id: row.epoch for row in connection.execute(epochs)}

    @staticmethod
    def _loaded_graphs(connection: sa.Connection) -> dict[str, str]:
        g = schema.graphs.c
        return {row.name: row.graph_hash for row in connection.execute(sa.select(schema.graphs).order_by(g.loaded_at))}

    @staticmethod
    def _note_graphs(connection: sa.Connection, graphs: Mapping[str, str]) -> None:
        g = schema.graphs.c
        now = connection.execute(sa.select(now_ms())).scalar_one()
        for name, graph_hash in graphs.items():
            # After the others, even within a millisecond, or by a clock that was set back.
            latest = connection.execute(sa.select(sa.func.max(g.loaded_at)).where(g.name == name)).scalar() or 0
            connection.execute(sa.delete(schema.graphs).where(g.name == name, g.graph_hash == graph_hash))
            values = {"name": name, "graph_hash": graph_hash, "loaded_at": max(now, latest + 1)}
            connection.execute(sa.insert(schema.graphs).values(values))

    def unfinished(self, partition_ids: Collection[str]) -> list[RunRow]:
        u, r = schema.unfinished.c, schema.runs.c
        query = sa.select(schema.runs).join(schema.unfinished, u.run_id == r.run_id).order_by(r.run_id)
        with self._reading() as connection:
            return [_run_row(row) for row in connection.execute(query.where(u.partition_id.in_(list(partition_ids))))]

    def loaded_graphs(self) -> dict[str, str]:
        with self._reading() as connection:
            return self._loaded_graphs(connection)

    def holder_of(self, partition_id: str) -> str | None:
        p, held = schema.partitions.c, schema.leases.c
        query = sa.select(held.holder).join(schema.partitions, p.lease_id == held.lease_id)
        with self._reading() as connection:
            holder: str | None = connection.execute(query.where(p.partition_id == partition_id)).scalar()
            return holder

    def partitions(self) -> dict[str, tuple[int, int]]:
        p = schema.partitions.c
        query = sa.select(p.partition_id, p.first_shard, p.last_shard).where(p.first_shard.is_not(None))
        with self._reading() as connection:
            return {row.partition_id: (row.first_shard, row.last_shard) for row in connection.execute(query)}

    def renew_lease(self, lease_id: str, seconds: float) -> bool:
        until = prolonged(schema.leases.c.expires_at, int(seconds * 1000))
        with self._writing() as connection:
            renewed = connection.execute(
                sa.update(schema.leases).where(schema.leases.c.lease_id == lease_id).values(expires_at=until)
            )
            return renewed.rowcount == 1

    def close_lease(self, lease_id: str) -> None:
        with self._commits_lock:
            group = self._commits.pop(lease_id, None)
        if group is not None:
            group.close()
        with self._writing() as connection:
            connection.execute(sa.delete(schema.leases).where(schema.leases.c.lease_id == lease_id))
            self._drop_empty_partitions(connection)

    @staticmethod
    def _drop_empty_partitions(connection: sa.Connection) -> None:
        """Forget embedded engines that have gone and left nothing unfinished; otherwise each would leave a row for ever."""
        p = schema.partitions.c
        connection.execute(
            sa.delete(schema.partitions).where(
                p.first_shard.is_(None),
                p.lease_id.not_in(sa.select(schema.leases.c.lease_id)),
                p.partition_id.not_in(sa.select(schema.unfinished.c.partition_id)),
            )
        )

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
        with self._reading() as connection:
            created = self._database.insert_runs(connection, runs)
        return [Submitted(run.row(created[run.run_id]), True) for run in runs]

    def _submit_unless_known(self, runs: Sequence[NewRun]) -> list[Submitted]:
        with self._writing() as connection:
            known = {row.run_id for row in self._rows(connection, [run.run_id for run in runs])}
            new = {run.run_id: run for run in reversed(runs) if run.run_id not in known}
            for some in _chunks(new.values()):
                insert_runs(connection, some)
            rows = {row.run_id: row for row in self._rows(connection, [run.run_id for run in runs])}
        created = set(new)
        answers = []
        for run in runs:
            answers.append(Submitted(rows[run.run_id], run.run_id in created))
            created.discard(run.run_id)
        return answers

    def commit(self, lease_id: str, commit_id: int, transitions: Sequence[Transition]) -> list[CommitOutcome]:
        try:
            with self._commits_lock:
                group = self._commits.get(lease_id)
                if group is None:
                    group = self._database.group_commit(self._lease_seconds.get(lease_id, 0))
                self._commits[lease_id] = group
            return group.commit(lease_id, commit_id, transitions)
        except (DBAPIError, self._engine.dialect.loaded_dbapi.Error) as error:
            raise self._unavailable(getattr(error, "orig", error)) from error

    def adopt(
        self,
        lease_id: str,
        graph_hashes: Collection[str],
        run_ids: Collection[str] | None,
        is_dead: Callable[[str], bool],
    ) -> list[str]:
        leases, partitions, u, r = schema.leases.c, schema.partitions.c, schema.unfinished.c, schema.runs.c
        with self._writing() as connection:
            self._database.lock_schema(connection)  # One takes over at a time: two could read the same runs as nobody's.
            self._end_leases(connection, lease_id, is_dead)
            owned = sa.select(partitions.partition_id).where(partitions.lease_id.in_(sa.select(leases.lease_id)))
            if run_ids is None:
                shared = sa.select(partitions.partition_id).where(partitions.first_shard.is_not(None))
                source = sa.select(u.run_id).where(
                    u.partition_id.not_in(owned), u.partition_id.not_in(shared), u.graph_hash.in_(list(graph_hashes))
                )
                adopted = list(connection.execute(source.order_by(u.run_id)).scalars())
            else:
                adopted = [
                    run_id
                    for some in _chunks(sorted(set(run_ids)))
                    for run_id in connection.execute(
                        sa.select(r.run_id)
                        .where(r.run_id.in_(some), r.partition_id.not_in(owned), r.graph_hash.in_(list(graph_hashes)))
                        .order_by(r.run_id)
                    ).scalars()
                ]
            for some in _chunks(adopted):
                for table in (schema.runs, schema.unfinished):
                    connection.execute(sa.update(table).where(table.c.run_id.in_(some)).values(partition_id=lease_id))
            self._drop_empty_partitions(connection)
        return adopted

    @staticmethod
    def _end_leases(connection: sa.Connection, lease_id: str, is_dead: Callable[[str], bool]) -> None:
        """End the leases of others that are past their time or whose holders are dead; waits for their open commits."""
        leases = schema.leases.c
        now = connection.execute(sa.select(now_ms())).scalar_one()
        dead = [
            row.lease_id
            for row in connection.execute(sa.select(schema.leases).where(leases.lease_id != lease_id))
            if row.expires_at < now or is_dead(row.holder)
        ]
        for some in _chunks(dead):
            connection.execute(sa.delete(schema.leases).where(leases.lease_id.in_(some)))

    def poll(self, lease_id: str) -> Work:
        u, r, c, p = schema.unfinished.c, schema.runs.c, schema.inbox.c, schema.partitions.c
        held = sa.select(schema.leases.c.lease_id).where(schema.leases.c.lease_id == lease_id)
        owned = sa.select(p.partition_id).where(p.lease_id.in_(held))
        with self._reading() as connection:
            new = connection.execute(
                sa.select(schema.runs)
                .join(schema.unfinished, u.run_id == r.run_id)
                .where(u.partition_id.in_(owned), u.pending == 1)
                .order_by(u.run_id)
            )
            rows = [_run_row(row) for row in new]
            sent = connection.execute(
                sa.select(c.run_id, c.command_id, c.kind, c.payload)
                .join(schema.runs, r.run_id == c.run_id)
                .where(c.consumed == 0, r.partition_id.in_(owned))
                .order_by(c.number)
            )
            return Work(rows, [Command(**row._mapping) for row in sent])

    def send(self, command: Command) -> None:
        row = {name: getattr(command, name) for name in command.__struct_fields__}
        try:
            with self._writing() as connection:
                if not self._rows(connection, [command.run_id]):
                    raise RunNotFoundError(f"no run {command.run_id!r} in {self.url}", run_id=command.run_id)
                connection.execute(sa.insert(schema.inbox).values(**row, consumed=0))
        except StoreUnavailableError as error:
            if not isinstance(error.__cause__, IntegrityError):
                raise
            # The command_id is there already: sending a command twice is sending it once.

    def delete(self, run_id: str) -> bool:
        r = schema.runs.c
        with self._writing() as connection:
            finished = sa.select(r.run_id).where(r.run_id == run_id, r.status.in_([status.value for status in FINISHED]))
            # Locked: its owner may be about to revive it.
            if connection.execute(finished.with_for_update()).first() is None:
                return False
            for table in (schema.steps, schema.snapshots, schema.journal, schema.outbox, schema.inbox, schema.runs):
                connection.execute(sa.delete(table).where(table.c.run_id == run_id))
            return True

    def find_runs(
        self,
        *,
        run_ids: Collection[str] | None = None,
        status: RunStatus | None = None,
        graph: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[RunRow]:
        r = schema.runs.c
        query = sa.select(schema.runs).order_by(r.run_id).limit(limit)
        if status is not None:
            query = query.where(r.status == status.value)
        if graph is not None:
            query = query.where(r.graph == graph)
        if after is not None:
            query = query.where(r.run_id > after)
        with self._reading() as connection:
            if run_ids is None:
                return [_run_row(row) for row in connection.execute(query)]
            found: list[RunRow] = []
            for some in _chunks(sorted(set(run_ids))):
                found += [_run_row(row) for row in connection.execute(query.where(r.run_id.in_(some)))]
            return found[:limit]

    def steps(self, run_id: str, first: int, last: int) -> list[StepRow]:
        s = schema.steps.c
        query = sa.select(schema.steps).where(s.run_id == run_id, s.step_id.between(first, last)).order_by(s.step_id)
        with self._reading() as connection:
            return [StepRow(**row._mapping) for row in connection.execute(query)]

    def snapshot(self, run_id: str, step_id: int) -> tuple[bytes, list[bytes]]:
        n, s = schema.snapshots.c, schema.steps.c
        latest = sa.select(n.step_id, n.state).where(n.run_id == run_id, n.step_id <= step_id)
        with self._reading() as connection:
            found = connection.execute(latest.order_by(n.step_id.desc()).limit(1)).first()
            base, state = (found.step_id, found.state) if found else (-1, b"{}")
            patches = sa.select(s.patch).where(s.run_id == run_id, s.step_id.between(base + 1, step_id)).order_by(s.step_id)
            return state, list(connection.execute(patches).scalars())

    def journal(self, run_id: str, paths: Collection[bytes]) -> list[JournalRow]:
        j = schema.journal.c
        rows: list[JournalRow] = []
        with self._reading() as connection:
            for some in _chunks(sorted(set(paths))):
                query = sa.select(schema.journal).where(j.run_id == run_id, j.path.in_(some)).order_by(j.path, j.kind, j.n)
                rows += [JournalRow(**row._mapping) for row in connection.execute(query)]
        return rows

    def events(self, run_id: str, after_sequence: int = 0) -> list[Event]:
        o = schema.outbox.c
        query = sa.select(schema.outbox).where(o.run_id == run_id, o.sequence > after_sequence)
        with self._reading() as connection:
            return [Event(**row._mapping) for row in connection.execute(query.order_by(o.sequence, o.position))]

    def close(self) -> None:
        with self._commits_lock:
            groups, self._commits = list(self._commits.values()), {}
        for group in groups:
            group.close()
        self._closed = True
        self._engine.dispose()

    @staticmethod
    def _rows(connection: sa.Connection, run_ids: Sequence[str]) -> list[RunRow]:
        r = schema.runs.c
        return [
            _run_row(row)
            for some in _chunks(sorted(set(run_ids)))
            for row in connection.execute(sa.select(schema.runs).where(r.run_id.in_(some)))
        ]


def _run_row(row: sa.Row[Any]) -> RunRow:
    values = {name: value for name, value in row._mapping.items() if name in RunRow.__struct_fields__}
    values["status"] = RunStatus(values["status"])
    return RunRow(**values)


def _chunks(values: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(values)
    while chunk := list(itertools.islice(remaining, IN_LIST)):
        yield chunk
