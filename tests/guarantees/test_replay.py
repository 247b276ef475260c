"""Replay: what a run's nodes got from the world is never asked for again, and whatever they do differently is found."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any, TypedDict

import pytest
from tests.guarantees.conftest import COMMAND, PATIENCE_SECONDS
from tests.guarantees.programs import recording
from tests.guarantees.programs.recording import ASKED, CORPUS, Refused, build

from lockstep import (
    START,
    ArchiveError,
    Client,
    ConfigurationError,
    Context,
    Engine,
    Graph,
    GraphVersionError,
    NodeFailedError,
    ReplayMismatchError,
    RunInterruptedError,
    StateError,
)
from lockstep.archive import export_run, import_run
from lockstep.fsck import check_store
from lockstep.records import RunRow
from lockstep.replay import replay_run
from lockstep.store.memory import MemoryStore
from lockstep.wire import calls_of

RECORDED = Path(recording.__file__).with_name("recording-1.jsonl")
"""A run of `recording.build()` as the first release with `ctx.record` has exported it."""
PROGRAM = f"{recording.__file__}:graph"


@pytest.fixture(autouse=True)
def nothing_asked() -> Iterator[None]:
    ASKED.clear()
    yield
    ASKED.clear()


def exported(engine: Engine, run_id: str) -> bytes:
    return b"".join(export_run(engine.run(run_id).backend.reader, run_id))


def imported(lines: bytes) -> tuple[MemoryStore, RunRow]:
    store = MemoryStore()
    return store, import_run(store, BytesIO(lines), unfinished=True)


def replayed(lines: bytes, graph: Graph) -> Any:
    compiled = graph.compile()
    return replay_run(*imported(lines), {compiled.hash: compiled})


@pytest.fixture(scope="module")
def lines() -> bytes:
    """A run in which every kind of call was made, as a file."""
    with Engine(build()) as engine:
        engine.invoke({"parts": 2}, run_id="run")
        return exported(engine, "run")


def test_a_replay_asks_nobody_and_finds_what_was(store_url: str) -> None:
    with Engine(build(), store_url) as engine:
        # given a run whose nodes have asked the world
        run = engine.submit({"parts": 2}, run_id="run")
        state = run.result()
        assert ASKED == {"model": 2, "service": 1, "clock": 2, "join": 4}
        assert state["answer"] == "403: not you"
        assert state["notes"][-2] == {"number": -1}
        # when it is replayed, then nobody is asked, and all is as it was
        before = exported(engine, "run")
        report = run.replay()
        assert (report.run_id, report.graph, report.first_step, report.steps) == ("run", "recording", 0, 5)
        assert (report.nodes, report.calls) == (5, 9)
        assert ASKED == {"model": 2, "service": 1, "clock": 2, "join": 4}
        # and nothing is stored
        assert exported(engine, "run") == before
        assert list(check_store(run.backend.reader)) == []


@pytest.mark.parametrize("drift", CORPUS)
def test_a_drift_is_found(lines: bytes, drift: str) -> None:
    node, step, differs, expected, actual = CORPUS[drift]
    ASKED["unrecorded"] = 7
    with pytest.raises(ReplayMismatchError) as caught:
        replayed(lines, build(drift))
    error = caught.value
    assert (error.run_id, error.step_id, error.node_id, error.differs) == ("run", step, node, differs)
    assert error.attempt == {None: None, "plan": 2}.get(node, 1)
    if expected is not None:
        assert error.expected == expected
    if actual is not None:
        assert error.actual == actual
    # and the message says where, and both sides
    assert f"step {step}" in str(error)
    assert all(side in str(error) for side in (expected, actual) if side is not None)
    assert {name: count for name, count in ASKED.items() if name != "unrecorded"} == {}


def test_without_a_drift_nothing_is_found(lines: bytes) -> None:
    assert replayed(lines, build()).calls == 9


def test_a_changed_record_is_found_in_the_state(lines: bytes) -> None:
    # given a graph whose field merges otherwise
    class Other(TypedDict, total=False):
        parts: int
        notes: list[Any]
        drawn: list[float]
        answer: str

    graph = build()
    other = Graph(Other, name="recording")
    for name, options in graph._nodes.items():
        other.add_node(name, options["function"]).add_edge(START, name)
    with pytest.raises(ReplayMismatchError) as caught:
        replayed(lines, other)
    assert (caught.value.step_id, caught.value.node_id, caught.value.differs) == (0, None, "state.drawn")


def test_a_file_of_an_earlier_release_is_replayed() -> None:
    report = replayed(RECORDED.read_bytes(), build())
    assert (report.nodes, report.calls) == (5, 9)


def test_a_file_of_an_unknown_format_is_refused() -> None:
    changed = RECORDED.read_bytes().replace(b'"format_version":1', b'"format_version":0', 1)
    with pytest.raises(ArchiveError, match="format 0, this release reads 1"):
        imported(changed)


# What a node gets


class Plain(TypedDict, total=False):
    value: Any


def one_node(function: Any, **options: Any) -> Graph:
    return Graph(Plain).add_node("node", function, **options).add_edge(START, "node")


def test_a_node_gets_a_copy_of_what_is_recorded() -> None:
    response = {"list": (1, 2)}

    def node(state: Plain, ctx: Context) -> Plain:
        got = ctx.record("call", {"a": 1}, lambda: response)
        assert got == {"list": [1, 2]}
        got["list"].append(3)
        return {"value": got}

    with Engine(one_node(node)) as engine:
        run = engine.submit({})
        assert run.result() == {"value": {"list": [1, 2, 3]}}
        assert response == {"list": (1, 2)}
        run.replay()


@pytest.mark.parametrize(
    ("request_", "response", "what"),
    [({1: 2}, 1, "the request of record('call')"), (1, object(), "what record('call') got"), (float("nan"), 1, "the request")],
)
def test_what_is_no_json_is_refused(request_: Any, response: Any, what: str) -> None:
    def node(state: Plain, ctx: Context) -> Plain:
        return {"value": ctx.record("call", request_, lambda: response)}

    with Engine(one_node(node)) as engine, pytest.raises(StateError, match=re.escape(what)):
        engine.invoke({})


def test_recorded_calls_count_against_the_bound_on_a_result() -> None:
    def node(state: Plain, ctx: Context) -> Plain:
        ctx.record("call", None, lambda: "x" * 5_000_000)
        return {}

    with Engine(one_node(node)) as engine, pytest.raises(StateError, match="max_payload_bytes"):
        engine.invoke({})


def test_an_exception_comes_again_as_what_the_node_catches() -> None:
    def node(state: Plain, ctx: Context) -> Plain:
        def refuse() -> None:
            raise Refused(403, "not you")

        try:
            ctx.record("call", None, refuse)
        except (Refused, LookupError) as error:
            return {"value": [type(error).__name__, str(error)]}
        return {}

    with Engine(one_node(node)) as engine:
        run = engine.submit({})
        assert run.result() == {"value": ["Refused", "403: not you"]}
        run.replay()


def test_a_class_that_is_not_there_any_more_comes_as_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(state: Plain, ctx: Context) -> Plain:
        def refuse() -> None:
            raise recording.Refused(403, "not you")

        try:
            ctx.record("call", None, refuse)
        except Exception as error:
            return {"value": str(error)}
        return {}

    with Engine(one_node(node)) as engine:
        run = engine.submit({})
        run.result()
        monkeypatch.delattr(recording, "Refused")
        run.replay()


def test_a_node_that_never_ends_differs() -> None:
    ends = [True]

    async def node(state: Plain, ctx: Context) -> Plain:
        if not ends[0]:
            await ctx.record("call", None, None)  # type: ignore[arg-type]
        return {"value": 1}

    graph = one_node(node, timeout_seconds=0.2)
    with Engine(graph) as engine:
        run = engine.submit({})
        run.result()
        ends[0] = False
        with pytest.raises(ReplayMismatchError, match="call 1"):
            run.replay()


def test_who_has_no_graph_is_told_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    with Engine(build(), url) as engine:
        engine.invoke({"parts": 2}, run_id="run")
    with Client(url) as client, pytest.raises(ConfigurationError, match="lockstep replay run"):
        client.run("run").replay()
    with Engine(one_node(print), url) as engine, pytest.raises(GraphVersionError, match="'recording'"):
        engine.run("run").replay()


def test_a_run_that_failed_is_replayed_as_far_as_it_got() -> None:
    def first(state: Plain, ctx: Context) -> Plain:
        return {"value": ctx.record("call", 1, lambda: 2)}

    def other(state: Plain) -> Plain:
        raise ValueError("no")

    graph = Graph(Plain).add_node(first).add_node(other).add_edge(START, "first").add_edge("first", "other")
    with Engine(graph) as engine:
        run = engine.submit({})
        with pytest.raises(NodeFailedError):
            run.result()
        assert (run.replay().steps, run.replay().nodes, run.replay().calls) == (2, 1, 1)


# People in the loop


def test_what_was_recorded_before_a_question_is_not_asked_for_again(one_store: str, abandon: Any) -> None:
    # given a run whose node has called a model, and then asked somebody
    graph = build(asks=True)
    with Engine(graph, one_store) as engine:
        run = engine.submit({"parts": 2}, run_id="run")
        with pytest.raises(RunInterruptedError):
            run.result()
        assert ASKED == {"model": 1}
        abandon(engine)
    # when it goes on in another process
    with Engine(graph, one_store) as engine:
        [run] = engine.recover()
        run.resume("yes")
        state = run.result()
        # then it has what the model said, and the model was asked once
        assert state["notes"][0] == {"parts": ["a", "b"], "approved": "yes"}
        assert ASKED == {"model": 1, "service": 1, "clock": 2, "join": 4}
        # and a replay gives it the answer, too
        report = run.replay()
        assert (report.nodes, report.calls) == (5, 9)
        assert list(check_store(run.backend.reader)) == []
        store, row = imported(exported(engine, "run"))
        assert replay_run(store, row, {graph.compile().hash: graph.compile()}) == report


def test_a_node_that_asks_for_something_else_after_its_question_fails() -> None:
    calls: list[int] = []

    def node(state: Plain, ctx: Context) -> Plain:
        from lockstep import interrupt

        calls.append(1)
        ctx.record("call", len(calls), lambda: 1)
        return {"value": interrupt("?")}

    with Engine(one_node(node)) as engine:
        run = engine.submit({}, run_id="run")
        with pytest.raises(RunInterruptedError):
            run.result()
        run.resume(1)
        with pytest.raises(ReplayMismatchError, match="request was 1, is 2") as caught:
            run.result()
        assert (caught.value.run_id, caught.value.node_id, caught.value.attempt) == ("run", "node", 1)


# The command line


def command(*arguments: str, drift: str = "") -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}
    return subprocess.run(
        [*COMMAND, "replay", *arguments, "--graphs", PROGRAM],
        env={**kept, "DRIFT": drift},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


def test_the_command_line_replays_runs_of_a_store_and_files(tmp_path: Path, lines: bytes) -> None:
    file, url = tmp_path / "run.jsonl", f"sqlite:///{tmp_path}/runs.db"
    file.write_bytes(lines)
    with Engine(build(), url) as engine:
        engine.invoke({"parts": 2}, run_id="stored")
    same = command("stored", str(file), "--store", url, "--json")
    assert same.returncode == 0, same.stderr
    assert [(run["run_id"], run["calls"], run["mismatch"]) for run in json.loads(same.stdout)["runs"]] == [
        ("stored", 9, None),
        ("run", 9, None),
    ]
    assert "run stored does what it did: 5 steps, 5 node executions, 9 recorded calls" in same.stderr
    # a file needs no store
    assert command(str(file)).returncode == 0


def test_the_command_line_ends_with_1_where_something_differs(tmp_path: Path, lines: bytes) -> None:
    file = tmp_path / "run.jsonl"
    file.write_bytes(lines)
    changed = command(str(file), "--json", drift="changed delta")
    assert changed.returncode == 1
    [run] = json.loads(changed.stdout)["runs"]
    assert run["mismatch"]["type"] == "ReplayMismatchError"
    assert (run["mismatch"]["node_id"], run["mismatch"]["attempt"]) == ("plan", 2)
    assert "run run differs: step 1: node 'plan' does not return what it did" in changed.stderr
    # and with 2 where there is nothing to replay
    unknown = command("unknown", "--store", f"sqlite:///{tmp_path}/none.db")
    assert unknown.returncode in (2, 4), unknown.stderr


def test_what_is_recorded_is_in_the_journal(lines: bytes) -> None:
    store, row = imported(lines)
    rows = [json.loads(line) for line in lines.splitlines()]
    done = [entry for entry in rows if entry.get("kind") == "done"]
    calls = [call for entry in done for call in calls_of(json.dumps(entry["payload"]).encode())]
    assert [call.name for call in calls if not call.awaited] == ["model", "service", "clock", "clock", "size"]
    assert [call.unfinished for call in calls if call.awaited] == [False, False, False, True]
    with closing(store):
        assert row.status == "succeeded"
