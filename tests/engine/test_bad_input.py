"""What users get wrong: each mistake gives one typed error that names the culprit and the remedy, and nothing else suffers."""

from __future__ import annotations

import asyncio
import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import pytest

from lockstep import (
    END,
    START,
    Command,
    ConfigurationError,
    ConflictError,
    Context,
    Engine,
    Graph,
    LockstepError,
    MaxStepsExceededError,
    NodeFailedError,
    NoProgressError,
    Options,
    ReducerError,
    RouteError,
    Run,
    RunExistsError,
    RunNotFoundError,
    Send,
    StateError,
    StoreUnavailableError,
    UnknownGraphError,
    with_max_concurrent,
)

if TYPE_CHECKING:
    from conftest import Gate, RetryRun

    from lockstep.embedded import Embedded

WAIT_SECONDS = 20.0


class State(TypedDict, total=False):
    title: Any
    tags: list[Any]
    when: datetime
    log: Annotated[list[str], operator.add]


def single(function: Callable[..., Any], name: str = "single") -> Graph:
    return Graph(State, name=name).add_node("work", function).add_edge(START, "work")


def fine(state: Any) -> State:
    return {"log": ["fine"]}


def first_then(wrong: Callable[[], Any], right: Any) -> Callable[[Any], Any]:
    """A function with a mistake at its first call, and mended after it."""
    calls = itertools.count()
    return lambda state: wrong() if next(calls) == 0 else right


def failure_of(run: Run) -> LockstepError:
    """The error that a run fails with: raised by `result`, and kept as `error`."""
    with pytest.raises(LockstepError) as caught:
        run.result(WAIT_SECONDS)
    error = run.error
    assert error is not None and run.status == "failed"
    assert (type(error), str(error), error.fields) == (type(caught.value), str(caught.value), caught.value.fields)
    return caught.value


def says(error: LockstepError, *words: str) -> None:
    assert [word for word in words if word not in str(error)] == []


# --- what nodes return


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


