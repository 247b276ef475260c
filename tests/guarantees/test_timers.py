"""Durable timers: nodes sleep, and questions answer themselves, though every process is replaced meanwhile."""

from __future__ import annotations

import operator
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import pytest

from lockstep import START, ConfigurationError, Context, Engine, Graph, Options, RunInterruptedError, interrupt, sleep
from lockstep.explain import explain
from lockstep.fsck import check_store
from lockstep.interrupts import MAX_WAIT_SECONDS

Wait = Callable[[threading.Event], None]


class State(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


def one_node(function: Any, **options: Any) -> Graph:
    return Graph(State).add_node("node", function, **options).add_edge(START, "node")


class Sleeping:
    """A node that sleeps for so long, beside one that does not."""

    def __init__(self, seconds: float, *, isolated: bool = False) -> None:
        self.seconds = seconds
        self.calls: Counter[str] = Counter()
        self.slept = threading.Event()
        self.graph = Graph(State).add_node("sleeps", self.sleeps).add_node("other", self.other).add_node("end", self.end)
        self.graph.add_edge(START, "sleeps").add_edge(START, "other").add_edge(["sleeps", "other"], "end")

    def sleeps(self, state: State, ctx: Context) -> State:
        self.calls["sleeps"] += 1
        recorded = ctx.record("clock", None, time.time)
        if self.calls["sleeps"] == 1:
            self.slept.set()
        sleep(self.seconds)
        return {"log": [["slept", ctx.attempt, ctx.record("since", None, lambda: time.time() - recorded) >= self.seconds]]}

    def other(self, state: State) -> State:
        self.calls["other"] += 1
        return {"log": ["other"]}

    def end(self, state: State) -> State:
        return {"log": ["end"]}


def test_a_node_goes_on_when_it_has_slept(store_url: str) -> None:
    sleeping = Sleeping(0.3)
    with Engine(sleeping.graph, store_url) as engine:
        run = engine.submit({})
        assert run.result(20) == {"log": [["slept", 1, True], "other", "end"]}
        assert sleeping.calls == {"sleeps": 2, "other": 1}
        assert [event.type for event in run.backend.reader.events(run.run_id)] == []
        assert list(check_store(run.backend.reader)) == []
        assert run.replay().nodes == 3


def test_a_sleeping_run_is_running_and_asks_nobody(wait: Wait) -> None:
    sleeping = Sleeping(3600.0)
    with Engine(sleeping.graph) as engine:
        run = engine.submit({})
        wait(sleeping.slept)
        deadline = time.monotonic() + 10
        while "timer" not in (states := [item.state for item in explain(run.backend.reader, run.row(), None).items]):
            assert time.monotonic() < deadline, states
        assert (run.status, run.interrupts()) == ("running", [])
        while engine._running().executor.running:
            assert time.monotonic() < deadline, "a slot is taken"
        run.cancel("enough")


def test_a_timer_outlives_its_process(one_store: str, abandon: Any, wait: Wait) -> None:
    # given a run that sleeps, whose process ends before the time has come
    sleeping = Sleeping(1.0)
    with Engine(sleeping.graph, one_store) as engine:
        run = engine.submit({}, run_id="run")
        wait(sleeping.slept)
        while len(run.backend.reader.journal("run", [bytes.fromhex(item.path) for item in items(run)])) < 4:
            pass
        abandon(engine)
    # when another one takes it over, then it goes on, at its time and once
    with Engine(sleeping.graph, one_store) as engine:
        [run] = engine.recover()
        assert run.result(20) == {"log": [["slept", 1, True], "other", "end"]}
        assert sleeping.calls == {"sleeps": 2, "other": 1}
        assert list(check_store(run.backend.reader)) == []


def items(run: Any) -> Any:
    row = run.row()
    return explain(run.backend.reader, row, None).items if row.step_id >= 0 else []


def test_a_time_that_has_passed_meanwhile_is_over_at_once(one_store: str, abandon: Any, wait: Wait) -> None:
    sleeping = Sleeping(0.2)
    with Engine(sleeping.graph, one_store) as engine:
        engine.submit({}, run_id="run")
        wait(sleeping.slept)
        abandon(engine)
    time.sleep(0.3)
    with Engine(sleeping.graph, one_store) as engine:
        [run] = engine.recover()
        assert run.result(20)["log"][0] == ["slept", 1, True]


def apart(state: State, ctx: Context) -> State:
    sleep(0.1)
    return {"log": [interrupt("?", timeout_seconds=0.1, default={"so": "what"})]}


async def awaiting(state: State, ctx: Context) -> State:
    sleep(0.1)
    return {"log": [interrupt("?", timeout_seconds=0.1, default={"so": "what"})]}


@pytest.mark.parametrize(("node", "options"), [(apart, {}), (apart, {"isolation": "process"}), (awaiting, {})])
def test_nodes_of_each_kind_sleep_and_wait(node: Any, options: Any) -> None:
    with Engine(one_node(node, **options)) as engine:
        run = engine.submit({})
        while True:
            try:
                assert run.result(20) == {"log": [{"so": "what"}]}
                break
            except RunInterruptedError:
                continue  # It waits for people, for a moment.
        assert run.replay().nodes == 1


def test_an_answer_that_comes_in_time_counts_and_the_timer_does_not(store_url: str) -> None:
    def node(state: State) -> State:
        first = interrupt("one", timeout_seconds=0.5, default="late")
        return {"log": [first, interrupt("two", timeout_seconds=3600, default="late")]}

    with Engine(one_node(node), store_url) as engine:
        run = engine.submit({})
        with pytest.raises(RunInterruptedError, match="one"):
            run.result(20)
        run.resume("in time")
        with pytest.raises(RunInterruptedError, match="two"):
            run.result(20)
        time.sleep(0.6)  # The first one's time passes; it must not answer the second one.
        assert [asked.value for asked in run.interrupts()] == ["two"]
        run.resume("also")
        assert run.result(20) == {"log": ["in time", "also"]}


def test_what_sleeps_holds_no_slot() -> None:
    begun: list[str] = []

    def node(state: State, ctx: Context) -> State:
        begun.append(ctx.node_id)
        sleep(1.0)
        return {"log": [1]}

    graph = Graph(State)
    for number in range(20):
        graph.add_node(f"n{number}", node).add_edge(START, f"n{number}")
    with Engine(graph, options=Options(max_concurrent=1)) as engine:
        assert len(engine.invoke({})["log"]) == 20
    # With one slot, all have begun before the first has slept enough.
    assert len(set(begun[:20])) == 20


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), MAX_WAIT_SECONDS + 1, "1", True, None])
def test_seconds_are_checked(seconds: Any) -> None:
    with Engine(one_node(lambda state: sleep(seconds))) as engine, pytest.raises(ConfigurationError, match="seconds"):
        engine.invoke({})


