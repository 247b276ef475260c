"""`SqlReader`: what anyone may ask of a SQL store."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.records import Event, GraphVersion, JournalRow, RunRow, StepRow, ThreadPlace
from lockstep.store import schema
from lockstep.store.access import Access, repeatable

IN_LIST = 500
"""Values in one IN (...): databases bound the parameters of a statement, SQLite of old at 999."""

T = TypeVar("T")


class SqlReader:
    """The `Reader` contract over SQLAlchemy Core."""

    _access: Access

    @repeatable
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
        r = schema.runs.c
        query = sa.select(schema.runs).order_by(r.run_id).limit(limit)
        if status is not None:
            query = query.where(r.status == status.value)
        if graph is not None:
            query = query.where(r.graph == graph)
        if thread_id is not None:
            query = query.where(r.thread_id == thread_id)
        if parent is not None:
            query = query.where(r.parent_run_id == parent)
        if after is not None:
            query = query.where(r.run_id > after)
        with self._access.reading() as connection:
            if run_ids is None:
                return [run_row(row) for row in connection.execute(query)]
            found: list[RunRow] = []
            for some in chunks(sorted(set(run_ids))):
                found += [run_row(row) for row in connection.execute(query.where(r.run_id.in_(some)))]
            return found[:limit]

    @repeatable
    def before_in_thread(self, row: RunRow) -> ThreadPlace:
        r, u = schema.runs.c, schema.unfinished.c
        of_thread = sa.select(schema.runs).where(r.thread_id == row.thread_id, r.graph == row.graph)
        earlier = sa.or_(r.created_at < row.created_at, sa.and_(r.created_at == row.created_at, r.run_id < row.run_id))
        latest = of_thread.where(earlier).order_by(r.created_at.desc(), r.run_id.desc()).limit(1)
        begun = (
            sa.select(sa.func.count())
            .select_from(schema.unfinished)
            .join(schema.runs, r.run_id == u.run_id)
            .where(u.pending == 0, r.thread_id == row.thread_id, r.graph == row.graph, r.run_id != row.run_id)
        )
        with self._access.reading() as connection:
            found = connection.execute(latest).first()
            busy = bool(connection.execute(begun).scalar())
        return ThreadPlace(run_row(found) if found is not None else None, busy)

    @repeatable
    def steps(self, run_id: str, first: int, last: int) -> list[StepRow]:
        s = schema.steps.c
        query = sa.select(schema.steps).where(s.run_id == run_id, s.step_id.between(first, last)).order_by(s.step_id)
        with self._access.reading() as connection:
            return [StepRow(**row._mapping) for row in connection.execute(query)]

    @repeatable
    def snapshot(self, run_id: str, step_id: int) -> tuple[bytes, list[bytes]]:
        n, s = schema.snapshots.c, schema.steps.c
        latest = sa.select(n.step_id, n.state).where(n.run_id == run_id, n.step_id <= step_id)
        with self._access.reading() as connection:
            found = connection.execute(latest.order_by(n.step_id.desc()).limit(1)).first()
            base, state = (found.step_id, found.state) if found else (-1, b"{}")
            patches = sa.select(s.patch).where(s.run_id == run_id, s.step_id.between(base + 1, step_id)).order_by(s.step_id)
            return state, list(connection.execute(patches).scalars())

    @repeatable
    def journal(self, run_id: str, paths: Collection[bytes]) -> list[JournalRow]:
        j = schema.journal.c
        rows: list[JournalRow] = []
        with self._access.reading() as connection:
            for some in chunks(sorted(set(paths))):
                query = sa.select(schema.journal).where(j.run_id == run_id, j.path.in_(some)).order_by(j.path, j.kind, j.n)
                rows += [JournalRow(**row._mapping) for row in connection.execute(query)]
        return rows

    @repeatable
    def usage(self, run_id: str) -> list[JournalRow]:
        j = schema.journal.c
        query = sa.select(schema.journal).where(j.run_id == run_id, j.kind == "usage").order_by(j.step_id, j.path, j.n)
        with self._access.reading() as connection:
            return [JournalRow(**row._mapping) for row in connection.execute(query)]

    @repeatable
    def events(self, run_id: str, after_sequence: int = 0) -> list[Event]:
        o = schema.outbox.c
        query = sa.select(schema.outbox).where(o.run_id == run_id, o.sequence > after_sequence)
        with self._access.reading() as connection:
            return [Event(**row._mapping) for row in connection.execute(query.order_by(o.sequence, o.position))]

    @repeatable
    def graphs(self) -> list[str]:
        r = schema.runs.c
        found: list[str] = []
        with self._access.reading() as connection:
            # One step in an index for each graph; DISTINCT would read all of it, and there may be a million runs.
            while name := connection.execute(sa.select(sa.func.min(r.graph)).where(r.graph > (found or [""])[-1])).scalar():
                found.append(name)
        return found

    @repeatable
    def loaded_graphs(self) -> dict[str, str]:
        with self._access.reading() as connection:
            return loaded_graphs(connection)

    @repeatable
    def versions(self) -> list[GraphVersion]:
        r, g = schema.runs.c, schema.graphs.c
        ended = [status.value for status in FINISHED]
        counts = sa.select(
            r.graph,
            r.graph_hash,
            sa.func.count().label("runs"),
            sa.func.count(sa.case((r.status.not_in(ended), 1))).label("unfinished"),
            sa.func.count(sa.case((r.status == RunStatus.FAILED.value, 1))).label("failed"),
        ).group_by(r.graph, r.graph_hash)
        with self._access.reading() as connection:
            counted = {(row.graph, row.graph_hash): row for row in connection.execute(counts)}
            times = connection.execute(sa.select(g.name, g.graph_hash, g.loaded_at))
            loaded = {(row.name, row.graph_hash): row.loaded_at for row in times}
        found = [
            GraphVersion(
                graph=graph,
                graph_hash=graph_hash,
                loaded_at=loaded.get((graph, graph_hash)),
                **{name: getattr(counted.get((graph, graph_hash)), name, 0) for name in ("runs", "unfinished", "failed")},
            )
            for graph, graph_hash in counted.keys() | loaded.keys()
        ]
        return sorted(found, key=lambda version: version.place)

    @repeatable
    def holder_of(self, partition_id: str) -> str | None:
        p, held = schema.partitions.c, schema.leases.c
        query = sa.select(held.holder).join(schema.partitions, p.lease_id == held.lease_id)
        with self._access.reading() as connection:
            holder: str | None = connection.execute(query.where(p.partition_id == partition_id)).scalar()
            return holder

    @repeatable
    def partitions(self) -> dict[str, tuple[int, int]]:
        p = schema.partitions.c
        query = sa.select(p.partition_id, p.first_shard, p.last_shard).where(p.first_shard.is_not(None))
        with self._access.reading() as connection:
            return {row.partition_id: (row.first_shard, row.last_shard) for row in connection.execute(query)}


def loaded_graphs(connection: sa.Connection) -> dict[str, str]:
    """See `Reader.loaded_graphs`."""
    g = schema.graphs.c
    return {row.name: row.graph_hash for row in connection.execute(sa.select(schema.graphs).order_by(g.loaded_at))}


def rows_of(connection: sa.Connection, run_ids: Sequence[str]) -> list[RunRow]:
    """The rows of these runs, as far as they are there."""
    query = sa.select(schema.runs)
    return [
        run_row(row)
        for some in chunks(sorted(set(run_ids)))
        for row in connection.execute(query.where(schema.runs.c.run_id.in_(some)))
    ]


def run_row(row: sa.Row[Any]) -> RunRow:
    """The run in a row of a query."""
    values = {name: value for name, value in row._mapping.items() if name in RunRow.__struct_fields__}
    values["status"] = RunStatus(values["status"])
    return RunRow(**values)


def chunks(values: Iterable[T]) -> Iterator[list[T]]:
    """The values in portions that fit into a statement."""
    remaining = iter(values)
    while chunk := list(itertools.islice(remaining, IN_LIST)):
        yield chunk
