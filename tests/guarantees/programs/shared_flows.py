"""Four graphs whose first node says on the pipe PULSE that it is there, and goes on when the pipe GATE is closed."""

import operator
import os
from typing import Annotated, Any, TypedDict

from lockstep import END, START, Graph, Send

TURNS = 25
WIDTH = 4


class State(TypedDict, total=False):
    turns: Annotated[int, operator.add]
    seen: Annotated[list[str], operator.add]


def loop(name: str) -> Graph:
    """`arrive`, then TURNS turns of a fan-out of WIDTH."""

    def arrive(state: State) -> dict[str, Any]:
        if "PULSE" in os.environ:
            os.write(int(os.environ["PULSE"]), b".")
            os.read(int(os.environ["GATE"]), 1)
        return {"seen": [name]}

    def turn(state: State) -> dict[str, Any]:
        return {"turns": 1}

    def route(state: State) -> list[Send] | str:
        turn = state["turns"]
        return [Send("work", f"{name} {turn}.{number}") for number in range(WIDTH)] if turn <= TURNS else END

    async def work(text: str) -> dict[str, Any]:
        return {"seen": [text]}

    graph = Graph(State, name=name).add_node(arrive).add_node(turn).add_node(work)
    graph.add_edge(START, "arrive").add_edge("arrive", "turn").add_edge("work", "turn")
    return graph.add_conditional_edges("turn", route, ["work"])


def expected(name: str) -> dict[str, Any]:
    """The final state."""
    work = [f"{name} {turn}.{number}" for turn in range(1, TURNS + 1) for number in range(WIDTH)]
    return {"turns": TURNS + 1, "seen": [name, *work]}


north, east, south, west = map(loop, ("north", "east", "south", "west"))
