"""No journalled node runs again and no step or event is committed twice, whatever dies: kill -9 at any moment, late results."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypedDict

import pytest

from lockstep import START, Context, Engine, Graph, LockstepError, RetryPolicy
from lockstep.cli.load import load_graph
from lockstep.core.frontier import decode_frontier
from lockstep.core.records import Failure, Write
from lockstep.fsck import check_store
from lockstep.ports import Store
from lockstep.records import Event, TaskResult
from lockstep.store import open_store
from lockstep.wire import encode_outcome

RUN_ID = "run-1"
INPUT = {"parts": 3}
EXECUTIONS = 9
KILLS = 50
AT_ONCE = 3
LONG = 0.15
"""Seconds that a node may take in a process that must not come to its end before it is met."""


@dataclass(frozen=True)
class Ended:
    """What a run came to: all that must be the same, whatever happened on the way."""

    state_hash: str
    keys: list[str]
    events: list[tuple[int, int, str, str, bytes]]
    executed: set[str]


@dataclass(frozen=True)
class Left:
    """What a process has left behind."""

    url: str
    ledger: Path


@dataclass
class Survey:
    """What a kill has met, so that a test can say that it met everything."""

    not_submitted: int = 0
    not_begun: int = 0
    under_way: int = 0
    with_results: int = 0
    in_the_middle_of_a_step: int = 0
    ended: int = 0


Recovers = Callable[[Store, Left, Survey], None]


def executions(ledger: Path) -> Counter[str]:
    """How often each attempt of each item was executed: "path attempt"."""
    return Counter(ledger.read_text().splitlines()) if ledger.exists() else Counter()


def journalled_in(left: Left) -> dict[str, int]:
    """The executions whose results or failures are journalled, and the step of each."""
    with closing(open_store(left.url)) as store:
        return journalled(store, left)


def journalled(store: Store, left: Left) -> dict[str, int]:
    """`journalled_in`, of a store that is open."""
    rows = store.journal(RUN_ID, [bytes.fromhex(line.split()[0]) for line in executions(left.ledger)])
    return {f"{row.path.hex()} {json.loads(row.meta)['attempt'] if row.kind == 'done' else row.n}": row.step_id for row in rows}


def ended(engine: Engine, ledger: Path) -> Ended:
    """What the engine's run came to, once it has ended."""
    run = engine.run(RUN_ID)
    run.result()
    history = run.history()
    events: list[Event] = engine._running().store.events(RUN_ID)
    places = [(event.sequence, event.position) for event in events]
    assert places == sorted(set(places)), "events have their place in the run, each one its own"
    return Ended(
        state_hash=history[-1].state_hash,
        keys=[step.idempotency_key for step in history],
        events=[(event.step_id, event.position, event.node_id, event.type, event.data) for event in events],
        executed=set(executions(ledger)),
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], Path]) -> Ended:
    """The run that nothing has disturbed."""
    ledger = tmp_path_factory.mktemp("undisturbed") / "ledger"
    graph = load_graph(f"{program('ledger_flow.py')}:graph")
    with pytest.MonkeyPatch.context() as patch, Engine(graph, "memory://") as engine:
        patch.setenv("LEDGER", str(ledger))
        engine.submit(INPUT, run_id=RUN_ID)
        whole = ended(engine, ledger)
    assert len(whole.executed) == executions(ledger).total() == EXECUTIONS
    assert [event[3] for event in whole.events] == ["ran", "large", *["ran"] * 7]
    return whole


