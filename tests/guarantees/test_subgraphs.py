"""Graphs as nodes: each is a run of its own, whose work is the node's, and nothing of it is lost or done twice."""

from __future__ import annotations

import json
import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest

from lockstep import (
    END,
    START,
    BudgetExceededError,
    Command,
    ConfigurationError,
    Context,
    Engine,
    Graph,
    Options,
    Overwrite,
    ReplayMismatchError,
    RetryPolicy,
    RouteError,
    Run,
    RunCancelledError,
    RunInterruptedError,
    Send,
    SubgraphError,
    interrupt,
)
from lockstep.explain import explain
from lockstep.fsck import check_store
from lockstep.subgraphs import child_run_id
from lockstep.testing import TestEngine

PATIENCE_SECONDS = 30.0


class State(TypedDict, total=False):
    topic: str
    notes: Annotated[list[Any], operator.add]
    total: Annotated[int, operator.add]
    draft: str


class Inner(TypedDict, total=False):
    topic: str
    notes: Annotated[list[Any], operator.add]
    total: Annotated[int, operator.add]
    own: str


class Worked:
    """inner (find, then check) between first and last; how often each node ran; what find does is a test's own affair."""

    def __init__(self, find: Callable[..., Any] | None = None, **node: Any) -> None:
        self.calls: Counter[str] = Counter()
        self._find = find
        self.inner = Graph(Inner, name="inner")
        self.inner.add_sequence([("find", self.find), ("check", self.check)]).add_edge(START, "find")
        self.graph = Graph(State, name="outer")
        self.graph.add_node(self.first).add_node("inner", self.inner, **node).add_node(self.last)
        self.graph.add_edge(START, "first").add_edge("first", "inner").add_edge("inner", "last")

    def first(self, state: State) -> State:
        self.calls["first"] += 1
        return {"notes": ["first"], "total": 5}

    def find(self, state: Inner, ctx: Context) -> Any:
        self.calls["find"] += 1
        if self._find is not None:
            return self._find(state, ctx)
        return {"notes": [f"found {state['topic']}"], "total": 1, "own": "private"}

    def check(self, state: Inner) -> Inner:
        self.calls["check"] += 1
        return {"notes": [f"checked {state.get('own')}"], "total": 1}

    def last(self, state: State) -> State:
        self.calls["last"] += 1
        return {"notes": ["last"]}


def child_of(run: Run) -> Run:
    [child] = run.children()
    return child


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], None]:
    def wait(condition: Callable[[], Any]) -> None:
        tick, waited = threading.Event(), 0.0
        while not condition():
            assert waited < PATIENCE_SECONDS, "it never came true"
            waited += 0.01
            tick.wait(0.01)

    return wait


@pytest.fixture
def sound() -> Iterator[Callable[[Engine], None]]:
    """All that an engine has stored holds together."""

    def check(engine: Engine) -> None:
        assert list(check_store(engine._running().store)) == []

    yield check


# --- what goes in and what comes out


def test_what_its_nodes_write_to_shared_fields_counts_as_written_by_the_node(store_url: str, sound: Any) -> None:
    worked = Worked()
    with Engine(worked.graph, store_url) as engine:
        run = engine.submit({"topic": "bees"}, run_id="run")

        # then each write counts once, in its order, and what is the subgraph's own stays there
        assert run.result(PATIENCE_SECONDS) == {
            "topic": "bees",
            "notes": ["first", "found bees", "checked private", "last"],
            "total": 7,
        }
        assert worked.calls == dict.fromkeys(("first", "find", "check", "last"), 1)

        # and its run is one like any other
        child = child_of(run)
        [item] = run.history()[2].tasks
        assert child.run_id == child_run_id("run", bytes.fromhex(item.path))
        assert child.state() == {
            "topic": "bees",
            "notes": ["first", "found bees", "checked private"],
            "total": 7,
            "own": "private",
        }
        assert [task.node_id for step in child.history() for task in step.tasks] == ["find", "check"]
        assert (child.row().graph, child.parent and child.parent.run_id, run.parent) == ("outer/inner", "run", None)
        assert list(run.forks()) == []
        report = run.replay()
        assert (report.nodes, report.steps) == (5, 7)
        sound(engine)


