"""Connections to a SQL database: for reading, for one transaction, and what is said when there are none."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from lockstep.errors import StoreUnavailableError
from lockstep.store.commit import ATTEMPTS
from lockstep.store.database import Database

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection

P = ParamSpec("P")
R = TypeVar("R")


FRESH_SECONDS = 1.0
"""A connection that was used so recently is not asked whether it still lives: that would be an exchange for each use."""


def ask_idle_connections(engine: sa.Engine) -> None:
    """Before a connection is used that has lain idle, ask the server for a sign of life; one that has ended is replaced."""

    def note(connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
        record.info["used_at"] = time.monotonic()

    def ask(connection: DBAPIConnection, record: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
        if time.monotonic() - record.info.get("used_at", math.inf) > FRESH_SECONDS:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise DisconnectionError(str(error)) from error

    sa.event.listen(engine, "checkin", note)
    sa.event.listen(engine, "checkout", ask)


class Access:
    """The way to one database. Its methods raise StoreUnavailableError, which names the database without its password."""

    def __init__(self, database: Database) -> None:
        self.database = database
        ask_idle_connections(database.engine)
        # Without its parameters: some drivers take the password as one.
        self.url = database.engine.url.set(query={}).render_as_string(hide_password=True)
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection on which each statement is a transaction."""
        try:
            with self.database.engine.connect() as connection:
                try:
                    yield connection
                finally:
                    # Runs can be read after `close`, or while it is called. Nobody would close what then goes into the pool.
                    if self._closed and not connection.invalidated:
                        connection.detach()
        except DBAPIError as error:
            raise self.unavailable(error.orig) from error
        except PoolTimeoutError as error:
            raise self.unavailable(error) from error

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A connection within a transaction: committed at the end, rolled back after an exception."""
        with self.reading() as connection, self.database.writing(connection):
            yield connection

    def unavailable(self, error: BaseException | None) -> StoreUnavailableError:
        """What to say of an error of the driver's or the pool's."""
        reason = " ".join(str(error).split())
        return StoreUnavailableError(f"the database {self.url} does not work: {reason}; {self.database.remedy}", url=self.url)

    def close(self) -> None:
        """Close all connections that are not in use; those in use are closed by their users. Idempotent."""
        self._closed = True
        self.database.engine.dispose()


class HasAccess(Protocol):
    """Something that works through an `Access`."""

    _access: Access


S = TypeVar("S", bound=HasAccess)


def repeatable(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A method that is one transaction and may be done twice: tried again after a deadlock, or when its connection was lost."""

    @functools.wraps(method)
    def trying(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        for _ in range(ATTEMPTS - 1):
            try:
                return method(self, *args, **kwargs)
            except StoreUnavailableError as error:
                cause = error.__cause__
                if not isinstance(cause, DBAPIError):
                    raise
                # What a new connection cannot be had for is raised at the next attempt.
                if not (cause.connection_invalidated or self._access.database.is_deadlock(cause.orig)):
                    raise
        return method(self, *args, **kwargs)

    return trying
