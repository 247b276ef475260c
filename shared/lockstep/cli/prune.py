"""`prune`: remove finished runs."""

from __future__ import annotations

from contextlib import closing

import click

from lockstep.cli.options import json_option, store_option
from lockstep.cli.output import print_json
from lockstep.config import duration_of, read_settings
from lockstep.errors import ConfigurationError
from lockstep.ports import Store
from lockstep.records import PrunedTo, Retention
from lockstep.store import open_store


@click.command()
@click.option("--older-than", metavar="AGE", help="Those that finished longer ago, such as 12h or 7d.")
@click.option("--keep", type=click.IntRange(min=0), help="Those beyond so many of the newest of their graph.")
@click.option("--graph", help="Only runs of this graph.")
@click.option("--dry-run", is_flag=True, help="Only tell which runs would go.")
@store_option
@json_option
def prune(older_than: str | None, keep: int | None, graph: str | None, dry_run: bool, store: str | None, as_json: bool) -> None:
    """Remove finished runs, with all that belongs to them. One whose events a sink has not got stays."""
    age = None if older_than is None else duration_of(older_than, "--older-than")
    retention = Retention(max_age_seconds=age, max_runs=keep)
    if retention.keeps_all:
        raise ConfigurationError("say which runs may go: --older-than AGE, --keep COUNT, or both", option="older_than")
    with closing(open_store(read_settings(store=store).store_url, create=False)) as opened:
        graphs = opened.graphs() if graph is None else [graph]
        run_ids = [run_id for name in graphs for run_id in _pruned(opened, name, retention, dry_run)]
    if as_json:
        print_json({"dry_run": dry_run, "run_ids": run_ids})
        return
    for run_id in run_ids:
        click.echo(run_id)
    click.echo(f"{len(run_ids)} runs {'would be' if dry_run else 'are'} removed", err=True)


def _pruned(store: Store, graph: str, retention: Retention, dry_run: bool) -> list[str]:
    run_ids: list[str] = []
    after: PrunedTo | None = None
    while True:
        pruned = store.prune(graph, retention, after=after, dry_run=dry_run)
        run_ids += pruned.run_ids
        after = pruned.last
        if after is None:
            return run_ids
