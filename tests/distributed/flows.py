"""Graphs for the tests of real processes: `flows.py:chain` and so on. What nodes do shows in the files that inputs name."""

from __future__ import annotations

import asyncio
import ctypes
import operator
import os
import time
from pathlib import Path
from typing import Annotated, Any, TypedDict

from lockstep import END, START, Context, Graph, Send, interrupt, sleep


class State(TypedDict, total=False):
    steps: int
    width: int
    delay_ms: float
    ledger: str
    gate: str
    gated_from: int
    dying: int
    hold_ms: int
    n: int
    seen: Annotated[list[int], operator.add]


def note(ledger: str | None, line: str) -> None:
    """Append a line to the ledger; one write of less than a page, so lines of several processes don't mix."""
    if ledger:
        with open(ledger, "a") as file:
            file.write(line + "\n")


def wait_for_gate(gate: str | None) -> None:
    """Wait until the file exists."""
    while gate and not Path(gate).exists():
        time.sleep(0.02)


DEATH = 77
"""The exit code of a worker whose node has ended it."""

chain = Graph(State, name="chain")


@chain.node
def bump(state: State, ctx: Context) -> dict[str, Any]:
    note(state.get("ledger"), f"{ctx.run_id} {ctx.path} {ctx.delivery} {os.getpid()}")
    time.sleep(ctx.rng.random() * state.get("delay_ms", 0.0) / 1000)
    wait_for_gate(state.get("gate"))
    return {"n": state.get("n", 0) + 1, "seen": [state.get("n", 0)]}


chain.add_edge(START, "bump")
chain.add_conditional_edges("bump", lambda state: END if state["n"] >= state["steps"] else "bump", ["bump", END])

fan = Graph(State, name="fan")


@fan.node
def scatter(state: State) -> dict[str, Any]:
    return {"n": state["width"]}


@fan.node
def leaf(sent: dict[str, Any], ctx: Context) -> dict[str, Any]:
    note(sent["ledger"], f"{ctx.run_id} {ctx.path} {ctx.delivery} {os.getpid()}")
    if sent["n"] >= sent["gated_from"]:
        wait_for_gate(sent["gate"])
    if sent["n"] == sent["dying"]:
        os._exit(DEATH)
    # Not ctx.rng: the order in which leaves finish shall differ from one run to the next.
    time.sleep(os.urandom(1)[0] / 255 * sent["delay_ms"] / 1000)
    return {"seen": [sent["n"]]}


@fan.node
def join(state: State) -> dict[str, Any]:
    return {"n": sum(state["seen"])}


def leaves(state: State) -> list[Send]:
    """One for each number below the width. Those from `gated_from` on wait for the gate; `dying` ends its worker."""
    shared = {
        "delay_ms": state.get("delay_ms", 0.0),
        "ledger": state.get("ledger", ""),
        "gate": state.get("gate", ""),
        "gated_from": state.get("gated_from", 0),
        "dying": state.get("dying", -1),
    }
    return [Send("leaf", {"n": n, **shared}) for n in range(state["width"])]


fan.add_edge(START, "scatter")
fan.add_conditional_edges("scatter", leaves, ["leaf"])
fan.add_edge("leaf", "join")

unknown = Graph(State, name="unknown")
unknown.add_node("bump", bump)
unknown.add_edge(START, "bump")

holding = Graph(State, name="holding")


@holding.node
def hold(state: State, ctx: Context) -> dict[str, Any]:
    """Holds the interpreter's lock: no other thread of the worker runs meanwhile."""
    note(state.get("ledger"), f"{ctx.run_id} {ctx.path} {ctx.delivery} {os.getpid()}")
    ctypes.PyDLL(None).usleep(state["hold_ms"] * 1000)
    return {"n": 1}


holding.add_edge(START, "hold")

forking = Graph(State, name="forking")


@forking.node
def fork(state: State, ctx: Context) -> dict[str, Any]:
    """Leaves a process behind that lives until the gate opens."""
    if os.fork() == 0:
        wait_for_gate(state["gate"])
        os._exit(0)
    note(state.get("ledger"), f"{ctx.run_id} {ctx.path} {ctx.delivery} {os.getpid()}")
    wait_for_gate(state["gate"])
    return {"n": 1}


forking.add_edge(START, "fork")

sides = Graph(State, name="sides")


@sides.node(queue="left")
def left(state: State, ctx: Context) -> dict[str, Any]:
    note(state.get("ledger"), f"{ctx.run_id} {ctx.path} {ctx.delivery} {os.getpid()}")
    wait_for_gate(state.get("gate"))
    return {"seen": [1]}


@sides.node(queue="right")
def right(state: State, ctx: Context) -> dict[str, Any]:
    note(state.get("ledger"), f"{ctx.run_id} {ctx.path} {ctx.delivery} {os.getpid()}")
    wait_for_gate(state.get("gate"))
    return {"seen": [2]}


sides.add_edge(START, "left")
sides.add_edge(START, "right")

wide = Graph(State, name="wide")
wide.add_node("scatter", scatter)
wide.add_node("leaf", leaf, queue="wide")
wide.add_edge(START, "scatter")
wide.add_conditional_edges("scatter", leaves, ["leaf"])

ends = Graph(State, name="ends")


