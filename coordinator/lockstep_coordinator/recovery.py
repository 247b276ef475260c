"""From the store back to a run in memory: after a restart, a takeover, or a retry."""

from __future__ import annotations

import json
from collections.abc import Mapping

from lockstep.core.frontier import decode_frontier
from lockstep.core.lifecycle import RunStatus
from lockstep.core.state import apply_patches
from lockstep.errors import GraphVersionError, StateError
from lockstep.graph import CompiledGraph
from lockstep.options import decode_options
from lockstep.ports import Reader
from lockstep.records import FORMAT_VERSION, RunRow
from lockstep_coordinator.run import ActiveRun


def load(reader: Reader, row: RunRow, graphs: Mapping[str, CompiledGraph]) -> ActiveRun:
    """The run as its last commit and journal leave it: no item with a journalled result runs again.

    A run whose stored state does not have the hash that was committed is made to fail. Raises GraphVersionError if its graph
    is not loaded, or the row has another format.
    """
    graph = graphs.get(row.graph_hash)
    if graph is None or row.format_version != FORMAT_VERSION:
        raise GraphVersionError(
            f"run {row.run_id} needs graph {row.graph!r} with hash {row.graph_hash[:12]} and format {row.format_version}; "
            f"load that version of the graph",
            run_id=row.run_id,
            graph=row.graph,
            graph_hash=row.graph_hash,
        )
    run = ActiveRun(row, graph, decode_options(json.loads(row.options)))
    if row.status is RunStatus.PENDING or row.step_id < 0:
        return run
    snapshot, patches = reader.snapshot(row.run_id, row.step_id)
    state = apply_patches(snapshot, patches)
    if state.hash() != row.state_hash:
        text = f"the stored state of run {row.run_id} at step {row.step_id} does not have its committed hash; restore a backup"
        run.fail(StateError(text, run_id=row.run_id, step_id=row.step_id))
        return run
    [step] = reader.steps(row.run_id, row.step_id, row.step_id)
    frontier = decode_frontier(step.frontier, row.step_id)
    journal = reader.journal(row.run_id, [item.path for item in frontier.items])
    run.resume(state, frontier, sum(map(len, patches)), journal)
    return run
