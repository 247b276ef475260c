"""Submitting within a transaction of the caller's: the run is there if and only if what else it does is."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from lockstep.errors import ConfigurationError
from lockstep.records import NewRun, Submitted
from lockstep.store import schema
from lockstep.store.access import Access
from lockstep.store.clock import now_ms
from lockstep.store.insertion import run_values, unfinished_values
from lockstep.store.reading import run_row


class SqlJoining:
    """`Store.submit_within` over SQLAlchemy Core, so that the caller may use any driver."""

    _access: Access

    def submit_within(self, connection: object, run: NewRun) -> Submitted:
        joined = _connection_of(connection)
        self._check_joins(joined)
        try:
            return self._submit(joined, run)
        except DBAPIError as error:
            raise self._access.unavailable(error.orig) from error

    def _submit(self, connection: sa.Connection, run: NewRun) -> Submitted:
        # Looked for first: an insert that meets a row locks it on MySQL, and the run's owner would wait for the caller.
        known = sa.select(schema.runs).where(schema.runs.c.run_id == run.run_id)
        found = connection.execute(known).first()
        if found is None:
            # No savepoint: with some drivers, releasing the first one of a transaction on SQLite commits it.
            now = connection.execute(sa.select(now_ms())).scalar_one()
            insert = self._access.database.insert_unless_taken(schema.runs).values(run_values(run, now))
            if connection.execute(insert.execution_options(preserve_rowcount=True)).rowcount == 1:
                connection.execute(sa.insert(schema.unfinished).values(unfinished_values(run)))
                return Submitted(run.row(now), created=True)
            # It has just come, perhaps after what the transaction sees without a lock.
            found = connection.execute(known.with_for_update(read=True)).one()
        return Submitted(run_row(found), created=False)

    def _check_joins(self, connection: sa.Connection) -> None:
        """Raise ConfigurationError if this is no transaction, or one on another database."""
        ours = self._access.database.engine
        if connection.dialect.name != ours.dialect.name or self._identity_of(connection) != self._own_identity():
            raise ConfigurationError(
                f"the connection leads to {connection.engine.url.render_as_string(hide_password=True)}, but runs are in "
                f"{self._access.url}: one transaction cannot span both; give a connection to the same database",
                option="connection",
            )
        driver: Any = connection.connection.driver_connection
        # On SQLite, a transaction may have been begun by hand.
        if connection.dialect.detect_autocommit_setting(driver) and not getattr(driver, "in_transaction", False):
            raise ConfigurationError(
                "the connection is in autocommit, so there is no transaction that the run could be part of; "
                "give one without isolation_level='AUTOCOMMIT'",
                option="connection",
            )

    def _own_identity(self) -> Any:
        with self._access.reading() as connection:
            return self._identity_of(connection)

    def _identity_of(self, connection: sa.Connection) -> Any:
        try:
            return self._access.database.identity(connection)
        except DBAPIError as error:
            raise self._access.unavailable(error.orig) from error


def _connection_of(given: object) -> sa.Connection:
    if isinstance(given, sa.Connection):
        return given
    from sqlalchemy.orm import Session  # Imported here: only who gives one has it loaded.

    if isinstance(given, Session):
        return given.connection()
    raise ConfigurationError(
        f"the connection must be a Connection or Session of SQLAlchemy, got {type(given).__name__}; "
        "of an asynchronous one, use run_sync",
        option="connection",
    )
