"""`Graph`: what authors write, what it compiles to, and what it says when it is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import functools
import math
import operator
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, NotRequired, Required, TypedDict

import pytest

from lockstep.compiled import NodeSpec
from lockstep.core.ordering import END, START
from lockstep.core.policy import RetryPolicy
from lockstep.core.topology import Barrier, Edge, Node
from lockstep.errors import ConfigurationError, StateError
from lockstep.graph import Command, Graph, Send, StateGraph
from lockstep.messages import add_messages
from lockstep.models import instance_of, values_of
from lockstep.schema import name_of, schema_of


class State(TypedDict, total=False):
    topic: str
    notes: Annotated[list[str], operator.add]


def one(state: State) -> dict[str, Any]:
    return {}


def two(state: State) -> dict[str, Any]:
    return {}


def anywhere(state: State) -> str:
    return "one"


def chooses(state: State) -> Literal["one", "two", "__end__"]:
    return "one"


def goes_on(state: State) -> Literal["c"]:
    return "c"


def commands(state: State) -> Command:
    return Command(goto="two")


def unannotated(state):  # type: ignore[no-untyped-def]
    return {}


def pair() -> Graph:
    """A graph of nodes one and two, without edges."""
    return Graph(State).add_node(one).add_node(two)


def line() -> Graph:
    """START -> one -> two."""
    return pair().add_edge(START, "one").add_edge("one", "two")


def refusal_of(make: Callable[[], Any]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        make()
    return caught.value


# --- building


def test_every_add_method_returns_the_graph() -> None:
    # given a graph, then its add methods can be chained
    graph = Graph(State)
    assert graph.add_node("one", one) is graph
    assert graph.add_node(two) is graph
    assert graph.add_edge(START, "one") is graph
    assert graph.add_edge(["one", "two"], END) is graph
    assert graph.add_conditional_edges("one", anywhere) is graph
    assert graph.add_sequence([]) is graph
    assert StateGraph is Graph


def test_the_decorator_returns_the_function_in_both_forms() -> None:
    # given the bare decorator, the one with options, and the one with a name
    graph = Graph(State)
    assert graph.node(one) is one
    assert graph.node(queue="slow", timeout_seconds=5)(two) is two
    assert graph.node(name="third", defer=True)(one) is one
    compiled = graph.add_edge(START, "one").add_conditional_edges("one", anywhere).compile()
    # then the nodes have the functions' names or their own, and their options
    assert [name for name in compiled.nodes if name != START] == ["one", "two", "third"]
    assert compiled.nodes["two"].queue == "slow" and compiled.nodes["two"].timeout_seconds == 5
    assert compiled.nodes["third"].function is one and compiled.program.topology.nodes["third"].defer


def test_a_configured_decorator_keeps_its_options_when_it_is_used_again() -> None:
    # given one decorator with a name, when it is applied to a second function, then that clashes with the first by this name
    graph = Graph(State)
    decorate = graph.node(name="same")
    decorate(one)
    assert "'same'" in str(refusal_of(lambda: decorate(two)))


def test_a_node_may_be_named_or_take_the_name_of_its_callable() -> None:
    class Agent:
        def __call__(self, state: State) -> dict[str, Any]:
            return {}

    agent = Agent()
    graph = Graph(State).add_node("plan", one).add_node(two).add_node(agent)
    nodes = graph.add_edge(START, "plan").add_edge("plan", "two").add_edge("two", "Agent").compile().nodes
    assert (nodes["plan"].function, nodes["two"].function, nodes["Agent"].function) == (one, two, agent)


def test_what_is_declared_is_what_is_compiled() -> None:
    # given all that a node can be given
    retry = RetryPolicy(max_attempts=5)
    graph = Graph(State, name="research", ordering="hash")
    graph.add_node("a", one, queue="slow", retry=retry, timeout_seconds=1.5, defer=True).add_node("b", two).add_node("c", two)
    graph.add_edge(START, "a").add_edge("a", END).add_edge(["a", "b"], "c").add_edge("a", "b")
    graph.add_conditional_edges("b", anywhere).add_conditional_edges("b", goes_on)
    compiled = graph.compile()
    # then the spec holds what the worker needs
    assert compiled.name == "research" and compiled.state is State
    assert compiled.nodes["a"] == NodeSpec("a", one, (), False, False, "slow", retry, 1.5)
    assert [router.function for router in compiled.nodes["b"].routers] == [anywhere, goes_on]
    assert compiled.nodes[START] == NodeSpec(START, None, (), False, False, "default", None, None)
    # and the topology what the core needs: edges in declaration order, barrier members among them
    topology = compiled.program.topology
    assert topology.ordering == "hash" and topology.barriers == (Barrier(("a", "b"), "c"),)
    assert topology.nodes == {
        START: Node(START, (Edge("a"),)),
        "a": Node("a", (Edge(END), Edge("c", barrier=0), Edge("b")), defer=True),
        "b": Node("b", (Edge("c", barrier=0),), ("anywhere", "goes_on")),
        "c": Node("c"),
    }


def test_a_list_of_one_source_is_a_plain_edge_and_doubles_count_once() -> None:
    graph = pair().add_edge(START, "one").add_edge(["one", "one"], "two").compile()
    assert graph.program.topology.barriers == () and graph.program.topology.nodes["one"].edges == (Edge("two"),)


def test_start_routers_belong_to_the_hidden_item() -> None:
    compiled = pair().add_conditional_edges(START, anywhere).compile()
    assert compiled.program.topology.nodes[START].routers == ("anywhere",)
    assert [router.name for router in compiled.nodes[START].routers] == ["anywhere"]


def test_a_sequence_adds_nodes_and_the_edges_between_them() -> None:
    # given functions and a named one
    graph = Graph(State).add_sequence([one, ("second", two), commands]).add_edge(START, "one")
    nodes = graph.compile().program.topology.nodes
    assert {name: [edge.target for edge in node.edges] for name, node in nodes.items()} == {
        START: ["one"],
        "one": ["second"],
        "second": ["commands"],
        "commands": [],
    }


def test_a_compiled_graph_is_kept_until_the_graph_changes() -> None:
    graph = line()
    first = graph.compile()
    assert graph.compile() is first
    graph.add_conditional_edges("two", anywhere)
    assert graph.compile() is not first and graph.compile().hash != first.hash


# --- routers


@pytest.mark.parametrize(
    ("path_map", "labels"),
    [
        (None, None),
        ({"yes": "one", True: END}, {"yes": "one", True: END}),
        (["one", END], {"one": "one", END: END}),
        (("two",), {"two": "two"}),
    ],
    ids=["none", "dict", "list", "tuple"],
)
def test_a_path_map_says_where_a_router_may_lead(path_map: Any, labels: Any) -> None:
    compiled = line().add_conditional_edges("one", anywhere, path_map).compile()
    (router,) = compiled.nodes["one"].routers
    assert router.labels == labels and router.name == "anywhere"


def test_a_literal_hint_is_a_path_map() -> None:
    # given a router annotated with Literal, then its labels are the names; a path_map has precedence
    (router,) = line().add_conditional_edges("one", chooses).compile().nodes["one"].routers
    assert router.labels == {"one": "one", "two": "two", END: END}
    (router,) = line().add_conditional_edges("one", chooses, ["one"]).compile().nodes["one"].routers
    assert router.labels == {"one": "one"}


# --- the Context


def stateless() -> dict[str, Any]:
    return {}


def with_context(state: State, ctx: Any) -> dict[str, Any]:
    return {}


def other_name(state: State, context: Any) -> dict[str, Any]:
    return {}


def optional_context(state: State, ctx: Any = None) -> dict[str, Any]:
    return {}


def optional_other(state: State, depth: int = 3) -> dict[str, Any]:
    return {}


def variadic(*arguments: Any) -> dict[str, Any]:
    return {}


def three(state: State, ctx: Any, more: Any) -> dict[str, Any]:
    return {}


def keyword_context(state: State, *, ctx: Any) -> dict[str, Any]:
    return {}


def keyword_option(state: State, *, ctx: Any = None) -> dict[str, Any]:
    return {}


def late_context(state: State, depth: int = 3, ctx: Any = None) -> dict[str, Any]:
    return {}


class Methods:
    def plain(self, state: State) -> dict[str, Any]:
        return {}

    def contextual(self, state: State, ctx: Any) -> dict[str, Any]:
        return {}

    async def __call__(self, state: State, ctx: Any) -> dict[str, Any]:
        return {}


async def asynchronous(state: State, ctx: Any) -> dict[str, Any]:
    return {}


async def asynchronous_with_flag(state: State, flag: bool) -> dict[str, Any]:
    return {}


async def asynchronous_router(state: State) -> str:
    return "one"


@pytest.mark.parametrize(
    ("function", "takes_context"),
    [
        (one, False),
        (with_context, True),
        (other_name, True),
        (optional_context, True),
        (optional_other, False),
        (variadic, False),
        (asynchronous, True),
        (Methods().plain, False),
        (Methods().contextual, True),
        (Methods(), True),
        (functools.partial(with_context, ctx=None), False),
        (keyword_option, False),
        (functools.partial(three, more=None), True),
        (lambda state: {}, False),
        (lambda state, ctx: {}, True),
        (dict, False),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__) if callable(value) else str(value),
)
def test_a_function_gets_the_context_if_it_has_a_place_for_it(function: Any, takes_context: bool) -> None:
    # given a function of (state), or of (state, ctx) by whatever name, or with a `ctx` that has a default
    graph = Graph(State).add_node("one", function).add_edge(START, "one")
    assert graph.compile().nodes["one"].takes_context is takes_context
    # then it holds for routers alike
    (router,) = line().add_conditional_edges("one", function, ["two"]).compile().nodes["one"].routers
    assert router.takes_context is takes_context


@pytest.mark.parametrize("function", [stateless, three, keyword_context])
def test_a_function_that_takes_neither_one_nor_two_is_refused(function: Any) -> None:
    for error, what in (
        (refusal_of(lambda: Graph(State).add_node("n", function)), "node 'n'"),
        (refusal_of(lambda: line().add_conditional_edges("one", function)), f"router '{function.__name__}' of 'one'"),
    ):
        assert error.option == "node" and what in str(error)
        assert "must take (state) or (state, ctx)" in str(error) and "it takes (" in str(error)


def test_the_context_never_lands_in_another_parameter() -> None:
    # given a `ctx` that is the third parameter, behind one with a default: (state, ctx) would fill the second
    graph = Graph(State)
    # then the function is refused, or gets the state alone; never the Context as its depth
    with contextlib.suppress(ConfigurationError):
        graph.add_node("n", late_context).add_edge(START, "n")
        assert graph.compile().nodes["n"].takes_context is False


@pytest.mark.parametrize(
    ("function", "router", "is_async"),
    [
        (one, anywhere, False),
        (asynchronous, anywhere, True),
        (Methods(), anywhere, True),
        (functools.partial(asynchronous_with_flag, flag=True), anywhere, True),
        (one, asynchronous_router, True),
    ],
    ids=["sync", "async", "async call", "async partial", "async router"],
)
def test_a_node_runs_on_the_event_loop_if_it_or_a_router_must(function: Any, router: Any, is_async: bool) -> None:
    graph = Graph(State).add_node("n", function).add_edge(START, "n").add_conditional_edges("n", router)
    assert graph.compile().nodes["n"].is_async is is_async


# --- what is refused: each message names the node or edge, and the remedy


@pytest.mark.parametrize(
    ("make", "option", "parts"),
    [
        (lambda: Graph(State, ordering="random"), "ordering", ["'random'", "edge, hash"]),  # type: ignore[arg-type]
        (lambda: Graph(State).add_node("plan"), "node", ["'plan'", "add_node('plan', function)"]),
        (lambda: Graph(State).add_node("plan", 7), "node", ["'plan'", "needs a function"]),  # type: ignore[arg-type]
        (lambda: Graph(State).add_node("", one), "node", ["''", "not empty", "rename"]),
        (lambda: Graph(State).add_node("__mine__", one), "node", ["'__mine__'", "'__'", "rename"]),
        (lambda: Graph(State).add_node("a/b", one), "node", ["'a/b'", "'/'", "rename"]),
        (lambda: pair().add_node(one), "node", ["'one'", "there already", "another name"]),
        (lambda: Graph(State).add_node("n", one, timeout_seconds=0), "timeout_seconds", ["'n'", "=0", "above 0"]),
        (lambda: Graph(State).add_node("n", one, timeout_seconds=-1), "timeout_seconds", ["'n'", "=-1", "above 0"]),
        (lambda: Graph(State).add_node("n", one, timeout_seconds=math.nan), "timeout_seconds", ["'n'", "=nan", "above 0"]),
        (lambda: pair().add_edge([], "two"), "edge", ["[]", "'two'", "at least one source"]),
        (lambda: pair().add_edge("gone", "two"), "edge", ["'gone'", "'two'", "add_node", "before"]),
        (lambda: pair().add_edge(["one", "gone"], "two"), "edge", ["'gone'", "'two'", "add_node"]),
        (lambda: pair().add_edge(END, "two"), "edge", ["'__end__'", "'two'", "END has no outgoing"]),
        (lambda: pair().add_edge("one", START), "edge", ["'one'", "START has no incoming"]),
        (lambda: pair().add_edge([START, "one"], "two"), "edge", ["'one'", "'two'", "START cannot be waited for"]),
        (lambda: pair().add_conditional_edges("gone", anywhere), "edge", ["'gone'", "anywhere", "add_node"]),
        (lambda: pair().add_conditional_edges(END, anywhere), "edge", ["anywhere", "END has no outgoing"]),
        (lambda: Graph(State, name="g").add_node(one).compile(), "edge", ["'g'", "no entry", "add_edge(START"]),
        (lambda: line().add_edge("two", "gone").compile(), "edge", ["'two' -> 'gone'", "add_node", "END"]),
        (lambda: line().add_edge(["one", "two"], "gone").compile(), "edge", ["-> 'gone'", "add_node"]),
        (lambda: line().add_edge("one", "two").compile(), "edge", ["'one' -> 'two'", "twice", "remove one"]),
        (
            lambda: line().add_conditional_edges("one", anywhere, {"x": "gone"}).compile(),
            "path_map",
            ["'anywhere'", "'one'", "'gone'", "add it, or mend the path_map"],
        ),
        (lambda: pair().add_edge(START, "one").compile(), "node", ["'two'", "add an edge to it, or remove it"]),
        (lambda: Graph(State, merges={"topik": max}), "merges", ["'topik'", "State"]),
        (lambda: Graph(dict), "state", ["TypedDict, a dataclass", "dict"]),
        (lambda: Graph({"topic": str}), "state", ["TypedDict, a dataclass"]),  # type: ignore[arg-type]
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_graph_is_refused_with_the_culprit_and_the_remedy(make: Any, option: str, parts: list[str]) -> None:
    error = refusal_of(make)
    assert error.option == option
    for part in parts:
        assert part in str(error)


def test_a_refused_node_leaves_the_graph_as_it_was() -> None:
    # given a graph that compiles, when a node and an edge are refused, then it still compiles to the same
    graph = line()
    before = graph.compile()
    refusal_of(lambda: graph.add_node("bad", stateless))
    refusal_of(lambda: graph.add_edge(["one", "gone"], "two"))
    assert graph.compile() == before


@pytest.mark.parametrize(
    "open_ended",
    [
        lambda graph: graph.add_conditional_edges("one", anywhere),
        lambda graph: graph.add_conditional_edges(START, anywhere),
        lambda graph: graph.add_node("c", commands).add_edge("one", "c"),
        lambda graph: graph.add_node("u", unannotated).add_edge("one", "u"),
    ],
    ids=["router", "start router", "command", "unannotated"],
)
def test_a_node_that_something_open_ended_may_reach_is_no_error(open_ended: Callable[[Graph], Graph]) -> None:
    # given a node that no edge leads to, beside a router without labels, or a node that may return a Command
    graph = pair().add_edge(START, "one")
    assert "'two'" in str(refusal_of(graph.compile))
    assert open_ended(graph).compile()


def test_an_open_ended_node_that_nothing_reaches_reaches_nothing() -> None:
    # given a router without labels that hangs on an unreachable node
    graph = pair().add_edge(START, "one").add_conditional_edges("two", anywhere)
    assert "'two'" in str(refusal_of(graph.compile))


def test_barriers_and_labels_reach_their_targets() -> None:
    assert pair().add_edge(START, "one").add_conditional_edges("one", anywhere, ["two"]).compile()
    graph = pair().add_node("join", one).add_edge(START, "one").add_edge(START, "two").add_edge(["one", "two"], "join")
    assert graph.compile()


# --- the drawing


def test_the_drawing_shows_edges_barriers_routers_and_labels() -> None:
    # given a graph with each kind of edge
    graph = Graph(State).add_node(one).add_node(two).add_node("join", one)
    graph.add_edge(START, "one").add_edge(START, "two").add_edge(["one", "two"], "join")
    graph.add_conditional_edges("join", anywhere, {"again": "one", END: END})
    # then the flowchart is this text, solid for edges, dotted for what a router may choose
    assert graph.to_mermaid() == (
        "flowchart TD\n"
        '    n0(["start"])\n'
        '    n4(["end"])\n'
        '    n1["one"]\n'
        '    n2["two"]\n'
        '    n3["join"]\n'
        "    n0 --> n1\n"
        "    n0 --> n2\n"
        "    n1 --> n3\n"
        "    n2 --> n3\n"
        '    n3 -.->|"again"| n1\n'
        "    n3 -.-> n4\n"
    )


def test_a_router_without_labels_is_drawn_to_everything() -> None:
    drawn = line().add_conditional_edges("one", anywhere).to_mermaid()
    assert [text for text in drawn.splitlines() if "-.->" in text] == [f"    n1 -.-> n{number}" for number in (1, 2, 3)]


# --- the hash


def edited(**changes: Any) -> str:
    """The hash of a graph that differs from `edited()` in the named ways."""
    name, version, state = changes.get("name", "g"), changes.get("version", ""), changes.get("state", State)
    graph = Graph(
        state,
        name,
        version=version,
        ordering=changes.get("ordering", "edge"),
        merges=changes.get("merges"),
        reducer=changes.get("reducer"),
    )
    graph.add_node("one", changes.get("function", one), retry=changes.get("retry"), defer=changes.get("defer", False))
    graph.add_node("two", two).add_node("three", two)
    graph.add_edge(START, "one")
    for source, target in changes.get("edges", [("one", "two"), (["one", "two"], "three")]):
        graph.add_edge(source, target)
    graph.add_conditional_edges("three", changes.get("router", chooses), changes.get("path_map"))
    return graph.compile().hash


class OtherReducer(TypedDict, total=False):
    topic: str
    notes: Annotated[list[str], add_messages]


class OtherField(TypedDict, total=False):
    title: str
    notes: Annotated[list[str], operator.add]


def joins(current: Any, update: Any) -> Any:
    return current


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "h"},
        {"version": "2"},
        {"ordering": "hash"},
        {"state": OtherReducer},
        {"state": OtherField},
        {"merges": {"topic": joins}},
        {"reducer": joins},
        {"retry": RetryPolicy()},
        {"defer": True},
        {"edges": [("one", "two"), ("one", "three")]},
        {"edges": [("one", "two"), (["two", "one"], "three"), ("two", END)]},
        {"edges": [(["one", "two"], "three"), ("one", "two")]},
        {"router": anywhere},
        {"path_map": {"one": "two", "two": "one", END: END}},
    ],
    ids="+".join,
)
def test_what_makes_a_graph_another_to_a_run_changes_its_hash(changes: dict[str, Any]) -> None:
    # given one change of topology, fields, reducers, policies or version (an edge's place included: indexes depend on it)
    assert edited(**changes) != edited()


def test_a_functions_body_is_no_part_of_the_hash() -> None:
    # given the same graph with other code in a node and under a router's name, when compiled, then runs may go on with it
    def other_body(state: State) -> dict[str, Any]:
        return {"topic": "changed"}

    def rewritten(state: State) -> Literal["one", "two", "__end__"]:
        return "two"

    rewritten.__name__ = "chooses"
    assert edited(function=other_body) == edited(router=rewritten, path_map=["one", "two", END]) == edited()


def test_retry_policies_differ_by_what_they_do() -> None:
    assert edited(retry=RetryPolicy(max_attempts=4)) != edited(retry=RetryPolicy(max_attempts=5))
    assert edited(retry=RetryPolicy(retry_on=(ValueError,))) == edited(retry=RetryPolicy(retry_on=("ValueError",)))


PROBE = """
import sys
from typing import TypedDict
from lockstep.graph import Graph, START
from lockstep.schema import schema_of

