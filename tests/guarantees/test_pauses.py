"""What a failed node has left behind outlives its engine: the pause before its next attempt, its last failure, its handler."""

from __future__ import annotations

import operator
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypedDict

import pytest

from lockstep import START, Context, Engine, Graph, NodeFailedError, Options, RetryPolicy
from lockstep.core.ordering import ROOT_PATH, path_of
from lockstep.core.records import Failure
from lockstep.explain import explain
from lockstep.fsck import check_store
from lockstep.records import TaskResult

HOUR_SECONDS = 3600.0
PAUSE = RetryPolicy(max_attempts=2, initial_seconds=HOUR_SECONDS, max_seconds=HOUR_SECONDS, jitter=0)
FRAGILE, OTHER = path_of(ROOT_PATH, "fragile", 0), path_of(ROOT_PATH, "other", 1)

Wait = Callable[[threading.Event], None]


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


class Later:
    """A clock that is ahead by some seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def monotonic(self) -> float:
        return time.monotonic() + self._seconds

    def time(self) -> float:
        return time.time() + self._seconds


class Flow:
    """Two nodes side by side: `fragile` fails while `failing` is true, `other` waits until `held` is set."""

    def __init__(self, wait: Wait, **options: Any) -> None:
        self.calls: Counter[str] = Counter()
        self.failing = True
        self.held = threading.Event()
        self._wait = wait

        def fragile(state: State, ctx: Context) -> State:
            self.calls["fragile"] += 1
            if self.failing:
                raise OSError("it is down")
            return {"log": [f"fragile {ctx.attempt}"]}

        self.graph = Graph(State).add_node("fragile", fragile, **options).add_node("other", self.other)
        self.graph.add_edge(START, "fragile").add_edge(START, "other")

    def other(self, state: State) -> State:
        self._wait(self.held)
        return {"log": ["other"]}

    def leave(self, url: str, commits_of: Any, abandon: Any, *journalled: tuple[str, bytes], **options: Any) -> None:
        """Begin the run, and end its engine once the journal has these rows."""
        engine = Engine(self.graph, url)
        commits = commits_of(engine)
        engine.submit({}, run_id="run", options=Options(**options))
        for kind, path in journalled:
            commits.until_journalled(kind, path.hex())
        abandon(engine)


@pytest.fixture
def flow(wait: Wait) -> Iterator[Callable[..., Flow]]:
    made: list[Flow] = []

    def flow(**options: Any) -> Flow:
        made.append(Flow(wait, **options))
        return made[-1]

    yield flow
    for each in made:
        each.held.set()


def states(engine: Engine) -> dict[str, str]:
    """Where the items of the run's step are."""
    reader = engine._running().store
    [row] = reader.find_runs(run_ids=["run"])
    return {item.node_id: item.state for item in explain(reader, row, None).items}


def test_a_pause_goes_on_after_a_restart_and_ends_when_it_would_have(
    one_store: str, flow: Any, commits_of: Any, abandon: Any
) -> None:
    one = flow(retry=PAUSE)
    one.held.set()
    one.leave(one_store, commits_of, abandon, ("failed", FRAGILE), ("done", OTHER))
    one.failing = False

    # when another engine goes on with the run, then the node rests, whatever else that engine does
    with Engine(one.graph, one_store) as engine:
        [run] = engine.recover()
        assert engine.invoke({}) == {"log": ["fragile 1", "other"]}
        assert states(engine) == {"fragile": "timer", "other": "done"}
        abandon(engine)
    assert one.calls["fragile"] == 2  # Once for each run.

    # and once its hour has passed, it runs
    with Engine(one.graph, one_store) as engine:
        engine._running().coordinator._clock = Later(HOUR_SECONDS)
        [run] = engine.recover()
        assert run.result() == {"log": ["fragile 2", "other"]}
        assert list(check_store(engine._running().store)) == []
    assert one.calls["fragile"] == 3


def test_a_failure_that_is_read_once_more_after_a_restart_counts_once(
    one_store: str, flow: Any, commits_of: Any, abandon: Any
) -> None:
    # given a failure that is journalled, and whose message was not deleted before its owner died
    one = flow(retry=PAUSE)
    one.held.set()
    one.leave(one_store, commits_of, abandon, ("failed", FRAGILE), ("done", OTHER))
    with Engine(one.graph, one_store) as engine:
        parts = engine._running()
        engine.recover()
        failure = Failure({"type": "NodeFailedError", "message": "it is down"}, ("OSError",))

        # when the next owner reads it, too
        parts.coordinator._broker.deliver(  # type: ignore[attr-defined]
            TaskResult(run_id="run", path=FRAGILE, delivery=1, failure=failure)
        )
        one.failing = False
        engine.invoke({})

        # then it is dropped
        assert parts.coordinator.counts.dropped_results == 1
        assert [(row.kind, row.n) for row in parts.store.journal("run", [FRAGILE])] == [("failed", 1)]


def test_the_last_failure_is_not_forgotten_while_siblings_finish(
    one_store: str, flow: Any, commits_of: Any, abandon: Any
) -> None:
    # given an item that has failed for good while its run waits for a sibling
    one = flow()
    one.leave(one_store, commits_of, abandon, ("failed", FRAGILE), fail_fast=False)
    one.held.set()
    one.failing = False

    # when another engine goes on, then the node has no attempt more than it is due
    with Engine(one.graph, one_store) as engine:
        [run] = engine.recover()
        with pytest.raises(NodeFailedError, match="it is down"):
            run.result()
    assert one.calls["fragile"] == 1


def test_a_handler_runs_again_after_a_restart_and_its_node_does_not(
    one_store: str, flow: Any, commits_of: Any, abandon: Any, wait: Wait
) -> None:
    started, held = threading.Event(), threading.Event()

    def mend(state: State, ctx: Context) -> State:
        one.calls["mend"] += 1
        started.set()
        wait(held)
        return {"log": [f"mend after {ctx.error}"]}

    # given an engine that ends while a handler runs
    one = flow(error_handler=mend)
    engine = Engine(one.graph, one_store)
    engine.submit({}, run_id="run")
    wait(started)
    abandon(engine)

    # when another one goes on
    held.set()
    one.held.set()
    with Engine(one.graph, one_store) as engine:
        [run] = engine.recover()

        # then the handler runs again, and knows of the error
        assert run.result() == {"log": ["mend after node 'fragile' raised OSError: it is down", "other"]}
        assert list(check_store(engine._running().store)) == []
    assert one.calls == {"fragile": 1, "mend": 2}
