"""Brings a database's schema up to date: by whoever comes first, under a lock, in one transaction."""

from __future__ import annotations

from sqlalchemy import Connection, inspect, text

HEAD = "0001"
"""The newest migration; a test compares it with the files."""


def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at; None: it has no schema yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def upgrade(connection: Connection) -> None:
    """Run the missing migrations over a connection whose transaction holds the lock."""
    # Imported here: only the first start against a new database needs Alembic, and loading it takes longer than a short run.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "lockstep.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)
