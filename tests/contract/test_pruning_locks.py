"""Pruning on servers: nobody waits for a run that somebody else changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import sqlalchemy as sa

from lockstep.core.lifecycle import RunStatus
from lockstep.records import Pruned, Retention
from lockstep.store import schema

if TYPE_CHECKING:
    from conftest import World

    from lockstep.store.sql import SqlStore

ADAPTERS_TESTED = ["postgres", "mysql"]


def test_a_run_that_somebody_changes_is_left_to_them(world: World) -> None:
    # given two old runs, one of which is locked
    for run_id in ("run-1", "run-2"):
        world.submit(run_id)
        world.commit(world.step(run_id, 0, RunStatus.FAILED))
    row = sa.select(schema.runs).where(schema.runs.c.run_id == "run-1").with_for_update()
    with cast("SqlStore", world.a)._access.writing() as connection:
        connection.execute(row).all()

        # then the other goes, at once
        assert world.b.prune("research", Retention(max_age_seconds=0)) == Pruned(["run-2"])

    # and the first when it is free
    assert world.b.prune("research", Retention(max_age_seconds=0)) == Pruned(["run-1"])
