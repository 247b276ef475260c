"""Servers end connections: when they restart, and when somebody tells them to. Nobody who uses a store has to know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import sqlalchemy as sa

from lockstep.records import Command, Committed
from lockstep.store.sql import SqlStore
from lockstep_coordinator.lease import LEASE_SECONDS

if TYPE_CHECKING:
    from conftest import World

ADAPTERS_TESTED = ["postgres", "mysql"]


def end_all_connections(store: SqlStore) -> None:
    """Make the server end every connection to the store's database but the one that says so."""
    engine = sa.create_engine(store._access.database.engine.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            assert connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid, 5000) {others}").all()
            return
        others = "FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
        ids = list(connection.exec_driver_sql(f"SELECT id {others}").scalars())
        assert ids
        for number in ids:
            connection.exec_driver_sql(f"KILL {number}")


@pytest.fixture
def store(world: World) -> SqlStore:
    """A store that has just used its connections: that of its pool, and that of its lease."""
    world.submit("run-1")
    world.commit(world.step("run-1", 0, events=[world.event("run-1", 1)]))
    store = cast("SqlStore", world.a)
    store.outbox.add_sink("sink")
    return store


def test_whoever_reads_does_not_notice(world: World, store: SqlStore) -> None:
    reads = {
        "find_runs": lambda: store.find_runs(),
        "steps": lambda: store.steps("run-1", 0, 9),
        "snapshot": lambda: store.snapshot("run-1", 0),
        "journal": lambda: store.journal("run-1", [world.key("x")]),
        "events": lambda: store.events("run-1"),
        "loaded_graphs": lambda: store.loaded_graphs(),
        "holder_of": lambda: store.holder_of("A"),
        "partitions": lambda: store.partitions(),
        "unfinished": lambda: store.unfinished(["A"]),
        "poll": lambda: store.poll("A"),
        "backlogs": lambda: [backlog.runs for backlog in store.outbox.backlogs()],
        "waiting": lambda: [waiting.run_id for waiting in store.outbox.waiting()],
    }
    for name, read in reads.items():
        # given an answer, when the connection that it came over ends, then the same question has the same answer
        before = read()
        end_all_connections(store)
        assert read() == before, name


def test_whoever_writes_does_not_notice(world: World, store: SqlStore) -> None:
    # given a store all of whose connections end before each of these
    end_all_connections(store)
    [submitted] = store.submit([world.new("run-2")])
    assert submitted.created
    end_all_connections(store)
    assert store.renew_lease("A", 3600)
    end_all_connections(store)
    store.send(Command(run_id="run-2", command_id="c", kind="cancel"))
    end_all_connections(store)
    assert world.commands() == ["c"]
    end_all_connections(store)
    assert world.commit(world.step("run-1", 1), world.step("run-2", 0)) == [Committed(), Committed()]
    end_all_connections(store)
    assert [pending.run_id for pending in store.outbox.claim("relay", "sink", 9, 60)] == ["run-1"]
    # then each of them was done once
    assert [row.version for row in store.find_runs()] == [2, 1]


def test_a_postgres_that_says_nothing_counts_as_gone_before_a_lease_ends(world: World, store: SqlStore) -> None:
    # given connections over TCP, on which nobody would tell that the other end is no more there
    if store._access.database.engine.dialect.name != "postgresql":
        assert store._access.database.engine.dialect.name in (
            "mysql",
            "mariadb",
        )  # There, the driver waits no longer than it may.
        return
    with store._access.reading() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        known = driver.info.get_parameters()
    # then the system asks early, and gives up early
    silence = int(known["keepalives_idle"]) + int(known["keepalives_interval"]) * int(known["keepalives_count"])
    assert silence <= 5 and int(known["tcp_user_timeout"]) <= 5000
    assert silence < LEASE_SECONDS