@pytest.fixture
def recovers(undisturbed: Ended, ledger_graph: Graph, monkeypatch: pytest.MonkeyPatch) -> Recovers:
    """Recover what a killed process left, and check that nothing was lost, and nothing done twice."""

    def recovers(store: Store, left: Left, survey: Survey) -> None:
        # given what had been executed, and what of it had been journalled
        before, kept = executions(left.ledger), journalled(store, left)
        rows = store.find_runs(run_ids=[RUN_ID])
        unfinished = [row.run_id for row in rows if row.status in ("pending", "running")]
        survey.not_submitted += not rows
        survey.not_begun += bool(rows and rows[0].step_id < 0)
        survey.under_way += bool(unfinished and rows[0].step_id >= 0)
        survey.with_results += bool(unfinished and kept)
        survey.in_the_middle_of_a_step += bool(unfinished and max(kept.values(), default=0) > rows[0].step_id)
        survey.ended += bool(rows and not unfinished)

        # when another process recovers it; what was not even submitted is submitted again
        monkeypatch.setenv("LEDGER", str(left.ledger))
        with Engine(ledger_graph, left.url) as engine:
            assert [run.run_id for run in engine.recover()] == unfinished
            engine.submit(INPUT, run_id=RUN_ID)
            recovered = ended(engine, left.ledger)

        assert list(check_store(store, [RUN_ID])) == []

        # then the run is the undisturbed one, step by step and event by event
        assert recovered == undisturbed
        # and what was journalled did not run again, what was lost ran again once
        after = executions(left.ledger)
        assert {line: after[line] for line in kept} == {line: before[line] for line in kept}
        assert set(after.values()) <= {1, 2}
        assert after.total() == EXECUTIONS + (before.total() - len(kept))

    return recovers


class LedgerRuns:
    """Processes that execute `lockstep run` on the graph with the ledger."""

    def __init__(self, command_line: Any, graph: str, pulse: Any, directory: Path) -> None:
        self._command_line = command_line
        self._pulse = pulse
        self._beats: list[Any] = []
        self.graph = graph
        self.directory = directory
        with closing(open_store(self.url("empty"))):
            pass

    def url(self, name: object) -> str:
        return f"sqlite:///{self.directory}/{name}.db"

    def ledger(self, name: object) -> Path:
        return self.directory / f"{name}.ledger"

    def submission(self, name: object) -> list[str]:
        """The arguments of `lockstep`."""
        submission = ["run", self.graph, "--input", json.dumps(INPUT), "--run-id", RUN_ID]
        return [*submission, "--store", self.url(name), "--json"]

    def start(
        self, name: object, executions: int, *, new_database: bool = False, pause_seconds: float = 0.004
    ) -> subprocess.Popen[str]:
        """Start a process, and wait until it has loaded the graph and begun so many executions, or has ended."""
        if not new_database:
            shutil.copy(self.directory / "empty.db", self.directory / f"{name}.db")
        beat = self._pulse()
        self._beats.append(beat)  # Read until the test ends: a node that finds nobody at the other end would fail.
        process: subprocess.Popen[str] = self._command_line.start(
            *self.submission(name),
            pass_fds=[beat.fd],
            LEDGER=str(self.ledger(name)),
            LEDGER_PULSE=str(beat.fd),
            LEDGER_PAUSE_SECONDS=str(pause_seconds),
        )
        beat.close_writer()
        beat.wait(1 + executions)
        return process

    def close(self) -> None:
        for beat in self._beats:
            beat.close()

    def left_by(self, name: object) -> Left:
        return Left(self.url(name), self.ledger(name))


@pytest.fixture
def ledger_runs(command_line: Any, program: Callable[[str], Path], pulse: Any, tmp_path: Path) -> Iterator[LedgerRuns]:
    """Processes that execute `lockstep run` on the graph with the ledger."""
    runs = LedgerRuns(command_line, f"{program('ledger_flow.py')}:graph", pulse, tmp_path)
    yield runs
    runs.close()


# Any process may die at any moment


def test_a_run_that_is_killed_50_times_at_random_moments_ends_as_if_undisturbed(
    ledger_runs: LedgerRuns, recovers: Recovers, rng: Random
) -> None:
    def kill(number: int) -> int:
        # Each fifth process is killed before its first node, and makes its database first: that takes much of this time.
        early = number % 5 == 0
        choice = Random(f"{seed} {number}")
        extra_seconds = 0.0 if number == 0 else choice.uniform(0, 0.4 if early else 0.006)
        process = ledger_runs.start(number, 0 if early else choice.randint(1, EXECUTIONS), new_database=early)
        time.sleep(extra_seconds)
        process.kill()
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0)
        return number

    # given processes that are killed at moments chosen at random, before the first commit too
    seed, survey = rng.random(), Survey()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number in pool.map(kill, range(KILLS)):
            # then each run is as if nothing had happened, once it is recovered
            left = ledger_runs.left_by(number)
            with closing(open_store(left.url)) as store:
                recovers(store, left, survey)

    # and the kills met every situation
    assert survey.not_submitted + survey.not_begun, survey
    assert survey.under_way, survey
    assert survey.with_results, survey
    assert survey.in_the_middle_of_a_step, survey