def test_fields_may_have_other_names_there(store_url: str) -> None:
    class Question(TypedDict, total=False):
        question: str
        answer: str

    inner = Graph(Question, name="inner")
    inner.add_node("answer", lambda state: {"answer": f"{state['question']}!"}).add_edge(START, "answer")
    graph = Graph(State).add_node("ask", inner, input={"question": "topic"}, output={"answer": "draft"})
    with Engine(graph.add_edge(START, "ask"), store_url) as engine:
        assert engine.invoke({"topic": "bees"}) == {"topic": "bees", "draft": "bees!", "notes": [], "total": 0}


def test_functions_may_make_the_input_and_read_the_final_state() -> None:
    @dataclass
    class Period:
        start: datetime
        days: int = 0

    async def opened(state: State) -> dict[str, Any]:
        return {"start": datetime.fromisoformat(state["topic"])}

    def closed(period: Period) -> Command:
        assert isinstance(period, Period)
        return Command(update={"total": period.days, "draft": period.start.isoformat()}, goto="end")

    inner = Graph(Period, name="inner")
    inner.add_node("count", lambda period: {"days": period.start.day}).add_edge(START, "count")
    graph = Graph(State).add_node("period", inner, input=opened, output=closed)
    graph.add_node("end", lambda state: {"notes": ["end"]}).add_edge(START, "period")
    with Engine(graph) as engine:
        state = engine.invoke({"topic": "2026-11-28T00:00:00+00:00"})
    moment = datetime(2026, 11, 28, tzinfo=UTC).isoformat()
    assert state == {"topic": moment, "notes": ["end"], "total": 28, "draft": moment}


def test_a_router_behind_a_subgraph_sees_what_it_wrote() -> None:
    worked = Worked()
    seen: list[list[str]] = []

    def route(state: State) -> str:
        seen.append(state["notes"])
        return END

    graph = Graph(State).add_node("inner", worked.inner).add_edge(START, "inner")
    graph.add_conditional_edges("inner", route, [END])
    with Engine(graph) as engine:
        engine.invoke({"topic": "bees"})
    assert seen == [["found bees", "checked private"]]


def test_of_fields_that_only_one_of_the_graphs_reduces_the_value_counts() -> None:
    class Theirs(TypedDict, total=False):
        total: int
        draft: Annotated[list[str], operator.add]

    inner = Graph(Theirs, name="inner")
    inner.add_node("one", lambda state: {"total": 1, "draft": ["a"]})
    inner.add_node("two", lambda state: {"total": state["total"] + 1, "draft": ["b"]})
    inner.add_edge(START, "one").add_edge("one", "two")
    graph = Graph(State).add_node("inner", inner, input={}, output={"total": "total", "draft": "draft"})
    with Engine(graph.add_edge(START, "inner")) as engine:
        # Of what the subgraph reduces alone, the whole list is the value; of what it does not, its last value is added.
        assert engine.invoke({"total": 40}) == {"notes": [], "total": 42, "draft": ["a", "b"]}


def test_what_a_node_there_overwrites_is_overwritten_here() -> None:
    def find(state: Inner, ctx: Context) -> Inner:
        return {"notes": Overwrite(["anew"])}  # type: ignore[typeddict-item]

    with Engine(Worked(find).graph) as engine:
        assert engine.invoke({"topic": "bees"})["notes"] == ["anew", "checked None", "last"]


