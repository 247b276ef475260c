"""Committing: all of a transition or nothing, and one outcome for each that says what became of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from lockstep.core.lifecycle import RunStatus
from lockstep.errors import RunNotFoundError
from lockstep.records import AlreadyCommitted, Command, Committed, Superseded, Transition

if TYPE_CHECKING:
    from conftest import World

RUNNING, SUCCEEDED, FAILED = RunStatus.RUNNING, RunStatus.SUCCEEDED, RunStatus.FAILED


def full_step(
    world: World, step_id: int, *, name: str = "first", key: bytes | None = None, version: int | None = None
) -> Transition:
    """A step of run-1 with one of everything, so that a trace of it would be seen; `name` tells callers apart."""
    return world.step(
        "run-1",
        step_id,
        key=key,
        version=version,
        patch=name.encode(),
        snapshot=b"snapshot by %b" % name.encode(),
        journal=[world.journal_row("run-1", "x"), world.journal_row("run-1", "y", "failed", 1)],
        events=[world.event("run-1", step_id + 1, type=name)],
        consumed=["command"],
    )


@pytest.fixture
def begun(world: World) -> World:
    """The world with run-1 at step 0, and a command that waits for an answer."""
    world.submit("run-1")
    assert world.commit(world.step("run-1", 0)) == [Committed()]
    world.send("run-1", "command")
    return world


def test_a_step_is_stored_with_all_that_belongs_to_it(begun: World) -> None:
    # given a step with one of everything
    step = full_step(begun, 1)

    # when it is committed
    [outcome] = begun.commit(step)

    # then all of it is there
    assert outcome == Committed()
    seen = begun.dump("run-1")
    assert step.step is not None
    assert (seen["steps"][1].patch, seen["steps"][1].frontier) == (step.step.patch, step.step.frontier)
    assert (seen["steps"][1].idempotency_key, seen["steps"][1].state_hash) == (step.step.idempotency_key, step.step.state_hash)
    assert seen["snapshots"][1] == (b"snapshot by first", [])
    assert seen["journal"] == sorted(step.journal, key=lambda row: row.path)
    assert seen["events"] == list(step.events)
    assert begun.commands() == []
    # and the row has moved, and nothing else of it changed
    before, row = begun.submit("run-1")[0], begun.run("run-1")
    assert (row.status, row.step_id, row.version, row.state_hash) == (RUNNING, 1, 2, b"h" * 32)
    assert row == before


def test_an_update_changes_what_it_names(begun: World) -> None:
    # when a run fails, which is no step
    [outcome] = begun.commit(
        begun.moved("run-1", 0, FAILED, version=1, error=b'{"type":"E"}', state_hash=b"s" * 32, options=b'{"n":1}', retries=3)
    )

    # then its row says so, and the steps are as they were
    assert outcome == Committed()
    row = begun.run("run-1")
    assert (row.status, row.step_id, row.version, row.error, row.retries) == (FAILED, 0, 2, b'{"type":"E"}', 3)
    assert (row.state_hash, row.options, row.input) == (b"s" * 32, b'{"n":1}', b"{}")
    assert [step.step_id for step in begun.a.steps("run-1", 0, 9)] == [0]


def test_the_same_commit_again_is_already_committed(begun: World) -> None:
    # given a step whose caller never heard that it was committed
    step = full_step(begun, 1)
    begun.commit(step)
    seen = begun.dump("run-1")

    # when it commits the step again, and another coordinator that computed the same does so too
    outcomes = begun.commit(step) + begun.commit(step, lease="B")

    # then both learn that it is stored, and it is stored once
    assert outcomes == [AlreadyCommitted(), AlreadyCommitted()]
    assert begun.dump("run-1") == seen


def test_a_commit_that_comes_late_is_already_committed(begun: World) -> None:
    # given a run that has gone on
    step = full_step(begun, 1)
    begun.commit(step)
    begun.commit(begun.step("run-1", 2))
    begun.commit(begun.step("run-1", 3, SUCCEEDED))
    seen = begun.dump("run-1")

    # when an old step arrives once more
    outcomes = begun.commit(step)

    # then it changes nothing
    assert outcomes == [AlreadyCommitted()]
    assert begun.dump("run-1") == seen


def test_the_key_of_a_step_tells_whether_it_is_stored_even_from_another_version(begun: World) -> None:
    begun.commit(full_step(begun, 1))
    seen = begun.dump("run-1")

    # when the same step comes on top of the version that it made
    outcomes = begun.commit(full_step(begun, 1, name="second", version=2))

    assert outcomes == [AlreadyCommitted()]
    assert begun.dump("run-1") == seen


@pytest.mark.parametrize("version", [1, 2], ids=["stale version", "current version"])
def test_another_commit_of_a_step_that_is_stored_is_superseded(begun: World, version: int) -> None:
    # given a step
    begun.commit(begun.step("run-1", 1))
    seen = begun.dump("run-1")

    # when somebody computed another one in its place
    outcomes = begun.commit(full_step(begun, 1, name="second", key=begun.key("other"), version=version), lease="B")

    # then nothing of the other is stored: no journal, no event, no snapshot, and its command waits
    assert outcomes == [Superseded()]
    assert begun.dump("run-1") == seen
    assert begun.commands() == ["command"]


@pytest.mark.parametrize("version", [0, 2, 99], ids=["stale", "next", "far"])
def test_a_step_on_top_of_another_version_is_superseded(begun: World, version: int) -> None:
    seen = begun.dump("run-1")

    outcomes = begun.commit(full_step(begun, 1, version=version))

    assert outcomes == [Superseded()]
    assert begun.dump("run-1") == seen
    assert begun.commands() == ["command"]


def test_an_update_on_top_of_another_version_is_superseded(begun: World) -> None:
    seen = begun.dump("run-1")

    # when a coordinator that has not seen step 0 ends the run
    outcomes = begun.commit(begun.moved("run-1", -1, FAILED, version=0))

    assert outcomes == [Superseded()]
    assert begun.dump("run-1") == seen


def test_a_key_is_stored_once(begun: World) -> None:
    # given a step, and the next one under the same key, which no correct caller computes
    begun.commit(begun.step("run-1", 1, key=begun.key("twice")))
    seen = begun.dump("run-1")

    outcomes = begun.commit(full_step(begun, 2, key=begun.key("twice")))

    # then it is refused, and not taken for the step that is stored
    assert outcomes == [Superseded()]
    assert begun.dump("run-1") == seen


def test_a_key_is_stored_once_among_all_runs(begun: World) -> None:
    begun.submit("run-2")
    seen = begun.dump("run-2")

    outcomes = begun.commit(begun.step("run-2", 0, key=begun.key("run-1", 0)))

    assert outcomes == [Superseded()]
    assert begun.dump("run-2") == seen


def test_a_step_with_a_journal_row_that_is_stored_is_superseded_whole(begun: World) -> None:
    # given a result that was journalled while its step waited
    begun.commit(Transition(run_id="run-1", journal=[begun.journal_row("run-1", "y", "failed", 1, payload=b"stored")]))
    seen = begun.dump("run-1")

    # when a step brings another row under its key
    outcomes = begun.commit(full_step(begun, 1))

    # then neither the step nor its other rows are stored
    assert outcomes == [Superseded()]
    assert begun.dump("run-1") == seen
    assert begun.commands() == ["command"]


@pytest.mark.parametrize("step_id", [0, 5])
def test_a_transition_of_a_run_that_is_not_there_is_superseded(world: World, step_id: int) -> None:
    missing = world.step(
        "nowhere", step_id, journal=[world.journal_row("nowhere", "x")], events=[world.event("nowhere", 1)], snapshot=b"{}"
    )

    assert world.commit(missing) == [Superseded()]
    assert world.dump("nowhere") == {"run": [], "steps": [], "snapshots": [], "journal": [], "events": []}
    assert world.b.snapshot("nowhere", step_id) == (b"{}", [])


def test_a_commit_that_conflicts_leaves_nothing_behind_for_the_next(world: World) -> None:
    # given a handle on which things were committed and rolled back before its first commit, and a first commit that conflicts
    for run_id in ("run-1", "run-2"):
        world.submit(run_id)
        with pytest.raises(RunNotFoundError):
            world.a.send(Command(run_id="nowhere", command_id="command", kind="cancel"))
    assert world.commit(world.step("run-1", 0, version=9)) == [Superseded()]

    # when others follow
    outcomes = [world.commit(world.step("run-1", 0)), world.commit(world.step("run-2", 0), world.step("run-1", 1))]

    # then what was prepared for the first is not missing
    assert outcomes == [[Committed()], [Committed(), Committed()]]


def test_no_transition_is_no_outcome(world: World) -> None:
    assert world.commit() == []


# The journal by itself, while a step waits for its other items.


def test_a_journal_may_come_alone(begun: World) -> None:
    # given a run
    row = begun.run("run-1")

    # when results are journalled one by one
    x, y = begun.journal_row("run-1", "x"), begun.journal_row("run-1", "y", "failed", 1)
    outcomes = begun.commit(Transition(run_id="run-1", journal=[x])) + begun.commit(Transition(run_id="run-1", journal=[y]))

    # then they are stored, and the run has not moved
    assert outcomes == [Committed(), Committed()]
    assert begun.dump("run-1")["journal"] == sorted([x, y], key=lambda row: row.path)
    assert begun.run("run-1") == row
    # and the step that follows still fits
    assert begun.commit(begun.step("run-1", 1)) == [Committed()]


def test_a_journal_row_is_stored_once(begun: World) -> None:
    # given the journalled result of an item
    begun.commit(Transition(run_id="run-1", journal=[begun.journal_row("run-1", "x", payload=b"first")]))
    seen = begun.dump("run-1")

    # when another one comes, along with the result of a second item
    second = [begun.journal_row("run-1", "y"), begun.journal_row("run-1", "x", payload=b"second")]
    outcomes = begun.commit(Transition(run_id="run-1", journal=second, consumed=["command"]))

    # then the first stays, and nothing of the second transition is stored
    assert outcomes == [Superseded()]
    assert begun.dump("run-1") == seen
    assert begun.commands() == ["command"]


def test_journal_rows_differ_by_run_path_kind_and_n(begun: World) -> None:
    # given rows that each differ from the first in one part of the key
    begun.submit("run-2")
    rows = [
        begun.journal_row("run-1", "x", "failed", 1),
        begun.journal_row("run-1", "x", "failed", 2),
        begun.journal_row("run-1", "x", "done", 1),
        begun.journal_row("run-1", "y", "failed", 1),
    ]
    other = begun.journal_row("run-2", "x", "failed", 1)

    # when they are committed one after the other
    outcomes = [begun.commit(Transition(run_id=row.run_id, journal=[row]))[0] for row in [*rows, other]]

    # then none is in the way of another
    assert outcomes == [Committed()] * 5
    assert len(begun.dump("run-1")["journal"]) == 4
    assert begun.dump("run-2")["journal"] == [other]


def test_a_command_may_be_answered_by_nothing_else(begun: World) -> None:
    row = begun.run("run-1")

    assert begun.commit(Transition(run_id="run-1", consumed=["command"])) == [Committed()]

    assert begun.commands() == []
    assert begun.run("run-1") == row


# Two coordinators, both of which believe that the run is theirs.


@pytest.mark.parametrize("same", [True, False], ids=["same key", "other key"])
def test_two_leases_that_race_for_a_step_store_it_once(world: World, same: bool) -> None:
    # given a run, and two coordinators that move it step by step, each with a journal and an event of its own
    world.submit("run-1")
    loser = AlreadyCommitted() if same else Superseded()
    for step_id in range(25):
        race = [
            world.step(
                "run-1",
                step_id,
                key=None if same else world.key(step_id, lease),
                patch=lease.encode(),
                journal=[world.journal_row("run-1", f"{step_id}", payload=lease.encode())],
                events=[world.event("run-1", step_id + 1, type=lease)],
            )
            for lease in "AB"
        ]

        # when both commit the same step at the same moment
        by_a, by_b = world.together(partial(world.commit, race[0]), partial(world.commit, race[1], lease="B"))

        # then one of them has moved it
        outcomes = by_a + by_b
        assert sorted(outcomes, key=repr) == sorted([Committed(), loser], key=repr)
        winner = "AB"[outcomes.index(Committed())].encode()
        [step] = world.a.steps("run-1", step_id, step_id)
        [journalled] = world.a.journal("run-1", [world.key(f"{step_id}")])
        [event] = world.a.events("run-1", after_sequence=step_id)
        assert (step.patch, journalled.payload, event.type.encode()) == (winner, winner, winner)
    assert [step.step_id for step in world.a.steps("run-1", 0, 99)] == list(range(25))
    assert world.run("run-1").version == 25


def test_the_first_of_two_that_race_to_journal_a_result_wins(begun: World) -> None:
    rows = {lease: begun.journal_row("run-1", "x", payload=lease.encode()) for lease in "AB"}

    outcomes = begun.together(
        lambda: begun.commit(Transition(run_id="run-1", journal=[rows["A"]]))[0],
        lambda: begun.commit(Transition(run_id="run-1", journal=[rows["B"]]), lease="B")[0],
    )

    assert sorted(outcomes, key=repr) == [Committed(), Superseded()]
    assert begun.dump("run-1")["journal"] == [rows["AB"[outcomes.index(Committed())]]]
