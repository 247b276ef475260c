"""`versions`: which versions of graphs there are, and which nobody needs any more."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lockstep.cli.inspect import PIPE_WIDTH
from lockstep.cli.options import json_option, store_option
from lockstep.cli.output import print_json
from lockstep.config import read_settings
from lockstep.records import GraphVersion
from lockstep.store import open_store

SHOWN_CHARACTERS = 12
"""Of a version's hash, for people."""


@click.command()
@store_option
@json_option
def versions(store: str | None, as_json: bool) -> None:
    """List the versions of graphs that runs are pinned to or coordinators have loaded, and which may be retired."""
    with closing(open_store(read_settings(store=store).store_url, create=False)) as opened:
        found = opened.versions()
    newest = {version.graph: version for version in reversed(found) if version.loaded_at is not None}
    rows = [_row(version, newest.get(version.graph) == version) for version in found]
    if as_json:
        print_json(rows)
        return
    table = Table("graph", "version", "loaded", "runs", "unfinished", "failed", "")
    for row in rows:
        counts = [str(row[name]) for name in ("runs", "unfinished", "failed")]
        graph_hash, loaded = row["graph_hash"][:SHOWN_CHARACTERS], row["loaded_at"] or "never"
        table.add_row(escape(row["graph"]), graph_hash, loaded, *counts, row["verdict"])
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def _row(version: GraphVersion, is_newest: bool) -> dict[str, Any]:
    loaded = None if version.loaded_at is None else datetime.fromtimestamp(version.loaded_at / 1000, UTC)
    return {
        "graph": version.graph,
        "graph_hash": version.graph_hash,
        "loaded_at": loaded and loaded.isoformat(timespec="milliseconds"),
        "runs": version.runs,
        "unfinished": version.unfinished,
        "failed": version.failed,
        "verdict": _verdict(version, is_newest),
    }


def _verdict(version: GraphVersion, is_newest: bool) -> str:
    if version.unfinished:
        return "needed: runs go on with it"
    if is_newest:
        return "newest: new runs get it"
    if version.failed:
        return "may be retired, if its failed runs are not to be retried"
    return "may be retired"