def test_each_send_is_a_run_of_its_own_and_results_come_in_order(store_url: str, sound: Any) -> None:
    inner = Graph(Inner, name="inner")
    inner.add_node("draw", lambda state, ctx: {"notes": [(state["topic"], ctx.rng.random(), ctx.idempotency_key)]})
    inner.add_edge(START, "draw")

    def results(engine: Engine, run_id: str, options: Options) -> list[Any]:
        run = engine.submit({}, run_id=run_id, options=options)
        state = run.result(PATIENCE_SECONDS)
        assert len(list(run.children())) == 20
        notes: list[Any] = state["notes"]
        return notes

    graph = Graph(State).add_node("inner", inner)
    graph.add_conditional_edges(START, lambda state: [Send("inner", {"topic": str(n)}) for n in range(20)], ["inner"])
    with Engine(graph, store_url) as engine:
        one, other = (results(engine, name, Options(seed=7)) for name in ("one", "other"))
        # then each has random numbers of its own, which the seed alone determines
        assert [note[0] for note in one] == [str(n) for n in range(20)]
        assert len({note[1] for note in one}) == 20
        assert [note[:2] for note in one] == [note[:2] for note in other]
        assert len({note[2] for note in [*one, *other]}) == 40
        sound(engine)


def test_subgraphs_have_subgraphs_and_hold_no_slot(store_url: str) -> None:
    # given three levels, and one slot for all
    inner = Worked()
    middle = Graph(Inner, name="middle").add_node("inner", inner.inner).add_edge(START, "inner")
    graph = Graph(State, name="top").add_node("middle", middle)
    graph.add_conditional_edges(START, lambda state: [Send("middle", {"topic": str(n)}) for n in range(3)], ["middle"])
    with Engine(graph, store_url, options=Options(max_concurrent=1)) as engine:
        run = engine.submit({"topic": "bees"}, run_id="x" * 120)
        state = run.result(PATIENCE_SECONDS)
        assert state["notes"] == [f"{verb}" for n in range(3) for verb in (f"found {n}", "checked private")]
        assert {child.row().graph for child in run.children()} == {"top/middle"}
        assert {low.row().graph for child in run.children() for low in child.children()} == {"top/middle/inner"}


# --- people


def asks(state: Inner, ctx: Context) -> Inner:
    return {"notes": [interrupt(f"about {state['topic']}?")]}


def until_it_asks(run: Run) -> list[Any]:
    with pytest.raises(RunInterruptedError):
        run.result(PATIENCE_SECONDS)
    return run.interrupts()


def test_a_question_inside_is_asked_and_answered_outside(one_store: str, abandon: Any, sound: Any) -> None:
    # given a run whose subgraph asks, and whose process has ended
    worked = Worked(asks)
    with Engine(worked.graph, one_store) as engine:
        run = engine.submit({"topic": "bees"}, run_id="run")
        [question] = until_it_asks(run)
        assert (question.node_id, question.value, question.run_id) == ("inner/find", "about bees?", child_of(run).run_id)
        explained = explain(run.backend.reader, run.row(), None)
        assert [(item.state, item.where) for item in explained.items] == [("subgraph", child_of(run).run_id)]
        assert [task.status for task in run.history()[1].tasks] == ["done"]
        abandon(engine)

    # when another one takes over, and the answer comes
    with Engine(worked.graph, one_store) as engine:
        [run] = engine.recover("run")
        assert until_it_asks(run) == [question]
        run.resume("yes")

        # then it goes on, and what had a result does not run again
        assert run.result(PATIENCE_SECONDS)["notes"] == ["first", "yes", "checked None", "last"]
        assert worked.calls == {"first": 1, "find": 2, "check": 1, "last": 1}
        sound(engine)


