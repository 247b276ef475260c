"""Storing a run that comes from another store."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import DataError, IntegrityError

from lockstep.core.lifecycle import FINISHED
from lockstep.errors import StateError, StoreUnavailableError
from lockstep.records import Event, JournalRow, RunRow, SnapshotRow, StepRow, StoredRow
from lockstep.store import schema
from lockstep.store.access import Access
from lockstep.store.clock import now_ms
from lockstep.store.insertion import unfinished_values

TABLES = {StepRow: schema.steps, SnapshotRow: schema.snapshots, JournalRow: schema.journal, Event: schema.outbox}

ROWS_PER_INSERT = 100
"""Rows of a run that are in memory at a time while it is stored."""


class SqlRestoring:
    """`Store.restore` over SQLAlchemy Core."""

    _access: Access

    def restore(self, row: RunRow, rows: Iterable[StoredRow]) -> bool:
        try:
            with self._access.writing() as connection:
                self._insert(connection, row)
                remaining = iter(rows)
                while some := list(itertools.islice(remaining, ROWS_PER_INSERT)):
                    for kind, table in TABLES.items():
                        of_kind = [msgspec.structs.asdict(stored) for stored in some if type(stored) is kind]
                        if of_kind:
                            connection.execute(sa.insert(table), of_kind)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, IntegrityError):
                return False
            if isinstance(error.__cause__, DataError):
                raise StateError(f"the database refuses the run's data: {error.__cause__.orig}", run_id=row.run_id) from error
            raise
        return True

    def _insert(self, connection: sa.Connection, row: RunRow) -> None:
        p = schema.partitions.c
        covers = sa.select(p.partition_id).where(p.first_shard <= row.shard, p.last_shard >= row.shard)
        partition_id = connection.execute(covers).scalar() or row.partition_id
        moved = msgspec.structs.replace(row, partition_id=partition_id)
        values: dict[str, Any] = msgspec.structs.asdict(moved) | {"status": row.status.value, "updated_at": now_ms()}
        connection.execute(sa.insert(schema.runs).values(values))
        if row.status not in FINISHED:
            connection.execute(sa.insert(schema.unfinished).values(unfinished_values(moved)))
