"""`lockstep.testing`: time is moved by hand, nodes fail when told to, a model answers from a script."""

from __future__ import annotations

import asyncio
import operator
import threading
from typing import Annotated, TypedDict

import pytest

from lockstep import (
    START,
    ConfigurationError,
    Context,
    Engine,
    Graph,
    NodeFailedError,
    Options,
    RetryPolicy,
    RunCancelledError,
    RunInterruptedError,
    WaitTimeoutError,
    interrupt,
    sleep,
    usage_of,
)
from lockstep.testing import FakeModel, TestEngine

WEEK = 7 * 86_400.0


class State(TypedDict, total=False):
    question: str
    log: Annotated[list[str], operator.add]


def reminding(seconds: float = WEEK) -> Graph:
    graph = Graph(State, name="reminding")

    @graph.node
    def remind(state: State) -> State:
        sleep(seconds)
        return {"log": ["reminded"]}

    @graph.node
    async def ask(state: State) -> State:
        return {"log": [interrupt("?", timeout_seconds=seconds, default="no answer")]}

    return graph.add_edge(START, "remind").add_edge("remind", "ask")


def test_a_week_passes_at_once() -> None:
    with TestEngine(reminding()) as engine:
        run = engine.submit({})
        engine.rest(run)
        assert run.status == "running"
        engine.advance(WEEK)
        with pytest.raises(RunInterruptedError):
            run.result(20)
        engine.advance(WEEK - 60)
        assert run.status == "interrupted"
        engine.advance(61)
        while run.status == "interrupted":
            pass
        assert run.result(20)["log"] == ["reminded", "no answer"]
        assert engine.executions == {"remind": 2, "ask": 2}


def test_a_deadline_is_reached_by_hand() -> None:
    with TestEngine(reminding(), options=Options(deadline_seconds=3600)) as engine:
        run = engine.submit({})
        engine.rest(run)
        engine.advance(3601)
        with pytest.raises(RunCancelledError, match="deadline"):
            run.result(20)
    with pytest.raises(ConfigurationError, match="does not go back"):
        engine.advance(-1)


def test_pauses_of_retries_are_passed_over() -> None:
    retry = RetryPolicy(max_attempts=3, initial_seconds=3600)
    graph = Graph(State).add_node("node", lambda state: {"log": ["done"]}, retry=retry).add_edge(START, "node")
    with TestEngine(graph) as engine:
        engine.fail("node", ConnectionError("away"), times=2)
        run = engine.submit({})
        for attempt in (1, 2):
            while engine.executions["node"] < attempt:
                pass
            engine.rest(run)
            engine.advance(WEEK)
        assert run.result(20)["log"] == ["done"]
        assert run.history()[1].tasks[0].attempt == 3


def test_what_does_not_rest_says_so() -> None:
    entered, release = threading.Event(), threading.Event()

    def node(state: State) -> None:
        entered.set()
        release.wait(20)

    with TestEngine(Graph(State).add_node(node).add_edge(START, "node")) as engine:
        run = engine.submit({})
        assert entered.wait(20)
        with pytest.raises(WaitTimeoutError, match="still does something"):
            engine.rest(run, 0.05)
        release.set()
        engine.rest(run)
        assert run.status == "succeeded"


def test_nodes_fail_when_told_to() -> None:
    graph = Graph(State, name="g").add_node("a", lambda state: {"log": ["a"]})

    @graph.node
    async def b(state: State, ctx: Context) -> State:
        return {"log": ["b"]}

    graph.add_edge(START, "a").add_edge("a", "b")
    with TestEngine(graph) as engine:
        engine.fail("b", TimeoutError("too slow"))
        run = engine.submit({}, run_id="run")
        with pytest.raises(NodeFailedError, match="too slow"):
            run.result(20)
        run.retry()
        assert run.result(20)["log"] == ["a", "b"]
        assert engine.executions == {"a": 1, "b": 2}
        with pytest.raises(ConfigurationError, match="there are a, b"):
            engine.fail("c", ValueError())
    # and what is tested is the graph itself: its hash, and its hashes of state, are the same
    with Engine(graph) as plain:
        other = plain.submit({}, run_id="run")
        other.result()
        assert other.row().graph_hash == graph.compile().hash


def test_a_model_answers_from_a_script() -> None:
    model = FakeModel(["forty two", ConnectionError("busy"), "again"], model="gpt-5")

    def ask(state: State, ctx: Context) -> State:
        reply = ctx.record("model", {"prompt": state["question"]}, lambda: model({"prompt": state["question"]}))
        ctx.llm_usage(**usage_of(reply))
        return {"log": [reply["choices"][0]["message"]["content"]]}

    graph = Graph(State).add_node("ask", ask, retry=RetryPolicy(max_attempts=2, initial_seconds=0.0)).add_edge(START, "ask")
    with TestEngine(graph) as engine:
        run = engine.submit({"question": "what is it"})
        assert run.result()["log"] == ["forty two"]
        assert run.costs().by_model["gpt-5"].tokens_out == 2
        assert engine.invoke({"question": "x"})["log"] == ["again"]
        assert model.requests == [{"prompt": "what is it"}, {"prompt": "x"}, {"prompt": "x"}]
        with pytest.raises(NodeFailedError, match="its script is over"):
            engine.invoke({"question": "once more"})
    whole = FakeModel([{"model": "m", "choices": []}])
    assert asyncio.run(whole.aask("?")) == {"model": "m", "choices": []}
