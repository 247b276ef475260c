"""What must be true between tables, asked in SQL."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from lockstep.core.lifecycle import FINISHED
from lockstep.records import Defect
from lockstep.store import schema
from lockstep.store.access import Access, repeatable

MAX_OF_A_KIND = 100
"""Defects of one kind that are told."""

r, u, d, o = schema.runs.c, schema.unfinished.c, schema.undelivered.c, schema.outbox.c
ENDED = [status.value for status in FINISHED]


class SqlChecking:
    """`Reader.defects` over SQLAlchemy Core. Each query is one statement, so it sees what one moment holds."""

    _access: Access

    @repeatable
    def defects(self) -> list[Defect]:
        found: list[Defect] = []
        with self._access.reading() as connection:
            for query, what, remedy in _queries():
                rows = connection.execute(query.distinct().limit(MAX_OF_A_KIND))
                found += [Defect(row.run_id, what, remedy) for row in rows]
        return found


def _queries() -> Iterator[tuple[sa.Select[tuple[str]], str, str]]:
    """What must find nothing: a query for run_ids, what is wrong with these, and what to do."""
    due = sa.select(u.run_id).join_from(schema.unfinished, schema.runs, r.run_id == u.run_id)
    yield (
        sa.select(r.run_id)
        .outerjoin_from(schema.runs, schema.unfinished, r.run_id == u.run_id)
        .where(r.status.not_in(ENDED), u.run_id.is_(None)),
        "it has not finished, and no owner looks for it",
        "give it a row in unfinished, with its partition_id and graph_hash, and pending = 1",
    )
    yield due.where(r.status.in_(ENDED)), "it has finished, and its owner looks for it", "remove its row from unfinished"
    yield (
        due.where(sa.or_(u.partition_id != r.partition_id, u.graph_hash != r.graph_hash)),
        "owners look for it in another partition or version than it has",
        "give its row in unfinished the partition_id and graph_hash of runs",
    )
    for table in schema.OF_A_RUN:
        if table is not schema.runs:
            yield (
                sa.select(table.c.run_id)
                .outerjoin_from(table, schema.runs, table.c.run_id == r.run_id)
                .where(r.run_id.is_(None)),
                f"rows of {table.name} belong to it, and it is not there",
                f"restore a backup, or remove its rows from {table.name}",
            )
    yield (
        sa.select(d.run_id).where(
            ~sa.exists().where(o.run_id == d.run_id, o.sequence == d.last_sequence),
            sa.exists().where(r.run_id == d.run_id),
        ),
        "events of it wait for a sink, and they are not there",
        "restore a backup, or remove its rows from undelivered",
    )
    yield (
        sa.select(d.run_id).where(~sa.exists().where(schema.sinks.c.name == d.sink)),
        "events of it wait for a sink that is not known",
        "lockstep outbox --sink NAME --remove",
    )
