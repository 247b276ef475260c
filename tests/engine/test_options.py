"""Options: each one shown by what it does to a run, given as `Options`, as `with_*()`, or with the run."""

from __future__ import annotations

import asyncio
import operator
import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import pytest

from lockstep import (
    END,
    START,
    BackpressureError,
    ConfigurationError,
    ConflictError,
    ConflictPolicy,
    Context,
    Engine,
    Graph,
    LockstepError,
    MaxStepsExceededError,
    NodeFailedError,
    NodeTimeoutError,
    Options,
    RetryPolicy,
    Run,
    RunCancelledError,
    Send,
    StateError,
    with_conflict_policy,
    with_default_timeout,
    with_max_concurrent,
    with_queue_depth,
)
from lockstep.core.canonical import canonical_bytes
from lockstep.core.ordering import item_seed_of, run_seed_of
from lockstep.options import With

if TYPE_CHECKING:
    from conftest import Gate, Queues, RetryRun

    from lockstep.embedded import Embedded

WAIT_SECONDS = 20.0

Setup = tuple[tuple[With, ...], Options | None]


class State(TypedDict, total=False):
    title: str
    seen: Annotated[list[int], operator.add]


def both_forms(setting: With) -> pytest.MarkDecorator:
    """The same option as a `with_*()` and as an Options object."""
    forms: list[Setup] = [((setting,), None), ((), Options(**{setting.option: setting.value}))]
    return pytest.mark.parametrize("setup", forms, ids=["with", "options"])


def engine_of(graph: Graph | list[Graph], url: str, setup: Setup, *more: With) -> Engine:
    settings, options = setup
    return Engine(graph, url, *settings, *more, options=options)


def single(function: Callable[..., Any], name: str = "single", **node: Any) -> Graph:
    return Graph(State, name=name).add_node("work", function, **node).add_edge(START, "work")


def fan_out(function: Callable[..., Any], count: int, name: str = "fan") -> Graph:
    """Runs `function` on each of the numbers below `count`, side by side."""
    graph = Graph(State, name=name).add_node("work", function)
    return graph.add_conditional_edges(START, lambda state: [Send("work", number) for number in range(count)], ["work"])


def side_by_side(name: str = "siblings", **functions: Callable[..., Any]) -> Graph:
    graph = Graph(State, name=name)
    for node_id, function in functions.items():
        graph.add_node(node_id, function).add_edge(START, node_id)
    return graph


def loop(turns: int, name: str = "loop") -> Graph:
    """A graph that is done after `turns` steps."""
    graph = Graph(State, name=name).add_node("turn", lambda state: {"seen": [len(state["seen"])]}).add_edge(START, "turn")
    return graph.add_conditional_edges("turn", lambda state: "turn" if len(state["seen"]) < turns else END)


def nothing(state: State) -> None:
    return None


# --- max_concurrent


@both_forms(with_max_concurrent(3))
def test_max_concurrent_is_the_number_of_slots_and_of_a_runs_items_in_flight(
    setup: Setup, store_url: str, gate: Gate, queues: Queues, parts: Callable[[Engine], Embedded]
) -> None:
    def work(state: State) -> State:
        gate.enter()
        return {"seen": [1]}

    six = side_by_side("six", **{f"node{number}": work for number in range(6)})
    with engine_of([six, single(nothing)], store_url, setup) as engine:
        # given two runs of six items, whose nodes wait
        runs = [engine.submit({}, graph="six") for _ in range(2)]
        gate.await_arrivals(3)
        queues.until(lambda: [queues.count(run) for run in runs] == [3, 3])

        # when everything else that could be handed out has been
        last = engine.submit({}, graph="single")
        queues.until(lambda: queues.count(last) == 1)

        # then each run has three items out, three nodes run, and the rest waits
        assert [queues.count(run) for run in runs] == [3, 3]
        assert parts(engine).executor.running == 3
        gate.open()
        assert [run.result(WAIT_SECONDS)["seen"] for run in runs] == [[1] * 6] * 2


def test_max_concurrent_of_a_run_bounds_that_run_alone(store_url: str, gate: Gate, queues: Queues) -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def work(number: int) -> State:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.enter()
        with lock:
            running -= 1
        return {"seen": [number]}

    with Engine([fan_out(work, 9), fan_out(lambda number: {"seen": [number]}, 9, name="other")], store_url) as engine:
        # given an engine with room for all, and a run that may have two items in flight
        run = engine.submit({}, graph="fan", options=Options(max_concurrent=2))
        gate.await_arrivals(2)

        # when another run without that bound goes past it
        assert engine.invoke({}, graph="other")["seen"] == list(range(9))

        # then the first one has its two items out, then and until its end
        assert queues.count(run, "work") == 2
        gate.open()
        assert run.result(WAIT_SECONDS)["seen"] == list(range(9))
        assert most == 2


