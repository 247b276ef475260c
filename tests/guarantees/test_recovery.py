"""What has stopped goes on: runs of engines that are gone, failed runs, cancelled ones; and nobody takes what is not his."""

from __future__ import annotations

import json
import operator
import sqlite3
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest

import lockstep_coordinator.loop
from lockstep import (
    START,
    ConflictError,
    ConflictPolicy,
    Context,
    Engine,
    Graph,
    GraphVersionError,
    NodeFailedError,
    Options,
    ReducerError,
    RetryPolicy,
    Run,
    RunCancelledError,
    StateError,
    StoreUnavailableError,
    with_conflict_policy,
)
from lockstep.broker.inprocess import InProcessBroker
from lockstep.records import Command, Superseded
from lockstep.store.memory import MemoryStore
from lockstep_coordinator.loop import Coordinator

Wait = Callable[[threading.Event], None]
WAIT_SECONDS = 10.0
"""For results that come at once, or never."""


class Nodes:
    """Nodes that note their calls, and wait or fail as a test says."""

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self.started: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self.held: dict[str, threading.Event] = {}
        self.paths: dict[str, str] = {}

    def node(self, name: str, delta: dict[str, Any]) -> Callable[..., Any]:
        def node(state: Any, ctx: Context) -> dict[str, Any]:
            self.calls.append(name)
            self.paths[name] = ctx.path
            self.started[name].set()
            if name in self.held:
                self._wait(self.held[name])
            if name in self.failing:
                raise OSError(f"{name} fails")
            return delta

        return node

    def hold(self, *names: str) -> None:
        """Keep these nodes from returning until they are released."""
        self.held.update({name: threading.Event() for name in names})

    def release(self) -> None:
        for event in self.held.values():
            event.set()
        self.held = {}

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.calls)


@pytest.fixture
def nodes(wait: Wait) -> Iterator[Nodes]:
    """Nodes that note their calls, and wait or fail as a test says; none waits longer than the test."""
    made = Nodes(wait)
    yield made
    made.release()


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


LOG = ["first", "left", "right", "last"]


def diamond(nodes: Nodes, **settings: Any) -> Graph:
    """first ─┬─> left ──┬─> last"""
    graph = Graph(State, name="diamond", **settings)
    for name in LOG:
        graph.add_node(name, nodes.node(name, {"log": [name]}))
    graph.add_edge(START, "first").add_edge("first", "left").add_edge("first", "right")
    return graph.add_edge("left", "last").add_edge("right", "last")


def retry_and_wait(run: Run, options: Options | None = None) -> None:
    """Retry a failed run, and wait until its owner has done so."""
    moved, retries = threading.Event(), run.row().retries
    unsubscribe = run.backend.subscribe(run.run_id, moved.set, each_step=True)
    run.retry(options)
    while run.row().retries == retries:
        assert moved.wait(WAIT_SECONDS), "the run was not retried"
        moved.clear()
    unsubscribe()


# Runs of engines that are gone


def test_recover_goes_on_from_the_last_commit_and_the_journal(
    one_store: str, nodes: Nodes, wait: Wait, commits_of: Any, abandon: Callable[[Engine], None]
) -> None:
    # given an engine that ended in the middle of a step: one of two results is journalled
    nodes.hold("right")
    engine = Engine(diamond(nodes), one_store)
    commits = commits_of(engine)
    run = engine.submit({}, run_id="run")
    wait(nodes.started["left"])
    commits.until_journalled("done", nodes.paths["left"])
    history = run.history()
    abandon(engine)
    nodes.release()

    # when another one recovers
    with Engine(diamond(nodes), one_store) as engine:
        [run] = engine.recover()
        state = run.result()
        recovered = run.history()

    # then only what was lost has run again, and the steps that were committed are the same ones
    assert state == {"log": LOG}
    assert nodes.counts == {"first": 1, "left": 1, "right": 2, "last": 1}
    assert recovered[: len(history)] == history
    assert [step.step_id for step in recovered] == [0, 1, 2, 3]


