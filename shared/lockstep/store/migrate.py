"""Brings a database's schema up to date: by whoever comes first, under a lock."""

from __future__ import annotations

from sqlalchemy import Connection, inspect, text

from lockstep.errors import ConfigurationError
from lockstep.store.access import Access

HEAD = "0002"
"""The newest migration; a test compares it with the files."""


def bring_up_to_date(access: Access) -> None:
    """Run the migrations that are missing. Raises ConfigurationError if the schema was written by a newer release."""
    with access.reading() as connection:
        if current_revision(connection) == HEAD:
            return
        with access.database.upgrading(connection):
            revision = current_revision(connection)
            if revision is not None and revision > HEAD:
                raise ConfigurationError(
                    f"the database {access.url} has schema {revision}, newer than {HEAD} of this release; "
                    f"upgrade lockstep-graph",
                    option="store",
                )
            _upgrade(connection)


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
