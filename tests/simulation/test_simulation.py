"""A sample of the simulated schedules, and that planted bugs are found: `python -m tests.simulation` does more of both."""

from __future__ import annotations

import pytest
from tests.simulation.bugs import BUGS
from tests.simulation.schedule import Quiet, execute, schedule_of, shrunk

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
