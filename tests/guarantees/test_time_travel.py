"""Time travel: any state is there, a run at rest can be changed, and any of its steps can be the beginning of another run."""

from __future__ import annotations

import asyncio
import json
import operator
import threading
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from typing import Annotated, Any, TypedDict

import pytest
from tests.history import violations

from lockstep import (
    END,
    START,
    BudgetExceededError,
    ConfigurationError,
    Context,
    Engine,
    Graph,
    NodeFailedError,
    Options,
    RunExistsError,
    RunInterruptedError,
    Send,
    StateError,
    interrupt,
)
from lockstep.archive import export_run, import_run
from lockstep.fsck import check_store
from lockstep.store.memory import MemoryStore

Wait = Callable[[threading.Event], None]


class State(TypedDict, total=False):
    n: int
    log: Annotated[list[str], operator.add]
    fail: bool


def line(calls: Counter[str] | None = None) -> Graph:
    """a -> b -> c, where c goes to d or to the end; b fails if the state says so."""
    graph = Graph(State, name="line")

    def called(name: str) -> None:
        if calls is not None:
            calls[name] += 1

    @graph.node
    def a(state: State) -> State:
        called("a")
        return {"n": state.get("n", 0) + 1, "log": ["a"]}

    @graph.node
    def b(state: State) -> State:
        called("b")
        if state.get("fail"):
            raise ValueError("as the state says")
        return {"n": state["n"] * 10, "log": ["b"]}

    @graph.node
    def c(state: State) -> State:
        called("c")
        return {"log": [f"c {state['n']}"]}

    @graph.node
    def d(state: State) -> State:
        return {"log": ["d"]}

    graph.add_edge(START, "a").add_edge("a", "b").add_edge("b", "c")
    return graph.add_conditional_edges("c", lambda state: "d" if state["n"] >= 100 else END, ["d"])


def defects(engine: Engine, graph: Graph) -> list[str]:
    """What `fsck` finds, and what a computation of every step from its results does."""
    reader = engine._running().store
    return [*map(str, check_store(reader)), *violations(reader, {graph.compile().hash: graph.compile()})]


def test_a_fork_goes_on_from_any_step_and_leaves_its_origin_alone(store_url: str) -> None:
    calls: Counter[str] = Counter()
    graph = line(calls)
    with Engine(graph, store_url) as engine:
        run = engine.submit({}, run_id="run")
        assert run.result() == {"n": 10, "log": ["a", "b", "c 10"]}
        before = b"".join(export_run(run.backend.reader, "run"))
        # when it is forked after its first node, with another number
        fork = run.fork(1, {"n": 50, "log": ["changed"]}, run_id="fork")
        assert fork.result() == {"n": 500, "log": ["a", "changed", "b", "c 500", "d"]}
        assert calls == {"a": 1, "b": 2, "c": 2}
        # then its step 0 is what it began with, and it says where it comes from
        assert fork.state(0) == {"n": 50, "log": ["a", "changed"]}
        assert [task.node_id for task in fork.history()[0].tasks] == ["__fork__"]
        assert fork.origin is not None and (fork.origin.run_id, fork.origin.step_id) == ("run", 1)
        assert run.origin is None
        # and of a fork there may be another one, from its end, too
        again = fork.fork(run_id="again", as_node="b")
        assert again.result()["log"] == ["a", "changed", "b", "c 500", "d", "c 500", "d"]
        assert [one.run_id for one in run.forks()] == ["fork"]
        assert [one.run_id for one in fork.forks()] == ["again"]
        assert b"".join(export_run(run.backend.reader, "run")) == before
        assert defects(engine, graph) == []
        # and all of them replay
        assert [one.replay().nodes for one in (run, fork, again)] == [3, 3, 3]


def test_each_step_can_be_forked_without_a_change_and_comes_to_the_same(store_url: str) -> None:
    with Engine(line(), store_url) as engine:
        run = engine.submit({"n": 9})
        ended = run.result()
        for step in range(len(run.history())):
            assert run.fork(step).result() == ended
        assert len(list(run.forks())) == len(run.history())
        assert run.fork().result() == ended
        with pytest.raises(StateError, match="no committed step 9"):
            run.fork(9)


def test_the_same_fork_under_one_id_is_one_run() -> None:
    with Engine(line()) as engine:
        run = engine.submit({})
        run.result()
        assert run.fork(1, run_id="f").result() == run.fork(1, run_id="f").result()
        with pytest.raises(RunExistsError):
            run.fork(2, run_id="f")
        with pytest.raises(ConfigurationError, match="run_id"):
            run.fork(1, run_id="not an id!")


