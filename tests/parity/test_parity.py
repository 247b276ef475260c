"""What graphs that come from LangGraph rely on, as behaviours of ours; docs/migrating-from-langgraph.md has the differences.

Each runs embedded, and over a coordinator and a worker. Cases whose result depends on the order of merging run in both
orderings, and say what each gives.
"""

from __future__ import annotations

import asyncio
import operator
from contextlib import suppress
from typing import Annotated, Any, Literal, TypedDict

import pydantic
import pytest
from tests.parity.conftest import PATIENCE_SECONDS, Serve, Tally

from lockstep import (
    END,
    START,
    Command,
    ConfigurationError,
    ConflictError,
    ConflictPolicy,
    Context,
    Graph,
    MaxStepsExceededError,
    NodeFailedError,
    Options,
    Overwrite,
    RetryPolicy,
    RunInterruptedError,
    Send,
    StateError,
    interrupt,
)

Ordering = Literal["edge", "langgraph"]
ORDERINGS: list[Ordering] = ["edge", "langgraph"]


class Text(TypedDict, total=False):
    text: Annotated[str, operator.add]
    plain: str
    docs: Annotated[list[str], operator.add]


def says(text: str) -> Any:
    return lambda state: {"text": text}


def lists(*docs: str) -> Any:
    return lambda state: {"docs": list(docs)}


def run(serve: Serve, graph: Graph, value: dict[str, Any] | None = None) -> dict[str, Any]:
    with serve(graph) as engine:
        return engine.invoke(value or {})


# A. Build, state, reducers


def test_1_wrong_graphs_are_refused_where_they_are_built(serve: Serve) -> None:
    with pytest.raises(ConfigurationError, match="no node 'gone'"):
        Graph(Text).add_node("a", says("a")).add_edge("gone", "a")
    with pytest.raises(ConfigurationError, match="must take two arguments"):

        class Wrong(TypedDict):
            field: Annotated[str, lambda one: one]

        Graph(Wrong)
    # and two writers of a field without a reducer are a conflict when they run
    graph = Graph(Text).add_node("a", says("a"))
    for name in ("b", "c"):
        graph.add_node(name, lambda state: {"plain": "x"}).add_edge("a", name)
    with pytest.raises(ConflictError, match="'plain'"):
        run(serve, graph.add_edge(START, "a"))


def test_3_a_node_returns_commands_and_dicts_in_a_list(serve: Serve) -> None:
    graph = Graph(Text).add_node("node", lambda state: [Command(update={"text": "a"}), {"text": "b"}]).add_edge(START, "node")
    assert run(serve, graph)["text"] == "ab"


def test_5_a_conflict_names_the_field_and_the_writers(serve: Serve) -> None:
    graph = Graph(Text)
    for name in ("a", "b"):
        graph.add_node(name, lambda state: {"plain": "x"}).add_edge(START, name)
    with pytest.raises(ConflictError) as caught:
        run(serve, graph)
    assert (caught.value.field, caught.value.writers) == ("plain", ["a", "b"])


def test_7_two_overwrites_of_a_field_are_a_conflict_and_one_is_not(serve: Serve) -> None:
    graph = Graph(Text)
    for name in ("a", "b"):
        graph.add_node(name, lambda state: {"text": Overwrite("x")}).add_edge(START, name)
    with pytest.raises(ConflictError, match="Overwrite"):
        run(serve, graph)
    one = Graph(Text).add_node("a", says("lost")).add_node("b", lambda state: {"text": Overwrite("x")})
    assert run(serve, one.add_edge(START, "a").add_edge(START, "b"), {"text": "before"})["text"] == "x"


class Checked(pydantic.BaseModel):
    name: str = pydantic.Field(min_length=2)
    seen: bool = False

    @pydantic.field_validator("name", mode="before")
    @classmethod
    def lower(cls, value: Any) -> Any:
        return value.lower()


def test_9_a_pydantic_state_is_validated_and_nodes_get_it(serve: Serve) -> None:
    def node(state: Checked) -> dict[str, Any]:
        assert isinstance(state, Checked) and state.name == "anna"
        return {"seen": True}

    graph = Graph(Checked).add_node(node).add_edge(START, "node")
    assert run(serve, graph, {"name": "ANNA"})["seen"] is True
    with pytest.raises(StateError, match="at least 2 characters"):
        run(serve, graph, {"name": "a"})


