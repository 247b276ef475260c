"""What differs between databases, behind one small interface; each has a module of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from lockstep.errors import ConfigurationError
from lockstep.store.commit import GroupCommit


class Database(Protocol):
    """A kind of database. Its connections are in autocommit; a transaction is what `writing` makes."""

    engine: sa.Engine

    def writing(self, connection: sa.Connection) -> AbstractContextManager[None]:
        """One transaction on the connection: committed at the end, rolled back after an exception."""

    def lock_schema(self, connection: sa.Connection) -> None:
        """Wait until no other process migrates, and keep others from it until the transaction ends."""

    def group_commit(self, lease_seconds: float) -> GroupCommit:
        """A group commit with a connection of its own."""


def open_database(url: str) -> Database:
    """The database at the URL; nothing is connected yet. Raises ConfigurationError."""
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise ConfigurationError(f"the store URL cannot be read: {_scheme(url)}...", option="store") from None
    match parsed.get_backend_name():
        case "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise ConfigurationError(
                    f"{url} names no file; use sqlite:///path, or memory:// to keep nothing", option="store"
                )
            from lockstep.store.sqlite import SqliteDatabase

            return SqliteDatabase(parsed)
        case "postgresql":
            from lockstep.store.postgres import PostgresDatabase

            return PostgresDatabase(parsed.set(drivername="postgresql+psycopg"))
        case _:
            raise ConfigurationError(
                f"no store answers to {_scheme(url)}...; use memory://, sqlite:///path or postgresql+psycopg://...",
                option="store",
            )


def _scheme(url: str) -> str:
    """The part of a URL that holds no password."""
    return url.split(":", 1)[0] + ":"
