"""The embedded engine as its users see it: runs, results, streams, history, and what it promises about order and isolation."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import json
import operator
import string
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, TypedDict
from uuid import UUID

import pytest

from lockstep import (
    END,
    START,
    Command,
    Context,
    Engine,
    Graph,
    LockstepError,
    NodeFailedError,
    Options,
    Overwrite,
    RetryPolicy,
    Run,
    RunCancelledError,
    RunNotFoundError,
    Send,
    StateError,
    StreamEvent,
    WaitTimeoutError,
    add_messages,
    with_max_concurrent,
    with_queue_depth,
)
from lockstep.broker.inprocess import InProcessBroker
from lockstep.core.ordering import ROOT_PATH, idempotency_key_of, item_key_of, order_key_of, path_of
from lockstep.core.state import State as CoreState
from lockstep.records import Event

if TYPE_CHECKING:
    from conftest import Gate, Queues, RetryRun

    from lockstep.embedded import Embedded

WAIT_SECONDS = 20.0


class State(TypedDict, total=False):
    topic: str
    n: int
    notes: Annotated[list[Any], operator.add]


def single(function: Callable[..., Any], name: str = "single", **node: Any) -> Graph:
    return Graph(State, name=name).add_node("work", function, **node).add_edge(START, "work")


def fan_out(function: Callable[..., Any], count: int, name: str = "fan") -> Graph:
    """Runs `function` on each of the numbers below `count`, side by side."""
    graph = Graph(State, name=name).add_node("work", function)
    return graph.add_conditional_edges(START, lambda state: [Send("work", number) for number in range(count)], ["work"])


def research() -> Graph:
    """Plan, then three searches by Send, then a report: static edges, routers and Sends in one."""
    graph = Graph(State, name="research")
    graph.add_node("plan", lambda state: {"topic": state["topic"].upper()})
    graph.add_node("search", lambda question: {"notes": [question]})
    graph.add_node("report", lambda state: {"n": len(state["notes"])})
    graph.add_edge(START, "plan")
    graph.add_conditional_edges(
        "plan", lambda state: [*(Send("search", f"{state['topic']} {i}") for i in range(3)), "report"], ["search", "report"]
    )
    return graph.add_edge("search", "report")


RESEARCHED = {"topic": "TEA", "notes": ["TEA 0", "TEA 1", "TEA 2"], "n": 3}


def loop(turns: int, name: str = "loop") -> Graph:
    """Counts to `turns`, one step for each."""
    graph = single(lambda state: {"n": state["n"] + 1}, name)
    return graph.add_conditional_edges("work", lambda state: "work" if state["n"] < turns else END)


def fine(state: Any) -> State:
    return {"notes": ["fine"]}


def events_of(run: Run) -> list[tuple[int, str, str, bytes]]:
    found: Sequence[Event] = run.backend.reader.events(run.run_id)
    return [(event.step_id, event.node_id, event.type, event.data) for event in found]


# --- results


def test_invoke_returns_the_final_state(store_url: str) -> None:
    with Engine(research(), store_url) as engine:
        assert engine.invoke({"topic": "tea"}) == RESEARCHED


def test_ainvoke_returns_the_final_state(store_url: str) -> None:
    async def main(engine: Engine) -> dict[str, Any]:
        return await engine.ainvoke({"topic": "tea"}, "r")

    with Engine(research(), store_url) as engine:
        assert asyncio.run(main(engine)) == RESEARCHED
        assert engine.run("r").status == "succeeded"


def test_ainvoke_raises_what_failed_the_run(store_url: str) -> None:
    def work(state: State) -> None:
        raise KeyError("lost")

    with Engine(single(work), store_url) as engine, pytest.raises(NodeFailedError) as caught:
        asyncio.run(engine.ainvoke({}))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync nodes", "async nodes"])
def test_200_ainvokes_at_once_each_get_their_own_result(is_async: bool, store_url: str) -> None:
    async def double(state: State) -> State:
        await asyncio.sleep(0)
        return {"notes": [2 * state["n"]]}

    async def main(engine: Engine) -> list[dict[str, Any]]:
        return await asyncio.gather(*(engine.ainvoke({"n": n}) for n in range(200)))

    with Engine(single(double if is_async else lambda state: {"notes": [2 * state["n"]]}), store_url) as engine:
        assert asyncio.run(main(engine)) == [{"n": n, "notes": [2 * n]} for n in range(200)]


def test_ainvoke_does_not_hold_up_the_callers_loop(
    store_url: str, parts: Callable[[Engine], Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = threading.Event()
    waited: list[bool] = []

    async def main(engine: Engine) -> None:
        result = asyncio.ensure_future(engine.ainvoke({}))
        await asyncio.sleep(0)
        turned.set()
        await result

    with Engine(single(fine), store_url) as engine:
        # given a database that is slow to store the run
        submit = parts(engine).store.submit

        def slow(runs: Any) -> Any:
            waited.append(turned.wait(5))
            return submit(runs)

        monkeypatch.setattr(parts(engine).store, "submit", slow)

        # then the loop goes on meanwhile
        asyncio.run(main(engine))
        assert waited == [True]


def test_submit_returns_at_once_and_result_waits(store_url: str, gate: Gate) -> None:
    def work(state: State) -> State:
        gate.enter()
        return {"topic": "done"}

    with Engine(single(work), store_url) as engine:
        # given a run under way
        run = engine.submit({}, run_id="r")
        gate.await_arrivals()
        assert run.status == "running" and run.error is None

        # when its result is waited for too briefly, then that is said, and the run goes on
        for seconds in (0, 0.01):
            with pytest.raises(WaitTimeoutError, match=r"run r is not done after .* s; it goes on") as caught:
                run.result(seconds)
            assert isinstance(caught.value, TimeoutError)
            assert caught.value.fields == {"run_id": "r", "timeout_seconds": seconds}
            with pytest.raises(WaitTimeoutError) as caught:
                asyncio.run(run.aresult(seconds))
            assert caught.value.fields == {"run_id": "r", "timeout_seconds": seconds}
        assert run.status == "running"

        # when it is done, then everybody gets it, as often as they ask
        gate.open()
        done = {"topic": "done", "notes": []}
        assert run.result(WAIT_SECONDS) == run.result() == asyncio.run(run.aresult()) == engine.run("r").result() == done
        assert run.status == "succeeded"


def test_several_threads_may_wait_for_one_run(gate: Gate) -> None:
    results: list[dict[str, Any]] = []
    with Engine(single(lambda state: gate.enter())) as engine:
        run = engine.submit({"n": 1})
        threads = [threading.Thread(target=lambda: results.append(run.result(WAIT_SECONDS))) for _ in range(8)]
        for thread in threads:
            thread.start()
        gate.open()
        for thread in threads:
            thread.join(WAIT_SECONDS)
    assert results == [{"n": 1, "notes": []}] * 8


def test_several_graphs_live_in_one_engine(store_url: str) -> None:
    with Engine([research(), loop(3)], store_url) as engine:
        assert engine.invoke({"topic": "tea"}, graph="research") == RESEARCHED
        assert engine.invoke({"n": 0}, graph="loop") == {"n": 3, "notes": []}
        assert [run.row().graph for run in engine.runs(graph="loop")] == ["loop"]


# --- one run_id, one run


def test_the_same_run_id_and_input_give_the_same_run(store_url: str) -> None:
    calls: list[str] = []
    graph = single(lambda state: calls.append("work"))
    with Engine(graph, store_url) as engine:
        first, second = (engine.submit({"n": 1}, run_id="r") for _ in range(2))
        assert first.result(WAIT_SECONDS) == second.result(WAIT_SECONDS) == engine.invoke({"n": 1}, "r")
        assert calls == ["work"] and len(list(engine.runs())) == 1


def test_one_run_id_submitted_by_many_threads_at_once_is_one_run(store_url: str) -> None:
    calls: list[str] = []
    start = threading.Barrier(8)
    results: list[dict[str, Any]] = []

    with Engine(single(lambda state: calls.append("work")), store_url) as engine:

        def submit() -> None:
            start.wait(WAIT_SECONDS)
            results.append(engine.submit({"n": 1}, run_id="r").result(WAIT_SECONDS))

        threads = [threading.Thread(target=submit) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_SECONDS)
    assert results == [{"n": 1, "notes": []}] * 8
    assert calls == ["work"]


def test_a_finished_run_is_there_for_the_next_engine(sqlite_url: str) -> None:
    calls: list[str] = []
    graph = single(lambda state: calls.append("work"))
    for _ in range(2):
        with Engine(graph, sqlite_url) as engine:
            assert engine.invoke({"n": 1}, "r") == {"n": 1, "notes": []}
    assert calls == ["work"]


# --- state and history


def test_the_state_after_each_step_can_be_read(store_url: str) -> None:
    with Engine(research(), store_url) as engine:
        run = engine.submit({"topic": "tea"})
        run.result(WAIT_SECONDS)
        states = [run.state(step_id) for step_id in range(4)]
        assert states == [
            {"topic": "tea", "notes": []},
            {"topic": "TEA", "notes": []},
            {"topic": "TEA", "notes": ["TEA 0", "TEA 1", "TEA 2"], "n": 0},
            RESEARCHED,
        ]
        assert run.state() == states[-1] == asyncio.run(run.astate())
        assert asyncio.run(run.astate(1)) == states[1]


def test_the_history_says_what_ran_in_order_and_by_which_keys(store_url: str) -> None:
    with Engine(research(), store_url) as engine:
        run = engine.submit({"topic": "tea"}, run_id="r")
        run.result(WAIT_SECONDS)
        steps = run.history()
        states = [CoreState.of(run.state(step_id)) for step_id in range(4)]
        assert asyncio.run(run.ahistory()) == steps

    # then there is a record for each commit, the input's first
    assert [step.step_id for step in steps] == [0, 1, 2, 3]
    assert [[task.node_id for task in step.tasks] for step in steps] == [
        [],
        ["plan"],
        ["search", "search", "search", "report"],
        ["report"],
    ]
    # whose hashes and keys are those of the formulas
    assert [step.state_hash for step in steps] == [state.hash().hex() for state in states]
    for step, state in zip(steps, states, strict=True):
        paths = [bytes.fromhex(task.path) for task in step.tasks]
        assert step.idempotency_key == idempotency_key_of("r", step.step_id, paths, state.hash()).hex()
        assert step.committed_at > 0
        assert [task.order_key for task in step.tasks] == [
            order_key_of("edge", rank, path).hex() for rank, path in enumerate(paths)
        ]
        assert [task.order_key for task in step.tasks] == sorted(task.order_key for task in step.tasks)
    # and whose tasks know where they come from
    [plan] = steps[1].tasks
    assert (plan.parent_path, plan.edge_index) == (ROOT_PATH.hex(), 0)
    assert [(task.parent_path, task.edge_index) for task in steps[2].tasks] == [(plan.path, index) for index in range(4)]
    assert (steps[3].tasks[0].parent_path, steps[3].tasks[0].edge_index) == (steps[2].tasks[0].path, 0)
    for task in (task for step in steps for task in step.tasks):
        parent = bytes.fromhex(task.parent_path)
        assert task.path == path_of(parent, task.node_id, task.edge_index).hex()
        assert (len(task.path), len(task.parent_path), len(task.order_key)) == (64, 64, 16)
        assert set(task.path + task.parent_path + task.order_key) <= set(string.digits + "abcdef")
        assert (task.status, task.attempt, task.delivery, task.error, task.worker) == ("done", 1, 1, None, "embedded")
        assert task.started_at > 0 and task.latency_ms >= 0
    # and what they did
    assert plan.targets == ["search", "search", "search", "report"]
    assert [task.delta for task in steps[2].tasks] == [
        {"notes": ["TEA 0"]},
        {"notes": ["TEA 1"]},
        {"notes": ["TEA 2"]},
        {"n": 0},
    ]
    assert [task.targets for task in steps[2].tasks] == [[], [], [], []]


def test_the_history_counts_attempts(store_url: str) -> None:
    def work(state: State, ctx: Context) -> State:
        if ctx.attempt < 3:
            raise ValueError
        return {"n": ctx.attempt}

    with Engine(single(work, retry=RetryPolicy(initial_seconds=0)), store_url) as engine:
        run = engine.submit({})
        run.result(WAIT_SECONDS)
        [task] = run.history()[1].tasks
        assert (task.attempt, task.delivery, task.status, task.delta) == (3, 3, "done", {"n": 3})


def test_a_long_history_is_complete(store_url: str) -> None:
    # More steps than are read at a time.
    with Engine(loop(230), store_url) as engine:
        run = engine.submit({"n": 0})
        assert run.result(WAIT_SECONDS)["n"] == 230
        assert [step.step_id for step in run.history()] == list(range(231))
        assert [event.data["n"] for event in run.stream()] == list(range(231))
        assert [event.data for event in run.stream(["updates"])] == [{"n": n} for n in range(1, 231)]
        assert run.state(117)["n"] == 117


# --- streams

VALUES = [
    (0, "values", None, {"topic": "tea", "notes": []}),
    (1, "values", None, {"topic": "TEA", "notes": []}),
    (2, "values", None, {"topic": "TEA", "notes": ["TEA 0", "TEA 1", "TEA 2"], "n": 0}),
    (3, "values", None, RESEARCHED),
]
UPDATES = [
    (1, "updates", "plan", {"topic": "TEA"}),
    (2, "updates", "search", {"notes": ["TEA 0"]}),
    (2, "updates", "search", {"notes": ["TEA 1"]}),
    (2, "updates", "search", {"notes": ["TEA 2"]}),
    (2, "updates", "report", {"n": 0}),
    (3, "updates", "report", {"n": 3}),
]


def plain(events: Sequence[StreamEvent]) -> list[tuple[int, str, str | None, dict[str, Any]]]:
    assert len({event.offset for event in events}) == len(events)
    return [(event.step_id, event.mode, event.node_id, event.data) for event in events]


async def collected(events: AsyncIterator[StreamEvent]) -> list[StreamEvent]:
    return [event async for event in events]


STREAMS: dict[str, tuple[list[Any], list[Any]]] = {
    "values": (["values"], VALUES),
    "updates": (["updates"], UPDATES),
    # A step's updates come before its values.
    "both": (["values", "updates"], sorted(UPDATES + VALUES, key=lambda event: (event[0], event[1]))),
}


@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_gives_the_steps_in_order(case: str, store_url: str) -> None:
    modes, expected = STREAMS[case]
    with Engine(research(), store_url) as engine:
        assert plain(list(engine.stream({"topic": "tea"}, modes))) == expected
        assert plain(asyncio.run(collected(engine.astream({"topic": "tea"}, modes, run_id="r")))) == expected
        # and again, of a run that is over, by whoever asks
        assert plain(list(engine.run("r").stream(modes))) == expected
        assert plain(asyncio.run(collected(engine.run("r").astream(modes)))) == expected


def test_values_are_what_is_streamed_unless_something_else_is_asked_for() -> None:
    with Engine(research()) as engine:
        assert plain(list(engine.stream({"topic": "tea"}))) == VALUES
        assert plain(asyncio.run(collected(engine.astream({"topic": "tea"})))) == VALUES


def test_a_step_is_streamed_when_it_is_committed(store_url: str, gate: Gate) -> None:
    graph = single(lambda state: {"n": 1}).add_node("later", lambda state: gate.enter()).add_edge("work", "later")
    with Engine(graph, store_url) as engine:
        # given a run that is held in its second step
        stream = engine.stream({})
        assert [next(stream).data, next(stream).data] == [{"notes": []}, {"notes": [], "n": 1}]

        # then the third event comes with the rest of the run
        gate.open()
        assert [event.step_id for event in stream] == [2]


def test_a_slow_reader_holds_nothing_up_and_misses_nothing(store_url: str) -> None:
    with Engine(loop(30), store_url) as engine:
        # given a reader that takes one event
        stream = engine.stream({"n": 0}, run_id="r")
        assert next(stream).step_id == 0

        # when the run ends long before it takes the next
        assert engine.run("r").result(WAIT_SECONDS)["n"] == 30

        # then it gets all the others
        assert [event.data["n"] for event in stream] == list(range(1, 31))


def test_a_reader_may_break_off(store_url: str, gate: Gate, parts: Callable[[Engine], Embedded]) -> None:
    with Engine(single(lambda state: gate.enter()), store_url) as engine:
        run = engine.submit({})

        async def first(run: Run) -> StreamEvent:
            events = run.astream()
            try:
                async for event in events:
                    return event
            finally:
                await events.aclose()  # type: ignore[attr-defined]
            raise AssertionError("no event")

        for event in run.stream():
            assert event.step_id == 0
            break
        assert asyncio.run(first(run)).step_id == 0

        # then nobody is told any more, and the run goes on
        gc.collect()
        assert parts(engine)._subscribers == {}
        gate.open()
        assert run.result(WAIT_SECONDS) == {"notes": []}


def test_a_reader_that_is_cancelled_ends_as_cancelled(store_url: str, gate: Gate) -> None:
    async def follow(run: Run, started: asyncio.Event) -> None:
        async for _ in run.astream():
            started.set()

    async def main(run: Run) -> None:
        # given a reader that waits for an event
        started = asyncio.Event()
        reader = asyncio.ensure_future(follow(run, started))
        await started.wait()

        # when its task is cancelled, as a web server does when the client has gone
        await asyncio.sleep(0.05)  # Most likely it waits by now; if not, this shows less.
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader

    with Engine(single(lambda state: gate.enter()), store_url) as engine:
        run = engine.submit({})
        asyncio.run(main(run))
        gate.open()
        assert run.result(WAIT_SECONDS) == {"notes": []}


@pytest.mark.parametrize("is_async", [False, True], ids=["stream", "astream"])
def test_a_stream_of_a_run_that_fails_ends_with_its_error(is_async: bool, store_url: str) -> None:
    def later(state: State) -> None:
        raise KeyError("lost")

    graph = single(lambda state: {"n": 1}).add_node(later).add_edge("work", "later")
    seen: list[int] = []

    async def follow(engine: Engine) -> None:
        async for event in engine.astream({}):
            seen.append(event.step_id)

    with Engine(graph, store_url) as engine:
        with pytest.raises(NodeFailedError, match="'later' raised KeyError") as caught:
            if is_async:
                asyncio.run(follow(engine))
            else:
                for event in engine.stream({}):
                    seen.append(event.step_id)
        assert isinstance(caught.value.__cause__, KeyError)
        assert seen == [0, 1]


def test_the_cause_of_a_failure_is_there_when_the_failure_can_be_read(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(state: State) -> None:
        raise KeyError("lost")

    with Engine(single(lost), store_url) as engine:
        parts = engine._running()
        commit = parts.store.commit
        causes: list[BaseException | None] = []

        def commit_and_look(*group: Any) -> Any:
            outcomes = commit(*group)
            # Another thread may read the run now, before the loop does anything else.
            if parts.store.find_runs(run_ids=["early"])[0].status == "failed":
                causes.append(parts.cause_of("early"))
            return outcomes

        monkeypatch.setattr(parts.store, "commit", commit_and_look)
        with pytest.raises(NodeFailedError):
            engine.invoke({}, run_id="early")
    assert [type(cause) for cause in causes] == [KeyError]


# --- listing and deleting


def test_runs_are_listed_by_id_filtered_and_paged(store_url: str) -> None:
    def picky(state: State) -> None:
        if state["n"] == 7:
            raise ValueError

    with Engine([single(picky), single(fine, "other")], store_url) as engine:
        # given more runs than are read at a time
        submitted = [engine.submit({"n": n % 100}, graph="single", run_id=f"run-{n:03}") for n in range(250)]
        engine.invoke({}, graph="other", run_id="another")
        for run in submitted:
            asyncio.run(settled(run))

        # then all are listed, in order
        ids = [run.run_id for run in submitted]
        assert [run.run_id for run in engine.runs()] == ["another", *ids]
        # and by what they are asked for
        failed = ["run-007", "run-107", "run-207"]
        assert [run.run_id for run in engine.runs(status="failed")] == failed
        assert [run.run_id for run in engine.runs(status="failed", graph="other")] == []
        assert [run.run_id for run in engine.runs(graph="other")] == ["another"]
        assert [run.run_id for run in engine.runs(status="succeeded", graph="single")] == [i for i in ids if i not in failed]
        assert list(engine.runs(graph="nothing")) == list(engine.runs(status="cancelled")) == []
        assert all(run.status == "failed" for run in engine.runs(status="failed"))


async def settled(run: Run) -> None:
    with contextlib.suppress(NodeFailedError, RunCancelledError):
        await run.aresult(WAIT_SECONDS)


def test_a_finished_run_is_deleted_with_all_it_has(store_url: str, gate: Gate) -> None:
    def work(state: State, ctx: Context) -> None:
        ctx.emit("begun")
        if state["n"] == 0:
            gate.enter()

    with Engine(single(work), store_url) as engine:
        held, done = engine.submit({"n": 0}, run_id="held"), engine.submit({"n": 1}, run_id="done")
        gate.await_arrivals()
        done.result(WAIT_SECONDS)

        # given one run that is under way and one that is not, then only the latter can go
        assert engine.delete("held") is False
        assert engine.delete("done") is True
        assert engine.delete("done") is False
        assert [run.run_id for run in engine.runs()] == ["held"]
        assert events_of(done) == []
        with pytest.raises(RunNotFoundError):
            engine.run("done")

        # and its id is free
        assert engine.invoke({"n": 2}, "done") == {"n": 2, "notes": []}
        gate.open()
        held.result(WAIT_SECONDS)


# --- cancel


def test_a_cancelled_run_starts_nothing_more(store_url: str, gate: Gate, queues: Queues) -> None:
    started: list[str] = []

    def work(state: State, ctx: Context) -> None:
        started.append(ctx.node_id)
        gate.enter()

    graph = Graph(State, name="three")
    for node_id in ("a", "b", "c"):
        graph.add_node(node_id, work).add_edge(START, node_id)
    with Engine([graph, single(fine)], store_url, with_max_concurrent(1)) as engine:
        # given a run of three items, the first of which has the only slot
        run = engine.submit({}, graph="three", run_id="r", options=Options(max_concurrent=3))
        gate.await_arrivals()
        queues.until(lambda: len(queues.enqueued) == 3)

        # when it is cancelled, then it is at an end, without waiting for the node
        run.cancel("not wanted")
        with pytest.raises(RunCancelledError, match="run r was cancelled: not wanted") as caught:
            run.result(WAIT_SECONDS)
        assert caught.value.fields == {"run_id": "r", "reason": "not wanted"}
        assert run.status == "cancelled"
        assert run.error is not None and run.error.to_record() == caught.value.to_record()

        # and what was queued has gone
        gate.open()
        assert engine.invoke({}, graph="single") == {"notes": ["fine"]}
        assert started == ["a"]
        assert run.state() == {"notes": []}

        # and to cancel or retry it changes nothing
        run.cancel("again")
        run.retry()
        assert engine.invoke({}, graph="single") == {"notes": ["fine"]}
        assert (run.status, run.row().retries) == ("cancelled", 0)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_node_of_a_cancelled_run_is_told(is_async: bool, gate: Gate) -> None:
    told, over = threading.Event(), threading.Event()

    def work(state: State, ctx: Context) -> None:
        gate.open()
        while not over.is_set():
            if ctx.cancelled:
                told.set()
                return
            threading.Event().wait(0.005)

    async def work_async(state: State, ctx: Context) -> None:
        gate.open()
        try:
            while not over.is_set() and not ctx.cancelled:
                await asyncio.sleep(0.005)
        finally:
            if ctx.cancelled:
                told.set()

    with Engine(single(work_async if is_async else work)) as engine:
        run = engine.submit({})
        gate.enter()
        run.cancel()
        with pytest.raises(RunCancelledError):
            run.result(WAIT_SECONDS)
        was_told = told.wait(5)
        over.set()
        assert was_told


def test_commands_leave_no_timers_behind(parts: Callable[[Engine], Embedded]) -> None:
    # Each would look into the store every second for as long as the engine lives.
    with Engine(single(fine)) as engine:
        for _ in range(50):
            run = engine.submit({})
            run.cancel()
            asyncio.run(settled(run))
        assert len(parts(engine).coordinator._timers) < 10


# --- types


class Colour(Enum):
    RED = "red"
    GREEN = "green"


@dataclass
class Line:
    sku: str
    price: Decimal
    colours: list[Colour] = field(default_factory=list)


def latest(current: datetime, update: datetime) -> datetime:
    return max(current, update)


class Typed(TypedDict, total=False):
    at: datetime
    day: date
    pause: timedelta
    amount: Decimal
    key: UUID
    colour: Colour
    tags: set[str]
    raw: bytes
    pair: tuple[int, str]
    lines: list[Line]
    best: Line | None
    prices: Annotated[list[Decimal], operator.add]
    seen_at: Annotated[datetime, latest]


TYPED: dict[str, Any] = {
    "at": datetime(2024, 2, 29, 12, 30, 1, 5, UTC),
    "day": date(2024, 2, 29),
    "pause": timedelta(hours=1, milliseconds=5),
    "amount": Decimal("10.10"),
    "key": UUID("12345678-1234-5678-1234-567812345678"),
    "colour": Colour.GREEN,
    "tags": {"b", "a"},
    "raw": b"\x00\xff",
    "pair": (1, "one"),
    "lines": [Line("x", Decimal("1.50"), [Colour.RED])],
    "best": None,
    "prices": [Decimal("0.10")],
    "seen_at": datetime(2024, 1, 1, tzinfo=UTC),
}


def same_types(one: Any, other: Any) -> bool:
    return one == other and all(type(one[name]) is type(other[name]) for name in one)


def test_typed_fields_keep_their_types_on_the_way(store_url: str) -> None:
    received: list[Any] = []
    later = datetime(2025, 1, 1, tzinfo=UTC)

    def work(state: Typed) -> Typed:
        received.append(state)
        return {
            "amount": state["amount"] + 1,
            "tags": state["tags"] | {"c"},
            "best": state["lines"][0],
            "prices": [Decimal("0.20")],
            "seen_at": later,
        }

    graph = Graph(Typed).add_node(work).add_node("sent", received.append).add_edge(START, "work")
    graph.add_conditional_edges("work", lambda state: Send("sent", {"lines": state["lines"], "note": "x"}), ["sent"])
    changed = {
        **TYPED,
        "amount": Decimal("11.10"),
        "tags": {"a", "b", "c"},
        "best": TYPED["lines"][0],
        "prices": [Decimal("0.10"), Decimal("0.20")],
        "seen_at": later,
    }
    with Engine(graph, store_url) as engine:
        result = engine.invoke(TYPED, "r")
        # then the node got what was given, and the caller what it made of it
        assert same_types(received[0], TYPED)
        assert same_types(result, changed)
        # and a Send's payload has the types of the fields it names
        assert received[1] == {"lines": TYPED["lines"], "note": "x"}
        assert type(received[1]["lines"][0]) is Line
        # and so have states, and streams of values
        run = engine.run("r")
        assert same_types(run.state(0), TYPED) and same_types(run.state(), changed)
        assert [event.data for event in run.stream()] == [TYPED, changed, changed]
        # while the record is JSON
        assert run.json_state()["amount"] == "11.10" and run.json_state()["tags"] == ["a", "b", "c"]


@dataclass
class Basket:
    owner: str
    lines: Annotated[list[Line], operator.add] = field(default_factory=list)
    total: Decimal = Decimal(0)
    colour: Colour = Colour.RED


def test_a_dataclass_is_what_nodes_get_and_may_return(store_url: str) -> None:
    received: list[Basket] = []

    def work(basket: Basket) -> dict[str, Any]:
        received.append(basket)
        return {"total": sum((line.price for line in basket.lines), Decimal(0)), "lines": [Line("free", Decimal(0))]}

    line = Line("x", Decimal("1.50"))
    with Engine(Graph(Basket).add_node(work).add_edge(START, "work"), store_url) as engine:
        # given an input as an instance, or as a dict without what has a default
        for given in (Basket("me", [line]), {"owner": "me", "lines": [line]}):
            result = engine.invoke(given)
            assert received[-1] == Basket("me", [line])
            assert result == {
                "owner": "me",
                "lines": [line, Line("free", Decimal(0))],
                "total": Decimal("1.50"),
                "colour": Colour.RED,
            }


def test_a_router_of_a_dataclass_sees_the_nodes_own_delta() -> None:
    seen: list[Basket] = []

    def choose(basket: Basket) -> str:
        seen.append(basket)
        return END

    graph = Graph(Basket).add_node("work", lambda basket: {"total": Decimal(5)}).add_edge(START, "work")
    with Engine(graph.add_conditional_edges("work", choose)) as engine:
        engine.invoke({"owner": "me"})
    assert seen == [Basket("me", [], Decimal(5))]


# --- isolation


def test_no_node_sees_what_another_does_to_its_input(store_url: str) -> None:
    seen: list[list[Any]] = []
    lock = threading.Lock()

    def vandal(state: State) -> None:
        with lock:
            seen.append(copy.deepcopy(state["notes"]))
            state["notes"].append("broken")
            state["notes"][0]["deep"].append("broken")
            state["topic"] = "broken"

    given: State = {"notes": [{"deep": []}], "topic": "tea"}
    graph = Graph(State)
    for node_id in ("a", "b", "c"):
        graph.add_node(node_id, vandal).add_edge(START, node_id)
    graph.add_node("after", vandal).add_edge(["a", "b", "c"], "after")
    with Engine(graph, store_url) as engine:
        assert engine.invoke(given) == {"notes": [{"deep": []}], "topic": "tea"}
    assert seen == [[{"deep": []}]] * 4
    assert given == {"notes": [{"deep": []}], "topic": "tea"}


def test_what_is_handed_on_is_as_it_was_then(store_url: str) -> None:
    shared: dict[str, Any] = {"a": 1}

    def work(state: State, ctx: Context) -> list[dict[str, Any] | Command]:
        ctx.emit("first", shared)
        shared["a"] = 2
        return [{"notes": [shared]}, Command(goto=Send("next", shared))]

    def following(payload: dict[str, Any]) -> State:
        payload["a"] = 3
        return {"notes": [payload]}

    graph = single(work).add_node("next", following)
    with Engine(graph, store_url) as engine:
        run = engine.submit({})
        result = run.result(WAIT_SECONDS)
        shared["a"] = 4
        assert result == run.state() == {"notes": [{"a": 2}, {"a": 3}]}
        assert events_of(run) == [(1, "work", "first", b'{"a":1}')]
        # and what a caller does to a result changes nothing
        result["notes"].clear()
        assert run.result() == {"notes": [{"a": 2}, {"a": 3}]}


# --- graphs of every kind


class Chat(TypedDict):
    messages: Annotated[list[dict[str, Any]], add_messages]


def test_a_chat_loop_keeps_its_messages(store_url: str) -> None:
    def answer(state: Chat) -> dict[str, Any]:
        turn = len([message for message in state["messages"] if message["role"] == "assistant"])
        return {"messages": {"role": "assistant", "content": f"answer {turn}", "id": f"a{turn}"}}

    def tool(state: Chat) -> dict[str, Any]:
        last = state["messages"][-1]
        return {"messages": [{**last, "content": last["content"] + "!"}, {"role": "tool", "content": "42"}]}

    graph = Graph(Chat).add_node(answer).add_node(tool).add_edge(START, "answer").add_edge("tool", "answer")
    graph.add_conditional_edges("answer", lambda state: "tool" if len(state["messages"]) < 5 else END, ["tool", END])
    with Engine(graph, store_url) as engine:
        result = engine.invoke({"messages": [{"role": "user", "content": "hello"}]})
    assert result["messages"] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "answer 0!", "id": "a0"},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "answer 1!", "id": "a1"},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "answer 2", "id": "a2"},
    ]


def test_commands_update_and_go_where_they_say(store_url: str) -> None:
    def first(state: State) -> Command:
        return Command(update={"n": 1}, goto=["left", Send("right", {"n": 10}), Send("right", {"n": 20})])

    def left(state: State) -> list[Any]:
        return [{"notes": ["left", state["n"]]}, Command(update={"n": 5}, goto=END)]

    graph = Graph(State).add_node(first).add_node(left).add_edge(START, "first")
    graph.add_node("right", lambda payload: {"notes": ["right", payload["n"]]})
    with Engine(graph, store_url) as engine:
        run = engine.submit({})
        assert run.result(WAIT_SECONDS) == {"n": 5, "notes": ["left", 1, "right", 10, "right", 20]}
        [task] = run.history()[1].tasks
        assert task.targets == ["left", "right", "right"]
        assert [task.edge_index for task in run.history()[2].tasks] == [0, 1, 2]


def test_overwrite_replaces_what_is_there_and_what_siblings_write(store_url: str) -> None:
    graph = Graph(State)
    graph.add_node("a", fine).add_node("b", lambda state: {"notes": Overwrite(["new"])}).add_node("c", fine)
    for node_id in ("a", "b", "c"):
        graph.add_edge(START, node_id)
    with Engine(graph, store_url) as engine:
        assert engine.invoke({"notes": ["old"]}) == {"notes": ["new"]}


def test_a_barrier_waits_for_all_and_deferred_nodes_for_everything(store_url: str) -> None:
    graph = Graph(State)
    for node_id in ("a", "b", "b2", "join", "last"):
        graph.add_node(node_id, lambda state, node_id=node_id: {"notes": [node_id]}, defer=node_id == "last")
    graph.add_edge(START, "a").add_edge(START, "b").add_edge("b", "b2").add_edge(["a", "b2"], "join").add_edge(START, "last")
    with Engine(graph, store_url) as engine:
        assert engine.invoke({})["notes"] == ["a", "b", "b2", "join", "last"]


def test_a_reducer_of_the_whole_state_sees_each_delta_in_order(store_url: str) -> None:
    def whole(state: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
        return {**state, "n": state.get("n", 0) * 10 + delta["n"]}

    graph = Graph(State, reducer=whole)
    for n in (1, 2, 3):
        graph.add_node(f"n{n}", lambda state, n=n: {"n": n}).add_edge(START, f"n{n}")
    with Engine(graph, store_url) as engine:
        assert engine.invoke({"n": 9})["n"] == 9123


def test_a_node_may_run_another_engine(store_url: str) -> None:
    with Engine(single(fine, "inner")) as inner:

        def work(state: State) -> State:
            return {"notes": inner.invoke({"notes": ["given"]})["notes"]}

        with Engine(single(work), store_url) as engine:
            assert engine.invoke({}) == {"notes": ["given", "fine"]}


# --- the context


def test_the_context_says_what_the_history_says(store_url: str) -> None:
    contexts: list[dict[str, Any]] = []

    def work(state: State, ctx: Context) -> State:
        names = ("run_id", "step_id", "node_id", "attempt", "delivery", "order_key", "path", "idempotency_key", "cancelled")
        contexts.append({name: getattr(ctx, name) for name in names})
        assert isinstance(ctx.rng, Random) and ctx.rng is ctx.rng
        ctx.logger.debug("working")
        return {"n": state.get("n", 0) + 1}

    async def work_async(state: State, ctx: Context) -> State:
        return work(state, ctx)

    graph = single(work).add_node("again", work_async).add_edge("work", "again")
    with Engine(graph, store_url) as engine:
        run = engine.submit({}, run_id="r")
        run.result(WAIT_SECONDS)
        tasks = [(step.step_id, task) for step in run.history() for task in step.tasks]
    assert contexts == [
        {
            "run_id": "r",
            "step_id": step_id,
            "node_id": task.node_id,
            "attempt": 1,
            "delivery": 1,
            "order_key": task.order_key,
            "path": task.path,
            "idempotency_key": item_key_of("r", bytes.fromhex(task.path)),
            "cancelled": False,
        }
        for step_id, task in tasks
    ]


def test_rng_and_idempotency_key_stay_the_same_over_attempts_and_change_from_turn_to_turn(store_url: str) -> None:
    drawn: list[tuple[int, int, float, str]] = []

    def work(state: State, ctx: Context) -> State:
        drawn.append((state["n"], ctx.attempt, ctx.rng.random(), ctx.idempotency_key))
        if ctx.attempt == 1:
            raise ValueError
        return {"n": state["n"] + 1}

    graph = single(work, retry=RetryPolicy(initial_seconds=0))
    graph.add_conditional_edges("work", lambda state: "work" if state["n"] < 3 else END)
    with Engine(graph, store_url) as engine:
        engine.invoke({"n": 0})
    assert [(turn, attempt) for turn, attempt, _, _ in drawn] == [(turn, attempt) for turn in range(3) for attempt in (1, 2)]
    assert drawn[0][2:] == drawn[1][2:] and drawn[2][2:] == drawn[3][2:]
    assert len({number for _, _, number, _ in drawn}) == len({key for _, _, _, key in drawn}) == 3


def test_routers_may_take_the_context() -> None:
    def choose(state: State, ctx: Context) -> str:
        return END if ctx.rng.random() < 2 and ctx.node_id == "work" else "work"

    with Engine(single(fine).add_conditional_edges("work", choose)) as engine:
        assert engine.invoke({}) == {"notes": ["fine"]}


# --- events


def test_events_are_there_in_order_once_the_step_is_committed(store_url: str, new_gate: Callable[[], Gate]) -> None:
    first, second = new_gate(), new_gate()

    def slow(state: State, ctx: Context) -> None:
        ctx.emit("slow", {"n": 1})
        first.enter()
        ctx.emit("slow", {"n": 2})

    def quick(state: State, ctx: Context) -> None:
        ctx.emit("quick")

    def after(state: State, ctx: Context) -> None:
        ctx.emit("after", ["x"])
        second.enter()

    graph = Graph(State).add_node(slow).add_node(quick).add_node(after)
    graph.add_edge(START, "slow").add_edge(START, "quick").add_edge(["slow", "quick"], "after")
    with Engine(graph, store_url) as engine:
        # given a step of which one node is done, and has emitted
        run = engine.submit({})
        first.await_arrivals()
        assert events_of(run) == []

        # when the step is committed, then its events are there, in order_key order
        first.open()
        second.await_arrivals()
        expected = [(1, "slow", "slow", b'{"n":1}'), (1, "slow", "slow", b'{"n":2}'), (1, "quick", "quick", b"null")]
        assert events_of(run) == expected

        # and the next step's come with it
        second.open()
        run.result(WAIT_SECONDS)
        assert events_of(run) == [*expected, (2, "after", "after", b'["x"]')]
        rows = run.backend.reader.events(run.run_id)
        assert [(row.sequence, row.position) for row in rows] == sorted((row.sequence, row.position) for row in rows)
        assert run.backend.reader.events(run.run_id, rows[2].sequence) == rows[3:]


def test_events_of_failed_attempts_and_uncommitted_steps_are_not_there(store_url: str, retry: RetryRun) -> None:
    mended: list[bool] = []

    def tries(state: State, ctx: Context) -> None:
        ctx.emit("tried", ctx.attempt)
        if ctx.attempt == 1:
            raise ValueError

    def broken(state: State, ctx: Context) -> None:
        ctx.emit("broken")
        if not mended:
            raise ValueError

    graph = Graph(State).add_node("tries", tries, retry=RetryPolicy(initial_seconds=0)).add_node(broken)
    graph.add_edge(START, "tries").add_edge(START, "broken")
    with Engine(graph, store_url, options=Options(fail_fast=False)) as engine:
        # given a step that fails in one of its nodes
        run = engine.submit({})
        with pytest.raises(NodeFailedError):
            run.result(WAIT_SECONDS)
        assert [event[1:3] for event in events_of(run)] == [("broken", "lockstep.failed")]

        # when it is committed after all, then each node's events are there once
        mended.append(True)
        retry(run)
        run.result(WAIT_SECONDS)
        assert events_of(run)[1:] == [(1, "tries", "tried", b"2"), (1, "broken", "broken", b"null")]


def test_what_ends_a_run_is_an_event_too(store_url: str) -> None:
    def broken(state: State) -> None:
        raise ValueError("no")

    def cancelled(state: State, ctx: Context) -> None:
        engine.run(ctx.run_id).cancel("enough")
        while not ctx.cancelled:
            time.sleep(0.001)

    with Engine([single(broken, name="broken"), single(cancelled, name="cancelled")], store_url) as engine:
        for name in ("broken", "cancelled"):
            with pytest.raises(LockstepError):
                engine.invoke({}, run_id=name, graph=name)
        runs = {name: engine.run(name) for name in ("broken", "cancelled")}
        said = {
            name: [(e.step_id, e.type, e.node_id, json.loads(e.data)) for e in events]
            for name, events in ((name, run.backend.reader.events(name)) for name, run in runs.items())
        }
        ended = engine._running().coordinator.counts.ended
    text = "node 'work' raised ValueError: no"
    error = {"attempt": 1, "message": text, "node_id": "work", "step_id": 1, "type": "NodeFailedError"}
    assert said["broken"] == [(0, "lockstep.failed", "work", error)]
    [(step_id, kind, node_id, data)] = said["cancelled"]
    assert (step_id, kind, node_id, data["type"]) == (0, "lockstep.cancelled", "", "RunCancelledError")
    assert data["message"] == "run cancelled was cancelled: enough"
    assert ended == {("failed", "NodeFailedError"): 1, ("cancelled", "RunCancelledError"): 1}


def test_the_engine_s_types_of_events_are_not_for_nodes(store_url: str) -> None:
    reserved = r"types that begin with 'lockstep\.' are the engine's; choose another"
    emitting = single(lambda state, ctx: ctx.emit("lockstep.failed"))
    with Engine(emitting, store_url) as engine, pytest.raises(StateError, match=reserved):
        engine.invoke({})


# --- order and fairness


@pytest.mark.parametrize("ordering", ["edge", "hash"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_with_one_slot_nodes_start_in_ascending_order_key(
    ordering: Any, is_async: bool, store_url: str, queues: Queues
) -> None:
    started: list[tuple[int, str]] = []

    def work(state: State, ctx: Context) -> None:
        started.append((ctx.step_id, ctx.order_key))

    async def work_async(state: State, ctx: Context) -> None:
        work(state, ctx)

    # given two steps of 20 nodes each
    graph = Graph(State, ordering=ordering)
    for number in range(20):
        graph.add_node(f"a{number}", work_async if is_async else work).add_edge(START, f"a{number}")
        graph.add_node(f"b{number}", work).add_edge(f"a{number}", f"b{number}")
    with Engine(graph, store_url, with_max_concurrent(1)) as engine:
        run = engine.submit({}, options=Options(max_concurrent=64))
        run.result(WAIT_SECONDS)
        recorded = [(step.step_id, task.order_key) for step in run.history() for task in step.tasks]

    # then they were enqueued, and have started, in the order of their keys
    assert started == sorted(started) == recorded
    assert [(task.step_id, task.order_key.hex()) for task in queues.enqueued] == started


@pytest.mark.parametrize("ordering", ["edge", "hash"])
def test_deltas_merge_in_ascending_order_key_whoever_finishes_first(ordering: Any, store_url: str) -> None:
    count = 8
    done = [threading.Event() for _ in range(count + 1)]
    done[count].set()

    def work(number: int) -> State:
        assert done[number + 1].wait(WAIT_SECONDS)
        done[number].set()
        return {"notes": [number]}

    # given eight branches that finish in reverse order
    graph = Graph(State, ordering=ordering)
    for number in range(count):
        graph.add_node(f"n{number}", lambda state, number=number: work(number)).add_edge(START, f"n{number}")
    with Engine(graph, store_url) as engine:
        run = engine.submit({})
        notes = run.result(WAIT_SECONDS)["notes"]
        tasks = run.history()[1].tasks

    # then the result is in the order of their keys
    assert notes == [int(task.node_id[1:]) for task in tasks]
    assert [task.order_key for task in tasks] == sorted(task.order_key for task in tasks)
    assert ordering == "hash" or notes == list(range(count))
    assert ordering == "edge" or [task.order_key for task in tasks] == [task.path[:16] for task in tasks]


@pytest.mark.parametrize(
    ("in_flight", "queue_depth", "most"),
    [(1, 1024, 1), (64, 1024, 64), (64, 4, 6)],
    ids=["one in flight", "default", "short queue"],
)
def test_a_run_of_1000_items_does_not_hold_up_a_run_of_one(
    in_flight: int,
    queue_depth: int,
    most: int,
    gate: Gate,
    queues: Queues,
    parts: Callable[[Engine], Embedded],
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    started: list[int] = []
    before: list[int] = []

    def work(number: int) -> State:
        if number == 0:
            gate.enter()
        started.append(number)
        return {"notes": [number]}

    # given one slot, and a large run that has it
    graphs = [fan_out(work, 1000, "large"), single(lambda state: before.append(len(started)), "small")]
    with Engine(graphs, "memory://", with_max_concurrent(1), with_queue_depth(queue_depth)) as engine:
        large = engine.submit({}, graph="large", options=Options(max_concurrent=in_flight))
        gate.await_arrivals()

        # when a small run comes
        small = engine.submit({}, graph="small")
        counts = parts(engine).coordinator.counts
        eventually(lambda: queues.count(small) == 1 or counts.backpressure_events == 2)
        gate.open()
        small.result(WAIT_SECONDS)

        # then it waits only for what was in flight before it came
        assert before[0] <= most
        assert large.result(WAIT_SECONDS)["notes"] == list(range(1000))


# --- engines


def test_two_engines_in_one_process_share_nothing(gate: Gate) -> None:
    with Engine(single(lambda state: gate.enter())) as one:
        held = one.submit({}, run_id="r")
        gate.await_arrivals()

        # given another engine with a run of the same id
        with Engine(single(fine)) as other:
            assert other.invoke({}, run_id="r") == {"notes": ["fine"]}
            assert [run.status for run in one.runs()] == ["running"]

        # when it is closed, then the first one goes on
        gate.open()
        assert held.result(WAIT_SECONDS) == {"notes": []}


def test_two_engines_on_one_file_each_move_their_own_runs(sqlite_url: str, gate: Gate) -> None:
    calls: list[str] = []

    def work(state: State) -> State:
        calls.append(state["topic"])
        if state["topic"] == "held":
            gate.enter()
        return {"notes": [state["topic"]]}

    with Engine(single(work), sqlite_url) as one, Engine(single(work), sqlite_url) as other:
        # given a run of the one, under way
        held = one.submit({"topic": "held"}, run_id="held")
        gate.await_arrivals()

        # then the other works, sees it, waits for it, and leaves it alone
        assert other.invoke({"topic": "quick"})["notes"] == ["quick"]
        assert other.recover() == []
        seen = other.submit({"topic": "held"}, run_id="held")
        assert seen.status == "running"
        gate.open()
        assert seen.result(WAIT_SECONDS) == held.result(WAIT_SECONDS) == {"topic": "held", "notes": ["held"]}
    assert calls == ["held", "quick"]


def test_an_engine_that_is_closed_commits_what_its_nodes_return(sqlite_url: str, gate: Gate) -> None:
    calls: list[str] = []

    def first(state: State) -> State:
        calls.append("first")
        gate.enter()
        return {"notes": ["first"]}

    def second(state: State) -> State:
        calls.append("second")
        return {"notes": ["second"]}

    graph = Graph(State).add_sequence([first, second]).add_edge(START, "first")
    engine = Engine(graph, sqlite_url)
    run = engine.submit({}, run_id="r")
    gate.await_arrivals()

    # when it is closed while a node runs
    closing = threading.Thread(target=engine.close)
    closing.start()
    gate.open()
    closing.join(WAIT_SECONDS)

    # then the run is unfinished at most, and goes on where another engine recovers it, without that node
    with Engine(graph, sqlite_url) as other:
        recovered = other.recover()
        assert [run.run_id for run in recovered] in ([], ["r"])
        assert other.run("r").result(WAIT_SECONDS) == {"notes": ["first", "second"]}
        assert other.recover() == []
    assert calls == ["first", "second"]
    assert run.run_id == "r"


def test_an_engine_that_is_closed_starts_nothing_more(
    sqlite_url: str, gate: Gate, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def work(state: State, ctx: Context) -> State:
        started.append(ctx.node_id)
        gate.enter()
        return {"notes": [ctx.node_id]}

    # given one slot, with a node in it, and two nodes that are queued
    graph = Graph(State)
    for node_id in ("a", "b", "c"):
        graph.add_node(node_id, work).add_edge(START, node_id)
    engine = Engine(graph, sqlite_url, with_max_concurrent(1))
    run = engine.submit({}, run_id="r", options=Options(max_concurrent=3))
    gate.await_arrivals()
    queues.until(lambda: queues.count(run) == 3)

    # when the engine is closed, and the node returns while it is waited for
    receive = InProcessBroker.receive
    closing = threading.Thread(target=engine.close)

    def opening(self: InProcessBroker, timeout_seconds: float) -> Any:
        if threading.current_thread() is closing:
            gate.open()
        return receive(self, timeout_seconds)

    monkeypatch.setattr(InProcessBroker, "receive", opening)
    closing.start()
    closing.join(WAIT_SECONDS)

    # then the others have not started; they do where the run goes on
    assert started == ["a"]
    with Engine(graph, sqlite_url) as other:
        other.recover()
        assert other.run("r").result(WAIT_SECONDS) == {"notes": ["a", "b", "c"]}
    assert sorted(started) == ["a", "b", "c"]


def test_an_engine_lives_as_long_as_its_runs_are_used(gate: Gate) -> None:
    def begin() -> Run:
        graph = single(lambda state: gate.enter()).add_node("next", fine).add_edge("work", "next")
        return Engine(graph).submit({})

    run = begin()
    gc.collect()
    gate.open()
    assert run.result(WAIT_SECONDS) == {"notes": ["fine"]}
    assert [event.step_id for event in Engine(loop(3)).stream({"n": 0})] == [0, 1, 2, 3]
    del run
    gc.collect()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_closed_engine_leaves_no_threads(is_async: bool, store_url: str) -> None:
    async def work_async(number: int) -> State:
        await asyncio.sleep(0)
        return {"notes": [number]}

    before = set(threading.enumerate())
    with Engine(fan_out(work_async if is_async else lambda number: {"notes": [number]}, 50), store_url) as engine:
        engine.invoke({})
        assert set(threading.enumerate()) - before
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive(), thread.name


def test_a_node_that_ends_while_its_engine_is_closed_frees_its_thread(gate: Gate) -> None:
    # The result is delivered, and the engine may be closed for it, before the thread has said that it is free.
    from lockstep_worker.threads import DaemonThreads

    threads = DaemonThreads("lockstep-test", after=lambda: None)
    ended = threading.Event()

    def work() -> bool:
        gate.enter()
        ended.set()
        return True

    threads.submit(work)
    gate.await_arrivals()
    threads.close(0.0)
    gate.open()
    assert ended.wait(WAIT_SECONDS)
    for thread in threading.enumerate():
        if thread.name.startswith("lockstep-test"):
            thread.join(5)
            was_alive = thread.is_alive()
            threads._work.put(None)  # so that it does not outlive this test
            assert not was_alive


def test_a_retry_that_waited_when_its_run_failed_is_not_made_twice(
    gate: Gate,
    retry: RetryRun,
    journalled: Callable[[Run], dict[str, str]],
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    mended: list[bool] = []
    calls: list[tuple[str, int]] = []

    def waits(state: State, ctx: Context) -> None:
        calls.append(("waits", ctx.attempt))
        if ctx.attempt == 1:
            raise ValueError

    def broken(state: State, ctx: Context) -> None:
        calls.append(("broken", ctx.attempt))
        gate.enter()
        if not mended:
            raise KeyError

    def later(state: State, ctx: Context) -> None:
        calls.append(("later", ctx.attempt))
        if ctx.attempt == 1:
            raise ValueError

    pause = RetryPolicy(initial_seconds=0.4, jitter=0)
    graph = Graph(State).add_node("waits", waits, retry=pause).add_node(broken).add_node("later", later, retry=pause)
    graph.add_edge(START, "waits").add_edge(START, "broken").add_edge(["waits", "broken"], "later")
    with Engine(graph) as engine:
        # given a run that fails while an item of it waits for its second attempt
        run = engine.submit({})
        gate.await_arrivals()
        eventually(lambda: journalled(run)["waits"] == "failed")
        gate.open()
        with pytest.raises(NodeFailedError):
            run.result(WAIT_SECONDS)

        # when it is retried, and goes on for longer than that item would have waited
        mended.append(True)
        retry(run)
        run.result(WAIT_SECONDS)

        # then each attempt was made once
        assert sorted(calls) == [("broken", 1), ("broken", 2), ("later", 1), ("later", 2), ("waits", 1), ("waits", 2)]


# --- processes

PROGRAM = """
import asyncio, contextlib, sys, threading
from typing import TypedDict
from lockstep import START, Engine, Graph, Options

