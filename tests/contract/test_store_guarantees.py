"""docs/store-guarantees.md says of tables and settings what the databases themselves say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import sqlalchemy as sa
from tests.house.test_docs import Row, table

from lockstep.store import open_store
from lockstep.store.sql import SqlStore

if TYPE_CHECKING:
    from conftest import World

ROOT = Path(__file__).parents[2]
PAGE = "store-guarantees.md"
SQL = pytest.mark.usefixtures("sql_adapter")
STORES = {"sqlite": "SQLite", "postgres": "PostgreSQL", "mysql": "MySQL"}


def engine_of(world: World) -> sa.Engine:
    return cast("SqlStore", world.a)._access.database.engine


def of_store(world: World, *columns: str) -> list[Row]:
    """The rows of a table that are about the world's store."""
    return [row for row in table(PAGE, *columns) if row["store"] == STORES[world.adapter.name]]


def value_of(connection: sa.Connection, setting: str) -> str:
    """What a setting is in this session."""
    match connection.dialect.name:
        case "sqlite":
            query = f"PRAGMA {setting}"
        case "postgresql":
            query = f"SHOW {setting}"
        case _:
            query = f"SELECT @@{setting}"
    return str(connection.exec_driver_sql(query).scalar_one())


@SQL
def test_the_page_lists_each_table_with_all_that_is_unique_in_it(world: World) -> None:
    # given what the database says of itself
    inspector = sa.inspect(engine_of(world))
    expected = {}
    for name in inspector.get_table_names():
        keys = [inspector.get_pk_constraint(name)["constrained_columns"]]
        keys += [constraint["column_names"] for constraint in inspector.get_unique_constraints(name)]
        expected[name] = sorted(keys)

    # then the page says the same
    rows = table(PAGE, "table", "no two rows with the same", "holds")
    listed = {
        row["table"]: sorted(re.findall(r"\w+", key) for key in row["no two rows with the same"].split(";")) for row in rows
    }
    assert listed == expected
    assert list(listed) == sorted(listed)


@SQL
def test_lockstep_s_sessions_have_the_settings_that_the_page_names(world: World) -> None:
    rows = of_store(world, "store", "setting", "value", "why")
    store = cast("SqlStore", world.a)
    world.submit("run-1")
    world.commit(world.step("run-1", 0, events=[world.event("run-1", 1)]))
    assert rows
    with store._access.reading() as connection:
        for row in rows:
            assert value_of(connection, row["setting"]) == row["value"], row["setting"]
        if world.adapter.name == "postgres":
            # An isolation level of the connection's would override the session's.
            assert connection.exec_driver_sql("SHOW transaction_isolation").scalar_one() == "read committed"


@SQL
def test_what_a_database_is_set_to_does_not_change_them(world: World) -> None:
    # given a PostgreSQL database with other defaults
    if world.adapter.name != "postgres":
        return  # SQLite has none, and MySQL's are the server's, where others would notice.
    rows = of_store(world, "store", "setting", "value", "why")
    engine = engine_of(world)
    others = {
        "default_transaction_isolation": "serializable",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
    }
    assert {row["setting"] for row in rows} == others.keys()
    with engine.connect() as connection:
        for setting, value in others.items():
            connection.exec_driver_sql(f"ALTER DATABASE {engine.url.database} SET {setting} = '{value}'")
        # when a store is opened
        store = cast("SqlStore", open_store(engine.url.render_as_string(hide_password=False)))
        with store._access.reading() as session:
            values = {row["setting"]: value_of(session, row["setting"]) for row in rows}
        store.close()
        connection.exec_driver_sql(f"ALTER DATABASE {engine.url.database} RESET ALL")
    # then its sessions have ours
    assert values == {row["setting"]: row["value"] for row in rows}


@SQL
def test_the_connection_of_the_group_commit_has_them_too(world: World) -> None:
    world.submit("run-1")
    world.commit(world.step("run-1", 0, events=[world.event("run-1", 1)]))
    driver = cast("SqlStore", world.a)._commits.of("A")._driver
    for row in of_store(world, "store", "setting", "value", "why"):
        cursor = driver.cursor()
        ask = {"sqlite": "PRAGMA {}", "postgres": "SHOW {}", "mysql": "SELECT @@{}"}[world.adapter.name]
        cursor.execute(ask.format(row["setting"]))
        assert str(cursor.fetchone()[0]) == row["value"], row["setting"]


@SQL
def test_the_settings_of_the_server_that_the_page_names_are_there(world: World) -> None:
    rows = of_store(world, "store", "setting", "keep it at", "or else") if world.adapter.name != "sqlite" else []
    with cast("SqlStore", world.a)._access.reading() as connection:
        for row in rows:
            value = value_of(connection, row["setting"])
            # A server that is asked for less than it should has a word of its own for each value.
            assert (
                value in {"on", "off", "0", "1", "2", "ON", "OFF", "local", "remote_write", "remote_apply"} or value.isdigit()
            )
    assert rows or world.adapter.name == "sqlite"


def test_each_boundary_names_a_test_that_is_there() -> None:
    rows = table(PAGE, "if something dies", "what holds", "what you do", "shown by")
    assert all((ROOT / row["shown by"]).is_file() for row in rows)
