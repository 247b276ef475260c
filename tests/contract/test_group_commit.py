"""The group commit: one transaction for many runs, in which a run that conflicts or is refused fails alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lockstep.core.lifecycle import RunStatus
from lockstep.errors import LockstepError
from lockstep.records import AlreadyCommitted, Committed, Refused, Superseded, Transition

if TYPE_CHECKING:
    from conftest import World

NAMES = [f"run-{n:03}" for n in range(200)]


@pytest.fixture
def group(world: World) -> list[Transition]:
    """The first step of 200 runs, each with a journal row, an event and an answer to a command."""
    world.submit(*NAMES)
    for name in NAMES[::10]:
        world.send(name, f"command-{name}")
    return [
        world.step(
            name,
            0,
            journal=[world.journal_row(name, "x")],
            events=[world.event(name, 1)],
            consumed=[f"command-{name}"] if name in NAMES[::10] else (),
        )
        for name in NAMES
    ]


def moved(world: World) -> set[str]:
    """The runs of the group that have moved. What else there is of a run says the same; that is looked at for some of them."""
    rows = {row.run_id: row for row in world.a.find_runs(limit=1000)}
    pending, unanswered = set(world.pending()), set(world.commands())
    found = {name for name in NAMES if rows[name].version == 1}
    for name in NAMES:
        assert rows[name].status is (RunStatus.RUNNING if name in found else RunStatus.PENDING)
        assert (name in pending) is (name not in found)
        assert (f"command-{name}" in unanswered) is (name not in found and name in NAMES[::10])
    for name in {*NAMES[::10], *sorted(set(NAMES) - found)[:10]}:
        assert len(world.a.steps(name, 0, 9)) == (name in found)
        assert len(world.a.journal(name, [world.key("x")])) == (name in found)
        assert len(world.a.events(name)) == (name in found)
    return found


def test_a_group_is_committed_together(world: World, group: list[Transition]) -> None:
    assert world.commit(*group) == [Committed()] * 200
    assert moved(world) == set(NAMES)


@pytest.mark.parametrize("culprit", [0, 77, 100, 199])
def test_one_run_that_conflicts_fails_alone(world: World, group: list[Transition], culprit: int) -> None:
    # given a step that was computed on top of a version that the run does not have
    group[culprit] = world.step(
        NAMES[culprit], 0, version=5, journal=[world.journal_row(NAMES[culprit], "x")], events=[world.event(NAMES[culprit], 1)]
    )

    # when the group is committed
    outcomes = world.commit(*group)

    # then the others are stored, whole
    assert [n for n, outcome in enumerate(outcomes) if outcome != Committed()] == [culprit]
    assert outcomes[culprit] == Superseded()
    assert moved(world) == set(NAMES) - {NAMES[culprit]}


def test_each_run_of_a_group_has_an_outcome_of_its_own(world: World, group: list[Transition]) -> None:
    # given a run that was moved by somebody else, one that was moved by this very step, and one that is not there
    world.commit(world.step(NAMES[3], 0, key=world.key("other")), lease="B")
    world.commit(group[120])
    group.insert(150, world.step("nowhere", 0))

    # when the group is committed
    outcomes = world.commit(*group)

    # then each outcome stands in its run's place
    expected = {3: Superseded(), 120: AlreadyCommitted(), 150: Superseded()}
    assert outcomes == [expected.get(n, Committed()) for n in range(201)]
    # and the run that was moved by somebody else has what they made
    assert world.a.steps(NAMES[3], 0, 9)[0].idempotency_key == world.key("other")
    assert world.a.journal(NAMES[3], [world.key("x")]) == []
    assert world.dump("nowhere")["steps"] == []


def test_a_group_in_which_all_conflict_stores_nothing(world: World, group: list[Transition]) -> None:
    stale = [world.step(name, 0, version=1, journal=[world.journal_row(name, "x")]) for name in NAMES]

    assert world.commit(*stale) == [Superseded()] * 200
    assert moved(world) == set()
    # and the lease goes on
    assert world.commit(*group) == [Committed()] * 200


@pytest.mark.usefixtures("sql_adapter")  # The reference model keeps any Python value.
@pytest.mark.parametrize("culprit", [0, 77, 199])
@pytest.mark.parametrize("refused", ["a step_id out of range", "text that has no encoding"])
def test_one_run_that_the_database_refuses_fails_alone(
    world: World, group: list[Transition], culprit: int, refused: str
) -> None:
    # given a value that no column takes
    name = NAMES[culprit]
    group[culprit] = (
        world.step(name, 2**63, version=0, journal=[world.journal_row(name, "x")])
        if refused == "a step_id out of range"
        else world.step(name, 0, journal=[world.journal_row(name, "x")], events=[world.event(name, 1, type="\ud800")])
    )

    # when the group is committed
    outcomes = world.commit(*group)

    # then the others are stored, and the error names the run
    assert [n for n, outcome in enumerate(outcomes) if outcome != Committed()] == [culprit]
    outcome = outcomes[culprit]
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, LockstepError)
    assert outcome.error.run_id == name
    assert moved(world) == set(NAMES) - {name}
    # and the run can still be ended
    assert world.commit(world.moved(name, -1, RunStatus.FAILED, version=0)) == [Committed()]


def test_journals_of_runs_that_wait_and_steps_of_runs_that_move_go_together(world: World, group: list[Transition]) -> None:
    # given a group of both kinds
    waiting = [Transition(run_id=name, journal=[world.journal_row(name, "x")]) for name in NAMES[:100]]

    # when it is committed
    outcomes = world.commit(*waiting, *group[100:])

    # then all is stored
    assert outcomes == [Committed()] * 200
    assert [row.version for row in world.a.find_runs(limit=1000)] == [0] * 100 + [1] * 100
    assert all(len(world.a.journal(name, [world.key("x")])) == 1 for name in NAMES)


def test_groups_that_race_for_the_same_runs_move_each_run_once(world: World) -> None:
    # given two coordinators that computed other steps for the same runs, in other orders
    world.submit(*NAMES)
    groups = {
        lease: [world.step(name, 0, key=world.key(name, lease), patch=lease.encode()) for name in NAMES] for lease in "AB"
    }
    groups["B"].reverse()

    # when they commit in small groups at the same time
    def commit_all(lease: str) -> dict[str, bool]:
        mine = groups[lease]
        outcomes = [
            outcome for start in range(0, len(mine), 8) for outcome in world.commit(*mine[start : start + 8], lease=lease)
        ]
        assert set(map(type, outcomes)) <= {Committed, Superseded}
        return {step.run_id: outcome == Committed() for step, outcome in zip(mine, outcomes, strict=True)}

    by_a, by_b = world.together(lambda: commit_all("A"), lambda: commit_all("B"))

    # then each run was moved by one of them, and has what that one made
    assert all(by_a[name] != by_b[name] for name in NAMES)
    assert all(world.a.steps(name, 0, 9)[0].patch == (b"A" if by_a[name] else b"B") for name in NAMES)