def test_11_nodes_get_the_context_of_the_run(serve: Serve) -> None:
    def node(state: Text, ctx: Context) -> Text:
        return {"text": ctx.context["key"]}

    with serve(Graph(Text).add_node(node).add_edge(START, "node")) as engine:
        assert engine.submit({}, context={"key": "value"}).result(PATIENCE_SECONDS)["text"] == "value"


# B. Parallelism, joins, loops


def test_13_a_barrier_waits_for_branches_of_different_depth(serve: Serve) -> None:
    graph = Graph(Text).add_node("query", lists("q")).add_node("deep", lists("d")).add_node("deeper", lists("dd"))
    graph.add_node("flat", lists("f")).add_node("join", lists("j"))
    graph.add_edge(START, "query").add_edge("query", "deep").add_edge("deep", "deeper").add_edge("query", "flat")
    graph.add_edge(["deeper", "flat"], "join")
    assert run(serve, graph)["docs"] == ["q", "d", "f", "dd", "j"]
    with serve(graph, options=Options(interrupt_after=("flat",))) as engine:
        waiting = engine.submit({})
        with pytest.raises(RunInterruptedError):
            waiting.result(PATIENCE_SECONDS)
        assert waiting.state()["docs"] == ["q", "d", "f"]
        waiting.resume()
        assert waiting.result(PATIENCE_SECONDS)["docs"] == ["q", "d", "f", "dd", "j"]


def test_15_a_barrier_in_a_loop_is_armed_again(serve: Serve) -> None:
    graph = Graph(Text).add_node("begin", lists("b")).add_node("one", lists("1")).add_node("two", lists("2"))
    graph.add_node("join", lists("j")).add_edge(START, "begin").add_edge("begin", "one").add_edge("begin", "two")
    graph.add_edge(["one", "two"], "join")
    graph.add_conditional_edges("join", lambda state: END if state["docs"].count("j") == 2 else "begin", ["begin", END])
    assert run(serve, graph)["docs"] == ["b", "1", "2", "j"] * 2


def test_17_a_barrier_over_a_node_and_its_descendant_fires_once(serve: Serve) -> None:
    graph = Graph(Text).add_node("up", lists("up")).add_node("side", lists("side")).add_node("down", lists("down"))
    graph.add_edge(START, "up").add_edge("up", "side").add_edge(["up", "side"], "down")
    assert run(serve, graph)["docs"] == ["up", "side", "down"]


# C. Send and Command


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_19_results_of_a_map_come_in_the_order_of_the_list(serve: Serve, ordering: Ordering) -> None:
    def weather(sent: dict[str, Any]) -> dict[str, Any]:
        return {"docs": [f"{sent['sky']} {sent['place']}"]}  # `sky` and `place` are no fields of the state.

    places = [("sf", "cloudy"), ("nyc", "sunny")]
    graph = Graph(Text, ordering=ordering).add_node(weather)
    graph.add_conditional_edges(START, lambda state: [Send("weather", {"place": p, "sky": s}) for p, s in places], ["weather"])
    assert run(serve, graph)["docs"] == ["cloudy sf", "sunny nyc"]


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_21_sends_may_send_again(serve: Serve, ordering: Ordering) -> None:
    def one(state: Text) -> Any:
        return Command(update={"docs": ["1"]}, goto=[Send("two", n) for n in (3, 4)])

    def two(n: int) -> Any:
        return Command(update={"docs": [f"2|{n}"]}, goto=[Send("three", f"{n}.{m}") for m in range(2)])

    def three(name: str) -> Any:
        return {"docs": [f"3|{name}"]}

    graph = Graph(Text, ordering=ordering).add_node(one).add_node(two).add_node(three).add_edge(START, "one")
    assert run(serve, graph)["docs"] == ["1", "2|3", "2|4", "3|3.0", "3|3.1", "3|4.0", "3|4.1"]


def test_23_what_several_sends_lead_to_runs_once(serve: Serve) -> None:
    graph = Graph(Text).add_node("zero", lists("0")).add_node("two", lambda sent: {"docs": ["2"]}).add_node("three", lists("3"))
    graph.add_edge(START, "zero").add_conditional_edges("zero", lambda state: [Send("two", n) for n in (1, 2)], ["two"])
    graph.add_conditional_edges("two", lambda state: "three", ["three"])
    assert run(serve, graph)["docs"] == ["0", "2", "2", "3"]