def test_several_subgraphs_ask_at_once_and_each_gets_its_answer(store_url: str) -> None:
    worked = Worked(asks)
    graph = Graph(State).add_node("inner", worked.inner)
    graph.add_conditional_edges(START, lambda state: [Send("inner", {"topic": str(n)}) for n in range(3)], ["inner"])
    with Engine(graph, store_url) as engine:
        run = engine.submit({}, run_id="run")
        questions = until_it_asks(run)
        assert [one.value for one in questions] == ["about 0?", "about 1?", "about 2?"]
        assert len({one.id for one in questions}) == 3

        # when one is answered, then the others still wait
        run.resume({questions[1].id: "b"})
        assert until_it_asks(run) == [questions[0], questions[2]]

        run.resume({questions[0].id: "a", questions[2].id: "c"})
        notes = run.result(PATIENCE_SECONDS)["notes"]
        assert notes == ["a", "checked None", "b", "checked None", "c", "checked None"]


def test_a_run_is_not_at_rest_while_answers_are_under_way(monkeypatch: pytest.MonkeyPatch, eventually: Any) -> None:
    # given answers to two subgraphs, of which the second comes when what followed from the first is done
    worked = Worked(asks)
    graph = Graph(State).add_node("inner", worked.inner)
    graph.add_conditional_edges(START, lambda state: [Send("inner", {"topic": str(n)}) for n in range(2)], ["inner"])
    with Engine(graph) as engine:
        run = engine.submit({}, run_id="run")
        one, other = until_it_asks(run)
        send = run.backend.send

        def send_late(command: Any) -> None:
            if command.run_id == other.run_id:
                eventually(lambda: Run(one.run_id, run.backend).status == "succeeded")
                eventually(lambda: run.status == "interrupted")
            send(command)

        monkeypatch.setattr(run.backend, "send", send_late)
        run.resume({one.id: "a", other.id: "b"})
        # then who waits for its end is not told that it waits for people
        assert run.result(PATIENCE_SECONDS)["notes"] == ["a", "checked None", "b", "checked None"]


def test_a_breakpoint_may_be_inside(store_url: str) -> None:
    worked = Worked()
    with Engine(worked.graph, store_url, options=Options(interrupt_before=("inner/check",))) as engine:
        run = engine.submit({"topic": "bees"}, run_id="run")
        assert until_it_asks(run) == []
        assert worked.calls == {"first": 1, "find": 1}
        run.resume()
        assert run.result(PATIENCE_SECONDS)["notes"][-1] == "last"


def test_time_moves_inside_too(eventually: Any) -> None:
    def find(state: Inner, ctx: Context) -> Inner:
        return {"notes": [interrupt("in time?", timeout_seconds=3600, default="late")]}

    with TestEngine(Worked(find).graph) as engine:
        run = engine.submit({"topic": "bees"})
        engine.rest(run)
        engine.advance(3601)
        eventually(lambda: run.status == "succeeded")
        assert run.result(PATIENCE_SECONDS)["notes"] == ["first", "late", "checked None", "last"]


# --- streaming


def test_what_nodes_inside_stream_comes_to_who_follows_the_top() -> None:
    def find(state: Inner, ctx: Context) -> Inner:
        for token in ("a", "b"):
            ctx.stream({"token": token})
        return {"notes": ["found"]}

    middle = Graph(Inner, name="middle").add_node("inner", Worked(find).inner).add_edge(START, "inner")
    graph = Graph(State).add_node("first", lambda state: {"notes": ["first"]}).add_node("middle", middle)
    graph.add_edge(START, "first").add_edge("first", "middle")
    with Engine(graph) as engine:
        events = list(engine.submit({"topic": "bees"}).stream(["custom", "values"]))
    chunks = [event for event in events if event.mode == "custom"]
    assert [(event.data, event.node_id, event.step_id) for event in chunks] == [
        ({"token": "a"}, "middle/inner/find", 2),
        ({"token": "b"}, "middle/inner/find", 2),
    ]
    # before the values of the step that they belong to
    assert [event.mode for event in events] == ["values", "values", "custom", "custom", "values"]


# --- failures


class Faulty:
    """Raises until it is mended."""

    def __init__(self) -> None:
        self.mended = False

    def __call__(self, state: Inner, ctx: Context) -> Inner:
        if not self.mended:
            raise ValueError("no bees")
        return {"notes": ["found"]}


