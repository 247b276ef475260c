"""What a run takes on disk grows with what was written, not with what is there."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Annotated, Any, TypedDict

from lockstep import END, START, Context, Engine, Graph

STEPS = 400
ADDED = 1_000
BOUND_BYTES = 2_500_000


class State(TypedDict, total=False):
    notes: Annotated[list[str], operator.add]


def add(state: State, ctx: Context) -> dict[str, Any]:
    # Text that no compression could shrink, were there any.
    return {"notes": [ctx.rng.randbytes(ADDED // 2).hex()]}


graph = Graph(State, name="growing").add_node(add).add_edge(START, "add")
graph.add_conditional_edges("add", lambda state: END if len(state["notes"]) == STEPS else "add")


def test_400_steps_that_add_1_kb_each_take_less_than_2_5_mb(tmp_path: Path) -> None:
    # given a run whose state grows to 400 KB
    with Engine(graph, f"sqlite:///{tmp_path}/runs.db") as engine:
        run = engine.submit({})
        notes = run.result()["notes"]
        # then each of its states can be read
        for step_id in (1, 200, 399):
            assert run.state(step_id) == {"notes": notes[:step_id]}
    # and the files that are left hold little more than what was written
    assert sum(map(len, notes)) == STEPS * ADDED
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < BOUND_BYTES
