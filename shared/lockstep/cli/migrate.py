"""`migrate`: bring the database's schema up to date."""

from __future__ import annotations

from contextlib import closing

import click

from lockstep.cli.options import store_option
from lockstep.config import masked, read_settings
from lockstep.store import open_store


@click.command()
@store_option
def migrate(store: str | None) -> None:
    """Bring the database's schema up to date. Every start does so too; this is for doing it beforehand."""
    url = read_settings(store=store).store_url
    with closing(open_store(url)):
        click.echo(f"{masked(url)} is up to date")