def test_sixteen_slots_are_the_default(gate: Gate, queues: Queues, parts: Callable[[Engine], Embedded]) -> None:
    def work(number: int) -> None:
        gate.enter()

    # given 80 items, and no option
    with Engine(fan_out(work, 80)) as engine:
        run = engine.submit({})

        # when all that may be out is out
        gate.await_arrivals(16)
        queues.until(lambda: queues.count(run, "work") == 64)

        # then 64 items are in flight, and 16 of them run
        assert parts(engine).executor.running == 16
        gate.open()
        run.result(WAIT_SECONDS)


# --- queue_depth


@both_forms(with_queue_depth(1))
def test_queue_depth_1_makes_the_second_item_wait_and_counts_it_once(
    setup: Setup, store_url: str, gate: Gate, queues: Queues, parts: Callable[[Engine], Embedded]
) -> None:
    held = single(lambda state: gate.enter(), name="held")
    pair = side_by_side("pair", first=lambda state: {"seen": [1]}, second=lambda state: {"seen": [2]})

    with engine_of([held, pair], store_url, setup, with_max_concurrent(1)) as engine:
        # given one slot, which is taken
        blocking = engine.submit({}, graph="held")
        gate.await_arrivals()

        # when two items come, and the second one is offered again and again
        run = engine.submit({}, graph="pair", options=Options(max_concurrent=2))
        for offers in (1, 2, 3):
            queues.until(lambda offers=offers: len(queues.refused) >= offers)  # type: ignore[misc]
            parts(engine).coordinator.take([])  # a turn of the loop

        # then the first is in the queue, and the second waits
        assert [task.node_id for task in queues.enqueued] == ["work", "first"]
        assert {task.node_id for task in queues.refused} == {"second"}
        gate.open()
        assert run.result(WAIT_SECONDS)["seen"] == [1, 2]
        blocking.result(WAIT_SECONDS)
        assert parts(engine).coordinator.counts.backpressure_events == 1


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_one_slot_and_queue_depth_1_do_not_deadlock(
    is_async: bool, store_url: str, gate: Gate, queues: Queues, parts: Callable[[Engine], Embedded]
) -> None:
    def work(number: int) -> State:
        if number == 0:
            gate.enter()
        return {"seen": [number]}

    async def work_async(number: int) -> State:
        if number == 0:
            await asyncio.to_thread(gate.enter)
        return {"seen": [number]}

    # given a fan-out of 50 that finds no room
    graph = fan_out(work_async if is_async else work, 50)
    with Engine(graph, store_url, with_max_concurrent(1), with_queue_depth(1)) as engine:
        run = engine.submit({}, options=Options(max_concurrent=64))
        queues.until(lambda: bool(queues.refused))
        gate.open()

        # then it runs to its end, in order, and each item that waited has counted once
        assert run.result(WAIT_SECONDS)["seen"] == list(range(50))
        waited = {task.path for task in queues.refused}
        assert parts(engine).coordinator.counts.backpressure_events == len(waited)


@pytest.mark.parametrize("in_flight", [64, 3], ids=["many in flight", "few in flight"])
def test_a_full_queue_holds_back_only_its_own_items(in_flight: int, gate: Gate, queues: Queues) -> None:
    graph = Graph(State)
    for node_id, queue in {"a1": "a", "a2": "a", "a3": "a", "a4": "a", "b1": "b"}.items():
        graph.add_node(node_id, lambda state: gate.enter(), queue=queue).add_edge(START, node_id)

    # given one slot, and queues of one task
    with Engine(graph, "memory://", with_max_concurrent(1), with_queue_depth(1)) as engine:
        run = engine.submit({}, options=Options(max_concurrent=in_flight))

        # when queue a is full
        queues.until(lambda: len(queues.enqueued) == 3)

        # then b, which comes after a3, has got its item
        assert [task.node_id for task in queues.enqueued] == ["a1", "a2", "b1"]
        assert queues.refused[0].node_id == "a3"
        gate.open()
        run.result(WAIT_SECONDS)