def test_25_at_a_breakpoint_an_update_says_what_is_due_instead(serve: Serve, tally: Tally) -> None:
    def two(state: Text) -> dict[str, Any]:
        tally.add("two")
        return {"text": "|two"}

    graph = Graph(Text).add_node("one", says("|one")).add_node(two).add_edge(START, "one").add_edge("one", "two")
    with serve(graph, options=Options(interrupt_before=("two",))) as engine:
        waiting = engine.submit({"text": "abc"})
        with pytest.raises(RunInterruptedError):
            waiting.result(PATIENCE_SECONDS)
        # "two" is due once after this, and not twice: what comes after "one" takes the place of what was due
        waiting.update_state({"text": "|by hand"}, as_node="one")
        for _ in range(2):
            waiting.resume()
            with suppress(RunInterruptedError):
                waiting.result(PATIENCE_SECONDS)
        assert waiting.result(PATIENCE_SECONDS)["text"] == "abc|one|by hand|two"
    assert tally.counts() == {"two": 1}


def test_a_goto_to_nowhere_is_an_error_and_no_silent_end(serve: Serve) -> None:
    graph = Graph(Text).add_node("node", lambda state: Command(goto="nowhere")).add_edge(START, "node")
    with pytest.raises(Exception, match="'nowhere', which is no node"):
        run(serve, graph)


@pytest.mark.parametrize(("ordering", "docs"), [("edge", ["zz", "a2", "B", "a10"]), ("langgraph", ["B", "a10", "a2", "zz"])])
def test_parallel_nodes_merge_in_the_order_that_was_chosen(serve: Serve, ordering: Ordering, docs: list[str]) -> None:
    graph = Graph(Text, ordering=ordering)
    for name in ("zz", "a2", "B", "a10"):
        graph.add_node(name, lists(name)).add_edge(START, name)
    assert run(serve, graph)["docs"] == docs


# D. Interrupts and resume


def test_27_two_questions_of_a_node_are_answered_one_by_one(serve: Serve) -> None:
    def node(state: Text) -> Text:
        return {"text": f"{interrupt('one')} {interrupt('two')}"}

    with serve(Graph(Text).add_node(node).add_edge(START, "node")) as engine:
        waiting = engine.submit({})
        for question, answer in (("one", "a"), ("two", {"b": 1})):
            with pytest.raises(RunInterruptedError):
                waiting.result(PATIENCE_SECONDS)
            # 29: nothing of the node is committed until it returns
            assert waiting.state()["text"] == ""
            [asked] = waiting.interrupts()
            assert asked.value == question
            waiting.resume({asked.id: answer})
        assert waiting.result(PATIENCE_SECONDS)["text"] == "a {'b': 1}"


def test_31_an_answer_to_several_questions_needs_their_ids(serve: Serve) -> None:
    graph = Graph(Text)
    for name in ("a", "b"):
        graph.add_node(name, lambda state, ctx: {"docs": [interrupt(ctx.node_id)]}).add_edge(START, name)
    with serve(graph) as engine:
        waiting = engine.submit({})
        with pytest.raises(RunInterruptedError):
            waiting.result(PATIENCE_SECONDS)
        with pytest.raises(ConfigurationError, match="by id"):
            waiting.resume("bare")
        # also None is an answer
        waiting.resume({asked.id: None if asked.node_id == "a" else "B" for asked in waiting.interrupts()})
        assert waiting.result(PATIENCE_SECONDS)["docs"] == [None, "B"]


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_33_what_finished_beside_a_question_is_kept(serve: Serve, tally: Tally, ordering: Ordering) -> None:
    def asks(state: Text) -> Text:
        tally.add("asks")
        return {"docs": [interrupt("?")]}

    def sent(number: int) -> Text:
        tally.add("sent")
        return {"docs": ["sent"]}

    graph = Graph(Text, ordering=ordering).add_node(sent).add_node(asks)
    graph.add_conditional_edges(START, lambda state: [Send("sent", 1), "asks"], ["sent", "asks"])
    with serve(graph) as engine:
        waiting = engine.submit({})
        with pytest.raises(RunInterruptedError):
            waiting.result(PATIENCE_SECONDS)
        waiting.resume("answered")
        # nodes on the state come before Sends there, and in the order of the router's list here
        docs = {"edge": ["sent", "answered"], "langgraph": ["answered", "sent"]}[ordering]
        assert waiting.result(PATIENCE_SECONDS)["docs"] == docs
    assert tally.counts() == {"asks": 2, "sent": 1}


