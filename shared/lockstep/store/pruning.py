"""`SqlPruning`: finished runs go when their time has come."""

from __future__ import annotations

import sqlalchemy as sa

from lockstep.records import Pruned, PrunedTo, Retention
from lockstep.store import schema
from lockstep.store.access import Access, repeatable
from lockstep.store.clock import now_ms
from lockstep.store.reading import chunks, run_row
from lockstep.store.retention import Limits, limits_of


class SqlPruning:
    """`prune` over SQLAlchemy Core. Looking is done without a transaction: nobody has to be kept from writing for that."""

    _access: Access

    @repeatable
    def prune(
        self, graph: str, retention: Retention, *, after: PrunedTo | None = None, limit: int = 100, dry_run: bool = False
    ) -> Pruned:
        r = schema.runs.c
        with self._access.reading() as connection:

            def created_at(newest: int) -> int | None:
                # In the index of graph and time alone, so that it matters little how many runs are kept.
                times = sa.select(r.created_at).where(r.graph == graph).order_by(r.created_at.desc())
                return connection.execute(times.offset(newest - 1).limit(1)).scalar()

            def now() -> int:
                return int(connection.execute(sa.select(now_ms())).scalar_one())

            limits = limits_of(retention, after, now, created_at)
            old = sa.select(schema.runs).where(r.graph == graph, r.created_at <= limits.newest)
            if after is not None:
                later = sa.or_(r.created_at > after.created_at, r.run_id > after.run_id)
                old = old.where(r.created_at >= after.created_at, later)
            seen = [run_row(row) for row in connection.execute(old.order_by(r.created_at, r.run_id).limit(limit))]
            gone = _published(connection, [row.run_id for row in seen if limits.passed_by(row)])
        if gone and not dry_run:
            gone = self._remove(gone, limits)
        return Pruned(gone, limits.reached(seen[-1]) if len(seen) == limit else None)

    def _remove(self, run_ids: list[str], limits: Limits) -> list[str]:
        """Remove those of the runs that still may go."""
        r = schema.runs.c
        removed = []
        for some in chunks(run_ids):
            with self._access.writing() as connection:
                # Locked: their owner may be about to revive one. Who does so now has the lock, and keeps the run.
                locked = sa.select(schema.runs).where(r.run_id.in_(some)).order_by(r.run_id).with_for_update(skip_locked=True)
                passed = [row.run_id for row in map(run_row, connection.execute(locked)) if limits.passed_by(row)]
                # Looked at only now: of runs that are locked, no commit can add events.
                gone = _published(connection, passed)
                for table in schema.OF_A_RUN:
                    connection.execute(sa.delete(table).where(table.c.run_id.in_(gone)))
            removed += gone
        order = {run_id: place for place, run_id in enumerate(run_ids)}
        return sorted(removed, key=lambda run_id: order[run_id])


def _published(connection: sa.Connection, run_ids: list[str]) -> list[str]:
    """Those of the runs of which every sink has got all events."""
    u = schema.undelivered.c
    held: set[str] = set()
    for some in chunks(run_ids):
        held |= set(connection.execute(sa.select(u.run_id).where(u.run_id.in_(some))).scalars())
    return [run_id for run_id in run_ids if run_id not in held]
