"""Taking over the runs of those who have ended; and that these write nothing afterwards."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.records import Committed, Superseded, Transition

if TYPE_CHECKING:
    from conftest import World

HOUR = 3600.0
SUCCEEDED, FAILED, CANCELLED = RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED


@pytest.fixture
def begun(world: World) -> World:
    """The world in which A has run-1 at step 0, run-2 not begun and run-3 finished; B has run-4."""
    world.submit("run-1", "run-2", "run-3")
    world.submit("run-4", partition_id="B")
    world.commit(world.step("run-1", 0), world.step("run-3", 0, SUCCEEDED))
    return world


def test_a_lease_that_lives_is_not_touched(begun: World) -> None:
    rows = begun.a.find_runs()

    assert begun.adopt() == []
    assert begun.adopt(run_ids=["run-1", "run-2", "run-3"]) == []
    assert begun.adopt(dead=["holder-x"]) == []

    assert begun.a.find_runs() == rows
    assert begun.pending() == ["run-2"]
    assert begun.commit(begun.step("run-1", 1)) == [Committed()]
    assert begun.a.renew_lease("A", HOUR)


@pytest.mark.parametrize("how", ["closed", "past its time", "holder died"])
def test_the_unfinished_runs_of_a_lease_that_ended_are_adopted(begun: World, how: str) -> None:
    # given a lease that has ended
    before = {row.run_id: row for row in begun.a.find_runs()}
    if how == "closed":
        begun.a.close_lease("A")
    elif how == "past its time":
        begun.expire("A")

    # when B takes over
    adopted = begun.adopt(dead=["holder-a"] if how == "holder died" else [])

    # then the runs that were not finished are B's
    assert adopted == ["run-1", "run-2"]
    after = {row.run_id: row for row in begun.a.find_runs()}
    assert {run_id: row.partition_id for run_id, row in after.items()} == {
        "run-1": "B",
        "run-2": "B",
        "run-3": "A",
        "run-4": "B",
    }
    # and have not moved otherwise
    assert all((after[run_id].version, after[run_id].status) == (row.version, row.status) for run_id, row in before.items())
    # and B goes on with them, those included that were never begun
    assert begun.pending("B") == ["run-2", "run-4"]
    assert begun.commit(begun.step("run-1", 1), begun.step("run-2", 0), lease="B") == [Committed(), Committed()]
    # and there is nothing left to take
    assert begun.adopt() == []


@pytest.mark.parametrize("how", ["past its time", "holder died"])
def test_adoption_fences_the_old_owner(begun: World, how: str) -> None:
    # given an owner that only seemed dead, with a step that it is about to commit
    late = begun.step("run-1", 1, journal=[begun.journal_row("run-1", "x")], events=[begun.event("run-1", 2)])
    if how == "past its time":
        begun.expire("A")
    begun.adopt(dead=["holder-a"] if how == "holder died" else [])
    seen = begun.dump("run-1")

    # when it comes back
    outcomes = begun.commit(late, begun.step("run-2", 0), Transition(run_id="run-1", journal=[begun.journal_row("run-1", "y")]))

    # then nothing of its is written
    assert outcomes == [Superseded()] * 3
    assert begun.dump("run-1") == seen
    assert begun.dump("run-2")["steps"] == []
    assert not begun.a.renew_lease("A", HOUR)
    assert begun.commit(late, lease="B") == [Committed()]


def test_runs_of_other_graphs_stay_for_those_who_have_them(begun: World) -> None:
    # given runs of two more graphs
    begun.submit("run-5", graph_hash="hash-2")
    begun.submit("run-6", graph_hash="hash-3")
    begun.a.close_lease("A")

    # when B, which has two of three graphs, takes over
    assert begun.adopt(graph_hashes=["hash-2", "hash-1"]) == ["run-1", "run-2", "run-5"]

    # then the third graph's run stays as it was, even if it is asked for by name
    assert begun.adopt(graph_hashes=[]) == []
    assert begun.adopt(graph_hashes=["hash-1"], run_ids=["run-6"]) == []
    assert begun.run("run-6").partition_id == "A"
    # and waits for somebody who has it
    begun.a.open_lease("C", "holder-c", HOUR)
    assert begun.adopt("C", graph_hashes=["hash-3"]) == ["run-6"]


def test_runs_asked_for_by_id_are_adopted_in_whatever_status(begun: World) -> None:
    begun.submit("run-0", "run-5", "run-6")
    begun.commit(begun.step("run-5", 0), begun.moved("run-5", 0, FAILED, version=1))
    begun.commit(begun.moved("run-6", -1, CANCELLED, version=0))
    begun.a.close_lease("A")

    # when B asks for some, one of which is not there, and one of which it has
    adopted = begun.adopt(run_ids=["run-6", "run-5", "run-3", "run-1", "run-4", "nowhere", "run-1"])

    # then those are its own, ascending, and the others wait
    assert adopted == ["run-1", "run-3", "run-5", "run-6"]
    assert [row.run_id for row in begun.a.find_runs() if row.partition_id == "A"] == ["run-0", "run-2"]
    assert begun.adopt(run_ids=[]) == []
    assert begun.adopt() == ["run-0", "run-2"]


def test_many_runs_are_adopted_at_once(world: World) -> None:
    # given more runs than one statement can name
    names = [f"run-{n:04}" for n in range(1200)]
    world.submit(*reversed(names))
    world.a.close_lease("A")

    assert world.adopt(run_ids=names[::-2]) == names[1::2]
    assert world.adopt() == names[::2]
    assert world.pending("B") == names


def test_a_run_submitted_for_an_owner_that_has_gone_is_adopted(world: World) -> None:
    world.a.close_lease("A")
    world.submit("run-1")

    assert world.adopt() == ["run-1"]
    assert world.pending("B") == ["run-1"]


def test_who_adopts_does_not_end_itself(begun: World) -> None:
    # given an adopter whose own lease is past its time, and whose holder looks dead
    begun.expire("B")
    begun.a.close_lease("A")

    # when it takes over
    assert begun.adopt(dead=["holder-b"]) == ["run-1", "run-2"]

    # then it still has its lease
    assert begun.commit(begun.step("run-1", 1), lease="B") == [Committed()]


def test_all_leases_of_a_dead_holder_end_and_no_others(world: World) -> None:
    # given holders with one or two leases
    for lease, holder in [("C", "holder-a"), ("D", "holder-d")]:
        world.a.open_lease(lease, holder, HOUR)
    for lease in "ABCD":
        world.submit(f"run-{lease}", partition_id=lease)

    assert world.adopt("B", dead=["holder-a"]) == ["run-A", "run-C"]

    assert [world.a.renew_lease(lease, HOUR) for lease in "ABCD"] == [False, True, False, True]


def test_a_run_is_handed_on_from_owner_to_owner(begun: World) -> None:
    begun.expire("A")
    assert begun.adopt("B") == ["run-1", "run-2"]

    # when B ends in its turn
    begun.b.close_lease("B")
    begun.a.open_lease("C", "holder-c", HOUR)

    # then C has all that B had
    assert begun.adopt("C") == ["run-1", "run-2", "run-4"]
    assert begun.commit(begun.step("run-1", 1), lease="C") == [Committed()]


def test_an_adoption_that_fails_changes_nothing(begun: World) -> None:
    # given a way to tell the dead that breaks when it comes to the last of three leases
    begun.a.open_lease("C", "holder-c", HOUR)

    def is_dead(holder: str) -> bool:
        if holder == "holder-c":
            raise OSError("no answer")
        return holder == "holder-a"

    # when B adopts
    with pytest.raises(OSError, match="no answer"):
        begun.b.adopt("B", ["hash-1"], None, is_dead)

    # then A, which is dead, is not ended by half an adoption
    assert begun.run("run-1").partition_id == "A"
    assert begun.commit(begun.step("run-1", 1)) == [Committed()]


# What counts as unfinished.


@pytest.mark.parametrize("status", list(RunStatus))
def test_a_run_is_adopted_unless_it_is_finished(world: World, status: RunStatus) -> None:
    # given a run in this status
    world.submit("run-1")
    if status is not RunStatus.PENDING:
        assert world.commit(world.step("run-1", 0)) == [Committed()]
        assert world.commit(world.step("run-1", 1, status)) == [Committed()]

    # when its owner ends
    world.a.close_lease("A")

    # then somebody has to care for it, or not
    assert world.adopt() == ([] if status in FINISHED else ["run-1"])


@pytest.mark.parametrize("step_id", [-1, 0, 3])
def test_a_run_that_was_revived_is_adopted_again(world: World, step_id: int) -> None:
    # given a run that failed after some steps, or before its first
    world.submit("run-1")
    steps = [world.step("run-1", n) for n in range(step_id + 1)]
    assert set(world.commit(*steps, world.moved("run-1", step_id, FAILED, version=step_id + 1))) == {Committed()}

    # when its owner revives it, and ends
    revival = world.moved("run-1", step_id, RunStatus.RUNNING, version=step_id + 2, retries=1, revives=True)
    assert world.commit(revival) == [Committed()]
    world.a.close_lease("A")

    # then it is taken over, as a run that was begun
    assert world.adopt() == ["run-1"]
    assert world.pending("B") == []
    # and finished in the end
    assert world.commit(world.step("run-1", step_id + 1, SUCCEEDED, version=step_id + 3), lease="B") == [Committed()]
    world.b.close_lease("B")
    world.a.open_lease("C", "holder-c", HOUR)
    assert world.adopt("C") == []


def test_a_run_may_fail_and_be_revived_time_and_again(world: World) -> None:
    world.submit("run-1")
    world.commit(world.step("run-1", 0))
    for n in range(5):
        assert world.commit(world.moved("run-1", 0, FAILED, version=1 + 2 * n, retries=n)) == [Committed()]
        revival = world.moved("run-1", 0, RunStatus.RUNNING, version=2 + 2 * n, retries=n + 1, revives=True)
        assert world.commit(revival) == [Committed()]

    assert (world.run("run-1").retries, world.run("run-1").version) == (5, 11)
    world.a.close_lease("A")
    assert world.adopt() == ["run-1"]


def test_a_revival_comes_from_the_new_owner_too(begun: World) -> None:
    # given a failed run whose owner has gone, and that B has taken over by its id
    begun.commit(begun.moved("run-1", 0, FAILED, version=1))
    begun.a.close_lease("A")
    assert begun.adopt(run_ids=["run-1"]) == ["run-1"]

    # when B revives it, and ends
    revival = begun.moved("run-1", 0, RunStatus.RUNNING, version=2, retries=1, revives=True)
    assert begun.commit(revival, lease="B") == [Committed()]
    begun.b.close_lease("B")
    begun.a.open_lease("C", "holder-c", HOUR)

    # then it is B's runs that are taken over, this one among them
    assert begun.adopt("C") == ["run-1", "run-2", "run-4"]


# Races.


@pytest.mark.parametrize("how", ["closed", "past its time"])
def test_of_adopters_that_race_each_run_has_one_new_owner(world: World, how: str) -> None:
    names = [f"run-{n:02}" for n in range(40)]
    world.submit(*names)
    leases = [f"adopter-{n}" for n in range(6)]
    for lease in leases:
        world.b.open_lease(lease, "holder-b", HOUR)
    if how == "closed":
        world.a.close_lease("A")
    else:
        world.expire("A")

    # when six coordinators take over at the same moment
    adopted = world.together(
        *[
            lambda lease=lease, handle=handle: handle.adopt(lease, ["hash-1"], None, lambda _: False)
            for lease, handle in zip(leases, [world.a, world.b] * 3, strict=True)
        ]
    )

    # then no run went to two of them, and none to nobody
    assert sorted(run_id for some in adopted for run_id in some) == names
    owners = {run_id: lease for lease, some in zip(leases, adopted, strict=True) for run_id in some}
    assert {row.run_id: row.partition_id for row in world.a.find_runs()} == owners


def test_an_adoption_amid_commits_cuts_between_two_of_them(world: World) -> None:
    # given an owner that commits step after step, until it is told to stop
    world.submit("run-1")
    under_way = threading.Event()

    def go_on() -> int:
        for step_id in range(10_000):
            outcome = world.commit(world.step("run-1", step_id, journal=[world.journal_row("run-1", f"{step_id}")]))
            if outcome != [Committed()]:
                assert outcome == [Superseded()]
                return step_id
            if step_id == 20:
                under_way.set()
        raise AssertionError("the adoption never took the lease away")

    def take_over() -> int:
        assert under_way.wait(timeout=60)
        assert world.adopt(dead=["holder-a"]) == ["run-1"]
        return world.run("run-1").step_id

    # when somebody else takes the run over meanwhile
    lost_at, found_at = world.together(go_on, take_over)

    # then what the adopter found is all that was ever committed, and it goes on from there
    assert found_at == lost_at - 1
    assert [step.step_id for step in world.a.steps("run-1", 0, 10_000)] == list(range(lost_at))
    assert world.a.journal("run-1", [world.key(f"{lost_at}")]) == []
    assert world.commit(world.step("run-1", lost_at), lease="B") == [Committed()]


def test_a_run_that_has_another_version_now_is_found_by_it(world: World) -> None:
    # given two runs, one of which goes over to another version
    world.submit("run-1", "run-2")
    for run_id in ("run-1", "run-2"):
        assert world.commit(world.step(run_id, 0)) == [Committed()]
    step = world.step("run-1", 1)
    assert step.update is not None
    migrated = replace(step, update=replace(step.update, graph_hash="hash-2"))
    assert world.commit(migrated, world.step("run-2", 1)) == [Committed()] * 2
    assert [row.graph_hash for row in world.b.find_runs(run_ids=["run-1", "run-2"])] == ["hash-2", "hash-1"]
    # when its owner dies, then who has that version takes it over
    assert world.adopt("B", graph_hashes=["hash-2"], dead=["holder-a"]) == ["run-1"]
    assert {version.graph_hash: version.unfinished for version in world.b.versions()} == {"hash-1": 1, "hash-2": 1}