def test_a_step_that_had_to_wait_for_room_says_so_in_an_event(store_url: str, gate: Gate, queues: Queues) -> None:
    graph = Graph(State).add_node("held", lambda state: gate.enter()).add_edge(START, "held")
    for name in ("b1", "b2", "b3"):
        graph.add_node(name, lambda state: None, queue="b").add_edge(START, name)
    graph.add_node("after", lambda state: None).add_edge("held", "after")
    with Engine(graph, store_url, with_max_concurrent(1), with_queue_depth(1)) as engine:
        run = engine.submit({}, options=Options(max_concurrent=4))
        gate.await_arrivals()
        queues.until(lambda: bool(queues.refused))
        gate.open()
        run.result(WAIT_SECONDS)
        waited = len({task.path for task in queues.refused})
        events = [(event.step_id, event.type, event.node_id, event.data) for event in run.backend.reader.events(run.run_id)]
        assert events == [(1, "lockstep.backpressure", "", b'{"items":%d,"queue":"b"}' % waited)]
        assert engine._running().coordinator.counts.backpressure_events == waited > 0


# --- max_concurrent of a node


def test_a_node_s_bound_holds_over_all_runs_and_holds_back_nobody_else(store_url: str) -> None:
    lock, running, most = threading.Lock(), Counter[str](), Counter[str]()

    def counted(name: str) -> Callable[..., State]:
        def work(number: int) -> State:
            with lock:
                running[name] += 1
                most[name] = max(most[name], running[name])
            time.sleep(0.002)
            with lock:
                running[name] -= 1
            return {"seen": [number]}

        return work

    graph = Graph(State).add_node("limited", counted("limited"), max_concurrent=2).add_node("free", counted("free"))
    sends = [Send(name, number) for number in range(10) for name in ("limited", "free")]
    graph.add_conditional_edges(START, lambda state: sends, ["limited", "free"])
    with Engine(graph, store_url, with_max_concurrent(8)) as engine:
        runs = [engine.submit({}) for _ in range(5)]
        assert {tuple(run.result(WAIT_SECONDS)["seen"]) for run in runs} == {tuple(n for n in range(10) for _ in range(2))}
        assert engine._running().coordinator.counts.backpressure_events == 0
    assert most["limited"] == 2
    assert most["free"] > 2


@pytest.mark.parametrize("how", ["fails", "is cancelled", "times out", "is retried"])
def test_a_node_s_place_is_free_however_its_task_ends(store_url: str, gate: Gate, how: str) -> None:
    def work(state: State, ctx: Context) -> State:
        if ctx.run_id != "other":
            if how == "is cancelled":
                engine.run(ctx.run_id).cancel()
            while how in ("is cancelled", "times out") and not ctx.cancelled:
                time.sleep(0.001)
            if ctx.attempt == 1:
                raise ValueError
        return {"seen": [1]}

    retry = RetryPolicy(initial_seconds=0) if how == "is retried" else None
    graph = Graph(State).add_node("work", work, max_concurrent=1, retry=retry, timeout_seconds=0.5).add_edge(START, "work")
    with Engine(graph, store_url) as engine:
        run = engine.submit({})
        if how == "is retried":
            run.result(WAIT_SECONDS)
        else:
            with pytest.raises(LockstepError):
                run.result(WAIT_SECONDS)
        assert engine.submit({}, run_id="other").result(WAIT_SECONDS) == {"seen": [1]}


@pytest.mark.parametrize("count", [0, -1, True, 1.5])
def test_a_node_s_bound_is_a_number_of_tasks(count: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"node 'work': max_concurrent=.* must be an integer of at least 1"):
        single(lambda state: None, max_concurrent=count)


# --- backpressure_timeout_seconds


def test_an_item_that_waits_too_long_for_room_fails_its_run_alone(
    store_url: str, gate: Gate, retry: RetryRun, queues: Queues
) -> None:
    held = single(lambda state: gate.enter(), name="held")
    pair = side_by_side("pair", first=lambda state: {"seen": [1]}, second=lambda state: {"seen": [2]})

    with Engine([held, pair], store_url, with_max_concurrent(1), with_queue_depth(1)) as engine:
        # given one slot, which is taken
        blocking = engine.submit({}, graph="held")
        gate.await_arrivals()

        # when a second item finds no room for as long as its run is ready to wait
        options = Options(max_concurrent=2, backpressure_timeout_seconds=0.05)
        run = engine.submit({}, graph="pair", run_id="waits", options=options)
        with pytest.raises(BackpressureError, match=r"'second' found no room in queue 'default'.*raise queue_depth") as caught:
            run.result(WAIT_SECONDS)

        # then the error says where and why
        assert caught.value.fields == {
            "run_id": "waits",
            "step_id": 1,
            "node_id": "second",
            "queue": "default",
            "queue_depth": 1,
            "timeout_seconds": 0.05,
        }
        # and the item that was queued has left the queue: it never starts
        gate.open()
        blocking.result(WAIT_SECONDS)
        assert engine.invoke({}, graph="held") == {"seen": []}
        assert run.state() == {"seen": []}
        # and the run can go on when there is room
        retry(run, Options(backpressure_timeout_seconds=WAIT_SECONDS))
        assert run.result(WAIT_SECONDS)["seen"] == [1, 2]