def test_sends_and_barriers_are_forked(store_url: str) -> None:
    graph = Graph(State)
    graph.add_node("one", lambda state: {"log": ["one"]}).add_node("two", lambda state: {"log": ["two"]})
    graph.add_node("slow", lambda state: {"log": ["slow"]}).add_node("join", lambda state: {"log": ["join"]})
    graph.add_node("work", lambda part: {"log": [f"work {part}"]})
    graph.add_edge(START, "one").add_edge(START, "slow").add_edge("one", "two").add_edge(["two", "slow"], "join")
    graph.add_conditional_edges("join", lambda state: [Send("work", n) for n in range(3)], ["work"])
    with Engine(graph, store_url) as engine:
        run = engine.submit({})
        ended = run.result()
        assert ended["log"][-4:] == ["join", "work 0", "work 1", "work 2"]
        for step in range(len(run.history())):
            assert run.fork(step).result() == ended
        assert defects(engine, graph) == []


def test_what_does_not_fit_is_refused_or_fails_the_fork() -> None:
    with Engine(line()) as engine:
        run = engine.submit({})
        run.result()
        with pytest.raises(StateError, match="unknown field 'topic'"):
            run.fork(1, {"topic": 1})
        with pytest.raises(StateError, match="node 'nowhere'"):
            run.fork(1, as_node="nowhere").result()


# Changing a run


def asking() -> Graph:
    graph = Graph(State, name="asking")

    @graph.node
    def ask(state: State) -> State:
        return {"log": [f"{interrupt({'n': state['n']})} {state['n']}"]}

    @graph.node
    def other(state: State) -> State:
        return {"log": ["other"]}

    @graph.node
    def after(state: State) -> State:
        return {"log": ["after"]}

    graph.add_edge(START, "ask").add_edge(START, "other")
    return graph.add_edge("ask", "after")


def test_an_interrupted_run_is_changed_and_asks_again(one_store: str, abandon: Any) -> None:
    graph = asking()
    with Engine(graph, one_store) as engine:
        run = engine.submit({"n": 1}, run_id="run")
        with pytest.raises(RunInterruptedError):
            run.result()
        # when its state is changed
        assert run.update_state({"n": 2, "log": ["changed"]}) == 1
        # then the question is asked anew, of the new state
        with pytest.raises(RunInterruptedError):
            run.result()
        [question] = run.interrupts()
        assert question.value == {"n": 2}
        assert [task.node_id for task in run.history()[1].tasks] == ["__update__"]
        abandon(engine)
    with Engine(graph, one_store) as engine:
        [run] = engine.recover()
        run.resume("yes")
        assert run.result()["log"] == ["changed", "yes 2", "other", "after"]
        assert defects(engine, graph) == []
        assert run.replay().nodes == 4  # `other` ran twice.
        store = MemoryStore()
        import_run(store, BytesIO(b"".join(export_run(run.backend.reader, "run"))))
        assert list(check_store(store)) == []


def test_a_run_goes_on_as_if_a_node_had_returned_the_update(store_url: str) -> None:
    graph = asking()
    with Engine(graph, store_url) as engine:
        run = engine.submit({"n": 1}, run_id="run")
        with pytest.raises(RunInterruptedError):
            run.result()
        # when somebody answers in place of the node
        run.update_state({"log": ["by hand"]}, as_node="ask")
        # then its successors run, and what was due does not
        assert run.result()["log"] == ["by hand", "after"]
        [record] = run.history()[2].tasks
        assert (record.node_id, record.stands_for) == ("__update__", "ask")
        assert defects(engine, graph) == []
        assert run.replay().nodes == 3


def test_a_router_of_that_node_decides_on_the_new_state(store_url: str) -> None:
    calls: Counter[str] = Counter()
    graph = line(calls)
    with Engine(graph, store_url) as engine:
        run = engine.submit({"fail": True}, run_id="run")
        with pytest.raises(NodeFailedError):
            run.result()
        run.update_state({"n": 100}, as_node="c")
        assert run.result() == {"fail": True, "n": 100, "log": ["a", "d"]}
        assert calls == {"a": 1, "b": 1}
        assert defects(engine, graph) == []


def test_a_failed_run_is_mended_and_goes_on(store_url: str) -> None:
    calls: Counter[str] = Counter()
    graph = line(calls)
    with Engine(graph, store_url) as engine:
        run = engine.submit({"fail": True}, run_id="run")
        with pytest.raises(NodeFailedError):
            run.result()
        assert run.update_state({"fail": False}) == 2
        assert run.result() == {"fail": False, "n": 10, "log": ["a", "b", "c 10"]}
        assert calls == {"a": 1, "b": 2, "c": 1}
        assert run.row().retries == 1
        events = [json.loads(event.data) for event in run.backend.reader.events("run") if event.type == "lockstep.updated"]
        assert [(event["fields"], event["as_node"]) for event in events] == [(["fail"], None)]
        assert defects(engine, graph) == []