def test_a_run_that_failed_inside_goes_on_from_there(store_url: str, sound: Any) -> None:
    # given a subgraph whose second node fails
    faulty = Faulty()
    inner = Graph(Inner, name="inner").add_node("one", lambda state: {"notes": ["one"]}).add_node("two", faulty)
    inner.add_edge(START, "one").add_edge("one", "two")
    graph = Graph(State).add_node("inner", inner).add_edge(START, "inner")
    with Engine(graph, store_url) as engine:
        run = engine.submit({"topic": "bees"}, run_id="run")
        with pytest.raises(SubgraphError, match="NodeFailedError: node 'two' raised ValueError: no bees") as caught:
            run.result(PATIENCE_SECONDS)
        child = child_of(run)
        assert (caught.value.node_id, caught.value.child_run_id) == ("inner", child.run_id)
        assert (caught.value.error_type, child.status) == ("NodeFailedError", "failed")
        steps = child.history()

        # when it is mended and tried again, then it goes on from its last commit
        faulty.mended = True
        run.retry()
        assert run.result(PATIENCE_SECONDS)["notes"] == ["one", "found"]
        assert child.history()[: len(steps)] == steps
        sound(engine)


def test_a_subgraph_is_tried_again_by_its_own_policy_alone(store_url: str) -> None:
    def find(state: Inner, ctx: Context) -> Inner:
        raise ValueError("no bees")

    worked = Worked(find, retry=RetryPolicy(max_attempts=3, initial_seconds=0.01))
    with Engine(worked.graph, store_url, options=Options(retry=RetryPolicy(max_attempts=2, initial_seconds=0.01))) as engine:
        run = engine.submit({"topic": "bees"}, run_id="run")
        with pytest.raises(SubgraphError):
            run.result(PATIENCE_SECONDS)
        # Twice in each of three attempts.
        assert worked.calls["find"] == 6
        assert child_of(run).row().retries == 2
    with Engine(Worked(find).graph, options=Options(retry=RetryPolicy(max_attempts=2, initial_seconds=0.01))) as engine:
        run = engine.submit({"topic": "bees"})
        with pytest.raises(SubgraphError):
            run.result(PATIENCE_SECONDS)
        assert child_of(run).row().retries == 0


def test_an_error_handler_stands_in_for_a_subgraph(store_url: str) -> None:
    def find(state: Inner, ctx: Context) -> Inner:
        raise ValueError("no bees")

    def instead(state: State, ctx: Context) -> State:
        return {"notes": [type(ctx.error).__name__]}

    with Engine(Worked(find, error_handler=instead).graph, store_url) as engine:
        assert engine.invoke({"topic": "bees"})["notes"] == ["first", "SubgraphError", "last"]


def test_a_subgraph_ends_with_its_parent_and_goes_on_with_it(store_url: str, wait: Any, eventually: Any, sound: Any) -> None:
    # given a subgraph under way, when a node beside it fails
    entered, let, broken = threading.Event(), threading.Event(), [True]

    def find(state: Inner, ctx: Context) -> Inner:
        entered.set()
        wait(let)
        return {"notes": ["found"]}

    def beside(state: State) -> State:
        wait(entered)
        if broken:
            raise ValueError("beside")
        return {"notes": ["beside"]}

    worked = Worked(find)
    graph = Graph(State).add_node("inner", worked.inner).add_node(beside).add_edge(START, "inner").add_edge(START, "beside")
    with Engine(graph, store_url) as engine:
        run = engine.submit({"topic": "bees"}, run_id="run")
        with pytest.raises(Exception, match="beside"):
            run.result(PATIENCE_SECONDS)
        child = child_of(run)
        eventually(lambda: child.status == "failed")
        assert child.error_record() is not None and child.error_record()["type"] == "ParentEndedError"  # type: ignore[index]

        # when that is mended and the run tried again, then the subgraph goes on, too
        broken.clear()
        let.set()
        run.retry()
        assert run.result(PATIENCE_SECONDS)["notes"] == ["found", "checked None", "beside"]
        sound(engine)