# --- default_timeout_seconds, and timeout_seconds of a node


@both_forms(with_default_timeout(0.05))
def test_a_sync_node_past_its_time_is_abandoned_and_counted(
    setup: Setup, store_url: str, new_gate: Callable[[], Gate], parts: Callable[[Engine], Embedded]
) -> None:
    late, told = new_gate(), threading.Event()

    def work(state: State, ctx: Context) -> State:
        late.enter()
        if ctx.cancelled:
            told.set()
        return {"title": "too late"}

    with engine_of(single(work), store_url, setup) as engine:
        # given a node that does not return in time
        run = engine.submit({}, run_id="slow")
        with pytest.raises(NodeTimeoutError, match=r"'work' ran longer than 0\.05 s.*raise its timeout_seconds") as caught:
            run.result(WAIT_SECONDS)
        assert caught.value.fields == {
            "run_id": "slow",
            "step_id": 1,
            "node_id": "work",
            "attempt": 1,
            "error_type": "TimeoutError",
            "timeout_seconds": 0.05,
        }
        assert parts(engine).executor.abandoned == 1

        # when it returns after all, then it was told, and nothing comes of it
        late.open()
        assert told.wait(WAIT_SECONDS)
        assert engine.run("slow").state() == {"seen": []}
        assert parts(engine).executor.running == 0


@both_forms(with_default_timeout(0.05))
def test_an_async_node_past_its_time_is_cancelled(setup: Setup, store_url: str, parts: Callable[[Engine], Embedded]) -> None:
    cancelled = threading.Event()

    async def work(state: State) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with engine_of(single(work), store_url, setup) as engine:
        with pytest.raises(NodeTimeoutError) as caught:
            engine.submit({}).result(WAIT_SECONDS)
        assert (caught.value.node_id, caught.value.timeout_seconds) == ("work", 0.05)
        assert cancelled.wait(WAIT_SECONDS)
        assert parts(engine).executor.abandoned == 0


def test_an_async_node_that_holds_the_loop_ends_in_time_too(gate: Gate) -> None:
    async def work(state: State) -> None:
        gate.enter()  # It should have awaited.

    with Engine(single(work), "memory://", with_default_timeout(0.05)) as engine:
        run = engine.submit({})
        gate.await_arrivals()
        try:
            with pytest.raises(NodeTimeoutError):
                run.result(WAIT_SECONDS)
        finally:
            gate.open()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_nodes_own_timeout_wins_over_a_longer_default(is_async: bool, gate: Gate) -> None:
    async def work_async(state: State) -> None:
        await asyncio.Event().wait()

    graph = single(work_async if is_async else lambda state: gate.enter(), timeout_seconds=0.05)
    with Engine(graph, "memory://", with_default_timeout(300)) as engine:
        with pytest.raises(NodeTimeoutError) as caught:
            engine.submit({}).result(WAIT_SECONDS)
        assert caught.value.timeout_seconds == 0.05
        gate.open()


def test_a_nodes_own_timeout_wins_over_a_shorter_default(gate: Gate, journalled: Callable[[Run], dict[str, str]]) -> None:
    def impatient(state: State, ctx: Context) -> None:
        while not ctx.cancelled:
            threading.Event().wait(0.005)
        gate.open()

    # given two nodes side by side: one that runs into the default, and one with time, which the first holds up until then
    graph = Graph(State).add_node("patient", lambda state: gate.enter(), timeout_seconds=300).add_node(impatient)
    graph.add_edge(START, "patient").add_edge(START, "impatient")
    with Engine(graph, "memory://", with_default_timeout(0.05), options=Options(fail_fast=False)) as engine:
        run = engine.submit({})
        with pytest.raises(NodeTimeoutError) as caught:
            run.result(WAIT_SECONDS)

        # then the first failed, and the second came through
        assert (caught.value.node_id, caught.value.timeout_seconds) == ("impatient", 0.05)
        assert journalled(run) == {"patient": "done", "impatient": "failed"}


# --- conflict_policy


def two_titles(**settings: Any) -> Graph:
    graph = Graph(State, **settings)
    for node_id, title in {"long": "On tea", "short": "Tea"}.items():
        graph.add_node(node_id, lambda state, title=title: {"title": title}).add_edge(START, node_id)
    return graph


@both_forms(with_conflict_policy(ConflictPolicy.LAST_WRITER_WINS))
def test_last_writer_wins_takes_the_highest_order_key(setup: Setup, store_url: str) -> None:
    with engine_of(two_titles(), store_url, setup) as engine:
        assert engine.invoke({}) == {"seen": [], "title": "Tea"}


