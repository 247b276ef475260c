"""What the nodes of a process share: opened once, when first needed, and closed with the engine."""

from __future__ import annotations

import asyncio
import operator
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, TypedDict

import pytest

from lockstep import START, ConfigurationError, Context, Engine, Graph, NodeFailedError, Options, RetryPolicy, Send
from lockstep.testing import TestEngine


class State(TypedDict, total=False):
    seen: Annotated[list[Any], operator.add]


class Opened:
    """A pool of somebody's; what is done with it is noted."""

    def __init__(self, failures: int = 0) -> None:
        self.log: list[str] = []
        self._failures = failures

    def _open(self) -> str:
        if self._failures:
            self._failures -= 1
            self.log.append("refused")
            raise ConnectionError("not yet")
        self.log.append("opened")
        return "pool"

    @contextmanager
    def pool(self) -> Iterator[str]:
        yield self._open()
        self.log.append("closed")

    @asynccontextmanager
    async def async_pool(self) -> AsyncIterator[tuple[str, asyncio.AbstractEventLoop]]:
        await asyncio.sleep(0.01)
        yield self._open(), asyncio.get_running_loop()
        await asyncio.sleep(0)
        self.log.append("closed")


def wide(node: Callable[..., Any], opens: Callable[[], Any]) -> Graph:
    graph = Graph(State, resources=opens).add_node("node", node)
    return graph.add_conditional_edges(START, lambda state: [Send("node", n) for n in range(20)], ["node"])


def test_all_nodes_share_what_is_opened_once_and_closed_at_the_end() -> None:
    opened, barrier = Opened(), threading.Barrier(4)

    def node(number: int, ctx: Context) -> State:
        if number < 4:
            barrier.wait(10)  # They all ask for it at once.
        return {"seen": [ctx.resources]}

    with Engine(wide(node, opened.pool), options=Options(max_concurrent=4)) as engine:
        assert opened.log == []
        assert engine.invoke({})["seen"] == ["pool"] * 20
        assert engine.invoke({})["seen"] == ["pool"] * 20
        assert opened.log == ["opened"]
    assert opened.log == ["opened", "closed"]


def test_async_nodes_share_what_is_opened_on_their_loop() -> None:
    opened = Opened()

    async def node(number: int, ctx: Context) -> State:
        pool, loop = ctx.resources
        assert loop is asyncio.get_running_loop()
        return {"seen": [pool]}

    with Engine(wide(node, opened.async_pool)) as engine:
        assert engine.invoke({})["seen"] == ["pool"] * 20
        assert opened.log == ["opened"]
    assert opened.log == ["opened", "closed"]


def test_async_nodes_get_what_is_opened_synchronously() -> None:
    async def node(number: int, ctx: Context) -> State:
        return {"seen": [ctx.resources]}

    with Engine(wide(node, Opened().pool)) as engine:
        assert engine.invoke({})["seen"] == ["pool"] * 20


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_cannot_be_opened_fails_the_attempt_and_is_tried_again(kind: str) -> None:
    opened = Opened(failures=1)

    def node(state: State, ctx: Context) -> State:
        return {"seen": ["pool" if ctx.resources == "pool" else ctx.resources[0]]}

    async def async_node(state: State, ctx: Context) -> State:
        return node(state, ctx)

    opens = opened.pool if kind == "sync" else opened.async_pool
    graph = Graph(State, resources=opens)
    graph.add_node(
        "node", node if kind == "sync" else async_node, retry=RetryPolicy(initial_seconds=0.01, retry_on=(ConnectionError,))
    )
    with Engine(graph.add_edge(START, "node")) as engine:
        assert engine.invoke({})["seen"] == ["pool"]
    assert opened.log == ["refused", "opened", "closed"]


def test_a_subgraph_has_its_parents_unless_it_has_its_own() -> None:
    ours, theirs = Opened(), Opened()

    def node(state: State, ctx: Context) -> State:
        return {"seen": [ctx.resources]}

    @contextmanager
    def own() -> Iterator[str]:
        theirs.log.append("opened")
        yield "own"

    def inner(**given: Any) -> Graph:
        return Graph(State, name="inner", **given).add_node("node", node).add_edge(START, "node")

    graph = Graph(State, resources=ours.pool).add_node("plain", inner()).add_node("proud", inner(resources=own))
    graph.add_edge(START, "plain").add_edge("plain", "proud")
    with Engine(graph) as engine:
        assert engine.invoke({})["seen"] == ["pool", "own"]
    assert (ours.log, theirs.log) == (["opened", "closed"], ["opened"])


def isolated(state: State, ctx: Context) -> State:
    return {"seen": [ctx.resources]}


