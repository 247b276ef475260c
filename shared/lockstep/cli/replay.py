"""`replay`: whether the code of today still does what it did, for a program that needs an answer, such as CI."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import click

from lockstep.archive import import_run
from lockstep.cli.errors import RUN_FAILED
from lockstep.cli.load import load_graphs
from lockstep.cli.options import graphs_option, json_option, store_option
from lockstep.cli.output import print_json
from lockstep.compiled import by_hash
from lockstep.config import read_settings
from lockstep.errors import ReplayMismatchError, RunNotFoundError
from lockstep.ports import Reader
from lockstep.records import RunRow
from lockstep.replay import replay_run
from lockstep.store import open_store
from lockstep.store.memory import MemoryStore


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@graphs_option
@store_option
@json_option
def replay(runs: tuple[str, ...], graphs: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """Execute the nodes of runs again, with what they got then, and compare; exits with 1 if they differ.

    RUN is the id of a run of the store, or a file that `lockstep export` has written. Nothing is stored, no recorded call made.
    """
    settings = read_settings(store=store, graphs=graphs)
    with redirect_stdout(sys.stderr):
        loaded = by_hash(load_graphs(settings.graphs))
    records: list[dict[str, Any]] = []
    differs = False
    for name in runs:
        with _found(name, settings.store_url) as (reader, row), redirect_stdout(sys.stderr):
            try:
                report = replay_run(reader, row, loaded)
            except ReplayMismatchError as mismatch:
                differs = True
                records.append({"run_id": row.run_id, "mismatch": mismatch.to_record()})
                click.echo(f"run {row.run_id} differs: {mismatch}", err=True)
            else:
                records.append({**dataclasses.asdict(report), "mismatch": None})
                did = f"{report.steps} steps, {report.nodes} node executions, {report.calls} recorded calls"
                click.echo(f"run {row.run_id} does what it did: {did}", err=True)
    if as_json:
        print_json({"runs": records})
    sys.exit(RUN_FAILED if differs else 0)


@contextmanager
def _found(name: str, store_url: str) -> Iterator[tuple[Reader, RunRow]]:
    """A run of a file, or, where there is no such file, of the store. Raises RunNotFoundError, ArchiveError."""
    if Path(name).is_file():
        memory = MemoryStore()
        with open(name, "rb") as lines:
            yield memory, import_run(memory, lines, unfinished=True)
        return
    with closing(open_store(store_url, create=False)) as opened:
        rows = opened.find_runs(run_ids=[name])
        if not rows:
            raise RunNotFoundError(f"no file and no run {name!r}; `lockstep runs` lists those there are", run_id=name)
        yield opened, rows[0]
