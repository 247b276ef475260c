"""A new run's rows."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from lockstep.core.lifecycle import RunStatus
from lockstep.records import NewRun
from lockstep.store import schema
from lockstep.store.clock import now_ms


def insert_runs(connection: sa.Connection, runs: Sequence[NewRun]) -> dict[str, int]:
    """Insert new runs, within the transaction that is open; when each was created, by run_id."""
    now = connection.execute(sa.select(now_ms())).scalar_one()
    rows = [{**msgspec.structs.asdict(run.row(now)), "status": RunStatus.PENDING.value} for run in runs]
    connection.execute(sa.insert(schema.runs), rows)
    due = [{"run_id": run.run_id, "partition_id": run.partition_id, "graph_hash": run.graph_hash, "pending": 1} for run in runs]
    connection.execute(sa.insert(schema.unfinished), due)
    return dict.fromkeys((run.run_id for run in runs), now)
