"""`explain`: why a run is where it is."""

from __future__ import annotations

from collections import Counter
from contextlib import closing

import click
import msgspec
from rich.console import Console
from rich.markup import escape

from lockstep.broker.inspection import whereabouts
from lockstep.cli.options import json_option, redis_option, store_option
from lockstep.cli.output import print_json
from lockstep.config import read_settings
from lockstep.errors import RunNotFoundError
from lockstep.explain import Explanation
from lockstep.explain import explain as explain_run
from lockstep.store import open_store

ITEMS_SHOWN = 20
"""Items that people see one by one; `--json` has all."""


@click.command()
@click.argument("run_id")
@store_option
@redis_option
@json_option
def explain(run_id: str, store: str | None, redis: str | None, as_json: bool) -> None:
    """Tell what a run waits for: who owns it, where its tasks are, and what to do if it does not move."""
    settings = read_settings(store=store, redis=redis)
    with closing(open_store(settings.store_url, create=False)) as opened:
        rows = opened.find_runs(run_ids=[run_id])
        if not rows:
            raise RunNotFoundError(f"no run {run_id!r}; `lockstep runs` lists those there are", run_id=run_id)
        # Redis before the database's journal: a task that is answered meanwhile is then seen as done, not as nowhere.
        seen = whereabouts(settings.redis_url, settings.namespace) if settings.redis_url else None
        explanation = explain_run(opened, rows[0], seen)
    if as_json:
        print_json(msgspec.to_builtins(explanation))
    else:
        _print(Console(), explanation)


def _print(console: Console, explanation: Explanation) -> None:
    def say(text: str) -> None:
        console.print(escape(text), highlight=False, soft_wrap=True)

    say(f"run {explanation.run_id} of graph {explanation.graph}: {explanation.status} after step {explanation.step_id}")
    if explanation.items:
        states = Counter(item.state for item in explanation.items)
        say(f"step {explanation.step_id + 1}: " + ", ".join(f"{count} {state}" for state, count in states.items()))
        open_items = [item for item in explanation.items if item.state != "done"]
        for item in open_items[:ITEMS_SHOWN]:
            where = f" {item.where}" if item.where else ""
            failed = f", failed {item.failures} times, last with {item.error}" if item.failures else ""
            say(f"  {item.order_key} {item.node_id}: {item.state}{where}{failed}")
        if len(open_items) > ITEMS_SHOWN:
            say(f"  and {len(open_items) - ITEMS_SHOWN} more")
    if explanation.owner:
        say(f"owner: {explanation.owner}")
    for finding in explanation.findings:
        say(f"! {finding}")
