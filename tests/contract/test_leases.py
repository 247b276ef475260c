"""Leases: the right to write. Who does not hold one writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lockstep.core.lifecycle import RunStatus
from lockstep.records import Committed, Superseded, Transition

if TYPE_CHECKING:
    from conftest import World

HOUR = 3600.0


@pytest.fixture
def begun(world: World) -> World:
    """The world with run-1, which is A's, at step 0."""
    world.submit("run-1")
    world.commit(world.step("run-1", 0))
    return world


def take_away(world: World, how: str) -> None:
    """End A's lease in one of the ways that there are; its run is nobody's."""
    match how:
        case "closed":
            world.a.close_lease("A")
        case "closed by another handle":
            world.b.close_lease("A")
        case "expired and taken":
            world.expire("A")
            world.adopt(graph_hashes=[])
        case "holder died":
            world.adopt(graph_hashes=[], dead=["holder-a"])


WAYS = ["closed", "closed by another handle", "expired and taken", "holder died"]


@pytest.mark.parametrize("how", WAYS)
def test_who_has_lost_the_lease_writes_nothing(begun: World, how: str) -> None:
    # given a coordinator whose lease has ended
    begun.send("run-1", "command")
    seen = begun.dump("run-1")
    take_away(begun, how)

    # when it commits a group of all kinds
    outcomes = begun.commit(
        begun.step("run-1", 1, journal=[begun.journal_row("run-1", "x")], events=[begun.event("run-1", 2)]),
        Transition(run_id="run-1", journal=[begun.journal_row("run-1", "y")]),
        Transition(run_id="run-1", consumed=["command"]),
    )

    # then all of it is superseded, and nothing is written
    assert outcomes == [Superseded()] * 3
    assert begun.dump("run-1") == seen
    begun.adopt()
    assert begun.commands("B") == ["command"]


@pytest.mark.parametrize("how", WAYS)
def test_a_commit_that_was_stored_before_the_lease_was_lost_stays(begun: World, how: str) -> None:
    take_away(begun, how)

    assert begun.run("run-1").step_id == 0
    assert begun.commit(begun.step("run-1", 1), lease="B") == [Committed()]


@pytest.mark.parametrize("how", WAYS)
def test_a_lease_that_was_taken_away_cannot_be_renewed(begun: World, how: str) -> None:
    assert begun.a.renew_lease("A", HOUR)

    take_away(begun, how)

    assert not begun.a.renew_lease("A", HOUR)
    assert begun.commit(begun.step("run-1", 1)) == [Superseded()]


def test_a_lease_that_was_never_opened_gives_no_right(begun: World) -> None:
    seen = begun.dump("run-1")

    assert not begun.a.renew_lease("never", HOUR)
    assert begun.commit(begun.step("run-1", 1), lease="never") == [Superseded()]
    assert begun.commit(lease="never") == []
    assert begun.dump("run-1") == seen


def test_a_lease_past_its_time_holds_until_somebody_takes_it(begun: World) -> None:
    # given a lease that ran out while its holder was busy, and that nobody has claimed
    begun.expire("A")

    # when the holder commits
    assert begun.commit(begun.step("run-1", 1)) == [Committed()]

    # then that has renewed it
    assert begun.adopt() == []
    assert begun.commit(begun.step("run-1", 2)) == [Committed()]


def test_every_commit_renews_the_lease_even_one_that_conflicts(begun: World) -> None:
    for transitions in ([], [Transition(run_id="run-1", journal=[begun.journal_row("run-1", "x")])]):
        begun.expire("A")
        begun.commit(*transitions)
        assert begun.adopt() == []


def test_a_lease_past_its_time_can_be_renewed_until_somebody_takes_it(begun: World) -> None:
    begun.expire("A")

    assert begun.a.renew_lease("A", HOUR)

    assert begun.adopt() == []
    assert begun.commit(begun.step("run-1", 1)) == [Committed()]


def test_a_renewal_never_shortens_a_lease(begun: World) -> None:
    # given a lease with an hour left, when it is renewed for less than nothing, so that a shorter time would show at once
    assert begun.a.renew_lease("A", -HOUR)

    # then the hour counts
    assert begun.adopt() == []


def test_a_commit_over_another_handle_does_not_shorten_the_lease(begun: World) -> None:
    # given a handle that did not open the lease, so cannot know its length
    [outcome] = begun.b.commit("A", [begun.step("run-1", 1)])

    # then the time left is what it was
    assert outcome == Committed()
    assert begun.b.renew_lease("A", -HOUR)
    assert begun.adopt() == []


def test_closing_a_lease_is_idempotent_and_concerns_no_other(begun: World) -> None:
    begun.a.close_lease("A")
    begun.a.close_lease("A")
    begun.a.close_lease("never")

    assert begun.b.renew_lease("B", HOUR)
    assert begun.commit(begun.step("run-1", 1), lease="B") == [Committed()]


def test_the_runs_of_a_closed_lease_wait_unchanged(begun: World) -> None:
    row = begun.run("run-1")

    begun.a.close_lease("A")

    assert begun.run("run-1") == row
    assert begun.adopt() == ["run-1"]


def test_many_leases_are_open_at_a_time_over_one_handle(world: World) -> None:
    # given more coordinators on a handle than a pool usually has connections
    leases = [f"lease-{n}" for n in range(40)]
    for lease in leases:
        world.a.open_lease(lease, "holder-a", HOUR)
        world.submit(f"run-{lease}", partition_id=lease)

    # when each of them commits, and all stay open
    outcomes = [world.commit(world.step(f"run-{lease}", 0, RunStatus.SUCCEEDED), lease=lease) for lease in leases]

    # then none is in the way of another
    assert outcomes == [[Committed()]] * 40
    # and closing one leaves the others alone
    world.a.close_lease(leases[0])
    assert [world.a.renew_lease(lease, HOUR) for lease in leases] == [False] + [True] * 39
