"""What commands print: JSON for programs, tables and text for people."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.markup import escape

from lockstep.costs import as_text
from lockstep.forks import origin_of
from lockstep.run import Run

VALUE_CHARACTERS = 200
"""Of a field's value, for people; `--json` shows all of it."""


def run_record(run: Run) -> dict[str, Any]:
    """A run as `run --json` and `show --json` print it."""
    row, costs = run.row(), run.costs()
    origin = origin_of(row)
    return {
        "run_id": row.run_id,
        "graph": row.graph,
        "status": row.status.value,
        "step_id": row.step_id,
        "state": run.json_state() if row.step_id >= 0 else {},
        "state_hash": row.state_hash.hex() if row.state_hash else None,
        "error": run.error_record(),
        "interrupts": [dataclasses.asdict(one) for one in run.interrupts()],
        "cost_usd": as_text(costs.cost_usd) if costs.calls else None,
        **({"origin": msgspec.to_builtins(origin)} if origin is not None else {}),
    }


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, sort_keys=True, indent=2), file=sys.__stdout__)


def print_run(console: Console, record: dict[str, Any]) -> None:
    """A run's state and where it stands, for people: texts as they are, other values in one line each."""
    # Texts last, where they are read.
    for name, value in sorted(record["state"].items(), key=lambda field: _is_text(field[1])):
        if _is_text(value):
            console.print(f"[bold]{escape(name)}[/bold]\n")
            console.print(value.rstrip() + "\n", markup=False, highlight=False, soft_wrap=True)
        else:
            text = json.dumps(value, ensure_ascii=False)
            shown = text if len(text) <= VALUE_CHARACTERS else f"{text[:VALUE_CHARACTERS]}… ({len(text)} characters)"
            console.print(f"[bold]{escape(name)}[/bold] {escape(shown)}", highlight=False, soft_wrap=True)
    if record["error"]:
        console.print(f"[red]{record['error']['type']}[/red] {escape(record['error']['message'])}", highlight=False)
    for asked in record["interrupts"]:
        value = json.dumps(asked["value"], ensure_ascii=False)
        console.print(
            f"[yellow]{asked['id']}[/yellow] {escape(asked['node_id'])} asks {escape(value)}", highlight=False, soft_wrap=True
        )
    if (origin := record.get("origin")) is not None:
        console.print(f"[dim]forked from run {escape(origin['run_id'])} after step {origin['step_id']}[/dim]", highlight=False)
    if record["cost_usd"] is not None:
        console.print(f"[dim]its calls to models cost {record['cost_usd']} USD[/dim]", highlight=False)
    state_hash = f", state_hash {record['state_hash']}" if record["state_hash"] else ""
    console.print(
        f"[dim]run {escape(record['run_id'])} of graph {escape(record['graph'])}: {record['status']} "
        f"after step {record['step_id']}{state_hash}[/dim]",
        highlight=False,
        soft_wrap=True,
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\n" in value
