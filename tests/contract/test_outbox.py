"""The outbox: what a sink has not got is found, claimed by one relay at a time, and moved on; nothing is missed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import pytest
import sqlalchemy as sa
from msgspec.structs import asdict, replace

from lockstep.core.lifecycle import RunStatus
from lockstep.ports import Outbox
from lockstep.records import Committed, PendingEvents, Progress, PublishedEvent
from lockstep.store import outbox as store_outbox
from lockstep.store import schema
from lockstep.store.sql import SqlStore

if TYPE_CHECKING:
    from conftest import Adapter, World

HOUR = 3600.0
OVER = -1.0
"""The time of a claim or pause that has ended when it begins."""


@pytest.fixture
def outbox(world: World) -> Outbox:
    """One with a sink, over a store with three runs."""
    world.submit("run-1", "run-2", "run-3")
    world.a.outbox.add_sink("sink")
    return world.a.outbox


def emit(world: World, run_id: str, step_id: int, count: int = 1, lease: str = "A") -> None:
    """Commit a step that emits so many events."""
    events = [world.event(run_id, step_id + 1, position) for position in range(count)]
    assert world.commit(world.step(run_id, step_id, events=events), lease=lease) == [Committed()]


def places(pending: PendingEvents) -> list[tuple[int, int]]:
    return [(each.event.sequence, each.event.position) for each in pending.events]


def claim(outbox: Outbox, relay: str = "relay", seconds: float = HOUR) -> dict[str, list[tuple[int, int]]]:
    """The places of the claimed events by run."""
    return {pending.run_id: places(pending) for pending in outbox.claim(relay, "sink", 100, seconds)}


def published(outbox: Outbox, relay: str = "relay") -> list[PublishedEvent]:
    """Claim all, mark all as arrived, until nothing waits."""
    arrived: list[PublishedEvent] = []
    while claimed := outbox.claim(relay, "sink", 100, HOUR):
        arrived += [event for pending in claimed for event in pending.events]
        outbox.mark(relay, "sink", [Progress(run_id=pending.run_id, last=pending.events[-1]) for pending in claimed])
    return arrived


def runs(progress: Sequence[PublishedEvent]) -> set[str]:
    return {each.event.run_id for each in progress}


def test_what_is_committed_waits_until_it_is_marked(world: World, outbox: Outbox) -> None:
    # given two commits of events, and one without
    emit(world, "run-1", 0, 2)
    emit(world, "run-2", 0, 0)
    emit(world, "run-1", 1, 1)
    # when they are claimed, then all are there, in order, with what a receiver needs
    [pending] = outbox.claim("relay", "sink", 100, HOUR)
    assert places(pending) == [(1, 0), (1, 1), (2, 0)]
    assert [each.event_id for each in pending.events] == ["run-1/1/0", "run-1/1/1", "run-1/2/0"]
    assert [each.graph for each in pending.events] == ["research"] * 3
    steps = world.a.steps("run-1", 0, 9)
    assert [each.committed_at for each in pending.events] == [steps[0].committed_at] * 2 + [steps[1].committed_at]
    # and when they are marked, none is
    outbox.mark("relay", "sink", [Progress(run_id="run-1", last=pending.events[-1])])
    assert claim(outbox) == {}
    assert [(b.sink, b.runs, b.parked, b.lag_seconds) for b in outbox.backlogs()] == [("sink", 0, 0, 0.0)]


def test_an_event_of_a_run_that_ended_before_its_first_step_is_dated_by_its_submission(world: World, outbox: Outbox) -> None:
    # given a run that failed with its input, and did well when it was retried
    [row] = world.a.find_runs(run_ids=["run-1"])
    failed = world.moved("run-1", -1, RunStatus.FAILED, 0, state_hash=None, error=b"{}")
    assert world.commit(replace(failed, events=[world.event("run-1", 1, step_id=-1)])) == [Committed()]
    [pending] = outbox.claim("relay", "sink", 100, HOUR)
    assert [(each.event_id, each.committed_at) for each in pending.events] == [("run-1/1/0", row.created_at)]
    outbox.mark("relay", "sink", [Progress(run_id="run-1", last=pending.events[-1])])
    assert claim(outbox) == {}


def test_a_run_is_claimed_by_one_relay_at_a_time(world: World, outbox: Outbox) -> None:
    emit(world, "run-1", 0)
    # given a relay that has claimed a run
    assert claim(outbox, "one") == {"run-1": [(1, 0)]}
    # then another one gets only what else there is, also of what is committed now
    emit(world, "run-1", 1)
    emit(world, "run-2", 0)
    assert claim(world.b.outbox, "two") == {"run-2": [(1, 0)]}


def test_relays_that_claim_at_once_get_different_runs(world: World, outbox: Outbox) -> None:
    world.submit(*[f"many-{n}" for n in range(40)])
    for n in range(40):
        emit(world, f"many-{n}", 0)

    def claim_all(relay: str, outbox: Outbox) -> list[str]:
        mine: list[str] = []
        while claimed := outbox.claim(relay, "sink", 3, HOUR):
            mine += [pending.run_id for pending in claimed]
        return mine

    one, two = world.together(lambda: claim_all("one", world.a.outbox), lambda: claim_all("two", world.b.outbox))
    # One may have looked when the other had locked all that was left; what nobody has is still there.
    rest = list(claim(outbox, "three"))
    assert sorted([*one, *two, *rest]) == sorted(f"many-{n}" for n in range(40))


def test_a_claim_that_has_ended_is_another_relays(world: World, outbox: Outbox) -> None:
    # given a relay whose claim has run out, and another one that has claimed the run
    emit(world, "run-1", 0, 2)
    [late] = outbox.claim("late", "sink", 100, OVER)
    assert claim(outbox, "other") == {"run-1": [(1, 0), (1, 1)]}
    # when the late one marks, then nothing changes
    outbox.mark("late", "sink", [Progress(run_id="run-1", last=late.events[-1])])
    assert [(w.sequence, w.position) for w in outbox.waiting()] == [(1, 0)]
    # and the other one moves it on
    outbox.mark("other", "sink", [Progress(run_id="run-1", last=late.events[0])])
    assert claim(outbox) == {"run-1": [(1, 1)]}


def test_events_that_are_committed_while_a_run_is_claimed_wait(world: World, outbox: Outbox) -> None:
    emit(world, "run-1", 0)
    [pending] = outbox.claim("relay", "sink", 100, HOUR)
    emit(world, "run-1", 1)
    outbox.mark("relay", "sink", [Progress(run_id="run-1", last=pending.events[-1])])
    assert claim(outbox) == {"run-1": [(2, 0)]}


def test_a_failed_attempt_is_counted_and_rests(world: World, outbox: Outbox) -> None:
    emit(world, "run-1", 0, 2)
    emit(world, "run-2", 0)
    claimed = {pending.run_id: pending for pending in outbox.claim("relay", "sink", 100, HOUR)}
    # when one event arrived and the next did not, and is to rest; and of another run, nothing could be tried
    first = claimed["run-1"].events[0]
    failed = Progress(run_id="run-1", last=first, error="no answer", pause_seconds=HOUR)
    outbox.mark("relay", "sink", [failed, Progress(run_id="run-2", last=None)])
    # then the first run rests, and the second one is there at once
    assert claim(outbox) == {"run-2": [(1, 0)]}
    [resting] = [each for each in outbox.waiting() if each.run_id == "run-1"]
    assert (resting.sequence, resting.position, resting.attempts, resting.error) == (1, 1, 1, "no answer")
    assert not resting.parked


def test_attempts_are_of_the_event_that_fails(world: World, outbox: Outbox) -> None:
    emit(world, "run-1", 0, 2)
    for attempts in range(3):
        [pending] = outbox.claim("relay", "sink", 100, HOUR)
        assert pending.attempts == attempts
        outbox.mark("relay", "sink", [Progress(run_id="run-1", last=None, error="no", pause_seconds=OVER)])
    # when the event gets through at last, then the next one begins anew
    [pending] = outbox.claim("relay", "sink", 100, HOUR)
    outbox.mark("relay", "sink", [Progress(run_id="run-1", last=pending.events[0])])
    [pending] = outbox.claim("relay", "sink", 100, HOUR)
    assert pending.attempts == 0


@pytest.mark.parametrize("then", ["retried", "skipped"])
def test_a_parked_event_holds_back_its_run_and_no_other(world: World, outbox: Outbox, then: str) -> None:
    # given an event that is parked
    emit(world, "run-1", 0, 3)
    [pending] = outbox.claim("relay", "sink", 100, HOUR)
    outbox.mark("relay", "sink", [Progress(run_id="run-1", last=pending.events[0], error="poison")])
    # then later events of its run wait behind it, also new ones, and those of others do not
    emit(world, "run-1", 1)
    emit(world, "run-2", 0)
    assert claim(outbox) == {"run-2": [(1, 0)]}
    assert [(each.run_id, each.error) for each in outbox.waiting(parked=True)] == [("run-1", "poison")]
    assert [(b.runs, b.parked) for b in outbox.backlogs()] == [(2, 1)]
    # and when somebody has seen to it, they go on
    assert outbox.unpark("sink", "run-1", skip=then == "skipped")
    assert claim(outbox) == {"run-1": [(1, 1), (1, 2), (2, 0)][then == "skipped" :]}
    assert not outbox.unpark("sink", "run-1")


def test_skipping_the_last_event_leaves_nothing(world: World, outbox: Outbox) -> None:
    emit(world, "run-1", 0)
    outbox.claim("relay", "sink", 100, HOUR)
    outbox.mark("relay", "sink", [Progress(run_id="run-1", last=None, error="poison")])
    assert outbox.unpark("sink", "run-1", skip=True)
    assert outbox.waiting() == []
    # and what comes later is found
    emit(world, "run-1", 1)
    assert claim(outbox) == {"run-1": [(2, 0)]}


def test_events_are_published_again_from_where_somebody_wants(world: World, outbox: Outbox) -> None:
    for step_id in range(3):
        emit(world, "run-1", step_id, 2)
    assert len(published(outbox)) == 6
    # when they are replayed from the second commit on, then these come again
    assert outbox.replay("sink", "run-1", 2)
    assert claim(outbox) == {"run-1": [(2, 0), (2, 1), (3, 0), (3, 1)]}
    # also while a relay has the run: what it marks then does not count
    assert outbox.replay("sink", "run-1")
    outbox.mark("relay", "sink", [Progress(run_id="run-1", last=None)])
    assert len(published(outbox)) == 6
    # and what is not there is not replayed
    assert not outbox.replay("sink", "run-1", 4)
    assert not outbox.replay("sink", "run-2")
    assert not outbox.replay("no sink", "run-1")


def test_each_sink_has_progress_of_its_own(world: World, outbox: Outbox) -> None:
    outbox.add_sink("other")
    emit(world, "run-1", 0)
    published(outbox)
    assert [each.sink for each in outbox.waiting()] == ["other"]
    # and what a removed one has not got is forgotten
    assert outbox.remove_sink("other")
    assert outbox.waiting() == []
    assert not outbox.remove_sink("other")
    emit(world, "run-1", 1)
    assert [each.sink for each in outbox.waiting()] == ["sink"]


def test_a_new_sink_gets_what_is_stored_or_only_what_is_new(world: World, outbox: Outbox) -> None:
    emit(world, "run-1", 0, 2)
    emit(world, "run-2", 0)
    outbox.add_sink("all")
    outbox.add_sink("new", from_now=True)
    emit(world, "run-1", 1)
    # Adding it once more changes nothing.
    outbox.add_sink("new")
    all_events = {pending.run_id: places(pending) for pending in outbox.claim("relay", "all", 100, HOUR)}
    new_events = {pending.run_id: places(pending) for pending in outbox.claim("relay", "new", 100, HOUR)}
    assert all_events == {"run-1": [(1, 0), (1, 1), (2, 0)], "run-2": [(1, 0)]}
    assert new_events == {"run-1": [(2, 0)]}


def test_a_sink_that_is_added_while_events_are_committed_misses_none(world: World) -> None:
    # given two coordinators that commit events without a pause
    world.submit("run-a", "run-b")
    counts = {"run-a": 0, "run-b": 0}
    committed = threading.Semaphore(0)
    names = [f"sink-{n}" for n in range(8)]
    added = threading.Event()

    def commit_on(lease: str, run_id: str) -> None:
        while not added.is_set() and counts[run_id] < 400:
            emit(world, run_id, counts[run_id], lease=lease)
            counts[run_id] += 1
            committed.release()

    def add_sinks() -> None:
        try:
            for name in names:
                for _ in range(3):
                    assert committed.acquire(timeout=60)
                world.a.outbox.add_sink(name)
        finally:
            added.set()

    # when sinks are added meanwhile
    world.together(lambda: commit_on("A", "run-a"), lambda: commit_on("B", "run-b"), add_sinks)
    # then each of them gets every event
    for name in names:
        claimed = {pending.run_id: len(pending.events) for pending in world.a.outbox.claim("relay", name, 100, HOUR)}
        assert claimed == {run_id: count for run_id, count in counts.items() if count}


def test_a_new_sink_waits_for_commits_that_have_not_seen_it(sql_adapter: Adapter, world: World) -> None:
    # given a transaction of a coordinator that has stored an event when no sink was known, and is still open
    world.submit("run-1")
    emit(world, "run-1", 0, 0)
    store = cast("SqlStore", world.a)
    event = asdict(world.event("run-1", 9, step_id=0))
    adding = threading.Thread(target=lambda: world.b.outbox.add_sink("late"))
    with store._access.writing() as connection:
        connection.execute(sa.update(schema.leases).where(schema.leases.c.lease_id == "A").values(last_commit_id=1))
        connection.execute(sa.insert(schema.outbox).values(event))
        # when a sink is added: if it did not wait, it would be done by now, and have missed the event
        adding.start()
        adding.join(0.5)
    adding.join(60)
    # then the sink gets the event
    [pending] = world.a.outbox.claim("relay", "late", 9, HOUR)
    assert places(pending) == [(9, 0)]


def test_a_claim_brings_so_many_runs_and_the_oldest_first(world: World, outbox: Outbox) -> None:
    for run_id in ("run-3", "run-1", "run-2"):
        emit(world, run_id, 0)
    found: list[str] = []
    while claimed := outbox.claim("relay", "sink", 1, HOUR):
        assert len(claimed) == 1
        found += [pending.run_id for pending in claimed]
    assert set(found) == {"run-1", "run-2", "run-3"}
    # and with nothing claimed, an unknown sink has nothing
    assert outbox.claim("relay", "no sink", 9, HOUR) == []


def test_a_deleted_run_leaves_nothing_behind(world: World, outbox: Outbox) -> None:
    events = [world.event("run-1", 1)]
    world.commit(world.step("run-1", 0, RunStatus.SUCCEEDED, events=events))
    [pending] = outbox.claim("relay", "sink", 100, HOUR)
    assert world.a.delete("run-1")
    outbox.mark("relay", "sink", [Progress(run_id="run-1", last=pending.events[-1])])
    assert outbox.waiting() == []
    assert claim(outbox) == {}


def test_the_row_of_a_run_that_is_gone_does_not_stay(sql_adapter: Adapter, world: World, outbox: Outbox) -> None:
    # given a row that was noted for a run while somebody deleted that
    with cast("SqlStore", world.a)._access.writing() as connection:
        row = {"sink": "sink", "run_id": "gone", "since": 0, "next_sequence": 1, "next_position": 0, "last_sequence": 1}
        connection.execute(sa.insert(schema.undelivered).values(**row, free_at=0, attempts=0, parked=0))
    # when a relay comes to it, then it goes, and others are not held up
    emit(world, "run-1", 0)
    assert claim(outbox) == {"run-1": [(1, 0)]}
    assert [each.run_id for each in outbox.waiting()] == ["run-1"]


def test_runs_beyond_what_a_claim_brings_are_given_back(world: World, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_outbox, "EVENTS_PER_CLAIM", 3)
    emit(world, "run-1", 0, 2)
    emit(world, "run-2", 0, 2)
    emit(world, "run-3", 0, 2)
    # given claims that bring three events at most (the reference model has no such bound), then all arrive in the end
    arrived = [(each.event.run_id, each.event.position) for each in published(outbox)]
    assert sorted(arrived) == [(f"run-{n}", position) for n in (1, 2, 3) for position in (0, 1)]


def test_what_does_not_commit_is_not_published(world: World, outbox: Outbox) -> None:
    events = [world.event("run-1", 1)]
    world.commit(world.step("run-1", 0, version=7, events=events))
    assert published(outbox) == []
    assert runs(published(outbox)) == set()