# E. Failure, retry, limits


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_35_a_breakpoint_in_a_subgraph_beside_a_finished_node(serve: Serve, tally: Tally, ordering: Ordering) -> None:
    def says_once(name: str, text: str) -> Any:
        def say(state: Text) -> dict[str, Any]:
            tally.add(name)
            return {"text": text}

        return say

    inner = Graph(Text, name="inner", ordering=ordering)
    inner.add_sequence([("inner_1", says_once("inner_1", "got here")), ("inner_2", says_once("inner_2", " and there"))])
    inner.add_edge(START, "inner_1")
    graph = Graph(Text, ordering=ordering).add_node("inner", inner)
    graph.add_node("outer_1", says_once("outer_1", " and parallel")).add_node(
        "outer_2", says_once("outer_2", " and back again")
    )
    graph.add_edge(START, "inner").add_edge(START, "outer_1").add_edge(["inner", "outer_1"], "outer_2")

    with serve(graph, options=Options(interrupt_before=("inner/inner_2",))) as engine:
        run = engine.submit({"text": ""})
        with pytest.raises(RunInterruptedError):
            run.result(PATIENCE_SECONDS)
        assert tally.counts() == {"inner_1": 1, "outer_1": 1}
        run.resume()
        assert run.result(PATIENCE_SECONDS)["text"] == "got here and there and parallel and back again"
        assert set(tally.counts().values()) == {1}


def test_37_attempts_are_numbered(serve: Serve, tally: Tally) -> None:
    def node(state: Text, ctx: Context) -> Text:
        tally.add(str(ctx.attempt))
        if ctx.attempt < 3:
            raise ConnectionError("again")
        return {"text": "done"}

    retry = RetryPolicy(max_attempts=3, initial_seconds=0.01)
    assert run(serve, Graph(Text).add_node("node", node, retry=retry).add_edge(START, "node"))["text"] == "done"
    assert list(tally.counts()) == ["1", "2", "3"]


def test_39_a_failed_turn_of_a_thread_does_not_end_the_thread(serve: Serve) -> None:
    def node(state: Text) -> Text:
        if state["plain"] == "bad":
            raise ValueError("bad")
        return {"docs": [state["plain"]]}

    with serve(Graph(Text).add_node(node).add_edge(START, "node")) as engine:
        with pytest.raises(NodeFailedError):
            engine.invoke({"plain": "bad"}, thread_id="t")
        assert engine.invoke({"plain": "good"}, thread_id="t")["docs"] == ["good"]
        for ended in engine.runs(thread_id="t"):
            assert engine.delete(ended.run_id)
        assert engine.invoke({"plain": "anew"}, thread_id="t")["docs"] == ["anew"]


def test_41_a_handler_that_raises_fails_the_run_and_a_retry_begins_with_the_node(serve: Serve, tally: Tally) -> None:
    def node(state: Text) -> Text:
        tally.add("node")
        raise ValueError("no")

    def handler(state: Text, ctx: Context) -> Text:
        tally.add("handler")
        if tally.counts()["handler"] == 1:
            raise RuntimeError("the handler crashes")
        return {"text": f"handled {type(ctx.error).__name__}"}

    graph = Graph(Text).add_node("node", node, error_handler=handler).add_edge(START, "node")
    with serve(graph) as engine:
        failing = engine.submit({})
        with pytest.raises(NodeFailedError, match="the handler crashes"):
            failing.result(PATIENCE_SECONDS)
        failing.retry()
        assert failing.result(PATIENCE_SECONDS)["text"] == "handled NodeFailedError"
    assert tally.counts() == {"node": 2, "handler": 2}


def test_a_conflict_does_not_wedge_its_run(serve: Serve) -> None:
    graph = Graph(Text)
    for name in ("a", "b"):
        graph.add_node(name, lambda state, ctx: {"plain": ctx.node_id}).add_edge(START, name)
    with serve(graph) as engine:
        conflicting = engine.submit({})
        with pytest.raises(ConflictError):
            conflicting.result(PATIENCE_SECONDS)
        conflicting.retry(Options(conflict_policy=ConflictPolicy.LAST_WRITER_WINS))
        assert conflicting.result(PATIENCE_SECONDS)["plain"] == "b"


def test_a_node_that_changes_its_state_in_place_changes_nothing(serve: Serve) -> None:
    def changes(state: Text) -> None:
        state["docs"].append("changed")

    def sees(state: Text) -> Text:
        return {"docs": [f"{len(state['docs'])} before"]}

    graph = Graph(Text).add_node(changes).add_node(sees).add_edge(START, "changes").add_edge(START, "sees")
    assert run(serve, graph, {"docs": ["one"]})["docs"] == ["one", "1 before"]


