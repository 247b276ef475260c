"""Threads: several runs over one lasting state, one after the other, whoever executes them."""

from __future__ import annotations

import operator
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest

from lockstep import (
    START,
    ConfigurationError,
    Engine,
    Graph,
    NodeFailedError,
    Run,
    RunCancelledError,
    StateError,
    ThreadBusyError,
)
from lockstep.fsck import check_store

Wait = Callable[[threading.Event], None]


class State(TypedDict, total=False):
    text: str
    turns: int
    log: Annotated[list[str], operator.add]


def answer(state: State) -> State:
    if state["text"] == "fail":
        raise ValueError("as asked")
    return {"turns": state.get("turns", 0) + 1, "log": [f"{len(state['log'])} {state['text']}"]}


def chat(name: str = "chat", **options: Any) -> Graph:
    return Graph(State, name=name, **options).add_node(answer).add_edge(START, "answer")


def held(entered: threading.Event, release: threading.Event, wait: Wait) -> Graph:
    """Whoever says "hold" is held."""

    def node(state: State) -> State:
        if state["text"] == "hold":
            entered.set()
            wait(release)
        return answer(state)

    return Graph(State, name="chat").add_node("answer", node).add_edge(START, "answer")


@pytest.fixture
def entered() -> threading.Event:
    return threading.Event()


@pytest.fixture
def release() -> threading.Event:
    return threading.Event()


def test_each_run_begins_with_what_the_one_before_has_left(one_store: str, abandon: Any) -> None:
    with Engine(chat(), one_store) as engine:
        assert engine.invoke({"text": "a"}, thread_id="t") == {"text": "a", "turns": 1, "log": ["0 a"]}
        assert engine.invoke({"text": "b", "log": ["said"]}, thread_id="t")["log"] == ["0 a", "said", "2 b"]
        # another thread, and no thread, begin anew
        assert engine.invoke({"text": "a"}, thread_id="u")["turns"] == 1
        assert engine.invoke({"text": "a"})["turns"] == 1
        abandon(engine)
    with Engine(chat(), one_store) as engine:
        run = engine.submit({"text": "c"}, thread_id="t", run_id="third")
        assert run.result() == {"text": "c", "turns": 3, "log": ["0 a", "said", "2 b", "3 c"]}
        assert run.state(0) == {"text": "c", "turns": 2, "log": ["0 a", "said", "2 b"]}
        assert len(list(engine.runs(thread_id="t"))) == 3
        assert run.replay().nodes == 1
        assert list(check_store(run.backend.reader)) == []


def test_a_run_waits_for_the_one_before(store_url: str, entered: threading.Event, release: threading.Event, wait: Wait) -> None:
    with Engine(held(entered, release, wait), store_url) as engine:
        first = engine.submit({"text": "hold"}, thread_id="t")
        wait(entered)
        # given others behind it, then they wait, and those of other threads do not
        waiting = [engine.submit({"text": str(n)}, thread_id="t", run_id=f"run-{n}") for n in range(3)]
        assert engine.invoke({"text": "x"}, thread_id="u")["turns"] == 1
        assert [run.status for run in waiting] == ["pending"] * 3
        with pytest.raises(ThreadBusyError, match="wait for it") as caught:
            engine.submit({"text": "y"}, thread_id="t", if_busy="reject")
        assert (caught.value.thread_id, caught.value.run_id) in [("t", run.run_id) for run in [first, *waiting]]
        # when it ends, then they come one after the other
        release.set()
        results = [run.result(10) for run in [first, *waiting]]
        assert [result["turns"] for result in results] == [1, 2, 3, 4]
        assert results[-1]["log"] == ["0 hold", "1 0", "2 1", "3 2"]
        assert engine.submit({"text": "y"}, thread_id="t", if_busy="reject").result(10)["turns"] == 5