class State(TypedDict, total=False):
    n: int

started = threading.Event()

def quick(state):
    return {{"n": 1}}

def held(state):
    started.set()
    threading.Event().wait()

async def held_async(state):
    started.set()
    await asyncio.Event().wait()

def endless(state):
    started.set()
    return {{"n": state.get("n", 0) + 1}}

def wait():
    with contextlib.suppress(Exception):
        engine.invoke({{}})

graph = Graph(State).add_node("work", {node}).add_edge(START, "work")
if {node} is endless:
    graph.add_edge("work", "work")
engine = Engine(graph, sys.argv[1], options=Options(max_steps=10**9))
{use}
print("end")
"""
BEGIN = "run = engine.submit({}); started.wait()"

PROGRAMS = {
    "unused": PROGRAM.format(node="quick", use=""),
    "used": PROGRAM.format(node="quick", use="engine.invoke({})"),
    "sync node held": PROGRAM.format(node="held", use=BEGIN),
    "async node held": PROGRAM.format(node="held_async", use=BEGIN),
    "run under way": PROGRAM.format(node="endless", use=BEGIN),
    "sys.exit": PROGRAM.format(node="held", use=BEGIN + "; print('end'); sys.exit(0)"),
    "closed": PROGRAM.format(node="quick", use="engine.invoke({}); engine.close()"),
    "a thread waits": PROGRAM.format(node="held", use="threading.Thread(target=wait, daemon=True).start(); started.wait()"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_engine_without_with_does_not_keep_the_process_from_ending(name: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db" if name in ("used", "run under way", "sync node held") else "memory://"
    # Not -X dev: under it, asyncio says so whenever the machine was slow.
    command = [sys.executable, "-W", "error", "-c", PROGRAMS[name], url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_nothing_is_left_open(store_url: str) -> None:
    # given an engine that was used in every way, and closed
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Engine([research(), loop(3)], store_url) as engine:
            run = engine.submit({"topic": "tea"}, graph="research")
            list(run.stream())
            asyncio.run(collected(run.astream()))
            asyncio.run(engine.ainvoke({"n": 0}, graph="loop"))
            with pytest.raises(LockstepError):
                engine.invoke({"topic": 5}, graph="research")
        assert run.status == "succeeded"  # Its row can be read all the same.
        del engine, run
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