@both_forms(with_conflict_policy(ConflictPolicy.MERGE))
def test_merge_joins_with_the_fields_function(setup: Setup, store_url: str) -> None:
    with engine_of(two_titles(merges={"title": lambda one, other: f"{one} / {other}"}), store_url, setup) as engine:
        assert engine.invoke({}) == {"seen": [], "title": "On tea / Tea"}


@both_forms(with_conflict_policy(ConflictPolicy.FAIL))
def test_fail_is_a_conflict_error_even_where_there_is_a_join(setup: Setup, store_url: str) -> None:
    with (
        engine_of(two_titles(merges={"title": max}), store_url, setup) as engine,
        pytest.raises(ConflictError) as caught,
    ):
        engine.invoke({})
    assert (caught.value.field, caught.value.writers) == ("title", ["long", "short"])


@pytest.mark.parametrize("policy", [None, ConflictPolicy.MERGE], ids=["by default", "merge without a function"])
def test_a_conflict_that_nothing_settles_fails(policy: ConflictPolicy | None) -> None:
    options = Options(conflict_policy=policy) if policy else None
    with Engine(two_titles(), options=options) as engine, pytest.raises(ConflictError):
        engine.invoke({})


# --- max_steps


def test_max_steps_is_the_last_step_that_runs(store_url: str) -> None:
    with Engine([loop(3), loop(4, name="longer")], store_url, options=Options(max_steps=3)) as engine:
        # given a loop that ends just in time, then it does
        assert engine.invoke({}, graph="loop")["seen"] == [0, 1, 2]

        # given one that needs a step more, then it is stopped, and what it did is kept up to the step before
        run = engine.submit({}, graph="longer", run_id="long")
        with pytest.raises(MaxStepsExceededError, match=r"not done after 3 steps \(turn would run next\).*max_steps") as caught:
            run.result(WAIT_SECONDS)
        assert caught.value.fields == {"run_id": "long", "step_id": 3, "max_steps": 3}
        assert run.state()["seen"] == [0, 1]


def test_a_retry_may_raise_max_steps(store_url: str, retry: RetryRun) -> None:
    with Engine(loop(6), store_url, options=Options(max_steps=3)) as engine:
        # given a run that its bound has stopped
        run = engine.submit({})
        with pytest.raises(MaxStepsExceededError):
            run.result(WAIT_SECONDS)

        # when it is retried under a higher one, then it goes on from where it was
        retry(run, Options(max_steps=6))
        assert run.result(WAIT_SECONDS)["seen"] == [0, 1, 2, 3, 4, 5]


# --- retry

AT_ONCE = RetryPolicy(max_attempts=3, initial_seconds=0)


@pytest.mark.parametrize(
    ("of_engine", "of_node", "attempts"),
    [
        (None, None, [1]),
        (AT_ONCE, None, [1, 2, 3]),
        (None, AT_ONCE, [1, 2, 3]),
        (AT_ONCE, RetryPolicy(max_attempts=2, initial_seconds=0), [1, 2]),
        (RetryPolicy(max_attempts=1), AT_ONCE, [1, 2, 3]),
    ],
    ids=["none", "engine", "node", "node has fewer", "node has more"],
)
def test_a_failing_node_is_tried_as_often_as_its_policy_says(
    of_engine: RetryPolicy | None, of_node: RetryPolicy | None, attempts: list[int], store_url: str
) -> None:
    seen: list[int] = []

    def work(state: State, ctx: Context) -> None:
        seen.append(ctx.attempt)
        raise ValueError(f"attempt {ctx.attempt}")

    with Engine(single(work, retry=of_node), store_url, options=Options(retry=of_engine)) as engine:
        with pytest.raises(NodeFailedError, match=f"'work' raised ValueError: attempt {attempts[-1]}") as caught:
            engine.submit({}).result(WAIT_SECONDS)
        assert seen == attempts
        assert caught.value.attempt == attempts[-1]
        assert isinstance(caught.value.__cause__, ValueError) and str(caught.value.__cause__) == f"attempt {attempts[-1]}"


def test_a_node_that_succeeds_at_last_is_recorded_with_its_attempt(store_url: str) -> None:
    def work(state: State, ctx: Context) -> State:
        if ctx.attempt < 3:
            raise ConnectionError("not yet")
        return {"title": f"attempt {ctx.attempt}, delivery {ctx.delivery}"}

    with Engine(single(work), store_url, options=Options(retry=AT_ONCE)) as engine:
        run = engine.submit({})
        assert run.result(WAIT_SECONDS)["title"] == "attempt 3, delivery 3"
        [task] = run.history()[1].tasks
        assert (task.status, task.attempt, task.error) == ("done", 3, None)


