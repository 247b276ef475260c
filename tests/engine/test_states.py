"""A state may be declared as a TypedDict, a dataclass, a msgspec.Struct or a pydantic model, and fields may hold models."""

from __future__ import annotations

import dataclasses
import datetime
import operator
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any

import msgspec
import pydantic
import pytest

from lockstep import START, ConfigurationError, Context, Engine, Graph, Send, StateError

DAY = datetime.date(2026, 11, 27)


@dataclasses.dataclass
class Data:
    topic: str
    day: datetime.date = DAY
    notes: Annotated[list[str], operator.add] = dataclasses.field(default_factory=list)
    best: str | None = None


class Struct(msgspec.Struct):
    topic: str
    day: datetime.date = DAY
    notes: Annotated[list[str], operator.add] = []
    best: str | None = None


class Model(pydantic.BaseModel):
    topic: str = pydantic.Field(max_length=10)
    day: datetime.date = DAY
    notes: Annotated[list[str], operator.add] = pydantic.Field(default_factory=list)
    best: str | None = None


KINDS: list[Any] = [Data, Struct, Model]


def research(kind: Any) -> Graph:
    """plan --a Send for each--> search --> choose; nodes take and return instances, dicts, and parts of them."""
    graph = Graph(kind, name="research")

    @graph.node
    def plan(state: Any) -> Any:
        assert type(state) is kind
        assert state.day == DAY and state.notes == []
        return {"best": f"{state.topic}?"}

    @graph.node
    def search(part: str) -> Any:
        return {"notes": [part]}

    @graph.node
    def choose(state: Any, ctx: Context) -> Any:
        assert type(state) is kind
        return {"best": state.notes[0], "day": state.day + datetime.timedelta(days=1)}

    def spread(state: Any) -> list[Send]:
        assert type(state) is kind
        return [Send("search", f"{state.best}{number}") for number in range(2)]

    graph.add_edge(START, "plan").add_conditional_edges("plan", spread, ["search"]).add_edge("search", "choose")
    return graph


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", ["instance", "dict"])
def test_nodes_get_instances(kind: Any, given: str, store_url: str) -> None:
    with Engine(research(kind), store_url) as engine:
        run = engine.submit(kind(topic="tea") if given == "instance" else {"topic": "tea"})
        ended = {"topic": "tea", "day": DAY + datetime.timedelta(days=1), "notes": ["tea?0", "tea?1"], "best": "tea?0"}
        assert run.result() == ended
        assert run.replay().nodes == 4
        hashes = [step.state_hash for step in run.history()]
    # and all kinds of classes give the same bytes
    with Engine(research(Data)) as engine:
        other = engine.submit({"topic": "tea"})
        assert other.result() == ended
        assert [step.state_hash for step in other.history()] == hashes


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_without_a_value_is_named(kind: Any) -> None:
    with Engine(research(kind)) as engine, pytest.raises(StateError, match="give topic in the input") as caught:
        engine.invoke({})
    assert caught.value.field == "topic"


def test_a_model_checks_what_it_is_given() -> None:
    with Engine(research(Model)) as engine, pytest.raises(StateError, match="at most 10 characters"):
        engine.invoke({"topic": "a topic that is too long"})


def test_of_a_model_a_node_writes_what_it_has_set() -> None:
    def node(state: Model) -> Model:
        return Model(topic="coffee", notes=["new"])

    def other(state: Model) -> Model:
        return Model.model_construct(_fields_set={"notes"}, notes=["more"])

    graph = Graph(Model).add_sequence([node, other]).add_edge(START, "node")
    with Engine(graph) as engine:
        state = engine.invoke({"topic": "tea", "notes": ["old"], "best": "b"})
    assert state == {"topic": "coffee", "day": DAY, "notes": ["old", "new", "more"], "best": "b"}


def test_of_a_struct_what_is_unset_is_not_written() -> None:
    class Partial(msgspec.Struct):
        topic: str | msgspec.UnsetType = msgspec.UNSET
        best: str | msgspec.UnsetType = msgspec.UNSET

    def node(state: Struct) -> Partial:
        return Partial(best="b")

    graph = Graph(Struct).add_node(node).add_edge(START, "node")
    with Engine(graph) as engine:
        state = engine.invoke({"topic": "tea"})
    assert (state["topic"], state["best"]) == ("tea", "b")


class Document(pydantic.BaseModel):
    title: str
    price: Decimal
    seen: datetime.datetime | None = None


@dataclasses.dataclass
class Library:
    documents: Annotated[list[Document], operator.add] = dataclasses.field(default_factory=list)
    first: Document | None = None


def test_fields_may_hold_models(store_url: str) -> None:
    document = Document(title="a", price=Decimal("1.10"), seen=datetime.datetime(2026, 11, 27, tzinfo=datetime.UTC))

    def node(state: Library) -> dict[str, Any]:
        assert state.documents == [document]
        return {"documents": [Document(title="b", price=Decimal(2))], "first": state.documents[0]}

    def other(state: Library) -> dict[str, Any]:
        assert state.first == document
        return {"first": {"title": "c", "price": "3"}}  # As JSON has it.

    graph = Graph(Library).add_sequence([node, other]).add_edge(START, "node")
    with Engine(graph, store_url) as engine:
        run = engine.submit({"documents": [document]})
        assert run.result() == {
            "documents": [document, Document(title="b", price=Decimal(2))],
            "first": Document(title="c", price=Decimal(3)),
        }
        assert run.json_state()["documents"][0] == {"title": "a", "price": "1.10", "seen": "2026-11-27T00:00:00Z"}


def test_what_does_not_fit_a_model_names_the_field() -> None:
    graph = Graph(Library).add_node("node", lambda state: {"first": {"title": 1}}).add_edge(START, "node")
    with Engine(graph) as engine, pytest.raises(StateError, match="field 'first'"):
        engine.invoke({})


@pytest.mark.parametrize("wrong", [int, dict, "State", None])
def test_what_is_no_state_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="a TypedDict, a dataclass, a msgspec"):
        Graph(wrong)


def test_pydantic_is_not_needed() -> None:
    program = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from typing import TypedDict\nfrom lockstep import START, Engine, Graph\n"
        "class State(TypedDict, total=False):\n    n: int\n"
        "graph = Graph(State).add_node('node', lambda state: {'n': 1}).add_edge(START, 'node')\n"
        "print(Engine(graph).invoke({}))"
    )
    done: Callable[..., Any] = subprocess.run
    assert done([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "{'n': 1}\n"
