"""From the store back to a run in memory: after a restart, a takeover, or a retry."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping

import msgspec

from lockstep.compiled import CompiledGraph, serving
from lockstep.errors import GraphVersionError, StateError
from lockstep.history import items_in_place, read_costs, read_position
from lockstep.options import decode_options
from lockstep.ports import Reader
from lockstep.records import FORMAT_VERSION, RunRow
from lockstep_coordinator.items import Retry
from lockstep_coordinator.run import ActiveRun
from lockstep_coordinator.threads import first_state


def load(
    reader: Reader, row: RunRow, graphs: Mapping[str, CompiledGraph], now: float, *, to_end_it: bool = False
) -> tuple[ActiveRun, list[Retry]]:
    """The run as its last commit and journal leave it, and its items that wait for their next attempt, with what is left of
    their pauses at `now` (seconds since 1970): no item with a journalled result runs again.

    One of another version, from which the graph has a migration, has that to commit first.
    A run whose stored state is not what was committed is made to fail. Raises GraphVersionError if its graph
    is not loaded, or the row has another format; NotItsTurn if it waits in its thread, unless this is `to_end_it`.
    """
    graph = serving(graphs, row.graph_hash)
    if graph is None or row.format_version != FORMAT_VERSION:
        raise GraphVersionError(
            f"run {row.run_id} needs graph {row.graph!r} with hash {row.graph_hash[:12]} and format {row.format_version}; "
            f"load that version of the graph, or give another one a migration from it",
            run_id=row.run_id,
            graph=row.graph,
            graph_hash=row.graph_hash,
        )
    run = ActiveRun(row, graph, decode_options(json.loads(row.options)))
    try:
        if row.step_id < 0:
            run.base = first_state(reader, row, to_end_it=to_end_it)
            return run, []
        position = read_position(reader, row.run_id, row.step_id)
    except StateError as damage:
        run.fail(damage)
        return run, []
    if row.graph_hash != graph.hash:
        run.migrate(position.state, position.frontier)
        return run, []
    if run.options.max_cost_usd is not None:
        run.spent_usd = read_costs(reader, row).cost_usd
    items, journal = items_in_place(reader, row.run_id, position.frontier.items, row.retries)
    frontier = msgspec.structs.replace(position.frontier, items=tuple(items))
    rows = itertools.chain.from_iterable(journal.values())
    return run, run.resume(position.state, frontier, position.patch_bytes, rows, now)