@pytest.fixture
def dying(ledger_runs: LedgerRuns, program: Callable[[str], Path]) -> Iterator[subprocess.Popen[str]]:
    """The program dying.py: give it a line, and it gives one back."""
    command = [sys.executable, str(program("dying.py")), ledger_runs.graph, json.dumps(INPUT), RUN_ID]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("store_url", ["sqlite", "postgres", "mysql"], indirect=True)
def test_a_run_that_is_killed_between_any_two_statements_ends_as_if_undisturbed(
    store_url: str, dying: subprocess.Popen[str], recovers: Recovers, tmp_path: Path
) -> None:
    survey, moments, number, status = Survey(), list[str](), 0, -signal.SIGKILL
    with closing(open_store(store_url)) as store:
        store.outbox.add_sink("sink")  # So that each commit of events leaves a row for it.
        while status != 0:
            number += 1
            # given a process that was killed one moment later in its writing than the one before
            left, trace = Left(store_url, tmp_path / f"{number}.ledger"), tmp_path / f"{number}.trace"
            assert dying.stdin is not None and dying.stdout is not None
            dying.stdin.write(f"{number} {left.url} {left.ledger} {trace}\n")
            dying.stdin.flush()
            status = int(dying.stdout.readline())
            assert status in (0, -signal.SIGKILL)
            rows = store.find_runs(run_ids=[RUN_ID])
            moments.append(trace.read_text().splitlines()[-1])
            # and where nothing was heard of a COMMIT, it was done
            if must_have := re.search(r"journal (\d+)$", moments[-1]):
                assert len(rows and journalled(store, left)) == int(must_have[1])

            # then its run is as if nothing had happened, once it is recovered
            try:
                recovers(store, left, survey)
            except BaseException as error:
                error.add_note(f"the process was killed here:\n{trace.read_text()}")
                raise
            [waiting] = store.outbox.waiting("sink")
            assert waiting.run_id == RUN_ID
            assert store.delete(RUN_ID)

    # and the places were all that there are, up to the end
    places = {place for moment in moments for place in moment.split(", ")}
    inserted = {"journal", "steps", "snapshots", "outbox", "undelivered", "runs", "unfinished", "leases", "partitions"}
    changed = {"UPDATE leases", "UPDATE runs", "UPDATE unfinished", "DELETE FROM unfinished"}
    assert {f"INSERT INTO {table}" for table in inserted} | changed | {"COMMIT", "committed"} <= places
    assert places & {"BEGIN", "START TRANSACTION"}
    # SQLite tells of the beginnings of statements alone.
    assert {"COMMIT done", f"journal {EXECUTIONS}"} <= places or store_url.startswith("sqlite")
    assert min(survey.not_submitted, survey.not_begun, survey.under_way, survey.in_the_middle_of_a_step, survey.ended), survey


@pytest.mark.parametrize("command", ["run", "resume"])
def test_the_command_line_goes_on_with_a_killed_run(
    ledger_runs: LedgerRuns, command_line: Any, undisturbed: Ended, command: str
) -> None:
    # given a process that was killed within its run
    process = ledger_runs.start("killed", 5, pause_seconds=LONG)
    process.kill()
    process.communicate()
    ledger = ledger_runs.ledger("killed")
    journalled = journalled_in(ledger_runs.left_by("killed"))

    # when it is submitted again under its id, or resumed
    resumption = ["resume", RUN_ID, "--graphs", ledger_runs.graph, "--store", ledger_runs.url("killed"), "--json"]
    again = ledger_runs.submission("killed") if command == "run" else resumption
    code, out, err = command_line.run(*again, LEDGER=str(ledger))

    # then it ends as if undisturbed, and no journalled node has run again
    assert code == 0, err
    record = json.loads(out)
    assert (record["run_id"], record["status"]) == (RUN_ID, "succeeded")
    assert record["state_hash"] == undisturbed.state_hash
    assert journalled
    assert all(executions(ledger)[line] == 1 for line in journalled)