State = TypedDict("State", {name: set[str] for name in ("b", "a", "c")})
graph = Graph(State).add_node("one", lambda state: {}).add_edge(START, "one")
print(graph.compile().hash, schema_of(State, None, {}).fields["a"].dumped({"x", "y", "z", "w"}))
"""


def test_a_hash_and_a_set_are_the_same_in_every_process() -> None:
    # given processes whose strings hash differently
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROBE],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2", "3")
    ]
    # then a graph's hash and the stored form of a set are the same in all
    printed = {process.communicate()[0] for process in processes}
    assert len(printed) == 1 and printed.pop().endswith(" ['w', 'x', 'y', 'z']\n")


# --- states


class Unreadable(TypedDict):
    topic: NowhereDefined  # type: ignore[name-defined]  # noqa: F821


class BadReducer(TypedDict):
    notes: Annotated[list[str], lambda current: current]


class Sock(TypedDict):
    connection: list[socket.socket]


class Callback(TypedDict):
    on_done: Callable[[int], str]


class Ambiguous(TypedDict):
    when: datetime.datetime | uuid.UUID


class Level(enum.Enum):
    LOW = "low"


class EnumLiteral(TypedDict):
    mode: Literal[Level.LOW]


@dataclasses.dataclass
class WrongDefault:
    at: datetime.datetime = "soon"  # type: ignore[assignment]


@dataclasses.dataclass
class UnstorableDefault:
    limit: float = math.inf


@pytest.mark.parametrize(
    ("state", "option", "parts"),
    [
        (Unreadable, "state", ["Unreadable", "NowhereDefined", "module level"]),
        (BadReducer, "notes", ["'notes'", "two arguments", "(current, update)"]),
        (Sock, "connection", ["'connection'", "socket", "cannot be stored"]),
        (Callback, "on_done", ["'on_done'", "cannot be stored"]),
        (Ambiguous, "when", ["'when'"]),
        (EnumLiteral, "mode", ["'mode'"]),
        (WrongDefault, "at", ["'at'"]),
        (UnstorableDefault, "limit", ["'limit'"]),
    ],
)
def test_a_state_that_cannot_be_stored_is_refused_when_the_graph_is_made(state: type, option: str, parts: list[str]) -> None:
    # given a state type that no codec can handle, then it is refused now, by field, and not in the middle of a run
    error = refusal_of(lambda: Graph(state))
    assert error.option == option
    for part in parts:
        assert part in str(error)


class Spelled(TypedDict):
    a: Required[Annotated[list[int], operator.add]]
    b: Annotated[NotRequired[int], "a note", max]
    c: NotRequired[Annotated[dict[str, int], "only a note"]]
    d: Annotated[set[str], set.union]
    e: Annotated[str, add_messages]
    f: Annotated[int, max, min]


def test_a_reducer_is_found_however_the_annotation_is_spelled() -> None:
    # given reducers inside Required, around NotRequired, beside notes, as a builtin type's method, and after another: the last
    fields = schema_of(Spelled, None, {}).fields
    assert {name: field.reducer for name, field in fields.items()} == {
        "a": operator.add,
        "b": max,
        "c": None,
        "d": set.union,
        "e": add_messages,
        "f": min,
    }
    # then those known to be pure have their public names
    assert [fields[name].reducer_name for name in "abce"] == ["operator.add", "max", "", "lockstep.add_messages"]
    assert [fields[name].pure for name in "abcde"] == [True, True, False, False, True]


def test_a_function_is_known_by_module_and_name_and_a_callable_object_by_its_class() -> None:
    assert name_of(joins) == f"{joins.__module__}.joins"
    assert name_of(Methods().plain).endswith("Methods.plain")
    assert name_of(Methods()).endswith("Methods")


class Inner(TypedDict):
    x: int


class Plainness(TypedDict):
    a: str
    b: list[dict[str, Any]]
    c: int | None
    d: Literal["x", 1]
    e: Inner
    f: list  # type: ignore[type-arg]
    g: object


class Codecs(TypedDict):
    a: int | uuid.UUID
    b: list[Level]
    c: dict[int, str]
    d: tuple[int, ...]


def test_only_fields_that_are_not_plain_json_have_a_codec() -> None:
    assert all(field.load is None and field.dump is None for field in schema_of(Plainness, None, {}).fields.values())
    assert all(field.load and field.dump for field in schema_of(Codecs, None, {}).fields.values())


@dataclasses.dataclass
class Data:
    topic: str
    notes: Annotated[list[str], operator.add] = dataclasses.field(default_factory=list)


def test_a_node_gets_an_instance_of_a_dataclass_and_a_dict_otherwise() -> None:
    values = {"topic": "x", "notes": ["a"]}
    assert instance_of(Data, values) == Data("x", ["a"])
    assert instance_of(State, values) is values


def test_a_dataclass_that_lacks_a_value_is_refused_by_field() -> None:
    with pytest.raises(StateError) as caught:
        instance_of(Data, {"notes": []})
    assert caught.value.field == "topic"
    assert "Data" in str(caught.value) and "give topic in the input, or a default" in str(caught.value)


def test_an_input_is_a_dict_or_an_instance_of_the_dataclass() -> None:
    assert values_of({"topic": "x"}, "the input") == {"topic": "x"}
    assert values_of(Data("x"), "the input") == {"topic": "x", "notes": []}
    for wrong in ([("topic", "x")], "topic", Data, None):
        with pytest.raises(StateError, match="the input must be a dict of state fields"):
            values_of(wrong, "the input")


def test_sends_commands_and_their_defaults() -> None:
    # given the two ways to route from inside a node, then they are values that compare by what they say
    assert Send("w", {"x": 1}) == Send("w", {"x": 1}) != Send("w", {"x": 2})
    assert Command() == Command(update=None, goto=())