BAD_VALUES: dict[str, tuple[Callable[[], Any], str, list[str]]] = {
    "an object": (lambda: {"title": object()}, "title", ["field 'title'", "type object", "return JSON values"]),
    "a set": (lambda: {"tags": {"a"}}, "tags", ["field 'tags'", "type set", "annotate the field"]),
    "an object inside": (lambda: {"tags": [1, {"a": [b"x"]}]}, "tags", ["field 'tags' at [1]['a'][0]", "type bytes"]),
    "NaN": (lambda: {"title": math.nan}, "title", ["field 'title' is nan", "use None or a string"]),
    "an infinity": (lambda: {"tags": [-math.inf]}, "tags", ["field 'tags' at [0] is -inf", "use None or a string"]),
    "a huge integer": (lambda: {"title": 2**63}, "title", ["field 'title'", str(2**63), "-2^63..2^63-1"]),
    "a key that is no string": (lambda: {"title": {1: 2}}, "title", ["field 'title'", "key 1", "keys are strings"]),
    "a lone surrogate": (lambda: {"title": "a\ud800"}, "title", ["field 'title'", r"'a\ud800'", "not valid Unicode"]),
    "a key with a surrogate": (lambda: {"title": {"\udcff": 1}}, "title", ["field 'title'", r"'\udcff'", "not valid Unicode"]),
    "a value too deep": (lambda: {"title": nested(5000)}, "title", ["field 'title'", "nested"]),
    "an unknown field": (lambda: {"titel": 1}, "titel", ["unknown field 'titel'", "the state has log, tags, title, when"]),
    "the wrong type": (lambda: {"when": "tomorrow"}, "when", ["field 'when'", "datetime"]),
    "an untyped value": (lambda: {"when": object()}, "when", ["field 'when'", "object"]),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_value_that_no_state_can_hold_is_an_error_that_names_the_field(case: str, store_url: str, retry: RetryRun) -> None:
    wrong, field, words = BAD_VALUES[case]
    with Engine(single(first_then(wrong, {"log": ["mended"]})), store_url) as engine:
        # given a node that returns it
        run = engine.submit({"title": "before"})
        error = failure_of(run)

        # then the error names the field, and says where it happened
        assert isinstance(error, StateError) and error.field == field
        assert (error.run_id, error.step_id, error.node_id, error.attempt) == (run.run_id, 1, "work", 1)
        says(error, *words)

        # and once the node is mended, the run goes on
        retry(run)
        assert run.result(WAIT_SECONDS) == {"title": "before", "log": ["mended"]}
        assert run.error is None and run.history()[1].tasks[0].attempt == 2


@pytest.mark.parametrize(
    ("returned", "kind"),
    [(42, "int"), ("title", "str"), (({"title": 1},), "tuple"), ((part for part in ()), "generator"), ([42], "int")],
    ids=["int", "str", "tuple", "generator", "list of int"],
)
def test_a_return_value_of_the_wrong_kind_is_an_error_that_says_what_is_allowed(
    returned: Any, kind: str, store_url: str, retry: RetryRun
) -> None:
    with Engine(single(first_then(lambda: returned, {"log": ["mended"]})), store_url) as engine:
        run = engine.submit({})
        error = failure_of(run)
        assert isinstance(error, StateError) and error.node_id == "work"
        says(error, "what node 'work' returns", "a dict of state fields, a Command, None or a list of these", f"got {kind}")
        retry(run)
        assert run.result(WAIT_SECONDS) == {"log": ["mended"]}


@pytest.mark.parametrize("kind", ["Send", "event"])
def test_what_else_a_node_hands_on_must_be_json_too(kind: str, store_url: str, retry: RetryRun) -> None:
    calls = itertools.count()

    def work(state: State, ctx: Context) -> Command:
        value: Any = object() if next(calls) == 0 else "mended"
        if kind == "event":
            ctx.emit("thing", value)
        return Command(goto=Send("end", value) if kind == "Send" else END)

    graph = single(work).add_node("end", lambda value: {"log": [value]})
    with Engine(graph, store_url) as engine:
        run = engine.submit({})
        error = failure_of(run)
        assert isinstance(error, StateError) and error.node_id == "work"
        says(error, "Send('end')" if kind == "Send" else "event thing", "type object", "not JSON")
        retry(run)
        assert run.result(WAIT_SECONDS) == {"log": ["mended"] if kind == "Send" else []}


# --- routes


def routed(route: Callable[[], Any], path_map: Any = None) -> Graph:
    calls = itertools.count()
    graph = single(lambda state: {"log": ["work"]}).add_node("rest", fine).add_edge("work", "rest")
    return graph.add_conditional_edges("work", lambda state: route() if next(calls) == 0 else END, path_map)


def commanded(goto: Any) -> Graph:
    return single(first_then(lambda: Command(goto=goto), None)).add_node("rest", fine)


BAD_ROUTES: dict[str, tuple[Callable[[], Graph], str, list[str]]] = {
    "router": (lambda: routed(lambda: "nowhere"), "nowhere", ["'nowhere', which is no node", "rest, work, or END"]),
    "router, one of several": (lambda: routed(lambda: ["rest", "nowhere"]), "nowhere", ["known nodes: rest, work"]),
    "router, Send": (lambda: routed(lambda: Send("nowhere", 1)), "nowhere", ["'nowhere', which is no node"]),
    "router, None": (lambda: routed(lambda: None), "None", ["'None', which is no node"]),
    "router, no label": (lambda: routed(lambda: "up", {"down": "rest"}), "up", ["router '<lambda>'", "path_map has 'down'"]),
    "goto": (lambda: commanded("nowhere"), "nowhere", ["'nowhere', which is no node", "rest, work, or END"]),
    "goto, Send": (lambda: commanded([Send("nowhere", {})]), "nowhere", ["'nowhere', which is no node"]),
    "goto START": (lambda: commanded(START), START, ["which is no node"]),
}


@pytest.mark.parametrize("case", BAD_ROUTES)
def test_a_route_to_nowhere_is_an_error_that_names_the_target(case: str, store_url: str, retry: RetryRun) -> None:
    make, target, words = BAD_ROUTES[case]
    with Engine(make(), store_url) as engine:
        run = engine.submit({})
        error = failure_of(run)
        assert isinstance(error, RouteError)
        assert (error.target, error.node_id, error.step_id) == (target, "work", 1)
        says(error, "node 'work'", *words)
        retry(run)
        assert run.result(WAIT_SECONDS) in ({"log": ["work", "fine"]}, {"log": []})


def test_a_route_from_start_to_nowhere_is_an_error_too() -> None:
    graph = Graph(State).add_node("work", fine).add_conditional_edges(START, lambda state: "nowhere")
    with Engine(graph) as engine:
        error = failure_of(engine.submit({}))
    assert isinstance(error, RouteError) and error.target == "nowhere"


def test_a_router_that_returns_what_has_no_label_at_all_is_a_route_error() -> None:
    # A dict can't even be looked up.
    with Engine(routed(lambda: {"rest": True}, {"down": "rest"})) as engine:
        error = failure_of(engine.submit({}))
    assert isinstance(error, RouteError) and error.node_id == "work"
    says(error, "router '<lambda>'", "path_map has 'down'")


# --- what raises


class Custom(Exception):
    pass


def test_a_raising_node_fails_the_run_with_its_exception_as_the_cause(sqlite_url: str) -> None:
    original = Custom("the reason")

    def work(state: State) -> None:
        raise original

    with Engine(single(work), sqlite_url) as engine:
        # given a node that raises
        run = engine.submit({}, run_id="r")
        error = failure_of(run)

        # then the error is ours, with the original attached and described
        assert type(error) is NodeFailedError and error.__cause__ is original
        assert str(error) == "node 'work' raised Custom: the reason"
        assert error.error_type == "Custom" and "raise original" in str(error.traceback)
        assert (error.run_id, error.step_id, error.node_id, error.attempt) == ("r", 1, "work", 1)
        with pytest.raises(NodeFailedError) as again:
            run.result()
        assert again.value.__cause__ is original
        known = error.to_record()

    # and another engine knows all of it but the exception itself
    with Engine(single(fine), sqlite_url) as second:
        error = failure_of(second.run("r"))
        assert error.to_record() == known and error.__cause__ is None


def test_a_raising_node_leaves_its_siblings_results(store_url: str, retry: RetryRun) -> None:
    calls: list[str] = []
    mended: list[bool] = []

    def sibling(state: State, ctx: Context) -> State:
        calls.append(ctx.node_id)
        return {"log": [ctx.node_id]}

    def broken(state: State, ctx: Context) -> State:
        if not mended:
            raise Custom
        return sibling(state, ctx)

    graph = Graph(State)
    for node_id, function in {"a": sibling, "b": broken, "c": sibling}.items():
        graph.add_node(node_id, function).add_edge(START, node_id)
    with Engine(graph, store_url, options=Options(fail_fast=False)) as engine:
        # given a step of which one node failed
        run = engine.submit({})
        assert failure_of(run).node_id == "b"
        assert run.state() == {"log": []}

        # when the run goes on, then the others do not run again
        mended.append(True)
        retry(run)
        assert run.result(WAIT_SECONDS) == {"log": ["a", "b", "c"]}
        assert sorted(calls) == ["a", "b", "c"]


def test_the_result_after_a_retry_is_that_of_the_retry(store_url: str) -> None:
    # The call that asked for it must not see the old failure.
    def wrong() -> None:
        raise Custom

    with Engine(single(first_then(wrong, {"log": ["mended"]})), store_url) as engine:
        run = engine.submit({})
        failure_of(run)
        run.retry()
        assert run.result(WAIT_SECONDS) == {"log": ["mended"]}


def test_a_run_that_was_retried_and_then_cancelled_has_no_old_cause(gate: Gate, store_url: str, retry: RetryRun) -> None:
    def work(state: State, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise Custom
        gate.enter()

    with Engine(single(work), store_url) as engine:
        run = engine.submit({})
        failure_of(run)
        retry(run)
        gate.await_arrivals()
        run.cancel("enough")
        with pytest.raises(LockstepError, match="enough") as caught:
            run.result(WAIT_SECONDS)
        gate.open()
        assert caught.value.__cause__ is None


RAISED: dict[str, type[BaseException]] = {
    kind.__name__: kind for kind in (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)
}


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_node_that_wants_to_end_the_process_only_fails_its_run(kind: str, is_async: bool) -> None:
    def work(state: State) -> None:
        raise RAISED[kind]("3")

    async def work_async(state: State) -> None:
        raise RAISED[kind]("3")

    with Engine(
        [single(work_async if is_async else work), single(fine, "other")], "memory://", with_max_concurrent(1)
    ) as engine:
        error = failure_of(engine.submit({}, graph="single"))
        assert type(error) is NodeFailedError
        assert (error.node_id, error.error_type) == ("work", kind)
        # and its slot is free for others
        assert engine.invoke({}, graph="other") == {"log": ["fine"]}


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    "error", [OSError("no file 'caf\udce9'"), Custom("\ud800"), Unprintable()], ids=["file name", "surrogate", "unprintable"]
)
def test_an_exception_whose_text_cannot_be_stored_fails_its_run_alone(
    error: Exception, is_async: bool, store_url: str, gate: Gate
) -> None:
    def work(state: State) -> None:
        raise error

    async def work_async(state: State) -> None:
        raise error

    graphs = [single(work_async if is_async else work), single(lambda state: gate.enter(), "held"), single(fine, "other")]
    with Engine(graphs, store_url) as engine:
        # given another run under way
        held = engine.submit({}, graph="held")
        gate.await_arrivals()

        # when a node raises such an exception
        run = engine.submit({}, graph="single")
        with pytest.raises(LockstepError) as caught:
            run.result(WAIT_SECONDS)
        gate.open()

        # then its run fails like any other, and everything else goes on
        assert type(caught.value) is NodeFailedError
        assert caught.value.node_id == "work" and caught.value.error_type == type(error).__name__
        held.result(WAIT_SECONDS)
        assert engine.invoke({}, graph="other") == {"log": ["fine"]}


def test_an_error_of_ours_with_a_field_that_cannot_be_stored_fails_its_run_alone(store_url: str) -> None:
    def work(state: State) -> None:
        raise StateError("mine", field=object())

    with Engine([single(work), single(fine, "other")], store_url) as engine:
        run = engine.submit({}, graph="single")
        with pytest.raises(LockstepError) as caught:
            run.result(WAIT_SECONDS)
        assert caught.value.node_id == "work" and run.status == "failed"
        assert engine.invoke({}, graph="other") == {"log": ["fine"]}


def test_a_raising_router_fails_its_node(store_url: str, retry: RetryRun) -> None:
    def choose(state: State) -> str:
        if not mended:
            raise Custom("no way")
        return END

    mended: list[bool] = []
    graph = single(fine).add_conditional_edges("work", choose)
    with Engine(graph, store_url) as engine:
        run = engine.submit({})
        error = failure_of(run)
        assert type(error) is NodeFailedError and isinstance(error.__cause__, Custom)
        assert (error.node_id, error.error_type) == ("work", "Custom")
        assert "in choose" in str(error.traceback)
        mended.append(True)
        retry(run)
        assert run.result(WAIT_SECONDS) == {"log": ["fine"]}


# --- reducers


def reduced(reducer: Callable[[Any, Any], Any], calls: list[str] | None = None, name: str = "reduced") -> Graph:
    """A graph whose field `total` has the reducer, and whose two nodes write to it."""
    state = TypedDict("state", {"total": Annotated[list, reducer]})  # noqa: UP013 - a class could not name the parameter
    graph = Graph(state, name=name)
    for node_id in ("a", "b"):

        def work(state: Any, node_id: str = node_id) -> Any:
            if calls is not None:
                calls.append(node_id)
            return {"total": [node_id]}

        graph.add_node(node_id, work).add_edge(START, node_id)
    return graph


def test_a_raising_reducer_is_an_error_that_names_it_and_the_results_are_kept(store_url: str, retry: RetryRun) -> None:
    calls: list[str] = []
    mended: list[bool] = []

    def join(current: list[str], update: list[str]) -> list[str]:
        if not mended:
            raise Custom("cannot join")
        return current + update

    with Engine(reduced(join, calls), store_url) as engine:
        # given a reducer that raises
        run = engine.submit({})
        error = failure_of(run)

        # then the error names it and its field, with the exception attached
        assert isinstance(error, ReducerError) and isinstance(error.__cause__, Custom)
        assert error.field == "total" and str(error.reducer).endswith("join")
        says(error, "join of field 'total' raised Custom: cannot join", "mend the reducer, then retry the run")

        # and once it is mended, the results that are there are merged
        mended.append(True)
        retry(run)
        assert run.result(WAIT_SECONDS) == {"total": ["a", "b"]}
        assert sorted(calls) == ["a", "b"]


def test_a_reducer_that_fails_on_the_input_can_be_mended_too(store_url: str, retry: RetryRun) -> None:
    mended: list[bool] = []

    def join(current: list[str], update: list[str]) -> list[str]:
        if not mended:
            raise Custom("cannot join")
        return current + update

    with Engine(reduced(join), store_url) as engine:
        run = engine.submit({"total": ["input"]})
        assert isinstance(failure_of(run), ReducerError)
        mended.append(True)
        retry(run)
        assert run.result(WAIT_SECONDS) == {"total": ["input", "a", "b"]}


@pytest.mark.parametrize("returned", [object(), math.nan, "\ud800"], ids=["object", "NaN", "surrogate"])
def test_a_reducer_that_returns_no_json_is_an_error_that_names_the_field(returned: Any, store_url: str) -> None:
    with Engine(reduced(lambda current, update: returned), store_url) as engine:
        error = failure_of(engine.submit({}))
    assert isinstance(error, StateError) and error.field == "total"
    says(error, "field 'total'")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_reducer_that_wants_to_end_the_process_only_fails_its_run(kind: type[BaseException], store_url: str) -> None:
    def join(current: list[str], update: list[str]) -> list[str]:
        raise kind

    with Engine([reduced(join), single(fine)], store_url) as engine:
        run = engine.submit({}, graph="reduced")
        with pytest.raises(LockstepError) as caught:
            run.result(WAIT_SECONDS)
        assert isinstance(caught.value, ReducerError) and caught.value.field == "total"
        assert engine.invoke({}, graph="single") == {"log": ["fine"]}


@dataclass
class Picky:
    size: int

    def __post_init__(self) -> None:
        if self.size > 2:
            raise LookupError("too large")


def test_a_field_type_that_raises_while_merging_fails_its_run_alone(store_url: str) -> None:
    # The coordinator makes instances of field types for reducers: what they raise is the run's failure, not its own.
    def join(current: Picky, update: Picky) -> Picky:
        current.size += update.size
        return current

    state = TypedDict("state", {"total": Annotated[Picky, join]})  # noqa: UP013 - a class could not name a local function
    picky = Graph(state, name="picky")
    for node_id in ("a", "b"):
        picky.add_node(node_id, lambda state: {"total": Picky(2)}).add_edge(START, node_id)
    with Engine([picky, single(fine)], store_url) as engine:
        with pytest.raises(LockstepError) as caught:
            engine.submit({"total": Picky(1)}, graph="picky").result(WAIT_SECONDS)
        assert not isinstance(caught.value, StoreUnavailableError), "the coordinator has died of it"
        assert engine.invoke({}, graph="single") == {"log": ["fine"]}


# --- graphs that cannot go on


def test_a_half_filled_barrier_is_an_error_that_says_who_is_missing(store_url: str) -> None:
    graph = Graph(State).add_node("a", fine).add_node("b", fine).add_node("join", fine).add_edge(["a", "b"], "join")
    graph.add_conditional_edges(START, lambda state: "a", ["a", "b"])
    with Engine(graph, store_url) as engine:
        run = engine.submit({})
        error = failure_of(run)
        assert isinstance(error, NoProgressError)
        assert (error.waiting, error.step_id, error.run_id) == (["join"], 2, run.run_id)
        says(error, "join still waits for b to finish", "route to the missing nodes, or use plain edges")
        assert run.state() == {"log": []}


def test_an_endless_loop_is_an_error_that_names_the_bound(store_url: str) -> None:
    graph = single(fine).add_edge("work", "work")
    with Engine(graph, store_url, options=Options(max_steps=20)) as engine:
        run = engine.submit({})
        error = failure_of(run)
        assert isinstance(error, MaxStepsExceededError) and error.max_steps == 20
        says(error, "not done after 20 steps", "work would run next", "Options(max_steps=...)")
        assert run.state() == {"log": ["fine"] * 19}


def test_a_conflict_is_an_error_that_names_field_and_writers(store_url: str) -> None:
    graph = Graph(State)
    for node_id in ("a", "b"):
        graph.add_node(node_id, lambda state: {"title": "x"}).add_edge(START, node_id)
    with Engine(graph, store_url) as engine:
        run = engine.submit({"title": "before"})
        error = failure_of(run)
        assert isinstance(error, ConflictError) and error.__cause__ is None
        assert (error.field, error.writers) == ("title", ["a", "b"])
        says(error, "(a, b) write field 'title'", "no reducer", "another ConflictPolicy")
        assert run.state() == {"title": "before", "log": []}


# --- what is submitted


BAD_INPUTS: dict[str, tuple[Any, str | None, list[str]]] = {
    "a list": (["title"], None, ["the input must be a dict of state fields, got list"]),
    "a string": ("title", None, ["the input must be a dict of state fields, got str"]),
    "None": (None, None, ["the input must be a dict of state fields, got NoneType"]),
    "a class": (State, None, ["the input must be a dict of state fields"]),
    "an unknown field": ({"titel": 1}, "titel", ["unknown field 'titel'", "log, tags, title, when"]),
    "a field that is no string": ({1: 1}, "1", ["unknown field 1"]),
    **{f"{case} in it": (make(), field, words) for case, (make, field, words) in BAD_VALUES.items()},
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_an_input_that_does_not_fit_is_refused_and_nothing_is_stored(case: str, store_url: str) -> None:
    given, field, words = BAD_INPUTS[case]
    with Engine(single(fine), store_url) as engine:
        with pytest.raises(StateError) as caught:
            engine.submit(given, run_id="r")
        assert caught.value.field == field
        says(caught.value, *words)
        assert list(engine.runs()) == []
        assert engine.invoke({}, run_id="r") == {"log": ["fine"]}


@dataclass
class Order:
    number: int
    note: str = ""


def test_a_dataclass_that_lacks_a_field_is_an_error_that_names_it(store_url: str) -> None:
    graph = Graph(Order).add_node("work", lambda state: {"note": f"order {state.number}"}).add_edge(START, "work")
    with Engine(graph, store_url) as engine:
        assert engine.invoke({"number": 7}) == {"number": 7, "note": "order 7"}
        error = failure_of(engine.submit({"note": "which?"}))
    assert isinstance(error, StateError) and (error.field, error.node_id) == ("number", "work")
    says(error, "Order cannot be made", "give number in the input, or a default")


@pytest.mark.parametrize("run_id", ["", "a b", "a/b", "é", "a\n", "x" * 129, "\ud800", 42, b"r"], ids=ascii)
def test_a_bad_run_id_is_refused(run_id: Any, store_url: str) -> None:
    with Engine(single(fine), store_url) as engine:
        with pytest.raises(ConfigurationError) as caught:
            engine.submit({}, run_id=run_id)
        assert caught.value.option == "run_id"
        says(caught.value, ascii(run_id), "1 to 128 of A-Z a-z 0-9 . _ : -")
        assert list(engine.runs()) == []


def test_the_longest_run_id_and_every_character_allowed_are_fine(store_url: str) -> None:
    run_id = "AZaz09._:-" + "x" * 118
    with Engine(single(fine), store_url) as engine:
        assert engine.invoke({}, run_id=run_id) == {"log": ["fine"]}
        assert engine.run(run_id).run_id == run_id


@pytest.mark.parametrize("thread_id", ["\ud800", 42], ids=ascii)
def test_a_bad_thread_id_is_refused(thread_id: Any) -> None:
    with Engine(single(fine)) as engine, pytest.raises(ConfigurationError) as caught:
        engine.submit({}, thread_id=thread_id)
    assert caught.value.option == "thread_id"


def test_a_run_id_that_belongs_to_another_run_is_refused(store_url: str) -> None:
    with Engine([single(fine), single(fine, "other")], store_url) as engine:
        first = engine.submit({"title": "one"}, graph="single", run_id="r")
        first.result(WAIT_SECONDS)
        for graph, given in (("single", {"title": "two"}), ("other", {"title": "one"})):
            with pytest.raises(RunExistsError, match=r"'r' belongs to a run of graph 'single'.*choose another") as caught:
                engine.submit(given, graph=graph, run_id="r")
            assert caught.value.run_id == "r"
        assert first.state() == {"title": "one", "log": ["fine"]}


def test_an_unknown_run_is_an_error_that_names_it(store_url: str) -> None:
    with Engine(single(fine), store_url) as engine:
        with pytest.raises(RunNotFoundError, match="no run 'r'") as caught:
            engine.run("r")
        assert caught.value.run_id == "r"
        assert engine.delete("r") is False

        # and one that was there, and is gone
        run = engine.submit({}, run_id="r")
        run.result(WAIT_SECONDS)
        assert engine.delete("r") is True
        calls = (lambda: run.status, run.result, run.state, run.history, run.retry, run.cancel, lambda: list(run.stream()))
        for call in calls:
            with pytest.raises(RunNotFoundError):
                call()


def test_an_unknown_graph_is_an_error_that_lists_those_that_are_loaded() -> None:
    with Engine([single(fine, "b"), single(fine, "a")]) as engine:
        for name in (None, "c"):
            with pytest.raises(UnknownGraphError, match=r"a, b: name one with graph=") as caught:
                engine.submit({}, graph=name)
            assert (caught.value.graph, caught.value.known) == (name, ["a", "b"])


def test_an_unknown_status_is_an_error_that_lists_those_there_are() -> None:
    with Engine(single(fine)) as engine, pytest.raises(ConfigurationError, match="succeeded") as caught:
        list(engine.runs(status="done"))
    assert caught.value.option == "status"


def test_two_graphs_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two graphs have the same name"):
        Engine([single(fine), single(fine)])


@pytest.mark.parametrize("modes", [["values", "tokens"], "values", ["bogus"]], ids=str)
def test_an_unknown_stream_mode_is_refused_before_anything_runs(modes: Any, store_url: str) -> None:
    with Engine(single(fine), store_url) as engine:
        with pytest.raises(ConfigurationError, match=r"stream modes are a list of .*values, updates") as caught:
            list(engine.stream({}, modes))
        assert caught.value.option == "modes"
        assert list(engine.runs()) == []


def test_an_unknown_stream_mode_of_a_run_is_refused(store_url: str) -> None:
    async def follow(run: Run) -> None:
        async for _ in run.astream(["bogus"]):  # type: ignore[list-item]
            pass

    with Engine(single(fine), store_url) as engine:
        run = engine.submit({})
        with pytest.raises(ConfigurationError, match="got \\['bogus'\\]"):
            list(run.stream(["bogus"]))  # type: ignore[list-item]
        with pytest.raises(ConfigurationError, match="got \\['bogus'\\]"):
            asyncio.run(follow(run))
        assert run.result(WAIT_SECONDS) == {"log": ["fine"]}


def test_a_step_that_is_not_committed_has_no_state(store_url: str) -> None:
    with Engine(single(fine), store_url) as engine:
        run = engine.submit({})
        run.result(WAIT_SECONDS)
        for step_id in (-1, 2):
            with pytest.raises(StateError, match=f"no committed step {step_id}") as caught:
                run.state(step_id)
            assert (caught.value.run_id, caught.value.step_id) == (run.run_id, step_id)


# --- the store, and the engine itself


def test_a_database_in_a_folder_that_is_not_there_is_an_error_and_can_be_mended(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/missing/runs.db"
    engine = Engine(single(fine), url)
    for call in (lambda: engine.submit({}), lambda: engine.run("r"), engine.recover):
        with pytest.raises(
            StoreUnavailableError, match=r"missing/runs\.db does not work.*check that its folder exists"
        ) as caught:
            call()
        assert caught.value.url == url
    (tmp_path / "missing").mkdir()
    with engine:
        assert engine.invoke({}) == {"log": ["fine"]}


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs.db").write_text("not a database, but long enough to be read as one" * 100)
    with pytest.raises(StoreUnavailableError, match=r"runs\.db does not work.*not a database"):
        Engine(single(fine), f"sqlite:///{tmp_path}/runs.db").invoke({})


@pytest.mark.parametrize("url", ["redis://localhost", "runs.db", "", "sqlite://", "sqlite:///:memory:"])
def test_a_store_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="sqlite:///path") as caught:
        Engine(single(fine), url).invoke({})
    assert caught.value.option == "store"


def test_a_closed_engine_refuses_everything(store_url: str) -> None:
    engine = Engine(single(fine), store_url)
    engine.invoke({}, run_id="r")
    engine.close()
    engine.close()
    calls: list[Callable[[], Any]] = [
        lambda: engine.submit({}),
        lambda: engine.invoke({}),
        lambda: asyncio.run(engine.ainvoke({})),
        lambda: list(engine.stream({})),
        lambda: engine.run("r"),
        lambda: list(engine.runs()),
        lambda: engine.delete("r"),
        engine.recover,
        engine.__enter__,
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match="this engine is closed; make a new one") as caught:
            call()
        assert caught.value.option == "engine"


def test_a_run_of_a_closed_engine_says_who_goes_on_with_it(
    gate: Gate, sqlite_url: str, parts: Callable[[Engine], Embedded]
) -> None:
    # given an engine that was closed without waiting for its node
    engine = Engine(single(lambda state: gate.enter()), sqlite_url)
    run = engine.submit({})
    gate.await_arrivals()
    parts(engine).close(drain_seconds=0)
    engine.close()
    gate.open()

    # then whoever waits is told so
    for wait in (run.result, lambda: list(run.stream()), lambda: asyncio.run(run.aresult())):
        with pytest.raises(ConfigurationError, match="this engine is closed; the run goes on when another recovers it"):
            wait()


def test_no_run_waits_for_an_engine_whose_store_has_failed(
    store_url: str, gate: Gate, parts: Callable[[Engine], Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(single(lambda state: gate.enter()), store_url) as engine:
        # given a run under way
        run = engine.submit({})
        gate.await_arrivals()

        # when the database goes away
        def refuse(*_: Any) -> Any:
            raise StoreUnavailableError("the disk is full; make room", url=store_url)

        monkeypatch.setattr(parts(engine).store, "commit", refuse)
        gate.open()

        # then whoever waits is told so
        with pytest.raises(StoreUnavailableError, match="the disk is full"):
            run.result(WAIT_SECONDS)
