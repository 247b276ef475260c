"""A graph of two nodes that changes from process to process: VERSION is part of its hash; while BROKEN is set its
second node fails, and while DYING is set that node ends the process."""

import operator
import os
from typing import Annotated, Any, TypedDict

from lockstep import START, Graph


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


graph = Graph(State, name="changing", version=os.environ.get("VERSION", ""))


@graph.node
def first(state: State) -> dict[str, Any]:
    return {"log": ["first"]}


@graph.node
def second(state: State) -> dict[str, Any]:
    if "DYING" in os.environ:
        os._exit(1)
    if "BROKEN" in os.environ:
        raise RuntimeError("broken")
    return {"log": ["second"]}


graph.add_edge(START, "first").add_edge("first", "second")
