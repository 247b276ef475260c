"""What is particular to MySQL and MariaDB: a bound on the size of a statement, max_allowed_packet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import pytest

from lockstep.core.lifecycle import RunStatus
from lockstep.errors import StateError
from lockstep.records import Committed, Refused, Transition
from lockstep.store.sql import SqlStore

if TYPE_CHECKING:
    from conftest import World

ADAPTERS_TESTED = ["mysql"]
NAMES = [f"run-{n:03}" for n in range(200)]

PLACES: dict[str, Callable[[World, str, bytes], Transition]] = {
    "a patch": lambda world, name, value: world.step(name, 0, patch=value),
    "a frontier": lambda world, name, value: world.step(name, 0, frontier=value),
    "a snapshot": lambda world, name, value: world.step(name, 0, snapshot=value),
    "a result": lambda world, name, value: world.step(name, 0, journal=[world.journal_row(name, "x", payload=value)]),
    "an event": lambda world, name, value: world.step(name, 0, events=[world.event(name, 1, data=value)]),
    "an error": lambda world, name, value: world.moved(name, 0, RunStatus.FAILED, version=0, error=value),
}


def max_packet(world: World) -> int:
    with cast("SqlStore", world.a)._access.reading() as connection:
        size: int = connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one()
        return size


@pytest.mark.parametrize("place", PLACES)
def test_a_run_with_a_value_that_the_server_does_not_take_fails_alone(world: World, place: str) -> None:
    # given a group in which one run has a value that would end the connection
    world.submit(*NAMES)
    group = [world.step(name, 0) for name in NAMES]
    group[77] = PLACES[place](world, NAMES[77], b"x" * (max_packet(world) // 2))

    # when it is committed
    outcomes = world.commit(*group)

    # then the others are stored, and the error says what to do
    assert [n for n, outcome in enumerate(outcomes) if outcome != Committed()] == [77]
    outcome = outcomes[77]
    assert isinstance(outcome, Refused) and isinstance(outcome.error, StateError)
    assert "raise max_allowed_packet to more than twice that, now" in str(outcome.error) and outcome.error.run_id == NAMES[77]
    assert len([row for row in world.a.find_runs(limit=200) if row.version == 1]) == 199


@pytest.mark.parametrize("place", PLACES)
def test_values_that_fit_one_by_one_fit_together(world: World, place: str) -> None:
    # given a group whose values together are larger than what the server takes at once, of bytes that have to be escaped
    names = NAMES[:12]
    world.submit(*names)
    value = b"'\\\0\"" * (max_packet(world) // 40)

    group = [PLACES[place](world, name, value) for name in names]

    assert world.commit(*group) == [Committed()] * 12


def test_a_value_that_just_fits_is_stored(world: World) -> None:
    world.submit("run-1")
    value = b"x" * (max_packet(world) // 2 - 100_000)

    assert world.commit(world.step("run-1", 0, patch=value)) == [Committed()]

    assert world.b.steps("run-1", 0, 0)[0].patch == value
