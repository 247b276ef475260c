"""Graphs change while runs are under way: those that a new version has a migration for go on with it."""

from __future__ import annotations

import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Annotated, Any, TypedDict

import pytest

from lockstep import START, ConfigurationError, Engine, Graph, GraphVersionError
from lockstep.archive import export_run, import_run
from lockstep.compiled import CompiledGraph
from lockstep.core.ordering import ROOT_PATH, path_of
from lockstep.fsck import check_store
from lockstep.store.memory import MemoryStore

Wait = Callable[[threading.Event], None]


class Old(TypedDict, total=False):
    words: Annotated[list[str], operator.add]


class New(TypedDict, total=False):
    text: str
    log: Annotated[list[str], operator.add]


class Versions:
    """first -> one, other -> last; `one` is called `uno` in the new version, and `other` waits until it is let go."""

    def __init__(self, wait: Wait) -> None:
        self.calls: Counter[str] = Counter()
        self.held = threading.Event()
        self.started = threading.Event()
        self._wait = wait
        self.old = self._graph(Old, "one", lambda name: {"words": [name]})

    def new(self, **migration: Any) -> Graph:
        graph = self._graph(New, "uno", lambda name: {"log": [name]})
        return graph.add_migration(self.old.compile().hash, **migration) if migration else graph

    def _graph(self, state: type, one: str, delta: Callable[[str], Any]) -> Graph:
        def node(name: str) -> Callable[[Any], Any]:
            def run(given: Any) -> Any:
                self.calls[name] += 1
                if name == "other" and not self.held.is_set():
                    self.started.set()
                    self._wait(self.held)
                return delta(name)

            return run

        graph = Graph(state, name="flow")
        for name in ("first", one, "other", "last"):
            graph.add_node(name, node(name))
        graph.add_edge(START, "first").add_edge("first", one).add_edge("first", "other")
        return graph.add_edge([one, "other"], "last")


def joined(values: dict[str, Any]) -> dict[str, Any]:
    return {"text": " ".join(values["words"]), "log": ["migrated"]}


MIGRATION: dict[str, Any] = {"function": joined, "nodes": {"one": "uno"}}


@pytest.fixture
def versions(wait: Wait) -> Iterator[Versions]:
    versions = Versions(wait)
    yield versions
    versions.held.set()


@pytest.fixture
def begun(one_store: str, versions: Versions, commits_of: Any, abandon: Any, wait: Wait) -> str:
    """The store with a run that the old version has begun: `one` is done and `other` runs when its engine ends."""
    engine = Engine(versions.old, one_store)
    commits = commits_of(engine)
    engine.submit({"words": ["input"]}, run_id="run")
    wait(versions.started)
    first = path_of(ROOT_PATH, "first", 0)
    commits.until_journalled("done", path_of(first, "one", 0).hex())
    abandon(engine)
    versions.held.set()
    return one_store


def test_a_run_goes_on_with_a_version_that_has_a_migration(begun: str, versions: Versions) -> None:
    with Engine(versions.new(**MIGRATION), begun) as engine:
        [run] = engine.recover()
        # then state and frontier are the new version's, and what was due begins anew
        assert run.result() == {"text": "input first", "log": ["migrated", "uno", "other", "last"]}
        assert run.row().graph_hash == versions.new(**MIGRATION).compile().hash
        steps = run.history()
        assert run.state(2) == {"text": "input first", "log": ["migrated"]}
        assert list(check_store(run.backend.reader)) == []

        # and the step in which it changed says so
        assert [[task.node_id for task in step.tasks] for step in steps] == [
            [],
            ["first"],
            ["__migrate__"],
            ["uno", "other"],
            ["last"],
        ]
        [change] = steps[2].tasks
        assert change.path == path_of(ROOT_PATH, "__migrate__", 2).hex()
        assert steps[3].tasks[1].path == path_of(bytes.fromhex(change.path), "other", 1).hex()

        # and it can be taken to another store
        other = MemoryStore()
        import_run(other, BytesIO(b"".join(export_run(run.backend.reader, "run"))))
        assert list(check_store(other)) == []
    assert versions.calls == {"first": 1, "one": 1, "uno": 1, "other": 2, "last": 1}


