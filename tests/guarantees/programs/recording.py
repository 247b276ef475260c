"""A graph whose nodes ask the world, with every drift that a later version of them may have: `build("the drift")`.

plan --a Send for each--> work --> join (async) --> last (isolated)
"""

from __future__ import annotations

import asyncio
import operator
import os
from collections import Counter
from typing import Annotated, Any, TypedDict

from lockstep import END, START, Context, Graph, RetryPolicy, Send, interrupt

ASKED: Counter[str] = Counter()
"""How often the world was really asked."""


class State(TypedDict, total=False):
    parts: int
    notes: Annotated[list[Any], operator.add]
    drawn: Annotated[list[float], operator.add]
    answer: str


class Refused(Exception):
    """What a service raises, with more to say than a text."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


def last(state: State, ctx: Context) -> dict[str, Any]:
    """Isolated, so at the top of the module."""
    size = ctx.record("size", {"of": len(state["notes"])}, lambda: {"pid": os.getpid()})
    return {"notes": [size]}


def build(drift: str = "", *, asks: bool = False) -> Graph:
    """The graph as it was, or with one drift. With `asks`, its first node asks somebody between two calls."""
    graph = Graph(State, name="recording", version="1")

    def world(name: str, response: Any) -> Any:
        ASKED[name] += 1
        if isinstance(response, Exception):
            raise response
        return response

    @graph.node(retry=RetryPolicy(max_attempts=2, initial_seconds=0.0))
    def plan(state: State, ctx: Context) -> dict[str, Any]:
        model = "large" if drift == "changed request parameter" else "small"
        messages = [{"role": "user", "content": "plan"}, {"role": "system", "content": "short"}]
        if drift == "changed request, deep inside":
            messages[1]["content"] = "long"
        if drift == "extra request parameter":
            messages[0]["name"] = "me"
        name = "chat" if drift == "another call" else "model"
        request = {"model": model, "messages": messages, "temperature": 1 if drift == "1 in place of 1.0" else 1.0}
        plan = ctx.record(name, request, lambda: world("model", {"parts": ["a", "b"]}))
        if asks:
            plan["approved"] = interrupt({"plan": plan["parts"]})
        if ctx.attempt == 1 and not asks:
            raise ConnectionError("the first attempt always fails")
        if drift == "error instead of success":
            raise KeyError("parts")
        if drift == "caught its own mismatch":
            try:
                ctx.record("model", {"model": "tiny"}, lambda: world("model", {}))
            except Exception:
                return {"notes": [plan], "drawn": [ctx.rng.random()], "answer": "none"}
        answer = "none"
        if drift != "missing call":
            try:
                ctx.record("service", {"q": 1}, lambda: world("service", Refused(403, "not you")))
            except Refused as error:
                answer = str(error)
        if drift == "extra call":
            ctx.record("service", {"q": 2}, lambda: world("service", 2))
        if drift == "calls in another order":
            ctx.record("clock", None, lambda: world("clock", 1))
        if drift == "changed event":
            ctx.emit("planned", {"parts": 3})
        else:
            ctx.emit("planned", {"parts": 2})
        if drift == "extra event":
            ctx.emit("more")
        drawn = ctx.rng.random()
        if drift == "random numbers of its own":
            drawn = 0.5
        if drift == "changed delta":
            plan["parts"] = ["a"]
        delta = {"notes": [plan], "drawn": [drawn], "answer": answer}
        if drift == "missing field":
            del delta["answer"]
        return delta

    @graph.node
    def work(part: str, ctx: Context) -> dict[str, Any]:
        when = ctx.record("clock", part, lambda: world("clock", 1700000000 + ord(part)))
        if drift == "unrecorded state":
            when += ASKED["unrecorded"]
        return {"notes": [[part, when]], "drawn": [ctx.rng.random()]}

    @graph.node
    async def join(state: State, ctx: Context) -> dict[str, Any]:
        async def ask(number: int) -> dict[str, int]:
            ASKED["join"] += 1
            await asyncio.sleep(0.01 * (3 - number))  # The last one asked is the first to answer.
            return {"number": number}

        async def forever() -> None:
            ASKED["join"] += 1
            await asyncio.sleep(3600)

        numbers = [2, 1, 0] if drift == "gathered in another order" else [0, 1, 2]
        found = await asyncio.gather(*(ctx.record("page", n, lambda n=n: ask(n)) for n in numbers))
        try:
            await asyncio.wait_for(ctx.record("slow", None, forever), 0.02)
        except TimeoutError:
            found.append({"number": -1})
        return {"notes": found}

    graph.add_node("last", last, isolation="process")

    def fan_out(state: State) -> list[Send]:
        parts = ["b", "a"] if drift == "changed order of Sends" else ["a", "b"]
        if drift == "changed payload":
            parts = ["a", "c"]
        if drift == "another target":
            return [Send("work", "a"), Send("join", "b")]
        return [Send("work", part) for part in parts]

    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", fan_out, ["work", "join"])
    if drift == "an edge less":
        graph.add_edge("work", END)
        graph.add_edge(START, "join")
    else:
        graph.add_edge("work", "join")
    if drift != "a node less":
        graph.add_edge("join", "last")
    else:
        graph.add_edge(START, "last")
    return graph


CORPUS = {
    "changed request parameter": ("plan", 1, "call 1 (model) request.model", '"small"', '"large"'),
    "changed request, deep inside": ("plan", 1, "call 1 (model) request.messages[1].content", '"short"', '"long"'),
    "extra request parameter": ("plan", 1, "call 1 (model) request.messages[0].name", None, '"me"'),
    "1 in place of 1.0": ("plan", 1, "call 1 (model) request.temperature", "1.0", "1"),
    "another call": ("plan", 1, "call 1 (model) name", "model", "chat"),
    "missing call": ("plan", 1, "call 2 (service)", '{"q":1}', None),
    "extra call": ("plan", 1, "call 3 (service)", None, '{"q":2}'),
    "calls in another order": ("plan", 1, "call 3 (clock)", None, "null"),
    "caught its own mismatch": ("plan", 1, "call 2 (service) name", "service", "model"),
    "error instead of success": (
        "plan",
        1,
        "outcome",
        "a result",
        "node 'plan' raised KeyError: 'parts'",
    ),
    "changed event": ("plan", 1, "events[0][1].parts", "2", "3"),
    "extra event": ("plan", 1, "events[1]", None, '["more",null]'),
    "random numbers of its own": ("plan", 1, "delta[1][1][0]", None, "0.5"),
    "changed delta": ("plan", 1, "delta[0][1][0].parts[1]", '"b"', None),
    "missing field": ("plan", 1, "delta[2]", '["answer","403: not you"]', None),
    "changed order of Sends": ("plan", 1, "routes[0][1]", '"a"', '"b"'),
    "changed payload": ("plan", 1, "routes[1][1]", '"b"', '"c"'),
    "another target": ("plan", 1, "routes[1][0]", '"work"', '"join"'),
    "unrecorded state": ("work", 2, "delta[0][1][0][1]", None, None),
    "gathered in another order": ("join", 3, "call 1 (page) request", "0", "2"),
    "an edge less": (None, 0, "frontier", '["plan"]', '["plan","join"]'),
    "a node less": (None, 0, "frontier", '["plan"]', '["plan","last"]'),
}
"""The drifts, and the node, step, place and both sides that the error must name. A side that is None is not looked at."""

graph = build(os.environ.get("DRIFT", ""))
