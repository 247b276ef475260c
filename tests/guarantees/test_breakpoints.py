"""Breakpoints: a run waits before or after a node, whoever owns it, until somebody lets it go on."""

from __future__ import annotations

import json
import operator
from typing import Annotated, Any, TypedDict

import pytest

from lockstep import (
    START,
    BudgetExceededError,
    ConfigurationError,
    Context,
    Engine,
    Graph,
    Options,
    RunInterruptedError,
    interrupt,
)
from lockstep.fsck import check_store


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def line(*, asks: bool = False) -> Graph:
    def node(state: State, ctx: Context) -> State:
        if asks and ctx.node_id == "b":
            return {"log": [interrupt("?")]}
        return {"log": [ctx.node_id]}

    return Graph(State).add_sequence([(name, node) for name in "abc"]).add_edge(START, "a")


def waits(run: Any) -> list[str]:
    with pytest.raises(RunInterruptedError, match="it stands at a breakpoint"):
        run.result(20)
    assert (run.status, run.interrupts()) == ("interrupted", [])
    log: list[str] = run.state()["log"]
    return log


def test_a_run_waits_before_and_after_nodes(one_store: str, abandon: Any) -> None:
    with Engine(line(), one_store) as engine:
        run = engine.submit({}, run_id="run", options=Options(interrupt_before=["a", "c"], interrupt_after=["a"]))  # type: ignore[arg-type]
        assert waits(run) == []
        run.resume()
        assert waits(run) == ["a"]
        abandon(engine)
    # whoever takes it over leaves it there
    with Engine(line(), one_store) as engine:
        [run] = engine.recover()
        assert waits(run) == ["a"]
        run.resume("anything")
        assert waits(run) == ["a", "b"]
        run.update_state({"log": ["changed"]})
        assert waits(run) == ["a", "b", "changed"]
        run.resume()
        assert run.result(20)["log"] == ["a", "b", "changed", "c"]
        said = [json.loads(event.data) for event in run.backend.reader.events("run") if event.type == "lockstep.interrupted"]
        assert said == [
            {"ids": [], "before": ["a"]},
            {"ids": [], "after": ["a"]},
            {"ids": [], "before": ["c"]},
        ]
        assert list(check_store(run.backend.reader)) == []


def test_after_the_last_node_there_is_nothing_to_wait_for() -> None:
    with Engine(line(), options=Options(interrupt_after=("c",))) as engine:
        assert engine.invoke({})["log"] == ["a", "b", "c"]


def test_a_question_is_asked_after_a_breakpoint() -> None:
    with Engine(line(asks=True), options=Options(interrupt_before=("b",))) as engine:
        run = engine.submit({})
        assert waits(run) == ["a"]
        run.resume()
        with pytest.raises(RunInterruptedError, match="answer what it asks"):
            run.result(20)
        run.resume("B")
        assert run.result(20) == {"log": ["a", "B", "c"]}


def test_a_budget_comes_before_a_breakpoint() -> None:
    def spend(state: State, ctx: Context) -> State:
        ctx.llm_usage("m", 1, 1, cost_usd=1)
        return {"log": [ctx.node_id]}

    graph = Graph(State).add_sequence([("a", spend), ("b", spend)]).add_edge(START, "a")
    with Engine(graph, options=Options(max_cost_usd=1, interrupt_before=("b",))) as engine:  # type: ignore[arg-type]
        run = engine.submit({})
        with pytest.raises(BudgetExceededError):
            run.result(20)
        run.resume()
        assert run.result(20)["log"] == ["a", "b"]


@pytest.mark.parametrize("wrong", ["plan", [1], [None]])
def test_breakpoints_are_names(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="interrupt_before"):
        Options(interrupt_before=wrong)
