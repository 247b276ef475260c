"""`outbox`: what waits to be published, and what to do with what does not get through."""

from __future__ import annotations

import sys
from contextlib import closing

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lockstep.cli.inspect import PIPE_WIDTH
from lockstep.cli.options import json_option, store_option
from lockstep.cli.output import print_json
from lockstep.config import read_settings
from lockstep.errors import ConfigurationError
from lockstep.ports import Outbox
from lockstep.records import Backlog, WaitingRun
from lockstep.store import open_store


@click.command()
@click.option("--sink", metavar="NAME", help="The sink that the other options are about.")
@click.option("--replay", metavar="RUN_ID", help="Publish the events of a run once more.")
@click.option("--from", "sequence", default=0, type=click.IntRange(min=0), help="With --replay: from this sequence on.")
@click.option("--retry", metavar="RUN_ID", help="Try the event of a parked run again, now.")
@click.option("--retry-all", is_flag=True, help="Try the events of all parked runs again, now.")
@click.option("--skip", metavar="RUN_ID", help="Go on with the event after the one that a parked run is held up by.")
@click.option("--remove", is_flag=True, help="Forget the sink, and all that it has not got.")
@click.option("--parked", is_flag=True, help="List only runs that are parked.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="How many runs to list.")
@store_option
@json_option
def outbox(
    sink: str | None,
    replay: str | None,
    sequence: int,
    retry: str | None,
    retry_all: bool,
    skip: str | None,
    remove: bool,
    parked: bool,
    limit: int,
    store: str | None,
    as_json: bool,
) -> None:
    """List the events that wait for sinks; replay, retry or skip those of a run, or remove a sink."""
    wishes = {"replay": replay, "retry": retry, "retry-all": retry_all, "skip": skip, "remove": remove}
    asked = [name for name, value in wishes.items() if value]
    if len(asked) > 1:
        raise ConfigurationError(f"--{asked[0]} and --{asked[1]} are two wishes; one at a time", option=asked[1])
    if asked and sink is None:
        raise ConfigurationError(f"--{asked[0]} needs --sink NAME; `lockstep outbox` lists the sinks", option="sink")
    with closing(open_store(read_settings(store=store).store_url, create=False)) as opened:
        if retry_all and sink is not None:
            click.echo(f"{_retry_all(opened.outbox, sink)} runs are tried again", err=True)
        elif asked and sink is not None:
            _carry_out(opened.outbox, sink, replay, sequence, retry, skip)
        else:
            _list(opened.outbox.backlogs(), opened.outbox.waiting(sink, parked=parked, limit=limit), as_json)


def _carry_out(outbox: Outbox, sink: str, replay: str | None, sequence: int, retry: str | None, skip: str | None) -> None:
    if replay is not None:
        done, what = outbox.replay(sink, replay, sequence), f"run {replay} has no events from sequence {sequence} on"
    elif retry is not None:
        done, what = outbox.unpark(sink, retry), f"run {retry} is not parked there"
    elif skip is not None:
        done, what = outbox.unpark(sink, skip, skip=True), f"run {skip} is not parked there"
    else:
        done, what = outbox.remove_sink(sink), "it is not known"
    if not done:
        raise ConfigurationError(
            f"nothing to do for sink {sink!r}: {what}; `lockstep outbox` lists what there is", option="sink"
        )


def _retry_all(outbox: Outbox, sink: str) -> int:
    """Try all runs again that are parked now; how many. One that is parked anew meanwhile stays."""
    tried: set[str] = set()
    while more := [run.run_id for run in outbox.waiting(sink, parked=True, limit=len(tried) + 100) if run.run_id not in tried]:
        for run_id in more:
            outbox.unpark(sink, run_id)
        tried.update(more)
    return len(tried)


def _list(backlogs: list[Backlog], waiting: list[WaitingRun], as_json: bool) -> None:
    if as_json:
        print_json({"sinks": msgspec.to_builtins(backlogs), "waiting": msgspec.to_builtins(waiting)})
        return
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    sinks = Table("sink", "runs waiting", "parked", "lag in seconds")
    for backlog in backlogs:
        sinks.add_row(escape(backlog.sink), str(backlog.runs), str(backlog.parked), f"{backlog.lag_seconds:.1f}")
    console.print(sinks)
    if waiting:
        runs = Table("run_id", "sink", "next event", "attempts", "parked", "error")
        for each in waiting:
            place = f"{each.sequence}/{each.position}"
            parked = "yes" if each.parked else ""
            runs.add_row(each.run_id, escape(each.sink), place, str(each.attempts), parked, escape(each.error or ""))
        console.print(runs)
