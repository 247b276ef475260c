"""A state at any step is what was committed there, read without the graph; what was damaged since is said to be so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lockstep.core.frontier import encode_frontier
from lockstep.core.records import Frontier
from lockstep.core.state import State, diff
from lockstep.errors import StateError
from lockstep.history import read_position, read_state

if TYPE_CHECKING:
    from conftest import World

    from lockstep.records import Transition

STEPS = 40
SNAPSHOTS = {0, 13, 14, 39}
FRONTIER = encode_frontier(Frontier(), "edge")


def state_at(step_id: int) -> State:
    """A state that each kind of patch has made."""
    values: dict[str, Any] = {
        "count": step_id,
        "items": list(range(step_id)),
        "by_key": {f"{n:03}": n * step_id for n in range(step_id % 7)},
        "large": "x" * 1000,
    }
    if step_id % 5 == 0:
        values["sometimes"] = [True, 1, 1.0, None]
    return State.of(values)


def committed(world: World, step_id: int, **damage: Any) -> Transition:
    """The commit of a step of run-1, with what a coordinator would store, or with some of that damaged."""
    state = state_at(step_id)
    before = state_at(step_id - 1) if step_id else State()
    fields = {"patch": diff(before, state), "frontier": FRONTIER, "state_hash": state.hash()}
    snapshot = state.to_bytes() if step_id in SNAPSHOTS else None
    return world.step("run-1", step_id, **({"snapshot": snapshot} | fields | damage))


def test_each_state_is_read_from_snapshots_and_patches(world: World) -> None:
    # given a run of many steps, with a snapshot here and there
    world.submit("run-1")
    steps = [committed(world, step_id) for step_id in range(STEPS)]
    for step in steps:
        world.commit(step)

    for step_id in range(STEPS):
        position = read_position(world.b, "run-1", step_id)
        # then each of its states is there, to the byte
        assert position.state == state_at(step_id)
        assert position.frontier == Frontier()
        # and so much lies between it and the last snapshot
        last = max(n for n in SNAPSHOTS if n <= step_id)
        assert position.patch_bytes == sum(len(step.step.patch) for step in steps[last + 1 : step_id + 1] if step.step)


@pytest.mark.parametrize("step_id", [-1, 2])
def test_a_step_that_is_not_committed_has_no_state(world: World, step_id: int) -> None:
    world.submit("run-1")
    world.commit(committed(world, 0))
    world.commit(committed(world, 1))

    with pytest.raises(StateError, match=f"run run-1 has no committed step {step_id}$") as caught:
        read_state(world.b, "run-1", step_id)

    assert (caught.value.run_id, caught.value.step_id) == ("run-1", step_id)


@pytest.mark.parametrize(
    ("damage", "how"),
    [
        ({"state_hash": b"?" * 32}, "does not have its committed hash"),
        ({"patch": b"[]"}, "does not have its committed hash"),
        ({"patch": b'[["append","count",[1]]]'}, "cannot be read"),
        ({"patch": b'[["merge","nowhere",{},[]]]'}, "cannot be read"),
        ({"patch": b'[["frobnicate","count",1]]'}, "cannot be read"),
        ({"patch": b'[["set","count",NaN]]'}, "cannot be read"),
        ({"patch": b"[[["}, "cannot be read"),
        ({"patch": b"\xff\x00"}, "cannot be read"),
        ({"patch": b"7"}, "cannot be read"),
        ({"snapshot": b"{"}, "cannot be read"),
        ({"snapshot": b"[1]"}, "cannot be read"),
        ({"snapshot": b'{"count":2}'}, "does not have its committed hash"),
        ({"frontier": b"{}"}, "cannot be read"),
    ],
    ids=str,
)
def test_damage_is_named_with_its_run_and_step(world: World, damage: dict[str, Any], how: str) -> None:
    # given a run of which one step is not what was committed
    world.submit("run-1")
    for step_id in range(5):
        world.commit(committed(world, step_id, **(damage if step_id == 3 else {})))

    # when its state there is read, then the error says where, and what to do
    with pytest.raises(StateError, match=f"the stored state of run run-1 at step 3 {how}; restore a backup") as caught:
        read_state(world.b, "run-1", 3)
    assert (caught.value.run_id, caught.value.step_id) == ("run-1", 3)
    # and the states before are whole
    assert read_state(world.b, "run-1", 2) == state_at(2).values