def test_recover_begins_what_was_submitted_and_not_begun(
    one_store: str, nodes: Nodes, abandon: Callable[[Engine], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an engine that ended before it looked at a new run
    engine = Engine(diamond(nodes), one_store)
    monkeypatch.setattr(engine._running().coordinator, "take", lambda rows: None)
    engine._running().coordinator.stop()
    assert engine.submit({}, run_id="run").status == "pending"
    abandon(engine)

    with Engine(diamond(nodes), one_store) as engine:
        [run] = engine.recover()
        assert run.result() == {"log": LOG}


def test_a_run_that_was_damaged_fails_alone(
    tmp_path: Path, nodes: Nodes, wait: Wait, abandon: Callable[[Engine], None]
) -> None:
    # given two runs that a dead engine left in the middle, one of them damaged since
    url = f"sqlite:///{tmp_path}/runs.db"
    nodes.hold("right")
    engine = Engine(diamond(nodes), url)
    for run_id in ("damaged", "whole"):
        engine.submit({}, run_id=run_id)
        wait(nodes.started["right"])
        nodes.started["right"].clear()
    abandon(engine)
    nodes.release()
    with closing(sqlite3.connect(tmp_path / "runs.db")) as connection, connection:
        connection.execute("UPDATE steps SET patch = '[[' WHERE run_id = 'damaged' AND step_id = 1")

    # when another engine recovers them
    with Engine(diamond(nodes), url) as engine:
        damaged, whole = engine.recover()
        # then the damaged one fails and says why, and nothing comes of it for the other
        with pytest.raises(StateError, match="the stored state of run damaged at step 1 cannot be read; restore a backup"):
            damaged.result()
        assert whole.result() == {"log": LOG}


def test_recover_leaves_the_runs_of_living_engines_alone(one_store: str, nodes: Nodes, wait: Wait) -> None:
    # given an engine at work
    nodes.hold("left")
    with Engine(diamond(nodes), one_store) as living:
        run = living.submit({}, run_id="run")
        wait(nodes.started["left"])
        before = run.row()

        # when others recover, and submit and look at the same run
        for _ in range(3):
            with Engine(diamond(nodes), one_store) as other:
                assert other.recover() == []
                assert other.submit({}, run_id="run").status == "running"
        assert run.row() == before

        # then it goes on by itself, and nothing has run twice
        nodes.release()
        assert run.result() == {"log": LOG}
    assert nodes.counts == dict.fromkeys(LOG, 1)


def test_each_run_of_a_dead_engine_is_recovered_by_one_of_many(
    one_store: str, nodes: Nodes, wait: Wait, abandon: Callable[[Engine], None]
) -> None:
    # given an engine that ended with several runs
    nodes.hold("first")
    engine = Engine(diamond(nodes), one_store)
    names = [f"run-{number}" for number in range(8)]
    for name in names:
        engine.submit({}, run_id=name)
    wait(nodes.started["first"])
    abandon(engine)
    nodes.release()

    # when four recover at once
    engines = [Engine(diamond(nodes), one_store) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        recovered = list(pool.map(lambda engine: engine.recover(), engines))
    states = [run.result() for runs in recovered for run in runs]

    # then each run has one new owner
    assert sorted(run.run_id for runs in recovered for run in runs) == names
    assert states == [{"log": LOG}] * len(names)
    for engine in engines:
        engine.close()


def test_recover_takes_only_runs_of_graphs_that_it_holds_unchanged(
    one_store: str, nodes: Nodes, wait: Wait, abandon: Callable[[Engine], None]
) -> None:
    # given an engine that ended with a run
    nodes.hold("left")
    engine = Engine(diamond(nodes, version="1"), one_store)
    engine.submit({}, run_id="run")
    wait(nodes.started["left"])
    abandon(engine)
    nodes.release()

    # when one recovers that holds another version of its graph, then the run stays as it is
    with Engine(diamond(nodes, version="2"), one_store) as changed:
        before = changed.run("run").row()
        assert changed.recover() == []
        assert changed.run("run").row() == before
        assert changed.run("run").state() == {"log": ["first"]}
    assert nodes.counts["last"] == 0

    # and the first that holds the old version goes on with it
    with Engine(
        [diamond(nodes, version="1"), Graph(State, name="other").add_sequence([len_of]).add_edge(START, "len_of")], one_store
    ) as engine:
        [run] = engine.recover()
        assert run.result() == {"log": LOG}


def len_of(state: State) -> State:
    return {"log": [str(len(state["log"]))]}


def test_an_unfinished_run_of_a_changed_graph_that_is_submitted_again_says_so(
    one_store: str, nodes: Nodes, wait: Wait, abandon: Callable[[Engine], None]
) -> None:
    # given an unfinished run whose graph has changed since
    nodes.hold("left")
    engine = Engine(diamond(nodes, version="1"), one_store)
    engine.submit({}, run_id="run")
    wait(nodes.started["left"])
    abandon(engine)

    # when it is submitted again, then this is an error, and not a wait without end
    with Engine(diamond(nodes, version="2"), one_store) as changed, pytest.raises(GraphVersionError):
        changed.submit({}, run_id="run").result(timeout_seconds=WAIT_SECONDS)


def test_the_command_line_says_that_the_graph_of_a_run_has_changed(
    command_line: Any, program: Callable[[str], Path], tmp_path: Path
) -> None:
    # given a run that died under one version of its graph
    graph, store = f"{program('changing_flow.py')}:graph", f"sqlite:///{tmp_path}/runs.db"
    command_line.run("run", graph, "--run-id", "run", "--store", store, DYING="1", VERSION="1")

    # when it is resumed under another, then the command ends, as with any other wrong use
    resumption = ["resume", "run", "--graphs", graph, "--store", store, "--json"]
    code, _, err = command_line.run(*resumption, patience_seconds=WAIT_SECONDS, VERSION="2")
    assert code == 2
    assert "GraphVersionError" in err

    # and under its own it goes on
    code, out, err = command_line.run(*resumption, VERSION="1")
    assert code == 0, err
    assert json.loads(out)["state"] == {"log": ["first", "second"]}


def test_an_engine_whose_lease_was_taken_commits_nothing_more(
    one_store: str, nodes: Nodes, wait: Wait, commits_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an engine at work that others hold for dead: it was suspended for longer than its lease
    mine, others = nodes, Nodes(wait)
    mine.hold("first")
    others.hold("first")
    suspended = Engine(diamond(mine), one_store)
    commits = commits_of(suspended)
    old = suspended.submit({}, run_id="run")
    wait(mine.started["first"])
    with Engine(diamond(others), one_store) as engine:
        monkeypatch.setattr(lockstep_coordinator.loop, "is_dead", lambda holder: True)
        [run] = engine.recover()
        monkeypatch.undo()
        wait(others.started["first"])

        # when it goes on, and its node returns
        lease_id = suspended._running().lease_id
        mine.release()
        commits.until(lambda seen: seen[0] == lease_id and isinstance(seen[2], Superseded))

        # then nothing of it is stored
        assert run.row().step_id == 0
        assert engine._running().store.journal("run", [bytes.fromhex(mine.paths["first"])]) == []

        # and the new owner finishes the run alone
        others.release()
        assert run.result() == {"log": LOG}
        assert others.counts == dict.fromkeys(LOG, 1)
        assert mine.counts == {"first": 1}

    # and the old one says, to whoever waits for other runs of it, that it cannot go on
    assert old.result() == {"log": LOG}
    with pytest.raises(StoreUnavailableError, match="lease"):
        suspended.submit({}, run_id="another").result(timeout_seconds=WAIT_SECONDS)
    suspended.close()


# Failed runs


def test_retry_goes_on_from_the_last_commit_and_keeps_what_has_a_result(store_url: str, nodes: Nodes) -> None:
    # given a run of which one node failed, beside another one that did not
    nodes.failing = {"right"}
    with Engine(diamond(nodes), store_url, options=Options(fail_fast=False)) as engine:
        run = engine.submit({}, run_id="run")
        with pytest.raises(NodeFailedError, match="right fails"):
            run.result()
        history = run.history()
        assert run.state() == {"log": ["first"]}

        # when the node is mended and the run retried
        nodes.failing = set()
        retry_and_wait(run)

        # then it ends well, and only what had failed, or had not run, was run
        assert run.result() == {"log": LOG}
        assert nodes.counts == {"first": 1, "left": 1, "right": 2, "last": 1}
        assert run.history()[: len(history)] == history
        assert [task.attempt for task in run.history()[2].tasks] == [1, 2]
        assert run.error is None


def test_result_after_retry_waits_for_the_retried_run(store_url: str, nodes: Nodes) -> None:
    # given a failed run whose node has been mended
    nodes.failing = {"right"}
    with Engine(diamond(nodes), store_url) as engine:
        run = engine.submit({})
        with pytest.raises(NodeFailedError):
            run.result()
        nodes.failing = set()

        # when it is retried, then `result` gives what comes of that, not the failure of before
        run.retry()
        assert run.result() == {"log": LOG}


def test_lockstep_retry_ends_with_the_retried_run(command_line: Any, program: Callable[[str], Path], tmp_path: Path) -> None:
    # given a run that failed
    graph, store = f"{program('changing_flow.py')}:graph", f"sqlite:///{tmp_path}/runs.db"
    code, _, _ = command_line.run("run", graph, "--run-id", "run", "--store", store, BROKEN="1")
    assert code == 1

    # when it is retried with the graph mended
    code, out, err = command_line.run("retry", "run", "--graphs", graph, "--store", store, "--json")

    # then the command ends with the run, and says how it ended
    assert code == 0, err
    record = json.loads(out)
    assert (record["status"], record["state"], record["error"]) == ("succeeded", {"log": ["first", "second"]}, None)


def test_a_failed_run_is_retried_by_another_engine(one_store: str, nodes: Nodes) -> None:
    # given a run that failed in an engine that has ended
    nodes.failing = {"last"}
    with Engine(diamond(nodes), one_store) as engine, pytest.raises(NodeFailedError):
        engine.submit({}, run_id="run").result()
    nodes.failing = set()

    # when another one retries it; recover() leaves it alone
    with Engine(diamond(nodes), one_store) as engine:
        assert engine.recover() == []
        run = engine.run("run")
        retry_and_wait(run)

        # then
        assert run.result() == {"log": LOG}
    assert nodes.counts == {"first": 1, "left": 1, "right": 1, "last": 2}


@pytest.mark.parametrize("status", ["running", "succeeded", "cancelled"])
def test_a_retry_that_comes_when_its_run_no_longer_is_failed_changes_nothing(
    store_url: str, nodes: Nodes, wait: Wait, commits_of: Any, status: str
) -> None:
    # given a run that another one has retried before, and that stands somewhere else now
    nodes.hold("right")
    with Engine(diamond(nodes), store_url) as engine:
        commits = commits_of(engine)
        run = engine.submit({})
        wait(nodes.started["right"])
        if status == "succeeded":
            nodes.release()
            run.result()
        if status == "cancelled":
            run.cancel()
            with pytest.raises(RunCancelledError):
                run.result()
        before = run.row()
        assert before.status == status

        # when the second request arrives
        run.backend.send(Command(run_id=run.run_id, command_id="second", kind="retry", payload=b"{}"))
        commits.until(lambda seen: "second" in seen[1].consumed)

        # then nothing has changed
        assert run.row() == before
        nodes.release()
        if status == "running":
            assert run.result() == {"log": LOG}
        assert nodes.counts["right"] == 1


def test_a_retry_gives_all_attempts_anew_and_counts_on(store_url: str, nodes: Nodes) -> None:
    # given a node that failed on both of its attempts
    attempts: list[int] = []

    def fragile(state: State, ctx: Context) -> State:
        attempts.append(ctx.attempt)
        if ctx.attempt < 4:
            raise OSError("not yet")
        return {"log": ["done"]}

    graph = Graph(State).add_node(fragile, retry=RetryPolicy(max_attempts=2, initial_seconds=0.0)).add_edge(START, "fragile")
    with Engine(graph, store_url) as engine:
        run = engine.submit({})
        with pytest.raises(NodeFailedError):
            run.result()
        assert attempts == [1, 2]

        # when
        retry_and_wait(run)

        # then it has two more
        assert run.result() == {"log": ["done"]}
        assert attempts == [1, 2, 3, 4]


def test_a_pause_from_before_a_retry_does_not_run_a_node_twice(
    store_url: str, nodes: Nodes, wait: Wait, commits_of: Any
) -> None:
    # given a run that failed while another of its nodes paused before its second attempt
    def pausing(seconds: float) -> RetryPolicy:
        return RetryPolicy(max_attempts=3, initial_seconds=seconds, factor=1.0, jitter=0.0)

    graph = Graph(State)
    for name, policy in {"brief": pausing(0.1), "long": pausing(0.2), "fatal": None}.items():
        graph.add_node(name, nodes.node(name, {"log": [name]}), retry=policy).add_edge(START, name)
    nodes.hold("fatal")
    nodes.failing = {"brief", "long", "fatal"}
    with Engine(graph, store_url) as engine:
        commits = commits_of(engine)
        run = engine.submit({})
        for name in ("brief", "long"):
            wait(nodes.started[name])
            commits.until_journalled("failed", nodes.paths[name])
        nodes.release()
        with pytest.raises(NodeFailedError, match="fatal fails"):
            run.result()
        before = nodes.counts

        # when it is retried, and then waits for a pause that began after that one
        nodes.failing = {"long"}
        nodes.hold("fatal")
        nodes.started["long"].clear()
        retry_and_wait(run)
        wait(nodes.started["long"])
        nodes.started["long"].clear()
        nodes.failing = set()
        wait(nodes.started["long"])
        nodes.release()

        # then the node has run once more, and not twice
        assert run.result() == {"log": ["brief", "long", "fatal"]}
    assert nodes.counts - before == {"brief": 1, "long": 2, "fatal": 1}


def test_commands_to_a_run_leave_nothing_behind_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a coordinator with a clock that stands still
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    class Polled(MemoryStore):
        polls = 0

        def poll(self, lease_id: str) -> Any:
            self.polls += 1
            return super().poll(lease_id)

    clock, store = Clock(), Polled()
    monkeypatch.setattr(lockstep_coordinator.loop, "time", clock)
    coordinator = Coordinator(store, InProcessBroker(1), "lease", {}, observer=object())  # type: ignore[arg-type]

    # when it is woken for ten commands, and then nothing happens for some seconds
    for _ in range(10):
        coordinator.wake_for_commands()
        coordinator.turn(0.0)
    woken = store.polls
    for _ in range(5):
        clock.now += lockstep_coordinator.loop.SWEEP_SECONDS
        coordinator.turn(0.0)

    # then it looks into the store as often as without any commands: once in each sweep
    assert woken <= 10
    assert store.polls - woken <= 5


# Runs that fail where their results come together


def reducer(works: bool) -> Callable[[int, int], int]:
    """A reducer as it was and as it was mended: the name is the same, and so is the graph's hash."""

    def join(current: int, update: int) -> int:
        if not works:
            raise ArithmeticError("broken")
        return current + update

    return join


def total_by(reducer: Callable[[int, int], int]) -> type:
    """A state whose only field `total` is folded by this reducer."""
    return make_dataclass("Total", [("total", Annotated[int, reducer], 0)])


def summing(nodes: Nodes, works: bool) -> Graph:
    graph = Graph(total_by(reducer(works)), name="summing")
    for number, name in enumerate(["first", "left", "right"]):
        graph.add_node(name, nodes.node(name, {"total": 10**number} if number else {}))
    return graph.add_edge(START, "first").add_edge("first", "left").add_edge("first", "right")


def test_a_run_whose_reducer_was_mended_is_retried_without_running_its_nodes_again(one_store: str, nodes: Nodes) -> None:
    # given a run that failed when the results of two nodes were merged
    assert summing(nodes, False).compile().hash == summing(nodes, True).compile().hash
    with Engine(summing(nodes, False), one_store) as engine:
        run = engine.submit({}, run_id="run")
        with pytest.raises(ReducerError, match="broken"):
            run.result()
        assert run.state() == {"total": 0}

    # when it is retried with the reducer mended
    with Engine(summing(nodes, True), one_store) as engine:
        run = engine.run("run")
        retry_and_wait(run)

        # then the results that it had are merged
        assert run.result() == {"total": 110}
        assert [(task.node_id, task.attempt) for task in run.history()[2].tasks] == [("left", 1), ("right", 1)]
    assert nodes.counts == {"first": 1, "left": 1, "right": 1}


def test_a_run_that_failed_with_its_input_is_retried_with_its_input(one_store: str, nodes: Nodes) -> None:
    # given a run whose very input could not be merged
    with Engine(summing(nodes, False), one_store) as engine, pytest.raises(ReducerError):
        engine.submit({"total": 1000}, run_id="run").result()
    assert nodes.calls == []

    # when it is retried with the reducer mended
    with Engine(summing(nodes, True), one_store) as engine:
        run = engine.run("run")
        retry_and_wait(run)

        # then it begins with that input
        assert run.result() == {"total": 1110}
        assert run.state(0) == {"total": 1000}
    assert nodes.counts == {"first": 1, "left": 1, "right": 1}


def test_a_reducer_that_wants_to_end_the_process_fails_its_run_alone(store_url: str, nodes: Nodes) -> None:
    # given a graph whose reducer raises what is no Exception
    def fatal(current: int, update: int) -> int:
        raise SystemExit(1)

    graph = Graph(total_by(fatal), name="fatal")
    graph.add_node("node", nodes.node("node", {"total": 1})).add_edge(START, "node")
    with Engine([graph, diamond(nodes)], store_url) as engine:
        # when, then
        with pytest.raises(ReducerError):
            engine.submit({}, graph="fatal").result(timeout_seconds=WAIT_SECONDS)
        assert engine.submit({}, graph="diamond").result(timeout_seconds=WAIT_SECONDS) == {"log": LOG}


class Title(TypedDict, total=False):
    title: str


def merge(works: bool) -> Callable[[str, str], str]:
    def join(one: str, other: str) -> str:
        if not works:
            raise ArithmeticError("broken")
        return max(one, other)

    return join


def conflicting(nodes: Nodes, works: bool = True) -> Graph:
    graph = Graph(Title, name="conflicting", merges={"title": merge(works)})
    for name in ("left", "right"):
        graph.add_node(name, nodes.node(name, {"title": name})).add_edge(START, name)
    return graph


def test_a_conflict_fails_its_run_alone_and_does_not_wedge_it(store_url: str, nodes: Nodes) -> None:
    with Engine([conflicting(nodes), diamond(nodes)], store_url) as engine:
        # given a conflict, beside a run that has none
        run, other = engine.submit({"title": "none"}, graph="conflicting"), engine.submit({}, graph="diamond")
        with pytest.raises(ConflictError) as caught:
            run.result()
        assert (caught.value.field, caught.value.writers) == ("title", ["left", "right"])
        assert other.result() == {"log": LOG}
        before = nodes.counts

        # when it is retried as it is, then it fails as before, from its last commit and without running anything
        retry_and_wait(run)
        with pytest.raises(ConflictError):
            run.result()
        assert run.state() == {"title": "none"}

        # and with a policy that settles it, it ends well, again without running anything
        retry_and_wait(run, Options(conflict_policy=ConflictPolicy.LAST_WRITER_WINS))
        assert run.result() == {"title": "right"}
        assert nodes.counts == before
        assert engine.invoke({}, graph="diamond") == {"log": LOG}


def test_an_error_of_a_merge_says_in_which_step_of_which_run(store_url: str, nodes: Nodes) -> None:
    with Engine([conflicting(nodes), summing(nodes, False)], store_url) as engine:
        with pytest.raises(ConflictError) as conflict:
            engine.invoke({}, run_id="conflict", graph="conflicting")
        with pytest.raises(ReducerError) as broken:
            engine.invoke({}, run_id="broken", graph="summing")

    assert (conflict.value.run_id, conflict.value.step_id) == ("conflict", 1)
    assert (broken.value.run_id, broken.value.step_id) == ("broken", 2)


def test_a_conflict_whose_merge_function_was_mended_is_settled_by_a_retry(one_store: str, nodes: Nodes) -> None:
    # given a conflict that its merge function could not settle
    policy = with_conflict_policy(ConflictPolicy.MERGE)
    with Engine(conflicting(nodes, works=False), one_store, policy) as engine, pytest.raises(ReducerError):
        engine.submit({}, run_id="run").result()

    # when, then
    with Engine(conflicting(nodes, works=True), one_store) as engine:
        run = engine.run("run")
        retry_and_wait(run)
        assert run.result() == {"title": "right"}
    assert nodes.counts == {"left": 1, "right": 1}


# Cancelled runs


def test_cancel_ends_a_run_at_its_last_commit_for_good(one_store: str, nodes: Nodes, wait: Wait) -> None:
    # given a run whose nodes are under way, beside another
    nodes.hold("left", "right")
    with Engine(diamond(nodes), one_store) as engine:
        run, other = engine.submit({}, run_id="run"), engine.submit({}, run_id="other")
        wait(nodes.started["left"])

        # when it is cancelled
        run.cancel("no longer wanted")
        with pytest.raises(RunCancelledError) as caught:
            run.result()

        # then it stands where it stood, and the other goes on
        assert (caught.value.reason, caught.value.run_id) == ("no longer wanted", "run")
        nodes.release()
        assert other.result() == {"log": LOG}
        assert (run.status, run.state()) == ("cancelled", {"log": ["first"]})
        before = run.row()

        # and nothing moves it again: no command, no recovery, no second submission
        run.retry()
        run.cancel("again")
        assert engine.invoke({}) == {"log": LOG}
    with Engine(diamond(nodes), one_store) as engine:
        assert engine.recover() == []
        with pytest.raises(RunCancelledError):
            engine.submit({}, run_id="run").result()
        assert engine.run("run").row() == before


def test_cancel_of_a_run_that_has_ended_changes_nothing(store_url: str, nodes: Nodes) -> None:
    with Engine(diamond(nodes), store_url) as engine:
        run = engine.submit({})
        run.result()
        before = run.row()

        run.cancel()
        engine.invoke({})

        assert run.row() == before
        assert run.result() == {"log": LOG}


def test_a_run_of_a_dead_engine_is_cancelled_by_another(
    one_store: str, nodes: Nodes, wait: Wait, abandon: Callable[[Engine], None]
) -> None:
    nodes.hold("left")
    engine = Engine(diamond(nodes), one_store)
    engine.submit({}, run_id="run")
    wait(nodes.started["left"])
    abandon(engine)

    with Engine(diamond(nodes), one_store) as engine:
        run = engine.run("run")
        run.cancel("its engine is gone")
        with pytest.raises(RunCancelledError, match="its engine is gone"):
            run.result()
        assert run.state() == {"log": ["first"]}
    assert nodes.counts["last"] == 0


def test_a_run_of_a_living_engine_is_cancelled_through_another(one_store: str, nodes: Nodes, wait: Wait) -> None:
    # given a run of one engine
    nodes.hold("left")
    with Engine(diamond(nodes), one_store) as owner, Engine(diamond(nodes), one_store) as other:
        run = owner.submit({}, run_id="run")
        wait(nodes.started["left"])

        # when it is cancelled through another one, then its owner obeys
        other.run("run").cancel("asked from outside")
        with pytest.raises(RunCancelledError, match="asked from outside"):
            run.result()
        assert run.row().partition_id == owner._running().lease_id
