"""The connection is lost around a COMMIT: what was done counts, what was not is done again, and nobody notices either."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import pytest
from tests.proxy import Accident, Proxy, cut_after, cut_before

from lockstep.records import Committed, Superseded
from lockstep.store import open_store
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


@pytest.mark.parametrize("accident", [cut_after, cut_before])
def test_a_commit_is_done_once(world: World, proxy: Proxy, distant: SqlStore, accident: Accident) -> None:
    for step_id in (1, 2, 3):
        # given a connection that is cut right after the COMMIT was done, or right before it arrives
        proxy.accidents.append(accident)
        group = [world.step(run_id, step_id, events=[world.event(run_id, step_id + 1)]) for run_id in RUNS]
        # when a group is committed, then the answer is that it is
        assert distant.commit("C", group) == [Committed()] * 8
        assert proxy.happened == step_id
    # and each step and event is there once
    for run_id in RUNS:
        assert [step.step_id for step in world.a.steps(run_id, 0, 9)] == [0, 1, 2, 3]
        assert [event.sequence for event in world.a.events(run_id)] == [2, 3, 4]
        assert world.run(run_id).version == 4


@pytest.mark.parametrize("accident", [cut_after, cut_before])
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


def test_a_lease_that_was_taken_away_meanwhile_is_lost(world: World, proxy: Proxy, distant: SqlStore) -> None:
    # given a lease that somebody takes over in the moment in which the connection is lost
    def taken_away(_: object) -> bool:
        # Another connection of the proxy's cannot be held up by this one: the takeover waits for the open transaction to end.
        takeover.start()
        return False

    takeover = threading.Thread(target=lambda: world.b.close_lease("C"))
    proxy.accidents.append(taken_away)
    # then nothing is stored, and the caller is told so
    outcome = distant.commit("C", [world.step(RUNS[0], 1)])
    takeover.join(60)
    # Who comes first of the two is chance: the second attempt, or the end of the lease.
    assert outcome in ([Superseded()], [Committed()])
    assert len(world.a.steps(RUNS[0], 0, 9)) == (2 if outcome == [Committed()] else 1)
    assert distant.commit("C", [world.step(RUNS[1], 1)]) == [Superseded()]