@ends.node
def watchful(state: State, ctx: Context) -> dict[str, Any]:
    note(state["ledger"], f"{ctx.run_id} {ctx.path} {ctx.delivery} {os.getpid()}")
    while not ctx.cancelled:
        time.sleep(0.01)
    note(state["gate"], "watchful")
    return {}


@ends.node
async def suspended(state: State, ctx: Context) -> dict[str, Any]:
    note(state["ledger"], f"{ctx.run_id} {ctx.path} {ctx.delivery} {os.getpid()}")
    try:
        await asyncio.Event().wait()
    finally:
        note(state["gate"], "suspended")
    return {}


def stubborn(state: State, ctx: Context) -> dict[str, Any]:
    note(state["ledger"], f"{ctx.run_id} {ctx.path} {ctx.delivery} {os.getpid()}")
    note(state["gate"], " ".join(name for name in os.environ if name.startswith("LOCKSTEP_")) or "no variables")
    while True:
        time.sleep(0.01)


ends.add_node("stubborn", stubborn, isolation="process")
for name in ("watchful", "suspended", "stubborn"):
    ends.add_edge(START, name)

told = Graph(State, name="told")


@told.node
def send_out(state: State, ctx: Context) -> dict[str, Any]:
    return _told("send_out", state["ledger"], ctx)


@told.node
def tell(sent: dict[str, Any], ctx: Context) -> dict[str, Any]:
    return {**_told(f"tell {sent['n']}", sent["ledger"], ctx), "seen": [sent["n"]]}


@told.node
def listen(state: State, ctx: Context) -> dict[str, Any]:
    return _told("listen", state["ledger"], ctx)


def _told(what: str, ledger: str, ctx: Context) -> dict[str, Any]:
    """Emits, and notes the start."""
    note(ledger, f"{ctx.run_id} {ctx.path} {ctx.delivery} {os.getpid()}")
    ctx.emit("told", what)
    return {}


told.add_edge(START, "send_out").add_edge("tell", "listen")
told.add_conditional_edges(
    "send_out", lambda state: [Send("tell", {"n": n, "ledger": state["ledger"]}) for n in range(3)], ["tell"]
)


asks = Graph(State, name="asks")


@asks.node
def beside(sent: dict[str, Any], ctx: Context) -> dict[str, Any]:
    note(sent["ledger"], f"{ctx.run_id} {ctx.path} {ctx.delivery} {os.getpid()}")
    return {"seen": [sent["n"]]}


@asks.node
def ask(state: State, ctx: Context) -> dict[str, Any]:
    note(state["ledger"], f"{ctx.run_id} {ctx.path} {ctx.delivery} {os.getpid()}")
    ctx.record("note", None, lambda: note(state["ledger"], f"{ctx.run_id} {ctx.path}:recorded {ctx.delivery} {os.getpid()}"))
    return {"n": interrupt({"may I": "go on"})}


def ask_apart(state: State) -> dict[str, Any]:
    return {"width": interrupt("how wide")}


asks.add_node("ask_apart", ask_apart, isolation="process")
asks.add_edge(START, "ask").add_edge(START, "ask_apart")
asks.add_conditional_edges(
    START, lambda state: [Send("beside", {"n": n, "ledger": state["ledger"]}) for n in range(5)], ["beside"]
)


pays = Graph(State, name="pays")


def pay(state: State, ctx: Context) -> dict[str, Any]:
    ctx.llm_usage("model of ours", 1_000_000, 0)
    return {"n": state.get("n", 0) + 1}


pays.add_sequence([(f"pay{number}", pay) for number in range(4)]).add_edge(START, "pay0")


speaks = Graph(State, name="speaks")


@speaks.node
def say(state: State, ctx: Context) -> dict[str, Any]:
    """Streams `width` chunks with the time of each, at most `delay_ms` apart; the item is known by its file `gate`, if any."""
    for number in range(state["width"]):
        ctx.stream({"number": number, "at": time.time(), "pid": os.getpid()})
        time.sleep(state.get("delay_ms", 0) / 1000)
    wait_for_gate(state.get("gate"))
    return {"n": state["width"]}


speaks.add_edge(START, "say")


rests = Graph(State, name="rests")


@rests.node
def rest(state: State, ctx: Context) -> dict[str, Any]:
    """Adds to what its thread has left, after it has slept for `delay_ms`."""
    note(state["ledger"], f"{ctx.run_id} {ctx.path} {ctx.delivery} {os.getpid()}")
    sleep(state["delay_ms"] / 1000)
    return {"n": state.get("n", 0) + 1, "seen": [state.get("n", 0)]}


rests.add_edge(START, "rest")


nests = Graph(State, name="nests")
nests.add_node("chain", chain, output={"seen": "seen"})
nests.add_conditional_edges(
    START, lambda state: [Send("chain", {"seen": [], **_without_width(state)}) for _ in range(state["width"])], ["chain"]
)


def _without_width(state: State) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name in ("steps", "delay_ms", "ledger", "gate")}


asks_below = Graph(State, name="asks_below").add_node("below", asks).add_edge(START, "below")


speaks_below = Graph(State, name="speaks_below").add_node("below", speaks, output={"n": "n"}).add_edge(START, "below")