def test_a_killed_owner_that_nobody_has_waited_for_is_dead(
    ledger_runs: LedgerRuns, ledger_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process that was killed, and whose parent has not asked how it ended: a zombie
    process = ledger_runs.start("killed", 2, pause_seconds=LONG)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    # when
    monkeypatch.setenv("LEDGER", str(ledger_runs.ledger("killed")))
    with Engine(ledger_graph, ledger_runs.url("killed")) as engine:
        recovered = engine.recover()
        for run in recovered:
            run.result()

    # then
    assert [run.run_id for run in recovered] == [RUN_ID]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_gives_its_lease_back_and_keeps_what_it_has(
    ledger_runs: LedgerRuns, recovers: Recovers, number: signal.Signals
) -> None:
    # given processes that are asked to end at some moment of their run
    processes, survey = {}, Survey()
    for begun in (1, 2, 4):
        processes[begun] = ledger_runs.start(begun, begun, pause_seconds=LONG)
        processes[begun].send_signal(number)

    for begun, process in processes.items():
        # then each ends as asked, if it had not ended before, and has given its lease back
        _, err = process.communicate(timeout=60)
        assert process.returncode in (128 + number, 0), err
        assert "Traceback" not in err
        with closing(sqlite3.connect(ledger_runs.directory / f"{begun}.db")) as database:
            assert database.execute("SELECT count(*) FROM leases").fetchone() == (0,)
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        # and another goes on with what its nodes have returned
        left = ledger_runs.left_by(begun)
        with closing(open_store(left.url)) as store:
            recovers(store, left, survey)
    assert survey.under_way, survey


def test_a_suspended_process_whose_lease_has_ended_is_taken_over_and_writes_nothing_more(
    ledger_runs: LedgerRuns, undisturbed: Ended, ledger_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process that is suspended, outside of any transaction, until its lease has ended
    process = ledger_runs.start("suspended", 2, pause_seconds=LONG)
    left = ledger_runs.left_by("suspended")
    with closing(sqlite3.connect(ledger_runs.directory / "suspended.db", timeout=0.1, isolation_level=None)) as database:
        while True:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            try:
                database.execute("UPDATE leases SET expires_at = 0")
                break
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
    journalled, before = journalled_in(left), executions(left.ledger)

    # when another one has taken its run over and ended it, and it goes on
    monkeypatch.setenv("LEDGER", str(left.ledger))
    with Engine(ledger_graph, left.url) as engine:
        assert [run.run_id for run in engine.recover()] == [RUN_ID]
        assert ended(engine, left.ledger) == undisturbed
        history = engine.run(RUN_ID).history()
        after = executions(left.ledger)
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate(timeout=60)

        # then it has nothing more to say
        assert process.returncode in (0, 4), err
        assert engine.run(RUN_ID).history() == history
        assert ended(engine, left.ledger) == undisturbed
    assert {line: after[line] for line in journalled} == {line: before[line] for line in journalled}
    # What it had handed out before may still have run, once.
    late = executions(left.ledger) - after
    assert not late.keys() & journalled.keys()
    assert late.total() == len(late)


# A closing engine commits what its nodes return


class Small(TypedDict, total=False):
    first: int
    second: int


def test_an_engine_that_closes_keeps_what_its_running_nodes_return(
    one_store: str, wait: Callable[[threading.Event], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an engine that is told to close while a node runs
    started, held, draining = threading.Event(), threading.Event(), threading.Event()
    calls: list[str] = []

    def first(state: Small) -> Small:
        calls.append("first")
        started.set()
        wait(held)
        return {"first": 1}

    def second(state: Small) -> Small:
        calls.append("second")
        return {"second": 2}

    graph = Graph(Small).add_sequence([first, second]).add_edge(START, "first")
    engine = Engine(graph, one_store)
    coordinator = engine._running().coordinator
    drain = coordinator.drain

    def drained(timeout_seconds: float) -> None:
        draining.set()
        drain(timeout_seconds)

    monkeypatch.setattr(coordinator, "drain", drained)
    engine.submit({}, run_id=RUN_ID)
    wait(started)
    closing_thread = threading.Thread(target=engine.close)
    closing_thread.start()
    wait(draining)

    # when the node returns
    held.set()
    closing_thread.join()

    # then its step is committed, the next one did not begin, and another engine has only the rest to do
    assert calls == ["first"]
    with Engine(graph, one_store) as other:
        assert other.run(RUN_ID).state() == {"first": 1}
        [run] = other.recover()
        assert run.result() == {"first": 1, "second": 2}
    assert calls == ["first", "second"]


# Results that come late, twice, or out of nowhere


class Pair(TypedDict, total=False):
    one: str
    other: str
    end: str


class Bench:
    """An engine with one run, whose nodes `one` and `other` run side by side and return when they are told to; then `end`."""

    def __init__(self, store_url: str, wait: Callable[[threading.Event], None], retry: RetryPolicy | None = None) -> None:
        self.calls: list[str] = []
        self.started = {name: threading.Event() for name in ("one", "other", "end")}
        self.held = {name: threading.Event() for name in ("one", "other", "end")}
        self.failing: set[str] = set()
        graph = Graph(Pair)
        for name in ("one", "other", "end"):
            graph.add_node(name, self._node(name, wait), retry=retry)
        graph.add_edge(START, "one").add_edge(START, "other").add_edge(["one", "other"], "end")
        self.engine = Engine(graph, store_url)
        self.parts = self.engine._running()
        self.run = self.engine.submit({}, run_id=RUN_ID)
        for name in ("one", "other"):
            wait(self.started[name])
        self.path = {item.node_id: item.path for item in self._items()}

    def _node(self, name: str, wait: Callable[[threading.Event], None]) -> Callable[..., Any]:
        def node(state: Pair, ctx: Context) -> dict[str, Any]:
            self.calls.append(name)
            self.started[name].set()
            wait(self.held[name])
            if name in self.failing:
                self.failing.remove(name)
                raise OSError("passing")
            return {name: f"attempt {ctx.attempt}"}

        return node

    def _items(self) -> list[Any]:
        [step] = self.parts.store.steps(RUN_ID, 0, 0)
        return list(decode_frontier(step.frontier, 0).items)

    def deliver(self, name: str, *, value: str | None = None, **fields: Any) -> None:
        """Forge a message of a worker: that the item of node `name` returned `value`, or else that it failed."""
        given: dict[str, Any] = {"run_id": RUN_ID, "path": self.path[name], "delivery": 1}
        if value is None:
            failure = Failure({"type": "NodeFailedError", "message": "forged"}, ("OSError", "Exception", "BaseException"))
            given["failure"] = failure
        else:
            given["outcome"] = encode_outcome([Write(name, value)], [], [])
        self.parts.coordinator._broker.deliver(TaskResult(**{**given, **fields}))  # type: ignore[attr-defined]

    def release(self, *names: str) -> None:
        for name in names:
            self.held[name].set()

    @property
    def dropped(self) -> int:
        return self.parts.coordinator.counts.dropped_results

    def journal(self, name: str) -> list[tuple[str, int]]:
        return [(row.kind, row.n) for row in self.parts.store.journal(RUN_ID, [self.path[name]])]


@pytest.fixture
def bench(store_url: str, wait: Callable[[threading.Event], None]) -> Any:
    made: list[Bench] = []

    def bench(retry: RetryPolicy | None = None) -> Bench:
        made.append(Bench(store_url, wait, retry))
        return made[-1]

    yield bench
    for each in made:
        each.release("one", "other", "end")
        each.engine.close()


EXPECTED = {"one": "attempt 1", "other": "attempt 1", "end": "attempt 1"}


def test_a_second_result_of_an_item_is_dropped_and_counted(bench: Any, commits_of: Any) -> None:
    # given an item whose result is journalled while its step waits for another
    one = bench()
    commits = commits_of(one.engine)
    one.release("one")
    commits.until_journalled("done", one.path["one"].hex())

    # when results for it arrive again: another value, from another delivery, a failure
    one.deliver("one", value="forged")
    one.deliver("one", value="forged", delivery=2)
    one.deliver("one")
    one.release("other", "end")

    # then they change nothing
    assert one.run.result() == EXPECTED
    assert one.dropped == 3
    assert one.journal("one") == [("done", 0)]
    assert Counter(one.calls) == {"one": 1, "other": 1, "end": 1}


def test_a_result_that_comes_after_its_step_is_dropped_and_counted(bench: Any, wait: Any) -> None:
    # given a run whose first step is committed
    one = bench()
    one.release("one", "other")
    wait(one.started["end"])

    # when results for that step arrive
    one.deliver("one", value="forged")
    one.deliver("other")
    one.release("end")

    # then they change nothing
    assert one.run.result() == EXPECTED
    assert one.dropped == 2
    assert [step.step_id for step in one.run.history()] == [0, 1, 2]
    assert one.journal("one") == one.journal("other") == [("done", 0)]


def test_results_for_runs_that_ended_or_never_were_are_dropped_and_counted(bench: Any) -> None:
    # given a run that has ended
    one = bench()
    one.release("one", "other", "end")
    one.run.result()
    before = one.run.history()

    # when results for it, for no run, and for no item arrive
    one.deliver("one", value="forged")
    one.deliver("one", value="forged", run_id="nobody")
    one.deliver("one", value="forged", path=bytes(32))
    # and another run comes and goes, behind them
    one.engine.submit({}, run_id="run-2").result()

    # then
    assert one.dropped == 3
    assert one.run.history() == before
    assert one.run.result() == EXPECTED


def test_a_failure_from_another_delivery_than_the_current_one_is_dropped_and_counted(bench: Any) -> None:
    one = bench()

    one.deliver("one", delivery=7)
    one.release("one", "other", "end")

    assert one.run.result() == EXPECTED
    assert one.dropped == 1
    assert one.journal("one") == [("done", 0)]


@pytest.mark.parametrize("order", ["failure first", "done first"])
def test_in_one_tick_done_beats_failed(bench: Any, wait: Any, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a coordinator that finds both at once
    one = bench()
    broker = one.parts.coordinator._broker
    receive, both_there, entered = broker.receive, threading.Event(), threading.Event()

    def receive_both(timeout_seconds: float) -> Any:
        entered.set()
        wait(both_there)
        return receive(timeout_seconds)

    monkeypatch.setattr(broker, "receive", receive_both)
    broker.wake()
    wait(entered)
    messages: list[dict[str, Any]] = [{}, {"value": "forged"}]
    for message in messages if order == "failure first" else reversed(messages):
        one.deliver("one", **message)

    # when it goes on
    both_there.set()
    one.release("one", "other", "end")

    # then the item is done, and the run goes on
    assert one.run.result() == {**EXPECTED, "one": "forged"}
    assert ("done", 0) in one.journal("one")


def test_a_late_result_in_the_pause_before_a_retry_counts_and_the_node_does_not_run_again(
    bench: Any, commits_of: Any, wait: Any
) -> None:
    # given an item that failed and waits for its second attempt
    one = bench(RetryPolicy(max_attempts=3, initial_seconds=0.2, factor=1.0, jitter=0.0))
    commits = commits_of(one.engine)
    one.failing = {"one"}
    one.release("one")
    commits.until_journalled("failed", one.path["one"].hex())

    # when its first delivery turns out to have been successful
    one.deliver("one", value="late")
    commits.until_journalled("done", one.path["one"].hex())

    # and a pause has passed that began later: that of another item
    one.started["other"].clear()
    one.failing = {"other"}
    one.release("other")
    wait(one.started["other"])
    one.release("end")

    # then that result stands, and the item did not run once more
    assert one.run.result() == {**EXPECTED, "one": "late", "other": "attempt 2"}
    one.engine.close()
    assert Counter(one.calls) == {"one": 1, "other": 2, "end": 1}


def test_a_result_after_the_run_was_cancelled_is_dropped_and_counted(bench: Any, wait: Any) -> None:
    # given a cancelled run whose nodes are still under way
    one = bench()
    one.run.cancel("enough")
    with pytest.raises(LockstepError, match="enough"):
        one.run.result()

    # when they return
    one.release("one", "other", "end")
    one.engine.submit({}, run_id="run-2").result()
    one.engine.close()

    # then
    assert one.dropped == 2
