"""What the databases do differently, and why. Only SQLite so far."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement

BUSY_TIMEOUT_SECONDS = 30.0
"""How long a writer waits for the others on one SQLite file before StoreUnavailableError."""


class now_ms(ColumnElement[int]):
    """Milliseconds since 1970 by the database's clock."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(now_ms, "sqlite")
def _now_ms_sqlite(element: now_ms, compiler: Any, **_: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


def connect(url: str) -> sa.Engine:
    """An engine for the URL whose connections are set up for our transactions."""
    engine = sa.create_engine(url)
    sa.event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    # Autocommit: the driver's own BEGIN would be deferred, and a deferred transaction that turns to writing fails at once
    # instead of waiting for its turn.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_SECONDS * 1000)}")
    connection.execute("PRAGMA synchronous = FULL")
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # While another process makes the same switch, SQLite answers "locked" without waiting for busy_timeout.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def writing(connection: sa.Connection) -> Iterator[None]:
    """One writing transaction. IMMEDIATE: it waits for its turn at the start, so no later statement finds the file locked."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")