def asks(state: State, ctx: Context) -> State:
    return {"seen": [ctx.resources]}


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (Graph(State).add_node("node", asks), "node 'node' has no ctx.resources: its graph has no resources="),
        (Graph(State, resources=Opened().async_pool).add_node("node", asks), "its graph's are for async nodes, and it is none"),
        (Graph(State, resources=Opened().pool).add_node("node", isolated, isolation="process"), "a process of its own"),
        (Graph(State, resources=object).add_node("node", asks), "gave a object, which is no context manager"),
    ],
)
def test_who_has_none_is_told_why(graph: Graph, message: str) -> None:
    with Engine(graph.add_edge(START, "node")) as engine, pytest.raises(ConfigurationError, match=message):
        engine.invoke({})


def test_what_raises_while_it_closes_is_said_and_keeps_nothing_else_open(capsys: pytest.CaptureFixture[str]) -> None:
    opened = Opened()

    @contextmanager
    def breaks() -> Iterator[None]:
        yield None
        raise OSError("the server is gone")

    def node(state: State, ctx: Context) -> State:
        return {"seen": [ctx.resources]}

    graphs = [
        Graph(State, name=name, resources=opens).add_node("node", node).add_edge(START, "node")
        for name, opens in (("first", opened.pool), ("second", breaks))
    ]
    with Engine(graphs) as engine:
        engine.invoke({}, graph="first")
        engine.invoke({}, graph="second")
    assert opened.log == ["opened", "closed"]
    assert "the server is gone" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_replay_opens_its_own(kind: str) -> None:
    opened = Opened()

    def node(state: State, ctx: Context) -> State:
        return {"seen": [str(ctx.resources)[:6]]}

    async def async_node(state: State, ctx: Context) -> State:
        return node(state, ctx)

    graph = Graph(State, resources=opened.pool if kind == "sync" else opened.async_pool)
    graph.add_node("node", node if kind == "sync" else async_node).add_edge(START, "node")
    with Engine(graph) as engine:
        run = engine.submit({})
        run.result()
        assert run.replay().nodes == 1
        assert opened.log == ["opened", "opened", "closed"]


def test_a_test_gives_its_own() -> None:
    opened = Opened()

    def node(state: State, ctx: Context) -> State:
        return {"seen": [ctx.resources]}

    graph = Graph(State, resources=opened.pool).add_node("node", node).add_edge(START, "node")
    with TestEngine(graph, resources="a fake") as engine:
        assert engine.invoke({})["seen"] == ["a fake"]
    assert opened.log == []


# --- input and output schemas


class Whole(State, total=False):
    question: str
    draft: str
    answer: str


class Question(TypedDict):
    question: str


class Answer(TypedDict):
    answer: str


def questions() -> Graph:
    graph = Graph(Whole, input_schema=Question, output_schema=Answer)
    graph.add_node("think", lambda state: {"draft": state["question"], "answer": state["question"].upper()})
    return graph.add_edge(START, "think")


def test_a_result_has_the_fields_of_the_output_schema() -> None:
    with Engine(questions()) as engine:
        run = engine.submit({"question": "why"})
        assert run.result() == {"answer": "WHY"}
        # and the rest is there for who wants it
        assert run.state() == {"seen": [], "question": "why", "draft": "why", "answer": "WHY"}


def test_an_input_has_no_other_fields_than_those_of_the_input_schema() -> None:
    with Engine(questions()) as engine, pytest.raises(Exception, match="the input has field 'draft'; it may have question"):
        engine.submit({"question": "why", "draft": "mine"})


def test_a_subgraph_shares_what_its_schemas_have() -> None:
    graph = Graph(Whole).add_node("ask", questions()).add_edge(START, "ask")
    with Engine(graph) as engine:
        assert engine.invoke({"question": "why", "draft": "mine"}) == {
            "seen": [],
            "question": "why",
            "draft": "mine",
            "answer": "WHY",
        }


@pytest.mark.parametrize("option", ["input_schema", "output_schema"])
def test_a_schema_with_other_fields_is_refused(option: str) -> None:
    class Other(TypedDict):
        other: str

    with pytest.raises(ConfigurationError, match=f"{option} has field 'other'; the state has answer, draft, question, seen"):
        Graph(Whole, **{option: Other})  # type: ignore[arg-type]


def test_schemas_are_no_part_of_a_version() -> None:
    plain = Graph(Whole)
    plain.add_node("think", lambda state: {}).add_edge(START, "think")
    assert plain.compile().hash == questions().compile().hash


def test_nodes_fail_with_what_opening_raised() -> None:
    graph = Graph(State, resources=Opened(failures=9).pool).add_node("node", asks).add_edge(START, "node")
    with Engine(graph) as engine, pytest.raises(NodeFailedError, match="ConnectionError: not yet"):
        engine.invoke({})
