"""`submit` and `cancel`: ask coordinators, from anywhere that reaches the database."""

from __future__ import annotations

import click

from lockstep.cli.options import json_option, redis_option, store_option
from lockstep.cli.output import print_json
from lockstep.cli.run import follow, read_input
from lockstep.client import Client
from lockstep.config import read_settings
from lockstep.errors import ConfigurationError, StateError


@click.command()
@click.argument("graph", metavar="GRAPH")
@click.option("--input", "input_", default="{}", metavar="JSON|@FILE", help="The input as a JSON object. Default: {}.")
@click.option("--run-id", help="The run's id; the same one again gives the same run.")
@click.option("--wait", is_flag=True, help="Follow the run to its end, and print its state.")
@store_option
@redis_option
@json_option
def submit(
    graph: str, input_: str, run_id: str | None, wait: bool, store: str | None, redis: str | None, as_json: bool
) -> None:
    """Submit a run of a graph, by its name, to the coordinators; prints its id."""
    settings = read_settings(store=store, redis=redis)
    with Client(settings.store_url, redis_url=settings.redis_url) as client:
        try:
            run = client.submit(graph, read_input(input_), run_id=run_id)
        except StateError as error:
            raise ConfigurationError(f"--input: {error}", option="input") from error
        if wait:
            follow(run, settings, as_json, interrupted=f"run {run.run_id} goes on; look with: lockstep show {run.run_id}")
        elif as_json:
            print_json({"run_id": run.run_id, "graph": graph, "status": run.status.value})
        else:
            click.echo(run.run_id)


@click.command()
@click.argument("run_id")
@click.option("--reason", default="requested", show_default=True, help="Why; the run's error says it.")
@store_option
@redis_option
def cancel(run_id: str, reason: str, store: str | None, redis: str | None) -> None:
    """Ask the coordinators to end a run. One that has ended stays as it is."""
    with Client(store, redis_url=redis) as client:
        client.run(run_id).cancel(reason)
