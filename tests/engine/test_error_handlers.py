"""Error handlers: what runs in a node's place, in the same step, when the node has failed for good."""

from __future__ import annotations

import hashlib
import io
import operator
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest

from lockstep import (
    END,
    START,
    Command,
    ConfigurationError,
    Context,
    Engine,
    Graph,
    NodeFailedError,
    NodeTimeoutError,
    Options,
    RetryPolicy,
    Send,
    StateError,
)
from lockstep.archive import export_run, import_run
from lockstep.fsck import check_store
from lockstep.store import open_store

AT_ONCE = RetryPolicy(max_attempts=2, initial_seconds=0)


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    value: int


def add(text: str) -> Callable[[State], State]:
    def node(state: State) -> State:
        return {"log": [text]}

    return node


def broken(state: Any) -> State:
    raise OSError("it is down")


def mend(state: Any, ctx: Context) -> State:
    return {"log": [f"mend {type(ctx.error).__name__}"]}


def joined(handler: Any = mend, node: Any = broken, **options: Any) -> Graph:
    """before, node and after side by side, then a barrier over all three."""
    graph = Graph(State).add_node("before", add("before")).add_node("node", node, error_handler=handler, **options)
    graph.add_node("after", add("after")).add_node("join", add("join"))
    for name in ("before", "node", "after"):
        graph.add_edge(START, name)
    return graph.add_edge(["before", "node", "after"], "join")


def test_a_handler_takes_the_place_of_its_node_beside_siblings(store_url: str) -> None:
    with Engine(joined(), store_url) as engine:
        run = engine.submit({})
        assert run.result() == {"log": ["before", "mend NodeFailedError", "after", "join"]}
        steps = run.history()
        assert list(check_store(run.backend.reader)) == []

    # then its record is at the node's rank, its path by the formula, and the failure is not lost
    before, handler, after = steps[1].tasks
    assert [task.node_id for task in (before, handler, after)] == ["before", "mend", "after"]
    assert (handler.stands_for, handler.status, handler.attempt) == ("node", "done", 1)
    assert handler.error is not None and "it is down" in handler.error["message"]
    failed = hashlib.sha256(bytes(32) + b"node" + (1).to_bytes(4, "big")).digest()
    assert handler.parent_path == failed.hex()
    assert handler.path == hashlib.sha256(failed + b"mend" + bytes(4)).hexdigest()
    assert handler.order_key == "00000001" + handler.path[:8]
    assert sorted(task.order_key for task in steps[1].tasks) == [task.order_key for task in steps[1].tasks]
    assert steps[2].tasks[0].parent_path == before.path  # The lowest member of a barrier owns its target.


def test_a_handler_runs_once_all_attempts_have_failed_and_has_attempts_of_its_own(store_url: str) -> None:
    calls: Counter[str] = Counter()

    def tries(state: State) -> State:
        calls["tries"] += 1
        raise OSError("down")

    def mends(state: State, ctx: Context) -> State:
        calls["mends"] += 1
        if ctx.attempt == 1:
            raise OSError("still down")
        return {"log": [f"mended at attempt {ctx.attempt}"]}

    with Engine(joined(mends, tries, retry=AT_ONCE), store_url) as engine:
        assert engine.invoke({})["log"] == ["before", "mended at attempt 2", "after", "join"]
        assert engine._running().coordinator.counts.retries == 2
    assert calls == {"tries": 2, "mends": 2}


def test_a_handler_sees_what_its_node_saw_and_the_error(store_url: str) -> None:
    seen: list[Any] = []

    def fan(state: State) -> Command:
        return Command(goto=[Send("work", {"value": number}) for number in range(3)])

    def work(payload: dict[str, int]) -> State:
        if payload["value"] == 1:
            raise ValueError("odd")
        return {"log": [str(payload["value"])]}

    def mend(payload: dict[str, int], ctx: Context) -> State:
        seen.append((payload, ctx.error))
        ctx.emit("mended", payload["value"])
        return {"log": ["mended"]}

    graph = Graph(State).add_node(fan).add_node("work", work, error_handler=mend).add_edge(START, "fan")
    with Engine(graph, store_url) as engine:
        run = engine.submit({})
        assert run.result() == {"log": ["0", "mended", "2"]}
        assert [(event.node_id, event.type) for event in run.backend.reader.events(run.run_id)] == [("mend", "mended")]
    [(payload, error)] = seen
    assert payload == {"value": 1}
    assert isinstance(error, NodeFailedError)
    assert (error.node_id, error.attempt, error.error_type) == ("work", 1, "ValueError")