def test_a_router_that_fails_fails_its_node_and_is_asked_again(serve: Serve, tally: Tally) -> None:
    def route(state: Text) -> str:
        tally.add("asked")
        if tally.counts()["asked"] == 1:
            raise RuntimeError("in the router")
        return "b"

    graph = Graph(Text).add_node("a", lists("a")).add_node("b", lists("b")).add_edge(START, "a")
    graph.add_conditional_edges("a", route, ["b"])
    with serve(graph) as engine:
        failing = engine.submit({})
        with pytest.raises(NodeFailedError, match="in the router"):
            failing.result(PATIENCE_SECONDS)
        failing.retry()
        assert failing.result(PATIENCE_SECONDS)["docs"] == ["a", "b"]


def test_43_a_timeout_is_a_failure_that_is_tried_again(serve: Serve, tally: Tally) -> None:
    async def node(state: Text, ctx: Context) -> Text:
        tally.add(str(ctx.attempt))
        await asyncio.sleep(0 if ctx.attempt == 2 else PATIENCE_SECONDS)
        return {"text": "done"}

    retry = RetryPolicy(max_attempts=2, initial_seconds=0.01, retry_on=("NodeTimeoutError",))
    graph = Graph(Text).add_node("node", node, retry=retry, timeout_seconds=0.3).add_edge(START, "node")
    assert run(serve, graph)["text"] == "done"
    assert list(tally.counts()) == ["1", "2"]


def test_45_the_bound_on_steps_is_exact(serve: Serve) -> None:
    nodes: list[Any] = [(f"n{number}", says(str(number))) for number in range(5)]
    graph = Graph(Text).add_sequence(nodes).add_edge(START, "n0")
    with serve(graph) as engine:
        assert engine.invoke({}, options=Options(max_steps=5))["text"] == "01234"
        with pytest.raises(MaxStepsExceededError):
            engine.invoke({}, options=Options(max_steps=4))


# F. History and forks


def test_47_a_fork_does_not_mix_in_what_its_origin_did(serve: Serve) -> None:
    class Sum(TypedDict, total=False):
        value: Annotated[int, operator.add]

    graph = Graph(Sum).add_node("a", lambda state: {"value": 10}).add_node("b", lambda state: {"value": 100})
    graph.add_edge(START, "a").add_edge("a", "b")
    with serve(graph) as engine:
        origin = engine.submit({"value": 1})
        assert origin.result(PATIENCE_SECONDS)["value"] == 111
        assert origin.fork(0, {"value": 20}, as_node="a").result(PATIENCE_SECONDS)["value"] == 121
        assert origin.result(PATIENCE_SECONDS)["value"] == 111


def test_49_a_history_made_by_hand_is_that_of_a_real_run(serve: Serve) -> None:
    def agent(state: Text) -> dict[str, Any]:
        return {"docs": ["tool please"]} if len(state["docs"]) == 1 else {"docs": ["answer"]}

    graph = (
        Graph(Text).add_node(agent).add_node("tool", lists("tool result")).add_edge(START, "agent").add_edge("tool", "agent")
    )
    graph.add_conditional_edges("agent", lambda s: "tool" if s["docs"][-1] == "tool please" else END, ["tool", END])

    with serve(graph) as engine:
        real = engine.submit({"docs": ["question"]})
        expected = real.result(PATIENCE_SECONDS)["docs"]
        assert expected == ["question", "tool please", "tool result", "answer"]

        # The same, each node's part by hand: no node runs, and the routers are asked.
        made = engine.submit({"docs": ["question"]}, options=Options(interrupt_before=("agent", "tool")))
        for node, docs in (("agent", "tool please"), ("tool", "tool result"), ("agent", "answer")):
            with pytest.raises(RunInterruptedError):
                made.result(PATIENCE_SECONDS)
            made.update_state({"docs": [docs]}, as_node=node)
            made.resume()
        assert made.result(PATIENCE_SECONDS)["docs"] == expected
        # its states are those of the real run, one after the other
        states = [made.state(step)["docs"] for step in range(made.row().step_id + 1)]
        assert [state for at, state in enumerate(states) if not at or state != states[at - 1]] == [
            real.state(step)["docs"] for step in range(real.row().step_id + 1)
        ]
