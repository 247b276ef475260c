"""What SQLite alone has: levels of waiting for the disk, and a file that is locked or gone; and the end of a pool."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import sqlalchemy as sa

import lockstep.store.sqlite
from lockstep.core.lifecycle import SETTLED, RunStatus
from lockstep.errors import StoreUnavailableError
from lockstep.ports import Store
from lockstep.records import Command, Committed, Transition
from lockstep.store.sql import SqlStore

if TYPE_CHECKING:
    from conftest import World

ADAPTERS_TESTED = ["sqlite"]

FULL = 2
"""PRAGMA synchronous: each commit waits for the disk."""


@pytest.fixture
def levels(connections: object) -> Iterator[Callable[[], set[int]]]:
    """How the connections that are open now wait for the disk, those in no pool included."""
    opened: list[sqlite3.Connection] = []
    listeners: dict[str, Callable[..., Any]] = {
        "connect": lambda connection, _: opened.append(connection),
        "close": lambda connection, _: opened.remove(connection),
        "close_detached": opened.remove,
    }
    for event, listener in listeners.items():
        sa.event.listen(sa.pool.Pool, event, listener)
    yield lambda: {connection.execute("PRAGMA synchronous").fetchone()[0] for connection in opened}
    for event, listener in listeners.items():
        sa.event.remove(sa.pool.Pool, event, listener)


def test_a_commit_that_others_rely_on_waits_for_the_disk(levels: Callable[[], set[int]], world: World) -> None:
    # given a run that goes on from step to step, with which nobody outside is concerned
    world.submit("run-1")
    step_id = 0

    def go_on(status: RunStatus = RunStatus.RUNNING, **said: Any) -> None:
        nonlocal step_id
        assert world.commit(world.step("run-1", step_id, status, **said)) == [Committed()]
        step_id += 1

    # when it emits an event, answers a command, or comes to a state that somebody waits for
    for said in (
        {"events": [world.event("run-1", 1)]},
        {"consumed": ["command"]},
        *({"status": status} for status in sorted(SETTLED)),
    ):
        go_on()
        go_on(**cast("dict[str, Any]", said))

        # then that commit has waited
        assert levels() == {FULL}


def test_a_connection_that_waited_for_less_is_not_used_for_anything_else(levels: Callable[[], set[int]], world: World) -> None:
    # given a lease that ends after commits on which nobody relied
    world.submit("run-1")
    world.commit(world.step("run-1", 0))
    world.commit(Transition(run_id="run-1", journal=[world.journal_row("run-1", "x")]))

    # when its connection is given back, and a submission takes one, which has to be durable
    world.a.close_lease("A")
    world.submit("run-2")

    # then all that are left wait for the disk
    assert levels() == {FULL}


def calls(world: World, store: Store) -> list[Callable[[], object]]:
    """One call of each method that needs the database."""
    return [
        lambda: store.submit([world.new("run-2")]),
        lambda: store.commit("A", [world.step("run-1", 0)]),
        lambda: store.adopt("A", [], None, lambda _: False),
        lambda: store.send(Command(run_id="run-1", command_id="command", kind="cancel")),
        lambda: store.delete("run-1"),
        lambda: store.open_lease("other", "holder", 60.0),
        lambda: store.renew_lease("A", 60.0),
        lambda: store.close_lease("other"),
        lambda: store.poll("A"),
        lambda: store.find_runs(),
        lambda: store.steps("run-1", 0, 9),
        lambda: store.snapshot("run-1", 0),
        lambda: store.journal("run-1", [bytes(32)]),
        lambda: store.events("run-1"),
    ]


def test_every_method_says_which_database_is_gone(world: World, tmp_path: Path) -> None:
    # given a store whose folder was removed, and which has no connection left from before
    world.submit("run-1")
    world.a.close()
    world.b.close()
    shutil.rmtree(tmp_path)

    # when anything is asked of it, then the error names the file
    for call in calls(world, world.a):
        with pytest.raises(StoreUnavailableError, match=r"lockstep\.db") as caught:
            call()
        assert caught.value.url == cast("SqlStore", world.a).url
    tmp_path.mkdir()


def test_a_file_that_stays_locked_is_unavailable_and_nothing_is_stored(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_handle: Callable[[], Store]
) -> None:
    # given a store that does not wait for others, and somebody who holds the lock
    world.submit("run-1")
    world.commit(world.step("run-1", 0))
    monkeypatch.setattr(lockstep.store.sqlite, "BUSY_TIMEOUT_SECONDS", 0.0)
    store = open_handle()
    store.open_lease("C", "holder-c", 60.0)
    seen = world.dump("run-1")
    somebody = sqlite3.connect(tmp_path / "lockstep.db", isolation_level=None)
    somebody.execute("BEGIN IMMEDIATE")

    # when it commits
    step = world.step("run-1", 1, journal=[world.journal_row("run-1", "x")])
    with pytest.raises(StoreUnavailableError, match="locked"):
        store.commit("C", [step])

    # then nothing is stored, and readers are not disturbed
    assert world.dump("run-1") == seen
    # and once the lock is gone, the same commit is stored
    somebody.execute("ROLLBACK")
    somebody.close()
    assert store.commit("C", [step]) == [Committed()]


def test_a_store_whose_connections_are_all_in_use_is_unavailable(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a store that does not wait for connections, and callers that have them all
    engine = cast("SqlStore", world.a)._access.database.engine
    monkeypatch.setattr(engine.pool, "_timeout", 0.0)
    taken = []
    with pytest.raises(sa.exc.TimeoutError):
        while True:
            taken.append(engine.connect())

    # when one more comes, then it gets an error of ours
    with pytest.raises(StoreUnavailableError):
        world.a.find_runs()

    # and is served when somebody gives one back
    for connection in taken:
        connection.close()
    assert world.a.find_runs() == []