def test_without_a_migration_it_waits_for_its_version(begun: str, versions: Versions) -> None:
    with Engine(versions.new(), begun) as engine:
        assert engine.recover() == []
        with pytest.raises(GraphVersionError, match="give the new one a migration"):
            engine.recover("run")
    with Engine(versions.old, begun) as engine:
        [run] = engine.recover()
        assert run.result()["words"] == ["input", "first", "one", "other", "last"]


def broken(values: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("migration", "why"),
    [
        ({"function": broken, "nodes": {"one": "uno"}}, "raised KeyError: 'no such thing'"),
        (
            {"function": joined},
            "node 'one' is due, and this version has none of that name; map it to one of first, last, other, uno",
        ),
        ({"nodes": {"one": "uno"}}, "unknown field 'words'"),
        ({"function": lambda values: {"text": 3.0, "log": [object()]}, "nodes": {"one": "uno"}}, "log"),
    ],
)
def test_a_migration_that_does_not_work_fails_its_run_alone_until_it_is_mended(
    begun: str, versions: Versions, migration: dict[str, Any], why: str
) -> None:
    with Engine(versions.new(**migration), begun) as engine:
        [run] = engine.recover()
        with pytest.raises(GraphVersionError) as caught:
            run.result()
        assert why in str(caught.value)
        assert "mend it, then `lockstep retry`" in str(caught.value)
        assert run.row().graph_hash == versions.old.compile().hash
        assert engine.invoke({}, run_id="beside")["log"] == ["first", "uno", "other", "last"]
    with Engine(versions.new(**MIGRATION), begun) as engine:
        run = engine.run("run")
        run.retry()
        assert run.result()["log"] == ["migrated", "uno", "other", "last"]
        assert list(check_store(run.backend.reader)) == []


def test_a_run_that_was_not_begun_begins_with_the_new_version(one_store: str, versions: Versions, abandon: Any) -> None:
    versions.held.set()
    compiled: CompiledGraph = versions.old.compile()
    engine = Engine(versions.old, one_store)
    engine._running().coordinator.stop()
    engine._running()._thread.join()
    engine.submit({"words": []}, run_id="run")
    abandon(engine)
    new = Graph(Old, name="flow", version="2").add_node("first", lambda state: {"words": ["new"]}).add_edge(START, "first")
    with Engine(new.add_migration(compiled.hash), one_store) as engine:
        [run] = engine.recover()
        assert run.result() == {"words": ["new"]}
        assert run.row().graph_hash == new.compile().hash


def test_a_half_filled_barrier_goes_over_if_it_is_still_there(
    one_store: str, wait: Wait, commits_of: Any, abandon: Any
) -> None:
    held, started = threading.Event(), threading.Event()

    def slow(state: Old) -> Old:
        if not held.is_set():
            started.set()
            wait(held)
        return {"words": ["slow"]}

    def graph(version: str, *members: str) -> Graph:
        graph = Graph(Old, name="flow", version=version)
        for name in ("quick", "long"):
            graph.add_node(name, lambda state: None).add_edge(START, name)
        graph.add_node("slow", slow).add_edge("long", "slow")
        graph.add_node("join", lambda state: {"words": ["join"]})
        return graph.add_edge([*members, "slow"], "join")

    # given a run of which one member of a barrier has come
    old = graph("1", "quick")
    engine = Engine(old, one_store)
    engine.submit({}, run_id="run")
    wait(started)
    abandon(engine)
    held.set()

    # when the new version has another barrier there, then it does not go over
    with Engine(graph("2", "long").add_migration(old.compile().hash), one_store) as engine:
        [run] = engine.recover()
        with pytest.raises(GraphVersionError, match="quick had come to a barrier that this version does not have at its place"):
            run.result()
    # and when it has the same, it fires
    with Engine(graph("3", "quick").add_migration(old.compile().hash), one_store) as engine:
        run = engine.run("run")
        run.retry()
        assert run.result() == {"words": ["slow", "join"]}


def test_a_version_is_named_by_its_whole_hash(versions: Versions) -> None:
    with pytest.raises(ConfigurationError, match="a version is 64 hex digits"):
        versions.new().add_migration("abc")
    assert versions.new(**MIGRATION).compile().hash == versions.new().compile().hash
