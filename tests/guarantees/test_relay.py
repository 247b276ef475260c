"""Every event arrives, in order per run, whatever becomes of the relays; what comes twice is the same both times."""

from __future__ import annotations

import operator
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar

import pytest
from tests.servers import MYSQL, POSTGRES, Database

from lockstep import START, Context, Engine, Graph, PublishError, Send
from lockstep.ports import Store
from lockstep.records import PublishedEvent
from lockstep.store import open_store
from lockstep_coordinator.relay import Relay

PROGRAM = Path(__file__).parent / "programs" / "relaying.py"
KILLS = {"sqlite": 600, "postgres": 200, "mysql": 200}
"""1,000 in all."""
WAIT_SECONDS = 30.0

T = TypeVar("T")


class Found(TypedDict, total=False):
    found: Annotated[list[int], operator.add]


graph = Graph(Found, name="emitting")


@graph.node
def leaf(number: int, ctx: Context) -> dict[str, Any]:
    for half in (0, 1):
        ctx.emit("found", {"number": number, "half": half})
    return {"found": [number]}


@graph.node
def again(state: Found, ctx: Context) -> None:
    ctx.emit("all", sorted(state["found"]))


graph.add_conditional_edges(START, lambda state: [Send("leaf", number) for number in range(8)])
graph.add_edge("leaf", "again")


@pytest.fixture(params=list(KILLS))
def store_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(store_name: str, tmp_path: Path) -> Iterator[str]:
    if store_name == "sqlite":
        yield f"sqlite:///{tmp_path}/runs.db"
        return
    database = Database(POSTGRES if store_name == "postgres" else MYSQL, f"lockstep_test_{uuid.uuid4().hex[:12]}")
    yield database.url
    database.drop()


def run_many(url: str, runs: int) -> None:
    with Engine(graph, url) as engine:
        for run in [engine.submit({}, run_id=f"run-{n}") for n in range(runs)]:
            run.result(WAIT_SECONDS)


def expected(store: Store) -> dict[str, list[str]]:
    """The ids of all events that are committed, in order, by run."""
    return {
        row.run_id: [f"{e.run_id}/{e.sequence}/{e.position}" for e in store.events(row.run_id)]
        for row in store.find_runs(limit=1000)
    }


def first_arrivals(ids: Sequence[str]) -> dict[str, list[str]]:
    by_run: dict[str, list[str]] = {}
    for event_id in dict.fromkeys(ids):
        by_run.setdefault(event_id.split("/")[0], []).append(event_id)
    return by_run


@pytest.mark.timeout(600)
def test_relays_that_are_killed_between_publishing_and_marking_lose_nothing(url: str, store_name: str, tmp_path: Path) -> None:
    # given runs that have emitted events, and a sink
    run_many(url, 40)
    store = open_store(url)
    store.outbox.add_sink("file")
    wanted = expected(store)
    store.close()
    # when relays, two at a time, are killed right after they have published something, again and again
    file = tmp_path / "arrived"
    command = [sys.executable, str(PROGRAM), url, "file", str(KILLS[store_name]), str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert int(ended.stdout) >= KILLS[store_name]
    # then every event has arrived, in order per run, and what came twice was the same
    lines = [line.split("\t") for line in file.read_text().splitlines()]
    assert first_arrivals([event_id for event_id, _ in lines]) == wanted
    assert len({tuple(line) for line in lines}) == len({event_id for event_id, _ in lines})
    # and some did come twice, so this has shown something
    assert Counter(event_id for event_id, _ in lines).most_common(1)[0][1] > 1


def soon(ask: Callable[[], list[T]]) -> list[T]:
    """The answer, once there is one: what has arrived is marked a moment later."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (answer := ask()):
        assert time.monotonic() < deadline
    return answer


class Sink:
    """Collects what arrives, and can be told to refuse, or to take no end of time."""

    def __init__(self, name: str, refuses: Callable[[PublishedEvent], bool] = lambda event: False) -> None:
        self.name = name
        self.arrived: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self._refuses = refuses
        self._changed = threading.Condition()

    def publish(self, events: Sequence[PublishedEvent]) -> int:
        assert self.open.wait(WAIT_SECONDS)
        if self._refuses(events[0]):
            raise PublishError("refused", arrived=0, permanent=True)
        with self._changed:
            self.arrived.append(events[0].event_id)
            self._changed.notify_all()
        return 1

    def until(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.arrived) >= count, WAIT_SECONDS)

    def close(self) -> None:
        pass


@pytest.fixture
def relaying(url: str) -> Iterator[Callable[..., Store]]:
    """Starts a relay over the store to some sinks; it ends with the test."""
    store = open_store(url)
    running: list[tuple[Relay, threading.Thread]] = []
    used: list[Sink] = []

    def start(*sinks: Sink) -> Store:
        for sink in sinks:
            store.outbox.add_sink(sink.name)
        used.extend(sinks)
        relay = Relay(store.outbox, sinks)
        thread = threading.Thread(target=relay.run)
        thread.start()
        running.append((relay, thread))
        return store

    yield start
    for sink in used:
        sink.open.set()  # Also after a failure, nobody shall wait for it.
    for relay, thread in running:
        relay.stop()
        thread.join()
    store.close()


def test_what_one_sink_does_is_nothing_to_the_others(url: str, relaying: Callable[..., Store]) -> None:
    # given a sink that hangs, one that refuses an event of one run for good, and one that takes all
    run_many(url, 3)
    slow, good = Sink("slow"), Sink("good")
    picky = Sink("picky", lambda each: each.event.run_id == "run-1" and each.event.position == 3)
    slow.open.clear()
    store = relaying(slow, picky, good)
    wanted = expected(store)
    # when a relay publishes to them, then the good one has everything, in order
    good.until(3 * 17)
    assert first_arrivals(good.arrived) == wanted
    # and the picky one has all but the rest of that run, which is parked
    picky.until(2 * 17 + 3)
    assert first_arrivals(picky.arrived) == {**wanted, "run-1": wanted["run-1"][:3]}
    [parked] = soon(lambda: store.outbox.waiting(parked=True))
    assert (parked.sink, parked.run_id, parked.position, parked.error) == ("picky", "run-1", 3, "refused")
    # and the slow one gets everything when it can
    slow.open.set()
    slow.until(3 * 17)
    assert first_arrivals(slow.arrived) == wanted


def test_a_relay_publishes_while_runs_go_on(url: str, relaying: Callable[..., Store]) -> None:
    sink = Sink("sink")
    store = relaying(sink)
    run_many(url, 20)
    sink.until(20 * 17)
    assert first_arrivals(sink.arrived) == expected(store)
    assert len(sink.arrived) == 20 * 17
