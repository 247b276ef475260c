"""`fsck` finds nothing where nothing is wrong, and whatever is, with the run that it concerns."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, cast

import pytest
import sqlalchemy as sa
from tests.contract.test_archive import exported, graph, sealed, source, under_way

from lockstep import Engine
from lockstep.archive import import_run
from lockstep.broker.inspection import Whereabouts
from lockstep.fsck import check_store, check_tasks
from lockstep.store import schema
from lockstep.store.memory import MemoryStore
from lockstep.store.sql import SqlStore

if TYPE_CHECKING:
    from conftest import World

__all__ = ["source"]  # A fixture of the other module's.


@pytest.fixture
def full(world: World, source: MemoryStore) -> World:
    """A store with runs that have succeeded, failed, are under way, and have not begun; a sink has got nothing of them."""
    for file in (exported(source, "failed"), exported(source, "pending"), sealed(under_way(exported(source, "succeeded")))):
        import_run(world.a, io.BytesIO(file), unfinished=True)
    with Engine(graph, "memory://") as engine:
        engine.submit({"turn": 120}, run_id="ended").result()
        import_run(world.a, io.BytesIO(exported(engine._running().store, "ended")))
    world.a.outbox.add_sink("sink")
    return world


def found(world: World, run_id: str | None = None) -> dict[str, list[str]]:
    """What is wrong, by run."""
    defects: dict[str, list[str]] = {}
    for defect in check_store(world.b, None if run_id is None else [run_id]):
        assert defect.remedy
        defects.setdefault(defect.run_id, []).append(defect.what)
    return defects


def test_nothing_is_found_where_nothing_is_wrong(full: World) -> None:
    assert [row.run_id for row in full.b.find_runs()] == ["ended", "failed", "pending", "succeeded"]
    assert found(full) == {}


def of(table: sa.Table, **conditions: Any) -> sa.ColumnElement[bool]:
    return sa.and_(sa.true(), *[table.c[name] == value for name, value in conditions.items()])


r, s, j, n, u, o = schema.runs, schema.steps, schema.journal, schema.snapshots, schema.unfinished, schema.outbox
STEP = of(s, run_id="ended", step_id=5)

DAMAGE: dict[str, tuple[Any, str, str]] = {
    "another patch": (
        sa.update(s).where(STEP).values(patch=b"[]"),
        "ended",
        "the step of step 5 does not lead to a state with its hash",
    ),
    "no patch": (
        sa.update(s).where(STEP).values(patch=b""),
        "ended",
        "the step of step 5 cannot be read",
    ),
    "another hash": (
        sa.update(s).where(STEP).values(state_hash=bytes(32)),
        "ended",
        "the step of step 5 does not lead to a state with its hash",
    ),
    "another key": (
        sa.update(s).where(STEP).values(idempotency_key=bytes(32)),
        "ended",
        "the step of step 5 does not have the key of its items",
    ),
    "a step too few": (sa.delete(s).where(STEP), "ended", "the step of step 6 is out of order"),
    "no steps": (sa.delete(s).where(of(s, run_id="ended")), "ended", "the run stands after step 12, and its steps end with -1"),
    "another snapshot": (
        sa.update(n).where(of(n, run_id="succeeded")).values(state=b"{}"),
        "succeeded",
        "is not the state there",
    ),
    "no result": (
        sa.delete(j).where(of(j, run_id="ended", step_id=5)),
        "ended",
        "the step of step 5 was stored without the results of all its items",
    ),
    "another's result": (
        sa.update(j).where(of(j, run_id="ended", step_id=5)).values(path=bytes(32)),
        "ended",
        "the step of step 5 was stored without the results of all its items",
    ),
    "no end": (
        sa.update(r).where(of(r, run_id="ended")).values(status="running"),
        "ended",
        "it is running, and nothing is left",
    ),
    "no begin": (sa.delete(u).where(of(u, run_id="pending")), "pending", "it has not finished, and no owner looks for it"),
    "too late an end": (
        sa.update(r).where(of(r, run_id="succeeded")).values(status="succeeded"),
        "succeeded",
        "it has succeeded, and 1 items are left to run",
    ),
    "no error": (sa.update(r).where(of(r, run_id="failed")).values(error=None), "failed", "it is failed, and has no error"),
    "another owner": (
        sa.update(u).where(of(u, run_id="succeeded")).values(partition_id="elsewhere"),
        "succeeded",
        "owners look for it in another partition or version than it has",
    ),
    "no run": (sa.delete(r).where(of(r, run_id="ended")), "ended", "rows of steps belong to it, and it is not there"),
    "no events": (sa.delete(o).where(of(o, run_id="ended")), "ended", "events of it wait for a sink, and they are not there"),
    "no sink": (sa.delete(schema.sinks), "ended", "events of it wait for a sink that is not known"),
}


@pytest.mark.usefixtures("sql_adapter")  # In the reference model, there is one place for each thing.
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(full: World, name: str) -> None:
    statement, run_id, what = DAMAGE[name]
    with cast("SqlStore", full.a)._access.writing() as connection:
        connection.execute(statement)

    # then it is found, of this run and no other, whether all are looked at or this one
    defects = found(full)
    others = {"ended", "failed", "succeeded"} if name == "no sink" else {run_id}
    assert defects.keys() == others
    assert any(what in each for each in defects[run_id]), defects
    if full.b.find_runs(run_ids=[run_id]):
        assert found(full, run_id) == {run_id: defects[run_id]}
        assert found(full, "pending" if run_id != "pending" else "ended") == {}


def test_tasks_that_stay_where_they_must_not_be_are_found(full: World) -> None:
    def look(*, queued: list[str], claimed: list[str]) -> Whereabouts:
        return Whereabouts([], False, {(run, "ab"): "default" for run in queued}, {(run, "ab"): "w-1" for run in claimed})

    # given two looks: what is in two places, or of a run that wants nothing, in both of them; and what moved between them
    earlier = look(queued=["succeeded", "pending", "ended", "gone", "failed"], claimed=["succeeded", "pending"])
    later = look(queued=["succeeded", "ended", "gone"], claimed=["succeeded", "pending", "failed"])

    defects = [(defect.run_id, defect.what) for defect in check_tasks(full.b, earlier, later)]

    assert defects == [
        ("succeeded", "item ab is queued, and worker w-1 has it"),
        ("ended", "tasks of it are queued, and it is succeeded"),
        ("gone", "tasks of it are queued, and it is not there"),
    ]