def spending() -> Graph:
    """Two nodes, each of which spends 1 USD."""

    def spend(state: State, ctx: Context) -> State:
        ctx.llm_usage("m", 1, 1, cost_usd=1)
        return {"log": [str(state.get("n"))]}

    return Graph(State).add_sequence([("one", spend), ("two", spend)]).add_edge(START, "one")


def test_a_paused_run_stays_paused() -> None:
    with Engine(spending()) as engine:
        run = engine.submit({}, options=Options(max_cost_usd="1"))  # type: ignore[arg-type]
        with pytest.raises(BudgetExceededError):
            run.result()
        run.update_state({"n": 7})
        assert run.status == "paused"
        run.resume()
        assert run.result()["log"] == ["None", "7"]


def test_what_cannot_be_changed_says_so(wait: Wait) -> None:
    entered, release = threading.Event(), threading.Event()

    def waits(state: State) -> State:
        entered.set()
        wait(release)
        return {}

    graph = Graph(State).add_node(waits).add_edge(START, "waits")
    with Engine(graph) as engine:
        run = engine.submit({})
        wait(entered)
        with pytest.raises(StateError, match="running"):
            run.update_state({"n": 1})
        release.set()
        run.result()
        with pytest.raises(StateError, match=r"succeeded after step 1.*fork it"):
            run.update_state({"n": 1})
        assert run.state() == {"log": []}
        assert run.status == "succeeded"


def test_an_update_that_does_not_fit_changes_nothing() -> None:
    with Engine(asking()) as engine:
        run = engine.submit({"n": 1})
        with pytest.raises(RunInterruptedError):
            run.result()
        for update, as_node, what in (
            ({"topic": 1}, None, "unknown field"),
            ({"n": object()}, None, "n"),
            ({"log": 5}, None, "operator.add"),
            ({}, "nowhere", "nowhere"),
            (7, None, "must be a dict"),
        ):
            with pytest.raises(Exception, match=what):
                run.update_state(update, as_node)
        assert (run.status, run.row().step_id, len(run.interrupts())) == ("interrupted", 0, 1)
        run.resume("fine")
        assert run.result()["log"] == ["fine 1", "other", "after"]


def test_two_updates_at_a_time_are_two_steps() -> None:
    with Engine(spending()) as engine:
        run = engine.submit({}, options=Options(max_cost_usd="1"))  # type: ignore[arg-type]
        with pytest.raises(BudgetExceededError):
            run.result()

        async def both() -> list[int]:
            return await asyncio.gather(run.aupdate_state({"log": ["one"]}), run.aupdate_state({"log": ["two"]}))

        assert sorted(asyncio.run(both())) == [2, 3]
        assert sorted(run.state()["log"]) == ["None", "one", "two"]


def test_a_fork_of_a_fork_is_begun_as_its_origin_was_changed() -> None:
    # given a run that was changed as a node whose routers have not been asked yet
    release, entered = threading.Event(), threading.Event()

    def route(state: State) -> str:
        entered.set()
        release.wait(10)
        return END

    graph = Graph(State).add_node("a", lambda state: {"log": ["a"], "n": interrupt("?")})
    graph.add_node("b", lambda state: {"log": ["b"]}).add_edge(START, "a").add_conditional_edges("a", route, ["b"])
    with Engine(graph) as engine:
        run = engine.submit({})
        with pytest.raises(RunInterruptedError):
            run.result()
        run.update_state({"n": 1}, as_node="a")
        assert entered.wait(10)
        release.set()
        assert run.fork(1).result() == run.result() == {"log": [], "n": 1}


def test_neither_the_node_nor_its_error_handler_runs_in_its_place() -> None:
    ran: list[str] = []

    def fails(state: State) -> State:
        ran.append("fails")
        return {"log": [interrupt("?")]}

    def handles(state: State) -> State:
        ran.append("handles")
        return {}

    graph = Graph(State).add_node("a", fails, error_handler=handles).add_edge(START, "a")
    with Engine(graph) as engine:
        run = engine.submit({})
        with pytest.raises(RunInterruptedError):
            run.result()
        run.update_state({"log": ["by hand"]}, as_node="a")
        assert run.result() == {"log": ["by hand"]}
        assert ran == ["fails"]


def test_a_change_is_bounded_like_an_input() -> None:
    with Engine(line()) as engine:
        run = engine.submit({})
        run.result()
        with pytest.raises(StateError, match="the update takes"):
            run.fork(0, {"log": ["x" * 5_000_000]})
