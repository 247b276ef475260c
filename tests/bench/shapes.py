"""The graphs that are measured. Lockstep and LangGraph are built with the same calls, so one function builds both; other peers
call the same nodes from workflows of their own."""

import operator
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, TypedDict

State = dict[str, Any]


class Counter(TypedDict, total=False):
    n: int


class Looped(TypedDict, total=False):
    n: int
    note: str
    ballast: str


class Found(TypedDict, total=False):
    found: Annotated[list[int], operator.add]
    n: int


def count(state: State) -> State:
    return {"n": state["n"] + 1}


def split(state: State) -> State:
    return {"n": 0}


def leaf(number: int) -> State:
    return {"found": [number]}


def join(state: State) -> State:
    return {"n": len(state["found"])}


def chain(graph: Any, start: str, end: str, send: Any, steps: int) -> Any:
    """`steps` nodes, one after the other, each of which adds 1 to a counter."""
    names = [f"n{number}" for number in range(steps)]
    for name in names:
        graph.add_node(name, count)
    for source, target in pairwise([start, *names, end]):
        graph.add_edge(source, target)
    return graph


def fan(graph: Any, start: str, end: str, send: Any, width: int) -> Any:
    """One node, then `width` at once, each of which adds its number to a list, then one that counts them."""
    for node in (split, leaf, join):
        graph.add_node(node.__name__, node)
    graph.add_edge(start, "split")
    graph.add_conditional_edges("split", lambda state: [send("leaf", number) for number in range(width)], ["leaf"])
    graph.add_edge("leaf", "join")
    graph.add_edge("join", end)
    return graph


TICKS: list[float] = []
"""When each step of a loop began, by this process's clock."""


def tick(state: State) -> State:
    TICKS.append(time.perf_counter())
    return {"n": state["n"] + 1, "note": f"{state['n']:0100}"}


def loop(graph: Any, start: str, end: str, send: Any, steps: int, ballast: int) -> Any:
    """One node, again and again, that changes 100 bytes beside `ballast` bytes that nobody touches."""
    graph.add_node("tick", tick)
    graph.add_edge(start, "tick")
    graph.add_conditional_edges("tick", lambda state: end if state["n"] == steps else "tick")
    return graph


@dataclass(frozen=True)
class Shape:
    """A graph, the state that its runs begin with, and, from its parameters, their end state and how many nodes they run."""

    build: Callable[..., Any]
    state: type
    begin: Callable[[dict[str, int]], State]
    end: Callable[[dict[str, int]], State]
    nodes: Callable[[dict[str, int]], int]


SHAPES = {
    "chain": Shape(chain, Counter, lambda given: {"n": 0}, lambda given: {"n": given["steps"]}, lambda given: given["steps"]),
    "fan": Shape(
        fan,
        Found,
        lambda given: {"found": []},
        lambda given: {"found": list(range(given["width"])), "n": given["width"]},
        lambda given: given["width"] + 2,
    ),
    "loop": Shape(
        loop,
        Looped,
        lambda given: {"n": 0, "ballast": "x" * given["ballast"]},
        lambda given: {"n": given["steps"], "note": f"{given['steps'] - 1:0100}", "ballast": "x" * given["ballast"]},
        lambda given: given["steps"],
    ),
}
