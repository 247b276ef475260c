"""`SqlLeases`: who may write what. Leases, the partitions that they own, and how both pass from one to another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import sqlalchemy as sa

from lockstep.records import RunRow
from lockstep.store import schema
from lockstep.store.access import Access, repeatable
from lockstep.store.clock import now_ms, prolonged
from lockstep.store.commit import GroupCommits
from lockstep.store.reading import chunks, loaded_graphs, run_row
from lockstep.store.sharing import fair_share, partition_ranges


class SqlLeases:
    """The part of the `Store` contract that is about leases and partitions."""

    _access: Access
    _commits: GroupCommits

    @repeatable
    def open_lease(self, lease_id: str, holder: str, seconds: float, *, embedded: bool = True) -> None:
        with self._access.writing() as connection:
            connection.execute(
                sa.insert(schema.leases).values(
                    lease_id=lease_id, holder=holder, expires_at=now_ms() + int(seconds * 1000), last_commit_id=0
                )
            )
            if embedded:
                connection.execute(sa.insert(schema.partitions).values(partition_id=lease_id, lease_id=lease_id, epoch=1))
        self._commits.open(lease_id, seconds)

    @repeatable
    def share(self, lease_id: str, graphs: Mapping[str, str], is_dead: Callable[[str], bool]) -> dict[str, int]:
        p = schema.partitions.c
        with self._access.writing() as connection:
            self._access.database.take_turns(connection)  # One coordinator shares out at a time.
            alone = sa.select(p.partition_id).where(p.first_shard.is_(None))
            held = sa.select(schema.leases.c.lease_id).where(schema.leases.c.lease_id.not_in(alone))
            if lease_id not in connection.execute(held).scalars().all():
                return {}
            _end_leases(connection, lease_id, is_dead)
            alive = set(connection.execute(held).scalars())
            if not graphs.items() <= loaded_graphs(connection).items():
                _note_graphs(connection, graphs)
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

    @repeatable
    def unfinished(self, partition_ids: Collection[str]) -> list[RunRow]:
        u, r = schema.unfinished.c, schema.runs.c
        query = sa.select(schema.runs).join(schema.unfinished, u.run_id == r.run_id).order_by(r.run_id)
        with self._access.reading() as connection:
            return [run_row(row) for row in connection.execute(query.where(u.partition_id.in_(list(partition_ids))))]

    @repeatable
    def renew_lease(self, lease_id: str, seconds: float) -> bool:
        until = prolonged(schema.leases.c.expires_at, int(seconds * 1000))
        with self._access.writing() as connection:
            renewed = connection.execute(
                sa.update(schema.leases).where(schema.leases.c.lease_id == lease_id).values(expires_at=until)
            )
            return renewed.rowcount == 1

    @repeatable
    def close_lease(self, lease_id: str) -> None:
        self._commits.close(lease_id)
        with self._access.writing() as connection:
            connection.execute(sa.delete(schema.leases).where(schema.leases.c.lease_id == lease_id))
            _drop_empty_partitions(connection)

    @repeatable
    def adopt(
        self,
        lease_id: str,
        graph_hashes: Collection[str],
        run_ids: Collection[str] | None,
        is_dead: Callable[[str], bool],
    ) -> list[str]:
        leases, partitions, u, r = schema.leases.c, schema.partitions.c, schema.unfinished.c, schema.runs.c
        with self._access.writing() as connection:
            # One takes over at a time: two could read the same runs as nobody's.
            self._access.database.take_turns(connection)
            _end_leases(connection, lease_id, is_dead)
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
                    for some in chunks(sorted(set(run_ids)))
                    for run_id in connection.execute(
                        sa.select(r.run_id)
                        .where(r.run_id.in_(some), r.partition_id.not_in(owned), r.graph_hash.in_(list(graph_hashes)))
                        .order_by(r.run_id)
                    ).scalars()
                ]
            for some in chunks(adopted):
                for table in (schema.runs, schema.unfinished):
                    connection.execute(sa.update(table).where(table.c.run_id.in_(some)).values(partition_id=lease_id))
            _drop_empty_partitions(connection)
        return adopted


def _note_graphs(connection: sa.Connection, graphs: Mapping[str, str]) -> None:
    g = schema.graphs.c
    now = connection.execute(sa.select(now_ms())).scalar_one()
    for name, graph_hash in graphs.items():
        # After the others, even within a millisecond, or by a clock that was set back.
        latest = connection.execute(sa.select(sa.func.max(g.loaded_at)).where(g.name == name)).scalar() or 0
        connection.execute(sa.delete(schema.graphs).where(g.name == name, g.graph_hash == graph_hash))
        values = {"name": name, "graph_hash": graph_hash, "loaded_at": max(now, latest + 1)}
        connection.execute(sa.insert(schema.graphs).values(values))


def _end_leases(connection: sa.Connection, lease_id: str, is_dead: Callable[[str], bool]) -> None:
    """End the leases of others that are past their time or whose holders are dead; waits for their open commits."""
    leases = schema.leases.c
    now = connection.execute(sa.select(now_ms())).scalar_one()
    dead = [
        row.lease_id
        for row in connection.execute(sa.select(schema.leases).where(leases.lease_id != lease_id))
        if row.expires_at < now or is_dead(row.holder)
    ]
    for some in chunks(dead):
        connection.execute(sa.delete(schema.leases).where(leases.lease_id.in_(some)))


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
