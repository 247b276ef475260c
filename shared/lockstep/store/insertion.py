"""A new run's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from lockstep.core.lifecycle import RunStatus
from lockstep.records import NewRun, RunRow
from lockstep.store import schema
from lockstep.store.clock import now_ms


def insert_runs(connection: sa.Connection, runs: Sequence[NewRun]) -> dict[str, int]:
    """Insert new runs, within the transaction that is open; when each was created, by run_id."""
    now = connection.execute(sa.select(now_ms())).scalar_one()
    connection.execute(sa.insert(schema.runs), [run_values(run, now) for run in runs])
    connection.execute(sa.insert(schema.unfinished), [unfinished_values(run) for run in runs])
    return dict.fromkeys((run.run_id for run in runs), now)


def run_values(run: NewRun, created_at: int) -> dict[str, Any]:
    """The row of a new run."""
    return {**msgspec.structs.asdict(run.row(created_at)), "status": RunStatus.PENDING.value}


def unfinished_values(run: NewRun | RunRow) -> dict[str, Any]:
    """The row that says that a run needs an owner, who has not looked at it yet."""
    return {"run_id": run.run_id, "partition_id": run.partition_id, "graph_hash": run.graph_hash, "pending": 1}
