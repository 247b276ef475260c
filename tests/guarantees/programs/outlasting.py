"""A process that executes runs while another release brings its database up to date; written for every release from 0001 on.

    outlasting.py STORE_URL

It ends a run that succeeds and one that fails, lets others halt in the middle of a step, and then executes one short run after
the other, saying so on stdout by a byte each. Once stdin is closed, it ends all of them. Each execution of a node is a line in
the file LEDGER: "run_id path attempt".

split --a Send for each--> work --> join
     \\-----------------> beside --/   (fails at first)
"""

import itertools
import operator
import os
import select
import sys
import time
from contextlib import suppress
from typing import Annotated, Any, TypedDict

from lockstep import START, Context, Engine, Graph, NodeFailedError, RetryPolicy, Send

ENDED = ["succeeded", "failed"]
HALTED = ["halted-0", "halted-1"]
JOURNALLED = 4
"""Rows that a halted run has in the middle of its step: two results of `work`, the failure of `beside` and its result."""


class State(TypedDict, total=False):
    parts: int
    seen: Annotated[list[str], operator.add]
    drawn: Annotated[list[float], operator.add]
    text: str


graph = Graph(State, name="outlasting")
halts = False


def input_of(run_id: str) -> dict[str, Any]:
    return {"parts": 0 if run_id == "failed" else 3}


def noted(ctx: Context, what: str) -> dict[str, Any]:
    """Leave a mark that no crash undoes, and return a delta."""
    with open(os.environ["LEDGER"], "a") as ledger:
        ledger.write(f"{ctx.run_id} {ctx.path} {ctx.attempt}\n")
    ctx.emit("ran", {"what": what})
    return {"seen": [what], "drawn": [ctx.rng.random()]}


@graph.node
def split(state: State, ctx: Context) -> dict[str, Any]:
    return {**noted(ctx, "split"), "text": "x" * 20_000}  # Enough for a snapshot.


@graph.node(retry=RetryPolicy(max_attempts=2, initial_seconds=0.0))
def beside(state: State, ctx: Context) -> dict[str, Any]:
    delta = noted(ctx, "beside")
    if ctx.attempt == 1:
        raise ConnectionError("the first attempt always fails")
    return delta


@graph.node
def work(number: int, ctx: Context) -> dict[str, Any]:
    if halts and number == 0 and ctx.run_id in HALTED:
        os.read(sys.stdin.fileno(), 1)
    time.sleep(0.005)  # So that most of the time, something is under way.
    return noted(ctx, f"work {number}")


@graph.node
def join(state: State, ctx: Context) -> dict[str, Any]:
    delta = noted(ctx, f"join of {len(state['seen'])}")
    if not state["parts"]:
        raise ValueError("there is nothing to join")
    return delta


def fan_out(state: State) -> list[Send]:
    return [Send("work", number) for number in range(state["parts"])]


graph.add_edge(START, "split").add_edge("split", "beside").add_conditional_edges("split", fan_out, ["work"])
graph.add_edge("beside", "join").add_edge("work", "join")


def main(url: str) -> None:
    global halts
    halts = True
    with Engine(graph, url) as engine:
        for run_id in ENDED:
            with suppress(NodeFailedError):
                engine.invoke(input_of(run_id), run_id)
        halted = [engine.submit(input_of(run_id), run_id=run_id) for run_id in HALTED]
        for number in itertools.count():
            if select.select([sys.stdin], [], [], 0)[0]:
                break
            engine.invoke(input_of("short"), f"short-{number}")
            os.write(sys.stdout.fileno(), b".")
        for run in halted:
            run.result()


if __name__ == "__main__":
    main(sys.argv[1])