def test_only_what_retry_on_names_is_tried_again() -> None:
    seen: list[int] = []

    def work(state: State, ctx: Context) -> None:
        seen.append(ctx.attempt)
        raise (ConnectionResetError if ctx.attempt == 1 else KeyError)("x")

    policy = RetryPolicy(max_attempts=5, initial_seconds=0, retry_on=(OSError,))
    with Engine(single(work), options=Options(retry=policy)) as engine:
        with pytest.raises(NodeFailedError, match="KeyError"):
            engine.submit({}).result(WAIT_SECONDS)
        assert seen == [1, 2]


def test_a_node_that_ran_out_of_time_is_tried_again() -> None:
    async def work(state: State, ctx: Context) -> State:
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return {"seen": [ctx.attempt]}

    with Engine(single(work), "memory://", with_default_timeout(0.05), options=Options(retry=AT_ONCE)) as engine:
        assert engine.submit({}).result(WAIT_SECONDS)["seen"] == [2]


# --- deadline_seconds


def test_a_run_that_passes_its_deadline_is_cancelled(store_url: str, gate: Gate) -> None:
    started: list[str] = []

    def work(state: State, ctx: Context) -> None:
        started.append(ctx.node_id)
        gate.enter()

    graphs = [side_by_side("three", one=work, two=work, three=work), single(nothing)]
    with Engine(graphs, store_url, with_max_concurrent(1)) as engine:
        # given a run whose first item takes all the time there is
        options = Options(deadline_seconds=0.1, max_concurrent=3)
        run = engine.submit({}, graph="three", run_id="late", options=options)
        with pytest.raises(RunCancelledError, match="run late was cancelled: it passed its deadline_seconds") as caught:
            run.result(WAIT_SECONDS)
        assert caught.value.fields == {"run_id": "late", "reason": "it passed its deadline_seconds"}
        assert run.status == "cancelled"

        # when the slot is free again, then its other items do not start
        gate.open()
        assert engine.submit({}, graph="single").result(WAIT_SECONDS) == {"seen": []}
        assert set(started) <= {"one"}  # On a slow machine it was late before it began.


# --- seed


def test_the_seed_decides_what_rng_gives(store_url: str) -> None:
    drawn: list[tuple[str, int, str, float]] = []

    def work(state: State, ctx: Context) -> None:
        drawn.append((ctx.run_id, ctx.step_id, ctx.path, ctx.rng.random()))

    # given runs of two steps, with and without a seed
    graph = single(work).add_node("again", work).add_edge("work", "again")
    with Engine(graph, store_url) as engine:
        for run_id, options in {"a": Options(seed=7), "b": Options(seed=7), "c": None, "d": None}.items():
            engine.invoke({}, run_id=run_id, options=options)

    # then one seed gives the same numbers, and without one each run has its own
    numbers = {run_id: [number for of, _, _, number in drawn if of == run_id] for run_id in "abcd"}
    assert numbers["a"] == numbers["b"]
    assert len({number for run_id in "acd" for number in numbers[run_id]}) == 6
    # and they are the documented ones
    for run_id, step_id, path, number in drawn:
        seed = 7 if run_id in "ab" else run_seed_of(run_id)
        assert number == Random(item_seed_of(seed, bytes.fromhex(path), step_id - 1)).random()


def test_the_documented_vectors_hold_in_a_run() -> None:
    drawn: list[float] = []
    graph = Graph(State).add_node("plan", lambda state, ctx: drawn.append(ctx.rng.random())).add_edge(START, "plan")
    with Engine(graph) as engine:
        engine.invoke({}, run_id="run-1")
        engine.invoke({}, run_id="other", options=Options(seed=7))
    assert drawn == [0.3336526872657414, 0.051350568639189076]


# --- max_payload_bytes


def test_an_input_may_be_as_large_as_the_bound_and_not_larger(store_url: str) -> None:
    given = {"title": "é" * 50}
    size = len(canonical_bytes(given))
    with Engine(single(nothing), store_url) as engine:
        # given an input of just the size allowed
        assert engine.invoke(given, options=Options(max_payload_bytes=size))["title"] == given["title"]

        # when one byte less is allowed, then it is refused, and nothing is stored
        options = Options(max_payload_bytes=size - 1)
        with pytest.raises(StateError, match=f"the input takes {size} bytes, more than max_payload_bytes={size - 1};"):
            engine.submit(given, run_id="large", options=options)
        assert "large" not in [run.run_id for run in engine.runs()]