def test_many_submit_at_once_and_each_turn_comes_once(store_url: str) -> None:
    with Engine(chat(), store_url) as engine:
        runs: list[Run] = []
        lock = threading.Lock()

        def submit(number: int) -> None:
            run = engine.submit({"text": str(number)}, thread_id="t")
            with lock:
                runs.append(run)

        threads = [threading.Thread(target=submit, args=[number]) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        results = [run.result(30) for run in runs]
    assert sorted(result["turns"] for result in results) == list(range(1, 13))
    longest = max((result["log"] for result in results), key=len)
    assert all(result["log"] == longest[: len(result["log"])] for result in results)


def test_a_run_that_waits_can_be_cancelled_and_is_passed_over(
    entered: threading.Event, release: threading.Event, wait: Wait
) -> None:
    with Engine(held(entered, release, wait)) as engine:
        first = engine.submit({"text": "hold"}, thread_id="t")
        wait(entered)
        second, third = (engine.submit({"text": text}, thread_id="t", run_id=text) for text in ("b", "c"))
        second.cancel("not needed")
        with pytest.raises(RunCancelledError):
            second.result(10)
        assert third.status == "pending"
        release.set()
        assert third.result(10)["log"] == ["0 hold", "1 c"]
        assert first.result(10)["turns"] == 1


def test_after_a_failure_the_thread_goes_on_with_what_was_committed() -> None:
    with Engine(chat()) as engine:
        engine.invoke({"text": "a"}, thread_id="t")
        with pytest.raises(NodeFailedError):
            engine.invoke({"text": "fail"}, thread_id="t")
        # its input was committed, its node was not
        assert engine.invoke({"text": "b"}, thread_id="t") == {"text": "b", "turns": 2, "log": ["0 a", "1 b"]}


def test_a_waiting_run_is_begun_by_whoever_takes_over(
    one_store: str, abandon: Any, entered: threading.Event, release: threading.Event, wait: Wait
) -> None:
    graph = held(entered, release, wait)
    with Engine(graph, one_store) as engine:
        engine.submit({"text": "hold"}, thread_id="t", run_id="first")
        wait(entered)
        engine.submit({"text": "b"}, thread_id="t", run_id="second")
        abandon(engine)
    release.set()
    with Engine(graph, one_store) as engine:
        assert sorted(run.run_id for run in engine.recover()) == ["first", "second"]
        assert engine.run("second").result(10)["log"] == ["0 hold", "1 b"]


def test_runs_of_another_graph_have_a_state_of_their_own() -> None:
    with Engine([chat(), chat("other")]) as engine:
        engine.invoke({"text": "a"}, thread_id="t", graph="chat")
        assert engine.invoke({"text": "a"}, thread_id="t", graph="other")["turns"] == 1


def test_a_version_that_lacks_a_field_of_the_thread_says_so(one_store: str) -> None:
    class Less(TypedDict, total=False):
        text: str

    with Engine(chat(), one_store) as engine:
        engine.invoke({"text": "a"}, thread_id="t")
    less = Graph(Less, name="chat").add_node("answer", lambda state: {"text": "b"}).add_edge(START, "answer")
    with Engine(less, one_store) as engine, pytest.raises(StateError, match="unknown field"):
        engine.invoke({"text": "b"}, thread_id="t")


def test_if_busy_is_checked() -> None:
    with Engine(chat()) as engine, pytest.raises(ConfigurationError, match="if_busy"):
        engine.submit({"text": "a"}, thread_id="t", if_busy="fight")  # type: ignore[arg-type]


def test_a_thread_whose_state_is_damaged_fails_its_next_run_and_nobody_else(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    with Engine(chat(), url) as engine:
        engine.invoke({"text": "a"}, thread_id="t", run_id="first")
        # given a state that is not what was committed
        with sqlite3.connect(tmp_path / "runs.db") as database:
            database.execute("UPDATE steps SET state_hash = zeroblob(32) WHERE run_id = 'first'")
        with pytest.raises(StateError, match="does not have its committed hash"):
            engine.invoke({"text": "b"}, thread_id="t")
        assert engine.invoke({"text": "c"}, thread_id="u")["turns"] == 1
