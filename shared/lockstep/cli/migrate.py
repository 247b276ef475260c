"""`migrate`: bring the database's schema up to date."""

from __future__ import annotations

import sys
from contextlib import closing

import click

from lockstep.cli.options import store_option
from lockstep.config import masked, read_settings
from lockstep.errors import ConfigurationError
from lockstep.store import open_store
from lockstep.store.migrate import HEAD, checked_revision

DUE = 1
"""The exit code of `--check` when there is something to do."""


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 if there is something to do.")
@store_option
def migrate(check: bool, store: str | None) -> None:
    """Bring the database's schema up to date. Every start does so too; this is for doing it beforehand."""
    url = read_settings(store=store).store_url
    if url == "memory://":
        raise ConfigurationError("memory:// has no schema; name a database", option="store")
    if check:
        revision = checked_revision(url)
        if revision != HEAD:
            stands = "no schema yet" if revision is None else f"schema {revision}"
            click.echo(f"{masked(url)} has {stands}, and this release needs {HEAD}: run `lockstep migrate`")
            sys.exit(DUE)
        click.echo(f"{masked(url)} has schema {HEAD}, as this release needs")
        return
    with closing(open_store(url)):
        click.echo(f"{masked(url)} is up to date")