@pytest.mark.parametrize("what", ["return value", "Send", "emitted event"])
def test_what_a_node_hands_on_is_bounded(what: str, store_url: str) -> None:
    def work(state: State, ctx: Context) -> Any:
        if what == "return value":
            return {"title": "x" * 1000}
        if what == "emitted event":
            ctx.emit("large", "x" * 1000)
        return None

    graph = single(work)
    if what == "Send":
        graph.add_conditional_edges("work", lambda state: Send("work", "x" * 1000), ["work"])
    with Engine(graph, store_url, options=Options(max_payload_bytes=1000)) as engine:
        culprit = r"Send\('work'\)" if what == "Send" else "what node 'work' returned"
        with pytest.raises(StateError, match=rf"^{culprit} takes 1\d\d\d bytes, more than max_payload_bytes=1000") as caught:
            engine.submit({}).result(WAIT_SECONDS)
        assert (caught.value.node_id, caught.value.step_id) == ("work", 1)


def test_a_state_may_grow_beyond_the_bound_of_its_parts(store_url: str) -> None:
    with Engine(loop(100), store_url, options=Options(max_payload_bytes=100)) as engine:
        assert engine.invoke({})["seen"] == list(range(100))


# --- fail_fast


class Siblings:
    """Three nodes side by side: `quick` returns, `broken` fails until it is mended, `held` takes its time."""

    def __init__(self, new_gate: Callable[[], Gate]) -> None:
        self.before_broken, self.in_held = new_gate(), new_gate()
        self.mended = False
        self.calls: list[str] = []
        self.graph = side_by_side(quick=self.quick, broken=self.broken, held=self.held)

    def quick(self, state: State) -> State:
        self.calls.append("quick")
        return {"seen": [1]}

    def broken(self, state: State) -> State:
        self.calls.append("broken")
        self.before_broken.enter()
        if not self.mended:
            raise ValueError("broken")
        return {"seen": [2]}

    def held(self, state: State) -> State:
        self.calls.append("held")
        self.in_held.enter()
        return {"seen": [3]}


@pytest.fixture
def siblings(new_gate: Callable[[], Gate]) -> Siblings:
    return Siblings(new_gate)


def test_fail_fast_ends_the_run_at_once_and_keeps_what_its_siblings_returned(
    siblings: Siblings,
    store_url: str,
    journalled: Callable[[Run], dict[str, str]],
    eventually: Callable[[Callable[[], bool]], None],
    retry: RetryRun,
) -> None:
    with Engine(siblings.graph, store_url) as engine:
        # given one sibling that is done, and one that is not
        run = engine.submit({})
        siblings.in_held.await_arrivals()
        siblings.before_broken.await_arrivals()
        eventually(lambda: journalled(run)["quick"] == "done")

        # when the third fails, then the run ends without waiting
        siblings.before_broken.open()
        with pytest.raises(NodeFailedError) as caught:
            run.result(WAIT_SECONDS)
        assert caught.value.node_id == "broken"
        assert journalled(run) == {"quick": "done", "broken": "failed", "held": "pending"}

        # and after a retry only what has no result runs again
        siblings.mended = True
        retry(run)
        siblings.in_held.await_arrivals()  # Before the first of the two may return: its result would spare us the second.
        siblings.in_held.open()
        assert run.result(WAIT_SECONDS)["seen"] == [1, 2, 3]
        assert sorted(siblings.calls) == ["broken", "broken", "held", "held", "quick"]


@pytest.mark.parametrize("form", ["engine", "run"])
def test_without_fail_fast_the_siblings_finish_first(
    form: str,
    siblings: Siblings,
    store_url: str,
    journalled: Callable[[Run], dict[str, str]],
    eventually: Callable[[Callable[[], bool]], None],
    retry: RetryRun,
) -> None:
    patient = Options(fail_fast=False)
    with Engine(siblings.graph, store_url, options=patient if form == "engine" else None) as engine:
        # given a node that has failed while its sibling still runs
        run = engine.submit({}, options=patient if form == "run" else None)
        siblings.before_broken.open()
        siblings.in_held.await_arrivals()
        eventually(lambda: journalled(run) == {"quick": "done", "broken": "failed", "held": "pending"})

        # then the run goes on
        assert run.status == "running"

        # until the sibling is done; only then it fails
        siblings.in_held.open()
        with pytest.raises(NodeFailedError) as caught:
            run.result(WAIT_SECONDS)
        assert caught.value.node_id == "broken"
        assert journalled(run) == {"quick": "done", "broken": "failed", "held": "done"}

        # and after a retry the failed one alone runs again
        siblings.mended = True
        retry(run)
        assert run.result(WAIT_SECONDS)["seen"] == [1, 2, 3]
        assert sorted(siblings.calls) == ["broken", "broken", "held", "quick"]


