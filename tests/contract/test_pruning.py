"""Pruning: old finished runs go; whatever is unfinished, young, or not published everywhere stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.records import Committed, Progress, Pruned, Retention, Transition

if TYPE_CHECKING:
    from conftest import World

AT_ONCE = Retention(max_age_seconds=0)
"""All that has finished."""


def finish(world: World, *run_ids: str, status: RunStatus = RunStatus.SUCCEEDED, graph: str = "research") -> None:
    """Submit runs, one after the other, and let them finish with an event each."""
    for run_id in run_ids:
        world.submit(run_id, graph=graph)
        world.commit(world.step(run_id, 0))
        world.commit(world.step(run_id, 1, status, events=[world.event(run_id, 2)]))


def later(world: World, run_id: str) -> None:
    """Wait until the database's clock has moved on since the run was changed: what is compared are milliseconds."""
    world.submit("clock", graph="clock")
    moment = world.run("clock").created_at
    while moment <= world.run(run_id).updated_at:
        world.commit(world.moved("clock", -1, RunStatus.RUNNING, world.run("clock").version))
        moment = world.run("clock").updated_at


@pytest.mark.parametrize("status", sorted(FINISHED))
def test_a_finished_run_goes_when_it_is_old(world: World, status: RunStatus) -> None:
    # given finished runs of two graphs
    finish(world, "run-1", "run-2", status=status)
    finish(world, "other", status=status, graph="audit")
    assert world.b.graphs() == ["audit", "research"]

    # when those of one graph are old
    assert world.b.prune("research", Retention(max_age_seconds=60)) == Pruned([])
    assert world.b.prune("research", AT_ONCE, dry_run=True) == Pruned(["run-1", "run-2"])
    assert [row.run_id for row in world.a.find_runs()] == ["other", "run-1", "run-2"]
    assert world.b.prune("research", AT_ONCE) == Pruned(["run-1", "run-2"])

    # then nothing is left of them, and the other is untouched
    for run_id in ("run-1", "run-2"):
        assert world.dump(run_id) == {"run": [], "steps": [], "snapshots": [], "journal": [], "events": []}
    assert world.b.graphs() == ["audit"]
    assert len(world.dump("other")["steps"]) == 2


@pytest.mark.parametrize("status", sorted(set(RunStatus) - FINISHED))
def test_a_run_that_is_not_finished_stays_however_old(world: World, status: RunStatus) -> None:
    world.submit("run-1")
    if status is not RunStatus.PENDING:
        world.commit(world.step("run-1", 0, status))
    later(world, "run-1")

    assert world.b.prune("research", Retention(max_age_seconds=0, max_runs=0)) == Pruned([])
    assert world.run("run-1").status is status


def finish_apart(world: World, *run_ids: str) -> None:
    """Let runs finish, each created in a millisecond of its own."""
    for run_id in run_ids:
        finish(world, run_id)
        later(world, run_id)
        world.a.commit("A", [world.moved("clock", -1, RunStatus.CANCELLED, world.run("clock").version)])
        world.a.delete("clock")


def test_the_newest_runs_stay(world: World) -> None:
    # given five runs
    finish_apart(world, *[f"run-{n}" for n in range(5)])

    # when the newest two are kept, the rest goes, oldest first
    assert world.b.prune("research", Retention(max_runs=6)) == Pruned([])
    assert world.b.prune("research", Retention(max_runs=2)) == Pruned(["run-0", "run-1", "run-2"])
    assert world.b.prune("research", Retention(max_runs=0)) == Pruned(["run-3", "run-4"])


def test_it_looks_at_a_bounded_number_of_runs_and_goes_on_behind_them(world: World) -> None:
    # given three runs of which the oldest does not go
    world.submit("run-0")
    later(world, "run-0")
    finish(world, "run-1", "run-2")

    # when each call may look at two
    first = world.b.prune("research", AT_ONCE, limit=2)
    assert first.run_ids == ["run-1"]
    assert first.last is not None
    second = world.b.prune("research", AT_ONCE, limit=2, after=first.last)

    # then the second one does not look at the first two again
    assert second == Pruned(["run-2"])


def test_what_is_newer_is_decided_when_a_pass_begins(world: World) -> None:
    # given a pass that keeps the newest two of five, and has looked at two
    finish_apart(world, *[f"run-{n}" for n in range(5)])
    first = world.b.prune("research", Retention(max_runs=2), limit=2)
    assert first.run_ids == ["run-0", "run-1"]

    # when another one finishes meanwhile, then the pass goes on by what it has found
    finish_apart(world, "run-5")
    assert world.b.prune("research", Retention(max_runs=2), limit=2, after=first.last).run_ids == ["run-2"]
    # and the next one does the rest
    assert world.b.prune("research", Retention(max_runs=2)).run_ids == ["run-3"]


def test_a_run_stays_while_a_sink_has_not_got_all_its_events(world: World) -> None:
    # given a run whose events one sink has not got, and one where they are parked
    outbox = world.b.outbox
    outbox.add_sink("audit")
    finish(world, "run-1", "run-2")
    claimed = {each.run_id: each.events[-1] for each in outbox.claim("relay", "audit", 2, 60)}
    outbox.mark("relay", "audit", [Progress(run_id="run-2", last=None, error="refused")])

    # then neither goes
    assert world.b.prune("research", AT_ONCE, dry_run=True) == Pruned([])
    assert world.b.prune("research", AT_ONCE) == Pruned([])

    # when the sink has got one, and the other is skipped
    outbox.mark("relay", "audit", [Progress(run_id="run-1", last=claimed["run-1"])])
    assert world.b.prune("research", AT_ONCE) == Pruned(["run-1"])
    assert outbox.unpark("audit", "run-2", skip=True)
    assert world.b.prune("research", AT_ONCE) == Pruned(["run-2"])


def test_what_is_left_of_a_pruned_run_is_dropped(world: World) -> None:
    finish(world, "run-1")
    assert world.b.prune("research", AT_ONCE) == Pruned(["run-1"])

    # A result that comes too late finds no run, and the name can be used again.
    assert world.commit(Transition(run_id="run-1", journal=[world.journal_row("run-1", "x")])) != [Committed()]
    assert world.a.submit([world.new("run-1")])[0].created


def test_pruning_and_a_retry_exclude_each_other(world: World) -> None:
    """Whoever comes first: a run that was revived is whole, and one that was pruned is gone."""
    for n in range(20):
        run_id = f"run-{n}"
        finish(world, run_id, status=RunStatus.FAILED)
        revive = Transition(
            run_id=run_id, update=world.update(run_id, 1, RunStatus.RUNNING, expected_version=2, retries=1, revives=True)
        )

        pruned, [outcome] = world.together(
            lambda: world.b.prune("research", AT_ONCE).run_ids,
            lambda revive=revive: world.commit(revive),  # type: ignore[misc]
        )

        is_there = world.dump(run_id)["run"] != []
        assert (run_id in pruned, outcome == Committed(), is_there) in [(True, False, False), (False, True, True)]
        assert len(world.dump(run_id)["steps"]) == (2 if is_there else 0)
