"""A sample of the simulated schedules, and that planted bugs are found: `python -m tests.simulation` does more of both."""

from __future__ import annotations

import pytest
from tests.simulation.bugs import BUGS
from tests.simulation.schedule import Quiet, execute, schedule_of, shrunk
from tests.simulation.world import World

SCHEDULES, PARTS = 3000, 4
ENOUGH_SCHEDULES = 1000
"""A planted bug is found by then."""
FOUND = [237095]
"""Schedules that once broke a promise: a failure was counted twice, of two copies of an item with the same number."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_of_faults_breaks_a_promise(part: int) -> None:
    with Quiet():
        for seed in range(part, SCHEDULES, PARTS):
            runs, events = schedule_of(seed)
            what = execute(runs, events)
            assert what is None, f"seed {seed}, {runs} runs: {what}, already with {shrunk(runs, events)}"


@pytest.mark.parametrize("seed", FOUND)
def test_a_schedule_that_once_broke_a_promise_does_so_no_more(seed: int) -> None:
    with Quiet():
        assert execute(*schedule_of(seed)) is None


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found_and_its_schedule_made_short(name: str) -> None:
    with Quiet(), BUGS[name]():
        found = next(seed for seed in range(ENOUGH_SCHEDULES) if execute(*schedule_of(seed)) is not None)
        runs, events = schedule_of(found)
        short = shrunk(runs, events)
        assert execute(runs, short) is not None
    assert len(short) < len(events)
    with Quiet():
        assert execute(runs, short) is None  # Without the bug, the same schedule is fine.


def test_a_schedule_is_the_same_each_time() -> None:
    assert schedule_of(7) == schedule_of(7) != schedule_of(8)


def turn_all(world: World) -> None:
    for seat in world.seats:
        seat.turn()


def test_a_change_that_is_refused_beside_a_result_holds_nothing_up() -> None:
    with Quiet():
        world = World(2)
        for _ in range(30):
            # given turns in which a coordinator finds results, and changes of runs that are not at rest
            for run_id in world.runs:
                world._command(run_id, "update", b'{"as_node":null,"update":{}}')
            world.pass_time(11, 0)
            turn_all(world)
            for worker in range(2):
                world.claim(worker, 0)
                world.finish(worker, 0)
        # then all of them end
        world.calm()
    assert not any(event.type == "lockstep.updated" for run_id in world.runs for event in world.store.events(run_id))


def test_what_a_copy_has_used_whose_result_is_dropped_is_stored_before_it_is_forgotten() -> None:
    with Quiet():
        world = World(1)
        turn_all(world)
        while not world.network.queues["default"]:
            turn_all(world)
            world.pass_time(1, 0)
        world.claim(0, 0)
        world.finish(0, 0)
        while len(world.network.queues["default"]) < 3:
            turn_all(world)
            world.pass_time(1, 0)
        # given a leaf with a worker that counts as dead, which another worker has executed meanwhile
        world.claim(0, 0)
        world.silence_worker(0, 0)
        while len(world.network.queues["default"]) < 3:
            world.pass_time(10, 0)
            turn_all(world)
        world.claim(1, 0)
        world.finish(1, 0)
        world.claim(1, 0)
        world.claim(1, 0)
        world.finish(1, 1)
        turn_all(world)
        # when the first one comes after all, and nothing else does
        before = len(world.store.usage("run-0"))
        world.finish(0, 0)
        turn_all(world)
        # then its result is not needed, and what it has used is stored
        assert sum(seat.coordinator.counts.dropped_results for seat in world.seats) == 1
        assert len(world.store.usage("run-0")) == before + 1 == world.counts["executions"]
        world.silence_worker(0, 0)
        world.calm()
