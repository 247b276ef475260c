"""Reading: what anyone may ask, in order and in pages, of everything that is committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from lockstep.core.lifecycle import RunStatus
from lockstep.records import Event, Transition
from lockstep.store.sql import SqlStore

if TYPE_CHECKING:
    from conftest import Connections, World

SUCCEEDED, RUNNING, PENDING = RunStatus.SUCCEEDED, RunStatus.RUNNING, RunStatus.PENDING


def names(world: World, **conditions: object) -> list[str]:
    found = world.b.find_runs(**conditions)  # type: ignore[arg-type] # The tests below name the conditions.
    assert found == world.a.find_runs(**conditions)  # type: ignore[arg-type]
    return [row.run_id for row in found]


@pytest.fixture
def runs(world: World) -> World:
    """The world with a..f: graphs one, two, one, ...; a and b finished, c and d at step 0, e and f not begun."""
    for n, run_id in enumerate("fedcba"):
        world.submit(run_id, graph="two" if n % 2 == 0 else "one")
    world.commit(*[world.step(run_id, 0, SUCCEEDED if run_id in "ab" else RUNNING) for run_id in "dacb"])
    return world


def test_runs_are_found_by_any_conditions(runs: World) -> None:
    assert names(runs) == ["a", "b", "c", "d", "e", "f"]
    assert names(runs, status=SUCCEEDED) == ["a", "b"]
    assert names(runs, status=RUNNING) == ["c", "d"]
    assert names(runs, status=PENDING) == ["e", "f"]
    assert names(runs, status=RunStatus.FAILED) == []
    assert names(runs, graph="one") == ["a", "c", "e"]
    assert names(runs, graph="ONE") == names(runs, graph="on") == []
    assert names(runs, run_ids=["f", "b", "nowhere", "b"]) == ["b", "f"]
    assert names(runs, run_ids=[]) == []
    assert names(runs, run_ids={"a", "c", "d"}, graph="one", status=RUNNING) == ["c"]
    assert names(runs, run_ids=("a", "e"), status=RUNNING) == []


def test_runs_are_read_in_pages(runs: World) -> None:
    assert names(runs, limit=2) == ["a", "b"]
    assert names(runs, limit=2, after="b") == ["c", "d"]
    assert names(runs, limit=2, after="d") == ["e", "f"]
    assert names(runs, limit=2, after="f") == []
    assert names(runs, limit=0) == []
    # `after` need not be there, and goes with all conditions
    assert names(runs, after="bb", graph="one") == ["c", "e"]
    assert names(runs, after="c", run_ids=["a", "b", "c", "d", "e"], limit=1) == ["d"]


def test_a_hundred_runs_are_a_page_unless_somebody_says_otherwise(world: World) -> None:
    everyone = [f"run-{n:04}" for n in range(1200)]
    world.submit(*everyone)

    assert names(world) == everyone[:100]
    assert names(world, limit=10_000) == everyone
    # also where more are asked for than one statement can name
    assert names(world, run_ids=everyone, limit=1100) == everyone[:1100]
    assert names(world, run_ids=everyone[::-2], limit=10_000) == everyone[1::2]
    assert names(world, run_ids=everyone, after=everyone[700], limit=3) == everyone[701:704]


def test_steps_are_read_in_order(world: World) -> None:
    # given a run with steps 0..5, and another one
    world.submit("run-1", "run-2")
    world.commit(*[world.step("run-1", n) for n in range(6)], world.step("run-2", 0))

    def numbers(first: int, last: int) -> list[int]:
        return [step.step_id for step in world.b.steps("run-1", first, last)]

    # then both ends of a range belong to it, and there may be less than was asked for
    assert numbers(0, 5) == [0, 1, 2, 3, 4, 5]
    assert numbers(2, 4) == [2, 3, 4]
    assert numbers(3, 3) == [3]
    assert numbers(4, 99) == [4, 5]
    assert numbers(6, 99) == numbers(4, 3) == []
    # and there is nothing before step 0
    assert numbers(-1, 1) == [0, 1]
    assert numbers(-1, -1) == numbers(-3, -2) == []
    assert world.b.steps("nowhere", 0, 9) == []


def test_a_state_is_read_as_a_snapshot_and_the_patches_after_it(world: World) -> None:
    # given a run with snapshots at steps 2 and 3, and another one with one at step 0
    world.submit("run-1", "run-2")
    world.commit(
        *[world.step("run-1", n, patch=b"p%d" % n, snapshot=b"snapshot %d" % n if n in (2, 3) else None) for n in range(6)],
        world.step("run-2", 0, snapshot=b"other"),
    )

    # then each step is read from the latest snapshot that is not after it
    expected = {
        -1: (b"{}", []),
        0: (b"{}", [b"p0"]),
        1: (b"{}", [b"p0", b"p1"]),
        2: (b"snapshot 2", []),
        3: (b"snapshot 3", []),
        4: (b"snapshot 3", [b"p4"]),
        5: (b"snapshot 3", [b"p4", b"p5"]),
    }
    assert {step_id: world.b.snapshot("run-1", step_id) for step_id in expected} == expected
    assert world.b.snapshot("run-2", 0) == (b"other", [])
    assert world.b.snapshot("run-1", -2) == (b"{}", [])
    assert world.b.snapshot("nowhere", 3) == (b"{}", [])


def test_a_run_that_has_not_begun_has_nothing_but_its_row(world: World) -> None:
    world.submit("run-1")

    assert len(world.dump("run-1").pop("run")) == 1
    assert world.b.snapshot("run-1", -1) == (b"{}", [])


def test_the_journal_of_some_items_is_read_in_order(world: World) -> None:
    # given rows of many items, journalled in no order
    world.submit("run-1", "run-2")
    rows = [
        world.journal_row("run-1", item, kind, n)
        for item in ("x", "y", "z")
        for kind, n in (("failed", 2), ("done", 0), ("failed", 10), ("failed", 1))
    ]
    world.commit(Transition(run_id="run-1", journal=rows))
    world.commit(Transition(run_id="run-2", journal=[world.journal_row("run-2", "x")]))

    # when two of them are asked for, one twice, and one that is not there
    found = world.b.journal("run-1", [world.key(item) for item in ("z", "x", "nowhere", "z")])

    # then their rows come by path, kind and n
    wanted = [row for row in rows if row.path in (world.key("x"), world.key("z"))]
    assert found == sorted(wanted, key=lambda row: (row.path, row.kind, row.n))
    assert world.b.journal("run-1", []) == world.b.journal("nowhere", [world.key("x")]) == []


def test_the_journal_of_many_items_is_read_at_once(world: World) -> None:
    # given more items than one statement can name
    world.submit("run-1")
    rows = [world.journal_row("run-1", f"item-{n}") for n in range(1200)]
    world.commit(Transition(run_id="run-1", journal=rows))

    assert world.b.journal("run-1", [row.path for row in rows]) == sorted(rows, key=lambda row: row.path)


def test_events_are_read_in_order_and_from_any_place(world: World) -> None:
    # given a run with events at steps 0, 1, 3 and 10, several at one step
    world.submit("run-1", "run-2")
    events = {n: [world.event("run-1", n + 1, position, data=b"%d" % n) for position in range(12)] for n in (0, 1, 3, 10)}
    world.commit(*[world.step("run-1", n, events=events.get(n, ())) for n in range(11)])
    world.commit(world.step("run-2", 0, events=[world.event("run-2", 1)]))

    def places(found: list[Event]) -> list[tuple[int, int]]:
        return [(event.sequence, event.position) for event in found]

    # then they come in the order of their commits, and in a commit in that of their positions
    assert world.b.events("run-1") == [event for some in events.values() for event in some]
    assert places(world.b.events("run-1")) == [(sequence, position) for sequence in (1, 2, 4, 11) for position in range(12)]
    # and a reader goes on after the last sequence that it has seen
    assert world.b.events("run-1", after_sequence=1) == events[1] + events[3] + events[10]
    assert world.b.events("run-1", after_sequence=4) == events[10]
    assert world.b.events("run-1", after_sequence=3) == events[3] + events[10]
    assert world.b.events("run-1", after_sequence=11) == world.b.events("nowhere") == []


def test_what_is_read_does_not_change_with_the_store(world: World) -> None:
    # given answers that a caller holds on to
    world.submit("run-1")
    world.commit(world.step("run-1", 0, journal=[world.journal_row("run-1", "x")], events=[world.event("run-1", 1)]))
    held = world.a.find_runs(), world.a.steps("run-1", 0, 9), world.a.snapshot("run-1", 9), world.a.events("run-1")
    lengths = [len(held[0]), len(held[1]), len(held[2][1]), len(held[3])]

    # when the run goes on
    world.commit(world.step("run-1", 1, events=[world.event("run-1", 2)]))
    world.submit("run-2")

    # then they are as they were
    assert [len(held[0]), len(held[1]), len(held[2][1]), len(held[3])] == lengths == [1, 1, 1, 1]


def test_times_are_milliseconds_and_rise(world: World) -> None:
    # given a run of several steps
    [row] = world.submit("run-1")
    updated = [row.updated_at]
    for n in range(5):
        world.commit(world.step("run-1", n), lease="AB"[n % 2])
        updated.append(world.run("run-1").updated_at)
    committed = [step.committed_at for step in world.a.steps("run-1", 0, 9)]

    # then its times rise from its creation on, and the row's is that of its last change
    assert world.run("run-1").created_at == row.created_at == row.updated_at
    assert committed == sorted(committed)
    assert updated == sorted(updated)
    assert row.created_at <= committed[0]
    assert all(step <= change for step, change in zip(committed, updated[1:], strict=True))
    # and are milliseconds: as seconds they would lie before 2001, as microseconds after 5000
    assert 10**12 < row.created_at < 10**14
    assert all(type(time) is int for time in [row.created_at, *committed, *updated])


def test_a_run_created_later_has_no_earlier_time(world: World) -> None:
    created = [world.submit(f"run-{n}")[0].created_at for n in range(20)]

    assert created == sorted(created)


@pytest.mark.usefixtures("sql_adapter")  # The reference model has no connections.
def test_a_closed_store_can_be_read_and_keeps_no_connection(world: World, connections: Connections) -> None:
    # given a store that is closed while somebody reads
    world.submit("run-1")
    world.b.close()
    with cast("SqlStore", world.a)._access.reading():
        world.a.close()
    assert connections.open == 0

    # when it is read again, then it answers, and holds on to nothing
    assert [row.run_id for row in world.a.find_runs()] == ["run-1"]
    assert (connections.open, connections.out) == (0, 0)
