"""Deleting: a finished run goes with all that belongs to it; any other stays."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.errors import RunNotFoundError
from lockstep.records import Committed, Superseded, Transition

if TYPE_CHECKING:
    from conftest import World

GONE: dict[str, list[object]] = {"run": [], "steps": [], "snapshots": [], "journal": [], "events": []}


def fill(world: World, run_id: str, status: RunStatus) -> None:
    """Give a run some of everything, and let it come to this status at step 1."""
    world.commit(
        world.step(run_id, 0),
        world.step(
            run_id, 1, status, snapshot=b"{}", journal=[world.journal_row(run_id, "x")], events=[world.event(run_id, 2)]
        ),
    )
    world.send(run_id, f"{run_id}-answered")
    world.send(run_id, f"{run_id}-waiting")
    world.commit(Transition(run_id=run_id, consumed=[f"{run_id}-answered"]))


@pytest.mark.parametrize("status", sorted(FINISHED))
def test_a_finished_run_goes_with_all_that_belongs_to_it(world: World, status: RunStatus) -> None:
    # given two runs with everything
    world.submit("run-1", "run-2")
    fill(world, "run-1", status)
    fill(world, "run-2", status)
    other = world.dump("run-2")

    # when one is deleted
    assert world.b.delete("run-1")

    # then nothing is left of it
    assert world.dump("run-1") == GONE
    assert world.a.snapshot("run-1", 1) == (b"{}", [])
    assert world.commands() == ["run-2-waiting"]
    with pytest.raises(RunNotFoundError):
        world.send("run-1", "late")
    # and the other is untouched
    assert world.dump("run-2") == other
    assert not world.a.delete("run-1")


@pytest.mark.parametrize("status", sorted(set(RunStatus) - FINISHED))
def test_a_run_that_is_not_finished_stays(world: World, status: RunStatus) -> None:
    world.submit("run-1")
    if status is not RunStatus.PENDING:
        fill(world, "run-1", status)
    seen = world.dump("run-1")

    assert not world.b.delete("run-1")

    assert world.dump("run-1") == seen
    assert world.run("run-1").status is status


def test_a_run_that_is_not_there_cannot_be_deleted(world: World) -> None:
    assert not world.a.delete("nowhere")


def test_a_run_that_was_revived_stays(world: World) -> None:
    world.submit("run-1")
    fill(world, "run-1", RunStatus.FAILED)
    world.commit(world.moved("run-1", 1, RunStatus.RUNNING, version=2, retries=1, revives=True))

    assert not world.a.delete("run-1")


def test_the_owner_of_a_run_that_was_deleted_is_superseded(world: World) -> None:
    # given a failed run that is deleted while its owner is about to revive it
    world.submit("run-1")
    fill(world, "run-1", RunStatus.FAILED)
    revival = world.moved("run-1", 1, RunStatus.RUNNING, version=2, retries=1, revives=True)
    assert world.b.delete("run-1")

    # when the owner writes, whatever it is
    outcomes = world.commit(
        revival,
        world.step("run-1", 2, journal=[world.journal_row("run-1", "z")]),
        Transition(run_id="run-1", journal=[world.journal_row("run-1", "y")]),
    )

    # then no trace of the run comes back
    assert outcomes == [Superseded()] * 3
    assert world.dump("run-1") == GONE


def test_a_run_id_may_be_used_again_after_its_run_is_deleted(world: World) -> None:
    # given a run that was deleted
    world.submit("run-1", input=b"old")
    fill(world, "run-1", RunStatus.SUCCEEDED)
    world.a.delete("run-1")

    # when its id is used again
    [row] = world.submit("run-1", input=b"new", partition_id="B")

    # then that is a new run, which knows nothing of the old: it takes the same steps, results and commands
    assert (row.input, row.status, row.version) == (b"new", RunStatus.PENDING, 0)
    assert (world.pending("A"), world.pending("B")) == ([], ["run-1"])
    world.send("run-1", "run-1-answered")
    assert world.commands("B") == ["run-1-answered"]
    step = world.step("run-1", 0, journal=[world.journal_row("run-1", "x")], events=[world.event("run-1", 2)])
    assert world.commit(step, lease="B") == [Committed()]
    assert len(world.dump("run-1")["steps"]) == len(world.dump("run-1")["journal"]) == 1


def test_of_a_deletion_and_a_revival_that_race_one_wins(world: World) -> None:
    for n in range(20):
        run_id = f"run-{n}"
        world.submit(run_id)
        fill(world, run_id, RunStatus.FAILED)
        revival = world.moved(run_id, 1, RunStatus.RUNNING, version=2, retries=1, revives=True)

        answers: list[Any] = world.together(partial(world.b.delete, run_id), partial(world.commit, revival))

        deleted, outcomes = answers
        assert outcomes == [Superseded() if deleted else Committed()]
        assert [row.status for row in world.a.find_runs(run_ids=[run_id])] == ([] if deleted else [RunStatus.RUNNING])
    # and those that were revived are cared for, those that were deleted forgotten
    left = [row.run_id for row in world.a.find_runs()]
    world.a.close_lease("A")
    assert world.adopt() == left
