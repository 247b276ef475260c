"""The graphs that are measured. Lockstep and LangGraph are built with the same calls, so one function builds both."""

from itertools import pairwise
from typing import Any, TypedDict


class Counter(TypedDict, total=False):
    n: int


def count(state: Counter) -> Counter:
    return {"n": state["n"] + 1}


def chain(graph: Any, start: str, end: str, steps: int) -> Any:
    """`steps` nodes, one after the other, each of which adds 1 to a counter."""
    names = [f"n{number}" for number in range(steps)]
    for name in names:
        graph.add_node(name, count)
    for source, target in pairwise([start, *names, end]):
        graph.add_edge(source, target)
    return graph


SHAPES = {"chain": chain}