def test_cancelling_a_run_cancels_what_is_below_it(store_url: str, wait: Any, eventually: Any) -> None:
    entered, ended = threading.Event(), threading.Event()

    def find(state: Inner, ctx: Context) -> Inner:
        entered.set()
        while not ctx.cancelled:
            ended.wait(0.01)
        ended.set()
        return {}

    middle = Graph(Inner, name="middle").add_node("inner", Worked(find).inner).add_edge(START, "inner")
    graph = Graph(State).add_node("middle", middle).add_edge(START, "middle")
    with Engine(graph, store_url) as engine:
        run = engine.submit({"topic": "bees"})
        wait(entered)
        run.cancel("enough")
        with pytest.raises(RunCancelledError, match="enough"):
            run.result(PATIENCE_SECONDS)
        wait(ended)
        child = child_of(run)
        eventually(lambda: (child.status, child_of(child).status) == ("cancelled", "cancelled"))


def test_one_of_several_that_fails_lets_the_others_finish(store_url: str) -> None:
    def find(state: Inner, ctx: Context) -> Inner:
        if state["topic"] == "0":
            raise ValueError("zero")
        return {"notes": [state["topic"]]}

    worked = Worked(find)
    graph = Graph(State).add_node("inner", worked.inner)
    graph.add_conditional_edges(START, lambda state: [Send("inner", {"topic": str(n)}) for n in range(4)], ["inner"])
    with Engine(graph, store_url, options=Options(fail_fast=False)) as engine:
        run = engine.submit({})
        with pytest.raises(SubgraphError, match="zero"):
            run.result(PATIENCE_SECONDS)
        assert Counter(child.status.value for child in run.children()) == {"succeeded": 3, "failed": 1}


@pytest.mark.parametrize("alone", [True, False])
def test_who_recovers_a_run_recovers_its_subgraphs(one_store: str, wait: Any, abandon: Any, alone: bool) -> None:
    # given a process that ended while a subgraph was under way
    entered, let = threading.Event(), threading.Event()

    def find(state: Inner, ctx: Context) -> Inner:
        entered.set()
        wait(let)
        return {"notes": ["found"]}

    worked = Worked(find)
    with Engine(worked.graph, one_store) as engine:
        engine.submit({"topic": "bees"}, run_id="run")
        wait(entered)
        abandon(engine)
        let.set()

    # when another one takes over that run alone, then what is below it goes on, too
    with Engine(worked.graph, one_store) as engine:
        [run] = engine.recover("run") if alone else engine.recover()
        assert run.result(PATIENCE_SECONDS)["notes"] == ["first", "found", "checked None", "last"]
        assert worked.calls == {"first": 1, "find": 2, "check": 1, "last": 1}


# --- Command.PARENT


def test_a_node_inside_sends_its_parent_on(store_url: str, sound: Any) -> None:
    def find(state: Inner, ctx: Context) -> list[Any]:
        return [
            {"own": "mine"},
            Command(
                graph=Command.PARENT,
                update={"notes": ["handed over"]},
                goto=["helper", Send("helper", {"topic": "sent", "notes": []})],
            ),
        ]

    worked = Worked(find)
    graph = Graph(State).add_node("inner", worked.inner).add_node("helper", lambda state: {"notes": [state["topic"]]})
    graph.add_edge(START, "inner")
    with Engine(graph, store_url) as engine:
        run = engine.submit({"topic": "bees"})
        # then the subgraph ends there, and that is all that comes of it
        assert run.result(PATIENCE_SECONDS)["notes"] == ["handed over", "bees", "sent"]
        assert worked.calls == {"find": 1}
        assert child_of(run).state()["own"] == "mine"
        assert run.replay().nodes == 4
        sound(engine)


