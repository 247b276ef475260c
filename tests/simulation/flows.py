"""Small graphs whose end shows in which order was merged, and what was emitted; and how they end when nobody disturbs them."""

from __future__ import annotations

import functools
import operator
from typing import Annotated, Any, TypedDict

from lockstep import END, START, Context, Engine, Graph, RetryPolicy, Send
from lockstep.compiled import CompiledGraph

PAUSE = RetryPolicy(max_attempts=3, initial_seconds=0.3, factor=1.0, jitter=0.0)


class State(TypedDict, total=False):
    n: int
    log: Annotated[list[str], operator.add]


def noted(name: str, ctx: Context) -> State:
    """What a node leaves: its name, its path, and a random number that must always be the same one."""
    ctx.emit("ran", name)
    return {"log": [f"{name} {ctx.path[:8]} {ctx.rng.random()}"]}


def _fan() -> Graph:
    graph = Graph(State, name="fan")

    @graph.node
    def scatter(state: State, ctx: Context) -> State:
        return noted("scatter", ctx)

    @graph.node
    def leaf(number: int, ctx: Context) -> State:
        return noted(f"leaf {number}", ctx)

    @graph.node
    def join(state: State, ctx: Context) -> State:
        return noted(f"join {len(state['log'])}", ctx)

    graph.add_edge(START, "scatter").add_edge("leaf", "join")
    graph.add_conditional_edges("scatter", lambda state: [Send("leaf", number) for number in range(state["n"])], ["leaf"])
    return graph


def _loop() -> Graph:
    graph = Graph(State, name="loop")

    @graph.node
    def turn(state: State, ctx: Context) -> dict[str, Any]:
        return {**noted("turn", ctx), "n": state["n"] - 1}

    graph.add_edge(START, "turn").add_conditional_edges("turn", lambda state: "turn" if state["n"] > 0 else END, ["turn", END])
    return graph


def _fragile() -> Graph:
    """One node fails once and is tried again, one fails always and has a handler, one is well; then a barrier."""
    graph = Graph(State, name="fragile")

    @graph.node(retry=PAUSE)
    def passing(state: State, ctx: Context) -> State:
        if ctx.attempt == 1:
            raise OSError("once")
        return noted("passing", ctx)

    def mend(state: State, ctx: Context) -> State:
        return noted(f"mend {type(ctx.error).__name__}", ctx)

    @graph.node(error_handler=mend)
    def broken(state: State) -> State:
        raise ValueError("always")

    @graph.node
    def well(state: State, ctx: Context) -> State:
        return noted("well", ctx)

    @graph.node
    def join(state: State, ctx: Context) -> State:
        return noted("join", ctx)

    for name in ("passing", "broken", "well"):
        graph.add_edge(START, name)
    return graph.add_edge(["passing", "broken", "well"], "join")


GRAPHS: dict[str, CompiledGraph] = {graph.name: graph.compile() for graph in (_fan(), _loop(), _fragile())}
BY_HASH = {graph.hash: graph for graph in GRAPHS.values()}
SHAPES: list[tuple[str, dict[str, Any]]] = [("fan", {"n": 3}), ("loop", {"n": 3}), ("fragile", {})]


@functools.cache
def undisturbed(graph: str, run_id: str, n: int | None) -> bytes:
    """The hash of the state in which a run ends that nobody disturbs."""
    sources = {"fan": _fan, "loop": _loop, "fragile": _fragile}
    with Engine(sources[graph](), "memory://") as engine:
        run = engine.submit({} if n is None else {"n": n}, run_id=run_id)
        run.result()
        state_hash = run.row().state_hash
    assert state_hash is not None, "a run that has succeeded has a state"
    return state_hash
