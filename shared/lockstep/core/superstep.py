"""One step, computed once when no result is missing: (state, frontier, results) -> what to commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from lockstep.core.frontier import encode_frontier, first_frontier, next_frontier
from lockstep.core.merge import Schema, fold
from lockstep.core.ordering import END, ROOT_PATH, idempotency_key_of
from lockstep.core.policy import ConflictPolicy
from lockstep.core.records import Finished, Frontier, Write
from lockstep.core.state import State, diff
from lockstep.core.topology import Topology
from lockstep.errors import MaxStepsExceededError


class Program(msgspec.Struct, frozen=True):
    """What the core needs to know of a graph: its shape and the fields of its state."""

    topology: Topology
    schema: Schema


class Step(msgspec.Struct, frozen=True):
    """The outcome of step k, ready to be committed: S(k) with its patch and hash, F(k+1), and the idempotency key."""

    step_id: int
    state: State
    patch: bytes
    state_hash: bytes
    frontier: Frontier
    encoded_frontier: bytes
    idempotency_key: bytes

    @property
    def done(self) -> bool:
        """Whether the run ends here: nothing is left to run."""
        return not self.frontier.items


def begin(
    program: Program,
    policy: ConflictPolicy,
    run_id: str,
    writes: Sequence[Write],
    base: State | None = None,
    root: bytes = ROOT_PATH,
) -> Step:
    """Step 0: the defaults, then the input folded through the reducers; it has no items.

    `base` is the state that the run before in the thread has left. It takes the place of the defaults. `root` is the path of
    the item of which the run is the subgraph.
    """
    initial = program.schema.initial() if base is None else base
    for name in initial.values:
        program.schema.field(name)
    program.schema.check_input([write.field for write in writes])
    state = fold(program.schema, policy, initial, [("__input__", writes)])
    return _step(program, run_id, 0, State(), state, (), first_frontier(program.topology, root))


def advance(
    program: Program,
    policy: ConflictPolicy,
    max_steps: int,
    run_id: str,
    step_id: int,
    state: State,
    frontier: Frontier,
    finished: Mapping[bytes, Finished],
) -> Step:
    """Step `step_id`: fold the deltas of F(k) in ascending order_key into S(k-1), and walk the routes to F(k+1).

    `finished` holds a result for every item, keyed by path; the order in which they came plays no part. Raises ConflictError,
    ReducerError, RouteError, NoProgressError, MaxStepsExceededError or StateError; nothing is changed then.
    """
    merged = fold(program.schema, policy, state, [(item.node_id, finished[item.path].writes) for item in frontier.items])
    following = next_frontier(program.topology, frontier, step_id, finished)
    if following.items and step_id >= max_steps:
        due = ", ".join(dict.fromkeys(item.node_id for item in following.items))
        raise MaxStepsExceededError(
            f"the run is not done after {max_steps} steps ({due} would run next); "
            f"check that its loop can reach {END}, or raise Options(max_steps=...)",
            step_id=step_id,
            max_steps=max_steps,
        )
    return _step(program, run_id, step_id, state, merged, [item.path for item in frontier.items], following)


def _step(
    program: Program, run_id: str, step_id: int, before: State, after: State, paths: Sequence[bytes], following: Frontier
) -> Step:
    state_hash = after.hash()
    encoded = encode_frontier(following, program.topology.ordering)
    key = idempotency_key_of(run_id, step_id, paths, state_hash)
    return Step(step_id, after, diff(before, after), state_hash, following, encoded, key)