def test_nobodys_subgraph_has_no_parent_to_send_on() -> None:
    graph = Graph(State).add_node("one", lambda state: Command(graph=Command.PARENT, goto="x")).add_edge(START, "one")
    with Engine(graph) as engine, pytest.raises(RouteError, match="nobody's subgraph"):
        engine.invoke({})
    with pytest.raises(ConfigurationError, match=r"graph='other'.*Command\.PARENT"):
        Command(graph="other")


def test_a_target_that_the_parent_does_not_have_is_named() -> None:
    def find(state: Inner, ctx: Context) -> Command:
        return Command(graph=Command.PARENT, goto="nowhere")

    with (
        Engine(Worked(find).graph) as engine,
        pytest.raises(SubgraphError, match="RouteError: node 'find' routes to 'nowhere'"),
    ):
        engine.invoke({"topic": "bees"})


# --- costs


def test_what_subgraphs_spend_is_their_parents_money(store_url: str) -> None:
    def find(state: Inner, ctx: Context) -> Inner:
        ctx.llm_usage("model", 10, 10, cost_usd="0.75")
        return {}

    worked = Worked(find)
    graph = Graph(State, name="outer").add_node("inner", worked.inner).add_node("again", worked.inner)
    graph.add_edge(START, "inner").add_edge("inner", "again")
    with Engine(graph, store_url) as engine:
        # given a run that has spent what it may, inside
        run = engine.submit({"topic": "bees"}, options=Options(max_cost_usd=Decimal("0.5")))
        with pytest.raises(BudgetExceededError, match=r"0\.75"):
            run.result(PATIENCE_SECONDS)
        assert worked.calls == {"find": 1}
        assert run.status == "paused"
        costs = run.costs()
        assert {node: one.cost_usd for node, one in costs.by_node.items()} == {"inner/find": Decimal("0.75")}

        # when it may spend more, then it goes on where it was
        run.resume(options=Options(max_cost_usd=Decimal(2)))
        run.result(PATIENCE_SECONDS)
        assert run.costs().cost_usd == Decimal("1.5")
        assert worked.calls == {"find": 2, "check": 2}


# --- changes from outside


def test_a_changed_state_begins_its_subgraphs_anew(store_url: str, eventually: Any) -> None:
    worked = Worked(asks)
    with Engine(worked.graph, store_url) as engine:
        run = engine.submit({"topic": "bees"}, run_id="run")
        until_it_asks(run)
        before = child_of(run)
        run.update_state({"topic": "wasps"})
        [question] = until_it_asks(run)
        assert question.value == "about wasps?"
        eventually(lambda: before.status == "cancelled")
        run.resume("yes")
        assert run.result(PATIENCE_SECONDS)["notes"] == ["first", "yes", "checked None", "last"]


def test_a_state_that_was_changed_inside_is_what_comes_out(store_url: str, eventually: Any) -> None:
    worked = Worked(asks)
    with Engine(worked.graph, store_url) as engine:
        run = engine.submit({"topic": "bees"}, run_id="run")
        until_it_asks(run)
        child_of(run).update_state({"notes": ["changed"]}, as_node="find")
        eventually(lambda: run.status == "succeeded")
        assert run.result(PATIENCE_SECONDS)["notes"] == ["first", "changed", "checked None", "last"]


def test_a_fork_has_subgraphs_of_its_own(store_url: str) -> None:
    worked = Worked()
    with Engine(worked.graph, store_url) as engine:
        run = engine.submit({"topic": "bees"}, run_id="run")
        run.result(PATIENCE_SECONDS)
        fork = run.fork(1, {"topic": "wasps"}, run_id="fork")
        assert fork.result(PATIENCE_SECONDS)["notes"] == ["first", "found wasps", "checked private", "last"]
        assert child_of(fork).run_id.startswith("fork:")
        assert worked.calls["find"] == 2