def test_routers_and_edges_of_the_node_follow_its_handler(store_url: str) -> None:
    def mend(state: State) -> Command:
        return Command(update={"value": 7}, goto="extra")

    def route(state: State) -> str:
        return "seven" if state["value"] == 7 else END

    graph = Graph(State).add_node("node", broken, error_handler=mend).add_edge(START, "node")
    graph.add_node("next", add("next")).add_node("extra", add("extra")).add_node("seven", add("seven"))
    graph.add_edge("node", "next").add_conditional_edges("node", route, ["seven", END])
    with Engine(graph, store_url) as engine:
        assert engine.invoke({}) == {"value": 7, "log": ["next", "extra", "seven"]}


@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_node_returns_wrong_and_its_timeout_are_handled_too(is_async: bool, store_url: str) -> None:
    released = threading.Event()

    def wrong(state: State) -> Any:
        return 3

    def slow(state: State) -> Any:
        released.wait()

    async def amend(state: State, ctx: Context) -> State:
        return mend(state, ctx)

    handler = amend if is_async else mend
    for node, error in ((wrong, StateError), (slow, NodeTimeoutError)):
        with Engine(joined(handler, node, timeout_seconds=0.1), store_url) as engine:
            assert f"mend {error.__name__}" in engine.invoke({})["log"]
    released.set()


def test_a_handler_that_fails_fails_the_run_and_a_retry_begins_with_the_node(store_url: str) -> None:
    calls: list[str] = []
    works = threading.Event()

    def node(state: State, ctx: Context) -> State:
        calls.append("node")
        if works.is_set():
            return {"log": [f"attempt {ctx.attempt}"]}
        raise OSError("down")

    def mend(state: State) -> State:
        calls.append("mend")
        raise ValueError("no idea")

    with Engine(joined(mend, node), store_url) as engine:
        run = engine.submit({})
        with pytest.raises(NodeFailedError) as caught:
            run.result()
        assert (caught.value.node_id, caught.value.error_type) == ("mend", "ValueError")
        assert list(check_store(run.backend.reader)) == []

        works.set()
        run.retry()
        assert run.result()["log"] == ["before", "attempt 2", "after", "join"]
        assert list(check_store(run.backend.reader)) == []
        assert [task.node_id for task in run.history()[1].tasks] == ["before", "node", "after"]
    assert calls == ["node", "mend", "node"]


def test_what_a_handler_has_done_is_kept_when_a_sibling_fails_the_run(store_url: str) -> None:
    calls: Counter[str] = Counter()
    works = threading.Event()

    def mends(state: State) -> State:
        calls["mends"] += 1
        return {"log": ["mended"]}

    def fragile(state: State) -> State:
        if not works.is_set():
            raise OSError("down")
        return {"log": ["fragile"]}

    graph = joined(mends).add_node("fragile", fragile).add_edge(START, "fragile")
    with Engine(graph, store_url, options=Options(fail_fast=False)) as engine:
        run = engine.submit({})
        with pytest.raises(NodeFailedError, match="fragile"):
            run.result()
        works.set()
        run.retry()
        assert run.result()["log"] == ["before", "mended", "after", "fragile", "join"]
    assert calls == {"mends": 1}


def test_a_run_with_handlers_is_the_same_after_its_file_was_imported(sqlite_url: str, tmp_path: Path) -> None:
    with Engine(joined(), sqlite_url) as engine:
        run = engine.submit({}, run_id="run")
        run.result()
        history = run.history()
    with closing(open_store(sqlite_url)) as store, closing(open_store(f"sqlite:///{tmp_path}/other.db")) as other:
        import_run(other, io.BytesIO(b"".join(export_run(store, "run"))))
        assert list(check_store(other)) == []
        assert [step.idempotency_key.hex() for step in other.steps("run", 0, 2)] == [step.idempotency_key for step in history]


def test_a_handler_belongs_to_the_hash_of_its_graph_and_must_be_a_function() -> None:
    def other(state: Any, ctx: Context) -> State:
        return {}

    assert len({joined(handler).compile().hash for handler in (None, mend, other)}) == 3
    with pytest.raises(ConfigurationError, match="error_handler='mend' must be a function"):
        joined("mend")
    with pytest.raises(ConfigurationError, match="error handler 'three' of 'node'"):

        def three(one: Any, two: Any, more: Any) -> State:
            return {}

        joined(three)
