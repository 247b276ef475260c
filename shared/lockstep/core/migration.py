"""From one version of a graph to another: a step of its own that changes the state and the frontier, and runs no node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from lockstep.core.canonical import canonical_bytes
from lockstep.core.frontier import encode_frontier, ranked
from lockstep.core.ordering import ROOT_PATH, START, idempotency_key_of, path_of
from lockstep.core.records import Frontier, Waiting, WorkItem
from lockstep.core.state import State, diff
from lockstep.core.superstep import Program, Step
from lockstep.core.topology import Topology
from lockstep.errors import StateError

MIGRATION = "__migrate__"
"""The node_id of the one item that a migrating step has."""


def migration_path(step_id: int) -> bytes:
    """The path of that item: SHA256(32 zero bytes || "__migrate__" || BE_u32(step_id))."""
    return path_of(ROOT_PATH, MIGRATION, step_id % 2**32)


def is_migration(run_id: str, step_id: int, state_hash: bytes, idempotency_key: bytes) -> bool:
    """Whether a step is one, by its key."""
    return idempotency_key == idempotency_key_of(run_id, step_id, [migration_path(step_id)], state_hash)


def migrate(
    program: Program,
    run_id: str,
    step_id: int,
    state: State,
    frontier: Frontier,
    values: Mapping[str, Any],
    nodes: Mapping[str, str],
) -> Step:
    """Step `step_id`, which leaves a state with these JSON values, and the items of `frontier`, its nodes renamed by `nodes`.

    The items are new ones, children of the step: what the old version has made of the old state is not used for them. Raises
    StateError for a field that the program does not have, and for a node or barrier that the frontier needs and it has not.
    """
    for name, value in values.items():
        program.schema.field(name).loaded(value)
        canonical_bytes(value, field=name)
    after = State.of(values)
    following = _migrated(program.topology, step_id, frontier, nodes)
    path, state_hash = migration_path(step_id), after.hash()
    return Step(
        step_id,
        after,
        diff(state, after),
        state_hash,
        following,
        encode_frontier(following, program.topology.ordering),
        idempotency_key_of(run_id, step_id, [path], state_hash),
    )


def _migrated(topology: Topology, step_id: int, frontier: Frontier, nodes: Mapping[str, str]) -> Frontier:
    entries: list[WorkItem | Waiting] = [*frontier.items, *frontier.deferred]
    waiting = [
        Waiting(_known(topology, entry.place, nodes), migration_path(step_id), index, step_id, entry.payload)
        for index, entry in enumerate(entries)
    ]
    due, deferred = waiting[: len(frontier.items)], waiting[len(frontier.items) :]
    arrived = {index: frozenset(nodes.get(name, name) for name in names) for index, names in frontier.arrived.items()}
    for index, names in arrived.items():
        if index >= len(topology.barriers) or not names <= set(topology.barriers[index].members):
            raise StateError(f"{', '.join(sorted(names))} had come to a barrier that this version does not have at its place")
    return msgspec.structs.replace(
        frontier, items=ranked(due, topology.ordering, step_id), deferred=tuple(deferred), arrived=arrived
    )


def _known(topology: Topology, name: str, nodes: Mapping[str, str]) -> str:
    renamed = nodes.get(name, name)
    if renamed not in topology.nodes:
        known = ", ".join(sorted(topology.nodes.keys() - {START}))
        raise StateError(
            f"node {renamed!r} is due, and this version has none of that name; map it to one of {known} with nodes="
        )
    return renamed
