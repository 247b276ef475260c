"""A graph whose nodes note each execution outside the database: a line in the file LEDGER, and a byte in the pipe LEDGER_PULSE.

first --> second --a Send for each--> work --> join --> last
                 \\----------------> beside --/      (fails at first)
"""

import operator
import os
import random
import time
from typing import Annotated, Any, TypedDict

from lockstep import START, Context, Graph, RetryPolicy, Send

PAUSE_SECONDS = float(os.environ.get("LEDGER_PAUSE_SECONDS", "0.004"))


class State(TypedDict, total=False):
    parts: int
    seen: Annotated[list[str], operator.add]
    drawn: Annotated[list[float], operator.add]
    text: str


graph = Graph(State, name="ledger")


def pulse() -> None:
    if "LEDGER_PULSE" in os.environ:
        os.write(int(os.environ["LEDGER_PULSE"]), b".")


def noted(ctx: Context, what: str) -> dict[str, Any]:
    """Leave a mark that no crash undoes, take a moment, and return a delta."""
    ledger = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(ledger, f"{ctx.path} {ctx.attempt}\n".encode())
        os.fsync(ledger)
    finally:
        os.close(ledger)
    pulse()
    time.sleep(random.uniform(0.0, PAUSE_SECONDS))  # Not ctx.rng: when something dies shall differ each time.
    ctx.emit("ran", {"what": what})
    return {"seen": [what], "drawn": [ctx.rng.random()]}


@graph.node
def first(state: State, ctx: Context) -> dict[str, Any]:
    return noted(ctx, "first")


@graph.node
def second(state: State, ctx: Context) -> dict[str, Any]:
    ctx.emit("large", None)
    return {**noted(ctx, "second"), "text": "x" * 20_000}  # Enough for a snapshot.


@graph.node(retry=RetryPolicy(max_attempts=2, initial_seconds=0.0))
def beside(state: State, ctx: Context) -> dict[str, Any]:
    delta = noted(ctx, "beside")
    if ctx.attempt == 1:
        raise ConnectionError("the first attempt always fails")
    return delta


@graph.node
def work(number: int, ctx: Context) -> dict[str, Any]:
    return noted(ctx, f"work {number}")


@graph.node
def join(state: State, ctx: Context) -> dict[str, Any]:
    return noted(ctx, f"join of {len(state['seen'])}")


@graph.node
def last(state: State, ctx: Context) -> dict[str, Any]:
    return noted(ctx, "last")


def fan_out(state: State) -> list[Send]:
    return [Send("work", number) for number in range(state["parts"])]


graph.add_edge(START, "first").add_edge("first", "second").add_edge("second", "beside")
graph.add_conditional_edges("second", fan_out, ["work"])
graph.add_edge("beside", "join").add_edge("work", "join").add_edge("join", "last")

pulse()
