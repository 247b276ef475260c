"""Steps that come from outside: a migration, an update, a fork. They change the state and the frontier, and run no node.

Such a step has one item, whose node_id says what it is, with path SHA256(32 zero bytes || node_id || BE_u32(step_id)). What was
due begins anew as its children.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from lockstep.core.canonical import canonical_bytes
from lockstep.core.frontier import encode_frontier, ranked
from lockstep.core.merge import fold
from lockstep.core.ordering import ROOT_PATH, START, idempotency_key_of, path_of
from lockstep.core.policy import ConflictPolicy
from lockstep.core.records import Frontier, Waiting, WorkItem, Write
from lockstep.core.state import State, diff
from lockstep.core.superstep import Program, Step
from lockstep.core.topology import Topology
from lockstep.errors import StateError

Outside = Literal["__migrate__", "__update__", "__fork__"]
MIGRATION: Outside = "__migrate__"
"""The run went over to another version of its graph."""
UPDATE: Outside = "__update__"
"""Somebody has changed its state. An item of this name, which stands for a node, asks that node's routers, and nothing else."""
FORK: Outside = "__fork__"
"""The run begins with what another one had come to."""


def outside_path(kind: Outside, step_id: int) -> bytes:
    """The path of such a step's item."""
    return path_of(ROOT_PATH, kind, step_id % 2**32)


def outside_kind(run_id: str, step_id: int, state_hash: bytes, idempotency_key: bytes) -> Outside | None:
    """What kind of such a step a step is, by its key; None: it has run nodes, or is the input."""
    kinds: tuple[Outside, ...] = get_args(Outside)
    return next((kind for kind in kinds if _key(kind, run_id, step_id, state_hash) == idempotency_key), None)


def _key(kind: Outside, run_id: str, step_id: int, state_hash: bytes) -> bytes:
    return idempotency_key_of(run_id, step_id, [outside_path(kind, step_id)], state_hash)


def migrate(
    program: Program,
    run_id: str,
    step_id: int,
    state: State,
    frontier: Frontier,
    values: Mapping[str, Any],
    nodes: Mapping[str, str],
) -> Step:
    """A step that leaves a state with these JSON values, and the items of `frontier`, its nodes renamed by `nodes`.

    What the old version has made of the old state is not used for them. Raises StateError for a field that the program does not
    have, and for a node or barrier that the frontier needs and it has not.
    """
    for name, value in values.items():
        program.schema.field(name).loaded(value)
        canonical_bytes(value, field=name)
    following = _anew(program.topology, MIGRATION, step_id, frontier, nodes)
    return _step(program, MIGRATION, run_id, step_id, state, State.of(values), following)


def update(
    program: Program,
    policy: ConflictPolicy,
    run_id: str,
    step_id: int,
    state: State,
    frontier: Frontier,
    writes: Sequence[Write],
    as_node: str | None,
) -> Step:
    """A step that folds these writes into the state.

    What was due begins anew; with `as_node`, what comes after that node is due instead. Raises ConflictError, ReducerError, or
    StateError, also for a node that there is not.
    """
    after = fold(program.schema, policy, state, [(UPDATE, writes)])
    following = _following(program.topology, UPDATE, step_id, frontier, as_node)
    return _step(program, UPDATE, run_id, step_id, state, after, following)


def fork(
    program: Program,
    policy: ConflictPolicy,
    run_id: str,
    state: State,
    frontier: Frontier,
    writes: Sequence[Write],
    as_node: str | None,
) -> Step:
    """Step 0 of a run that begins with a state and a frontier of another one, changed as `update` does it."""
    after = fold(program.schema, policy, state, [(FORK, writes)])
    return _step(program, FORK, run_id, 0, State(), after, _following(program.topology, FORK, 0, frontier, as_node))


def _following(topology: Topology, kind: Outside, step_id: int, frontier: Frontier, as_node: str | None) -> Frontier:
    if as_node is None:
        return _anew(topology, kind, step_id, frontier, {})
    if as_node not in topology.nodes:
        known = ", ".join(sorted(topology.nodes.keys() - {START}))
        raise StateError(f"as_node={as_node!r}: there is no node {as_node!r}; the nodes are {known}")
    # One more item, of a step of its own: routers are the user's, and run where nodes do.
    [item] = ranked([Waiting(UPDATE, outside_path(kind, step_id), 0, step_id)], topology.ordering, step_id)
    return Frontier(items=(msgspec.structs.replace(item, stands_for=as_node),), arrived=frontier.arrived)


def _step(program: Program, kind: Outside, run_id: str, step_id: int, before: State, after: State, following: Frontier) -> Step:
    state_hash = after.hash()
    encoded = encode_frontier(following, program.topology.ordering)
    return Step(step_id, after, diff(before, after), state_hash, following, encoded, _key(kind, run_id, step_id, state_hash))


def _anew(topology: Topology, kind: Outside, step_id: int, frontier: Frontier, nodes: Mapping[str, str]) -> Frontier:
    """The frontier with new items, children of the step."""
    if any(item.node_id == UPDATE for item in frontier.items):
        [item] = frontier.items
        return _following(topology, kind, step_id, frontier, _known(topology, item.place, nodes))
    entries: list[WorkItem | Waiting] = [*frontier.items, *frontier.deferred]
    waiting = [
        Waiting(_known(topology, entry.place, nodes), outside_path(kind, step_id), index, step_id, entry.payload)
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