def test_sleep_is_for_nodes() -> None:
    with pytest.raises(ConfigurationError, match="inside of a node"):
        sleep(1)


# What is no part of the state


def test_nodes_find_the_context_of_their_run(one_store: str, abandon: Any) -> None:
    def node(state: State, ctx: Context) -> State:
        said = ctx.context["user"]
        ctx.context["user"] = "changed"
        if ctx.attempt == 1 and not state["log"]:
            interrupt("?")
        return {"log": [said]}

    graph = one_node(node)
    given = {"user": "anna", "roles": ["a", 1]}
    with Engine(graph, one_store) as engine:
        run = engine.submit({}, run_id="run", context=given)
        with pytest.raises(RunInterruptedError):
            run.result()
        abandon(engine)
    with Engine(graph, one_store) as engine:
        [run] = engine.recover()
        run.resume()
        assert run.result() == {"log": ["anna"]}
        assert run.fork(0, {"log": ["x"]}).result()["log"] == ["x", "anna"]
        assert run.replay().nodes == 1
        assert engine.submit({"log": ["x"]}, options=Options(context={"user": "ben"})).result()["log"] == ["x", "ben"]


@pytest.mark.parametrize("wrong", [object(), {1: 2}, float("nan")])
def test_a_context_is_json(wrong: Any) -> None:
    with Engine(one_node(lambda state: {})) as engine, pytest.raises(ConfigurationError, match="context"):
        engine.submit({}, context=wrong)


def test_a_context_is_bounded() -> None:
    with Engine(one_node(lambda state: {})) as engine, pytest.raises(ConfigurationError, match="the context takes"):
        engine.submit({}, context="x" * 5_000_000)
