"""Brings a database's schema up to date: by whoever comes first, under a lock."""

from __future__ import annotations

from sqlalchemy import Connection, inspect, text

from lockstep.errors import ConfigurationError
from lockstep.store.access import Access
from lockstep.store.database import open_database

HEAD = "0003"
"""The newest migration; a test compares it with the files."""


def bring_up_to_date(access: Access) -> None:
    """Run the migrations that are missing. Raises ConfigurationError if the schema was written by a newer release."""
    with access.reading() as connection:
        if current_revision(connection) == HEAD:
            return
        with access.database.upgrading(connection):
            _refuse_newer(current_revision(connection), access)
            _upgrade(connection)


def checked_revision(url: str) -> str | None:
    """The revision that the database at the URL is at; None: it has no schema yet. Changes nothing.

    Raises ConfigurationError if the schema was written by a newer release, StoreUnavailableError.
    """
    database = open_database(url)
    database.check_exists()
    access = Access(database)
    try:
        with access.reading() as connection:
            revision = current_revision(connection)
        _refuse_newer(revision, access)
        return revision
    finally:
        access.close()


def _refuse_newer(revision: str | None, access: Access) -> None:
    if revision is not None and revision > HEAD:
        raise ConfigurationError(
            f"the database {access.url} has schema {revision}, newer than {HEAD} of this release; upgrade lockstep-graph",
            option="store",
        )


def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at; None: it has no schema yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def _upgrade(connection: Connection) -> None:
    """Run the missing migrations over a connection that holds the lock."""
    # Imported here: only the first start against a new database needs Alembic, and loading it takes longer than a short run.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "lockstep.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)
