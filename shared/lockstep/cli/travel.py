"""`update` and `fork`: change a run that is at rest, or begin another one from any of its steps."""

from __future__ import annotations

from typing import Any

import click

from lockstep.cli.options import json_option, redis_option, store_option
from lockstep.cli.output import print_json
from lockstep.cli.run import read_input
from lockstep.client import Client
from lockstep.config import read_settings
from lockstep.errors import ConfigurationError, StateError


@click.command()
@click.argument("run_id")
@click.option("--update", "update_", default="{}", metavar="JSON|@FILE", help="The fields to change. Default: none.")
@click.option("--as-node", metavar="NODE", help="Go on as if this node had returned the update.")
@store_option
@redis_option
@json_option
def update(run_id: str, update_: str, as_node: str | None, store: str | None, redis: str | None, as_json: bool) -> None:
    """Change the state of a run that is interrupted, paused or failed; prints the step that does so."""
    settings = read_settings(store=store, redis=redis)
    with Client(settings.store_url, redis_url=settings.redis_url, namespace=settings.namespace) as client:
        step = _checked(lambda: client.run(run_id).update_state(read_input(update_), as_node))
        if as_json:
            print_json({"run_id": run_id, "step_id": step})
        else:
            click.echo(step)


@click.command()
@click.argument("run_id")
@click.option("--step", type=click.IntRange(min=0), help="After which step to begin. Default: the last one.")
@click.option("--update", "update_", default="{}", metavar="JSON|@FILE", help="The fields to change. Default: none.")
@click.option("--as-node", metavar="NODE", help="Go on as if this node had returned the update.")
@click.option("--run-id", "new_id", metavar="ID", help="The id of the new run.")
@store_option
@redis_option
@json_option
def fork(
    run_id: str,
    step: int | None,
    update_: str,
    as_node: str | None,
    new_id: str | None,
    store: str | None,
    redis: str | None,
    as_json: bool,
) -> None:
    """Begin a new run with what a run had come to after a step; coordinators run it. Prints its id."""
    settings = read_settings(store=store, redis=redis)
    with Client(settings.store_url, redis_url=settings.redis_url, namespace=settings.namespace) as client:
        begun = _checked(lambda: client.run(run_id).fork(step, read_input(update_), as_node=as_node, run_id=new_id))
        if as_json:
            print_json({"run_id": begun.run_id, "status": begun.status.value})
        else:
            click.echo(begun.run_id)


def _checked(ask: Any) -> Any:
    try:
        return ask()
    except StateError as error:
        raise ConfigurationError(str(error), option="update") from error
