"""What differs between databases, behind one small interface; each has a module of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from lockstep.errors import ConfigurationError
from lockstep.records import NewRun
from lockstep.store.commit import GroupCommit


class Database(Protocol):
    """A kind of database. Its connections are in autocommit; a transaction is what `writing` makes."""

    engine: sa.Engine
    remedy: str
    """What to look at when it does not work."""

    def check_exists(self) -> None:
        """Raise ConfigurationError if there is nothing yet, and connecting would make it."""

    def writing(self, connection: sa.Connection) -> AbstractContextManager[None]:
        """One transaction on the connection: committed at the end, rolled back after an exception."""

    def upgrading(self, connection: sa.Connection) -> AbstractContextManager[None]:
        """Wait until no other process migrates, and keep others from it. One transaction where the database can do that."""

    def take_turns(self, connection: sa.Connection) -> None:
        """Wait until no other process is behind this point in a transaction of its own, and keep others from it."""

    def is_deadlock(self, error: BaseException | None) -> bool:
        """Whether the database has ended the transaction in favour of another one, so that it can be tried again."""

    def insert_or_update(
        self, table: sa.Table, rows: sa.Select[Any], given: Sequence[str], constants: Mapping[str, Any]
    ) -> sa.Insert:
        """An insert of the rows that a query gives, with the names of their columns. Of a row whose primary key is taken, the
        `given` columns get the new values, and others these constants."""

    def insert_runs(self, connection: sa.Connection, runs: Sequence[NewRun]) -> dict[str, int]:
        """Insert runs that are new, in a transaction of its own; when each was created, by run_id."""

    def insert_unless_taken(self, table: sa.Table) -> sa.Insert:
        """An insert of one row that does nothing if its primary key is taken; the rowcount says which."""

    def identity(self, connection: sa.Connection) -> Any:
        """What is the same for two connections if they lead to the same tables, however each has got there."""

    def group_commit(self, lease_seconds: float) -> GroupCommit:
        """A group commit with a connection of its own."""


FORMS = "memory://, sqlite:///path, postgresql+psycopg://... or mysql+pymysql://..."


def open_database(url: str) -> Database:
    """The database at the URL; nothing is connected yet. Raises ConfigurationError."""
    try:
        return _database_at(sa.make_url(url))
    except (ArgumentError, ValueError):
        # What was said of it is not passed on: of a URL that cannot be read, any part may be the password.
        raise ConfigurationError(
            f"the store URL {_scheme(url)}... cannot be read; use {FORMS}",
            option="store",
        ) from None


def _database_at(url: sa.URL) -> Database:
    match url.get_backend_name():
        case "sqlite":
            if url.database in (None, "", ":memory:"):
                shown = url.render_as_string(hide_password=True)
                raise ConfigurationError(
                    f"{shown} names no file; use sqlite:///path, or memory:// to keep nothing", option="store"
                )
            from lockstep.store.sqlite import SqliteDatabase

            return SqliteDatabase(url)
        case "postgresql":
            from lockstep.store.postgres import PostgresDatabase

            return PostgresDatabase(url.set(drivername="postgresql+psycopg"))
        case "mysql" | "mariadb":
            from lockstep.store.mysql import MysqlDatabase

            return MysqlDatabase(url.set(drivername="mysql+pymysql"))
        case kind:
            raise ConfigurationError(f"no store answers to {kind}:...; use {FORMS}", option="store")


def _scheme(url: str) -> str:
    """The part of a URL that holds no password."""
    return url.split(":", 1)[0] + ":"