def test_a_replay_goes_into_subgraphs() -> None:
    said = ["one"]

    def find(state: Inner, ctx: Context) -> Inner:
        return {"notes": [said[0]]}

    with Engine(Worked(find).graph) as engine:
        run = engine.submit({"topic": "bees"})
        run.result(PATIENCE_SECONDS)
        run.replay()
        said[0] = "other"
        with pytest.raises(ReplayMismatchError, match="find"):
            run.replay()


# --- what is refused


def nothing(state: Any) -> None: ...


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"timeout_seconds": 1}, "node 'inner' is a graph: give timeout_seconds to the nodes"),
        ({"isolation": "process"}, "node 'inner' is a graph: give isolation"),
        ({"max_concurrent": 1}, "node 'inner' is a graph: give max_concurrent"),
        ({"input": {"nothing": "topic"}}, "input names field 'nothing'; there are notes, own, topic, total"),
        ({"output": {"own": "nothing"}}, "output names field 'nothing'; there are draft, notes, topic, total"),
    ],
)
def test_what_a_subgraph_cannot_have_is_refused(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Graph(State).add_node("inner", Worked().inner, **node).add_edge(START, "inner").compile()


def test_graphs_that_share_no_field_are_refused() -> None:
    class Other(TypedDict, total=False):
        other: str

    inner = Graph(Other, name="other").add_node("n", nothing).add_edge(START, "n")
    with pytest.raises(ConfigurationError, match="graphs 'graph' and 'other' share no field; give output="):
        Graph(State).add_node("inner", inner).add_edge(START, "inner").compile()


def test_a_graph_inside_of_itself_is_refused() -> None:
    graph = Graph(State, name="endless").add_node("n", nothing).add_edge(START, "n")
    graph.add_node("again", graph).add_edge("n", "again")
    with pytest.raises(ConfigurationError, match="graph 'endless' is a subgraph of itself"):
        graph.compile()


def test_only_a_graph_has_input_and_output() -> None:
    with pytest.raises(ConfigurationError, match="input and output are for a Graph"):
        Graph(State).add_node("n", nothing, input={"topic": "topic"})


def test_another_subgraph_is_another_version() -> None:
    def outer(inner: Graph, **node: Any) -> str:
        return Graph(State).add_node("inner", inner, **node).add_edge(START, "inner").compile().hash

    one, longer = Worked().inner, Worked().inner.add_node("more", nothing).add_edge("check", "more")
    hashes = [outer(one), outer(one), outer(longer), outer(one, output={"notes": "notes"})]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_with_a_run_go_those_of_its_subgraphs(store_url: str, sound: Any) -> None:
    middle = Graph(Inner, name="middle").add_node("inner", Worked().inner).add_edge(START, "inner")
    with Engine(Graph(State).add_node("middle", middle).add_edge(START, "middle"), store_url) as engine:
        for name in ("run", "other"):
            engine.submit({"topic": "bees"}, run_id=name).result(PATIENCE_SECONDS)
        assert len(list(engine.runs())) == 6
        assert engine.delete("run")
        assert {run.run_id.split(":")[0] for run in engine.runs()} == {"other"}
        assert len(list(engine.runs())) == 3
        assert not engine.delete("run")
        sound(engine)


def test_the_command_line_lists_the_runs_of_subgraphs(tmp_path: Path, command_line: Any) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    with Engine(Worked().graph, url) as engine:
        run = engine.submit({"topic": "bees"}, run_id="run")
        run.result(PATIENCE_SECONDS)
        run.fork(1, run_id="fork").result(PATIENCE_SECONDS)
        child = child_of(run).run_id
    listed = {
        flag: [row["run_id"] for row in json.loads(command_line.run("runs", flag, "run", "--store", url, "--json")[1])]
        for flag in ("--children-of", "--forks-of")
    }
    assert listed == {"--children-of": [child], "--forks-of": ["fork"]}
