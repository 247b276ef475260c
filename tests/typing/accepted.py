"""What users write, as type checkers see it: all of it is right, and has the types that are asserted."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, TypedDict, assert_type

from lockstep import (
    END,
    PRICES,
    START,
    Client,
    Command,
    ConflictPolicy,
    Context,
    Costs,
    Engine,
    Graph,
    Interrupt,
    LockstepError,
    Options,
    Overwrite,
    RetryPolicy,
    Run,
    Send,
    StateGraph,
    StepRecord,
    StreamEvent,
    add_messages,
    interrupt,
    sleep,
    usage_of,
    with_max_concurrent,
)


class State(TypedDict, total=False):
    topic: str
    findings: Annotated[list[str], operator.add]
    messages: Annotated[list[dict[str, Any]], add_messages]


@dataclass
class Counted:
    n: int = 0


@contextmanager
def pool() -> Iterator[str]:
    yield "pool"


graph = Graph(State, name="typed", ordering="edge", version="1", resources=pool)


@graph.node
def plan(state: State) -> State:
    return {"findings": [state.get("topic", "")]}


@graph.node(queue="llm", retry=RetryPolicy(max_attempts=2), timeout_seconds=30, max_concurrent=2)
async def search(state: State, ctx: Context) -> Command:
    assert_type(ctx.run_id, str)
    assert_type(ctx.rng.random(), float)
    ctx.stream({"token": "a"})
    ctx.llm_usage("model", 1, 2, cost_usd=Decimal("0.1"))
    answer = ctx.record("search", {"q": 1}, lambda: {"hits": 1})
    ctx.emit("searched", answer)
    return Command(update={"findings": Overwrite(["x"])}, goto=[END, Send("plan", {"topic": "y"})])


def ask(state: State) -> dict[str, Any]:
    sleep(1)
    return {"topic": interrupt("which?", timeout_seconds=5, default="none")}


def handler(state: State, ctx: Context) -> None:
    assert_type(ctx.error, LockstepError | None)


def route(state: State) -> list[str | Send]:
    return ["ask"]


assert_type(plan({"topic": "t"}), State)  # The decorator leaves functions as they are.
inner = Graph(Counted).add_node("count", lambda counted: {"n": 1}).add_edge(START, "count")
assert_type(inner, Graph)
graph.add_node(ask).add_node("other", ask, error_handler=handler, defer=True)
graph.add_node("inner", inner, input={"n": "topic"}, output=lambda state: None)
graph.add_edge(START, "plan").add_edge(["plan", "search"], "ask")
graph.add_conditional_edges("plan", route, {"ask": "ask", "end": END})
graph.add_sequence([("one", ask), handler])
also: type[Graph] = StateGraph


def embedded() -> None:
    options = Options(conflict_policy=ConflictPolicy.MERGE, max_steps=5, interrupt_before=("plan",))
    with Engine([graph], "sqlite:///x.db", with_max_concurrent(4), options=options, prices=PRICES) as engine:
        run = engine.submit({"topic": "t"}, run_id="r", thread_id="t", context={"tenant": 1})
        assert_type(run, Run)
        assert_type(run.result(1.0), dict[str, Any])
        assert_type(run.history(), list[StepRecord])
        assert_type(run.interrupts(), list[Interrupt])
        assert_type(run.costs(), Costs)
        assert_type(run.costs().cost_usd, Decimal)
        assert_type(run.error, LockstepError | None)
        assert_type(run.parent, Run | None)
        assert_type(list(run.children()), list[Run])
        for event in run.stream(["values", "custom"]):
            assert_type(event, StreamEvent)
        run.resume({"id": "answer"})
        assert_type(run.update_state({"topic": "u"}, as_node="plan"), int)
        assert_type(run.fork(1), Run)
        assert_type(engine.invoke({"topic": "t"}), dict[str, Any])


async def asynchronous(engine: Engine) -> AsyncIterator[StreamEvent]:
    assert_type(await engine.ainvoke({"topic": "t"}), dict[str, Any])
    run = engine.run("r")
    assert_type(await run.aresult(), dict[str, Any])
    async for event in run.astream():
        yield event


def from_afar() -> None:
    with Client("postgresql+psycopg://h/d", redis_url="redis://h", namespace="n") as client:
        assert_type(client.submit("typed", {"topic": "t"}, options=Options(fail_fast=False)), Run)
        assert_type(list(client.runs(status="failed")), list[Run])


def usage(ctx: Context, reply: dict[str, Any]) -> None:
    ctx.llm_usage(**usage_of(reply))