def test_of_several_failures_the_lowest_in_order_is_reported(
    gate: Gate,
    store_url: str,
    journalled: Callable[[Run], dict[str, str]],
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    def first(state: State) -> None:
        gate.enter()
        raise ValueError("first in order, last in time")

    def second(state: State) -> None:
        raise KeyError("last in order, first in time")

    with Engine(side_by_side(first=first, second=second), store_url, options=Options(fail_fast=False)) as engine:
        # given two nodes that fail, the second one first
        run = engine.submit({})
        gate.await_arrivals()
        eventually(lambda: journalled(run)["second"] == "failed")
        gate.open()

        # then the run fails with the first one's error, and with its exception as the cause
        with pytest.raises(NodeFailedError) as caught:
            run.result(WAIT_SECONDS)
        assert (caught.value.node_id, caught.value.error_type) == ("first", "ValueError")
        assert isinstance(caught.value.__cause__, ValueError)


# --- where options are given


def test_a_runs_options_override_the_engines_for_that_run_alone(store_url: str) -> None:
    with Engine(loop(4), store_url, options=Options(max_steps=2)) as engine:
        assert engine.invoke({}, options=Options(max_steps=4))["seen"] == [0, 1, 2, 3]
        with pytest.raises(MaxStepsExceededError) as caught:
            engine.invoke({})
        assert caught.value.max_steps == 2


def test_a_runs_options_leave_the_engines_others_in_force() -> None:
    seen: list[int] = []

    def work(state: State, ctx: Context) -> None:
        seen.append(ctx.attempt)
        raise ValueError

    with Engine(single(work), options=Options(retry=AT_ONCE)) as engine, pytest.raises(NodeFailedError):
        engine.invoke({}, options=Options(max_steps=5))
    assert seen == [1, 2, 3]


def test_queue_depth_is_no_option_of_a_run(store_url: str) -> None:
    with Engine(single(nothing), store_url) as engine:
        with pytest.raises(ConfigurationError, match="queue_depth belongs to the engine or coordinator") as caught:
            engine.submit({}, options=Options(queue_depth=5))
        assert caught.value.option == "queue_depth"
        assert list(engine.runs()) == []


def test_both_forms_together_all_have_effect(queues: Queues, gate: Gate, parts: Callable[[Engine], Embedded]) -> None:
    def work(number: int) -> None:
        gate.enter()

    # given max_concurrent as a function, and max_steps in an object
    graphs = [fan_out(work, 4), loop(4)]
    with Engine(graphs, "memory://", with_max_concurrent(2), options=Options(max_steps=3)) as engine:
        # then there are two slots
        run = engine.submit({}, graph="fan")
        gate.await_arrivals(2)
        assert parts(engine).executor.running == 2
        gate.open()
        run.result(WAIT_SECONDS)

        # and three steps
        with pytest.raises(MaxStepsExceededError) as caught:
            engine.invoke({}, graph="loop")
        assert caught.value.max_steps == 3


def test_one_option_in_both_forms_is_fine_where_they_agree() -> None:
    with Engine(loop(2), "memory://", with_queue_depth(7), options=Options(queue_depth=7)) as engine:
        assert engine.invoke({})["seen"] == [0, 1]


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        (with_max_concurrent(2), Options(max_concurrent=3)),
        (with_queue_depth(2), Options(queue_depth=3)),
        (with_default_timeout(2), Options(default_timeout_seconds=3)),
        (with_conflict_policy(ConflictPolicy.MERGE), Options(conflict_policy=ConflictPolicy.LAST_WRITER_WINS)),
    ],
    ids=lambda value: value.option if isinstance(value, With) else "",
)
def test_one_option_with_two_values_is_refused_by_name(setting: With, options: Options) -> None:
    with pytest.raises(ConfigurationError, match=f"{setting.option} is given twice.*give it once") as caught:
        Engine(loop(2), "memory://", setting, options=options)
    assert caught.value.option == setting.option


WRONG_TYPES = {
    "max_concurrent": 2.5,
    "queue_depth": "many",
    "default_timeout_seconds": "5",
    "max_steps": 5.5,
    "retry": 3,
    "backpressure_timeout_seconds": "1",
    "deadline_seconds": "1",
    "seed": "abc",
    "max_payload_bytes": 0.5e6,
    "fail_fast": "no",
}


@pytest.mark.parametrize("option", WRONG_TYPES)
def test_an_option_of_the_wrong_type_is_refused_by_name(option: str) -> None:
    # It must not get as far as the coordinator, where it would end all runs.
    with pytest.raises(ConfigurationError) as caught:
        Options(**{option: WRONG_TYPES[option]})
    assert caught.value.option == option and option in str(caught.value)
