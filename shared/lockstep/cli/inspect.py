"""`runs` and `show`: commands that only read the store, and need no graph."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Column, Table

from lockstep.backend import ReplayReport
from lockstep.cli.options import json_option, store_option
from lockstep.cli.output import print_json, print_run, run_record
from lockstep.config import read_settings
from lockstep.core.lifecycle import RunStatus
from lockstep.core.merge import Schema
from lockstep.errors import ConfigurationError
from lockstep.forks import origin_of
from lockstep.ports import LiveReader, Store
from lockstep.records import Command, NewRun, RunRow
from lockstep.run import Run
from lockstep.store import open_store

PIPE_WIDTH = 240
"""Characters of a line where stdout is no terminal."""


class ReadOnly:
    """A `Backend` of Runs that are only looked at."""

    announces = False

    def __init__(self, store: Store) -> None:
        self.reader = store

    def subscribe(self, run_id: str, wake: Callable[[], None], *, each_step: bool) -> Callable[[], None]:
        """Nothing announces changes here; who waits, polls."""
        return lambda: None

    def check(self, run_id: str) -> None:
        """Runs are moved by other processes."""

    def send(self, command: Command) -> None:
        """Refuse: this command only reads."""
        raise ConfigurationError("this command only reads")

    def schema_of(self, row: RunRow) -> Schema | None:
        """None: no graph is loaded."""
        return None

    def cause_of(self, run_id: str) -> BaseException | None:
        """None: nothing runs here."""
        return None

    def live(self, run_id: str) -> LiveReader:
        """Refuse: nothing is followed here."""
        raise ConfigurationError("this command only reads")

    def begin(self, run: NewRun) -> RunRow:
        """Refuse: this command only reads."""
        raise ConfigurationError("this command only reads")

    def replay(self, row: RunRow) -> ReplayReport:
        """Refuse: there is no graph."""
        raise ConfigurationError("this command only reads")


@click.command()
@click.option("--status", type=click.Choice([status.value for status in RunStatus]), help="Only runs with this status.")
@click.option("--graph", help="Only runs of this graph.")
@click.option("--forks-of", metavar="RUN_ID", help="Only runs that were forked from this one.")
@click.option("--children-of", metavar="RUN_ID", help="Only the runs of this one's subgraphs.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="How many to list.")
@click.option("--after", metavar="RUN_ID", help="Only runs behind this id: the next page.")
@store_option
@json_option
def runs(
    status: str | None,
    graph: str | None,
    forks_of: str | None,
    children_of: str | None,
    limit: int,
    after: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """List runs, ascending by id."""
    wanted = RunStatus(status) if status else None
    with closing(open_store(read_settings(store=store).store_url, create=False)) as opened:
        rows = opened.find_runs(status=wanted, graph=graph, parent=forks_of or children_of, after=after, limit=limit)
        if forks_of or children_of:
            rows = [row for row in rows if (origin_of(row) is None) is (children_of is not None)]
    if as_json:
        print_json([_listed(row) for row in rows])
        return
    table = Table(Column("run_id", no_wrap=True), "graph", "status", "step", "updated")
    for row in rows:
        table.add_row(row.run_id, row.graph, row.status.value, str(row.step_id), _listed(row)["updated_at"])
    # A pipe has no width; ids must stay whole there.
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def _listed(row: RunRow) -> dict[str, Any]:
    return {
        "run_id": row.run_id,
        "graph": row.graph,
        "status": row.status.value,
        "step_id": row.step_id,
        "created_at": _iso(row.created_at),
        "updated_at": _iso(row.updated_at),
    }


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


@click.command()
@click.argument("run_id")
@click.option("--step", type=click.IntRange(min=0), help="The state after this step instead of the last one.")
@click.option("--history", is_flag=True, help="Also the steps and the tasks of each.")
@store_option
@json_option
def show(run_id: str, step: int | None, history: bool, store: str | None, as_json: bool) -> None:
    """Show a run: its state, where it stands, and what it has done."""
    with closing(open_store(read_settings(store=store).store_url, create=False)) as opened:
        found = Run(run_id, ReadOnly(opened))
        record = run_record(found)
        if step is not None:
            if not opened.steps(run_id, step, step):
                raise ConfigurationError(f"run {run_id} has no committed step {step}", option="step")
            record |= {"step_id": step, "state": found.state(step), "state_hash": _hash_at(opened, run_id, step)}
        records = found.history() if history else []
    if as_json:
        if history:
            record["history"] = [_step(entry) for entry in records]
        print_json(record)
        return
    console = Console()
    if history:
        table = Table("step", "node", "order_key", "attempt", "status", "ms", "writes", "targets")
        for entry in records:
            for task in entry.tasks:
                table.add_row(
                    str(entry.step_id),
                    task.node_id,
                    task.order_key,
                    str(task.attempt),
                    task.status,
                    f"{task.latency_ms:.1f}",
                    ", ".join(task.delta),
                    ", ".join(task.targets),
                )
        console.print(table)
    print_run(console, record)


def _step(record: Any) -> dict[str, Any]:
    step = {name: getattr(record, name) for name in ("step_id", "state_hash", "idempotency_key", "committed_at")}
    tasks = [dataclasses.asdict(task) | {"usage": msgspec.to_builtins(task.usage)} for task in record.tasks]
    return {**step, "tasks": tasks}


def _hash_at(store: Store, run_id: str, step_id: int) -> str:
    return store.steps(run_id, step_id, step_id)[0].state_hash.hex()
