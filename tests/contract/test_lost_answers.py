"""The connection is lost around a COMMIT: what was done counts, what was not is done again, and nobody notices either."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import pytest
from tests.proxy import Accident, Proxy

from lockstep.errors import StoreUnavailableError
from lockstep.records import Committed, Superseded
from lockstep.store import open_store
from lockstep.store.commit import ATTEMPTS
from lockstep.store.sql import SqlStore

if TYPE_CHECKING:
    from conftest import World

ADAPTERS_TESTED = ["postgres", "mysql"]
HOUR = 3600.0
RUNS = [f"run-{n}" for n in range(8)]


@pytest.fixture
def proxy(world: World) -> Iterator[Proxy]:
    url = cast("SqlStore", world.a)._access.database.engine.url.render_as_string(hide_password=False)
    proxy = Proxy(url)
    yield proxy
    proxy.close()


@pytest.fixture
def distant(world: World, proxy: Proxy) -> Iterator[SqlStore]:
    """A store behind the proxy, with a lease that has committed before, so that its connections exist."""
    store = cast("SqlStore", open_store(proxy.url))
    store.open_lease("C", "holder-c", HOUR)
    world.submit(*RUNS, partition_id="C")
    assert store.commit("C", [world.step(run_id, 0) for run_id in RUNS]) == [Committed()] * 8
    yield store
    store.close()


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("accident", ["before", "after"])
def test_a_commit_is_done_once(world: World, proxy: Proxy, distant: SqlStore, accident: Accident, large: bool) -> None:
    patch = b"x" * 500_000 if large else b"x"  # A large group takes many packets, and its answers cross it on the way.
    for step_id in (1, 2, 3):
        # given a connection that is lost right before a COMMIT arrives, or right after it was done
        proxy.accidents.append(accident)
        group = [world.step(run_id, step_id, patch=patch, events=[world.event(run_id, step_id + 1)]) for run_id in RUNS]
        # when a group is committed, then the answer is that it is
        assert distant.commit("C", group) == [Committed()] * 8
        assert proxy.happened == step_id
    # and each step and event is there once
    for run_id in RUNS:
        assert [step.step_id for step in world.a.steps(run_id, 0, 9)] == [0, 1, 2, 3]
        assert [event.sequence for event in world.a.events(run_id)] == [2, 3, 4]
        assert world.run(run_id).version == 4


@pytest.mark.parametrize("accident", ["before", "after"])
def test_halves_of_a_group_are_told_apart(world: World, proxy: Proxy, distant: SqlStore, accident: Accident) -> None:
    # given a group in which one run has moved, so that it is committed in parts, and a connection that is lost at the last part
    culprit = RUNS[1]
    group = [world.step(run_id, 1, version=7 if run_id == culprit else 1) for run_id in RUNS]
    proxy.accidents.extend([None] * commits_before_the_last_part(distant))
    proxy.accidents.append(accident)
    outcomes = distant.commit("C", group)
    # then what was stored with the first part is not taken for the second
    assert outcomes == [Superseded() if run_id == culprit else Committed() for run_id in RUNS]
    assert proxy.happened == 1
    for run_id in RUNS:
        assert len(world.a.steps(run_id, 0, 9)) == (1 if run_id == culprit else 2)


def commits_before_the_last_part(store: SqlStore) -> int:
    """All eight fail, then the first four, then two; one is stored, one fails, two are stored, and the last four are the part.

    PostgreSQL is sent its COMMIT with all the rest, also of a part that fails; MySQL only after all went well.
    """
    return 6 if store._access.database.engine.dialect.name == "postgresql" else 2


def test_a_connection_that_is_lost_again_and_again_is_given_up(world: World, proxy: Proxy, distant: SqlStore) -> None:
    # given a network that loses every COMMIT
    proxy.accidents.extend(["before"] * 50)
    # when a group is committed, then there is an end to it
    with pytest.raises(StoreUnavailableError, match="does not work"):
        distant.commit("C", [world.step(RUNS[0], 1)])
    assert proxy.happened == ATTEMPTS
    # and nothing was stored; when the network is well again, the same can be
    assert len(world.a.steps(RUNS[0], 0, 9)) == 1
    proxy.accidents.clear()
    assert distant.commit("C", [world.step(RUNS[0], 1)]) == [Committed()]


def test_a_server_that_was_away_is_used_again(world: World, proxy: Proxy, distant: SqlStore) -> None:
    # given a server that nobody reaches
    proxy.leave()
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="does not work"):
            distant.commit("C", [world.step(RUNS[0], 1)])
    # when it is back, then what could not be stored can be, and no run is blamed for what was not its fault
    proxy.away = False
    assert distant.commit("C", [world.step(run_id, 1) for run_id in RUNS]) == [Committed()] * 8


def test_a_lease_that_was_taken_away_meanwhile_is_lost(world: World, proxy: Proxy, distant: SqlStore) -> None:
    # given a commit whose answer is lost, and a lease that somebody takes away before it can be looked up
    proxy.meanwhile = lambda: world.b.close_lease("C")
    proxy.accidents.append("after")
    # then its holder is told that it is lost, and to adopt what is stored
    assert distant.commit("C", [world.step(RUNS[0], 1)]) == [Superseded()]
    assert distant.commit("C", [world.step(RUNS[1], 1)]) == [Superseded()]
    assert [len(world.a.steps(run_id, 0, 9)) for run_id in RUNS[:2]] == [2, 1]
