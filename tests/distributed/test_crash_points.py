"""Accidents at each point of a run's way, to real processes, on each database: it ends as undisturbed, and no work is repeated.

LOCKSTEP_TEST_ALL_CRASH_POINTS=1 tries all of them; else each is tried on one database.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.distributed.conftest import FLOWS, Cluster, Ledger, Process, embedded_hash
from tests.history import violations
from tests.servers import MYSQL, POSTGRES, Database, RedisServer

from lockstep import Options, RetryPolicy
from lockstep.broker.inspection import whereabouts
from lockstep.cli.load import load_graph
from lockstep.core.lifecycle import FINISHED
from lockstep.fsck import check_tasks
from lockstep.store import open_store

PROGRAM = Path(__file__).parent / "programs" / "doomed.py"
STORES = ("sqlite", "postgres", "mysql")
ENTRIES = ("send_out", "tell 0", "tell 1", "tell 2", "listen")


class Point(NamedTuple):
    """A place on a run's way: who comes by, and at which time it has its accident; what accidents make sense there."""

    role: str
    number: int
    accidents: tuple[str, ...]


OUTSIDE = ("kill", "exception", "lost", "twice")
INSIDE = ("kill", "exception")
"""Where nothing outside is asked, no answer can be lost, and nothing arrives twice."""

POINTS = {
    "reserve": Point("coordinator", 2, INSIDE),
    "enqueue": Point("coordinator", 2, OUTSIDE),
    # What is claimed is no more there: a second claim takes something else.
    "claim": Point("worker", 2, ("kill", "exception", "lost")),
    # A node that runs twice is what a lost worker does to it: see `kill`.
    "start": Point("worker", 2, INSIDE),
    "result sent": Point("worker", 2, OUTSIDE),
    "journal": Point("coordinator", 1, INSIDE),
    "BEGIN": Point("coordinator", 2, INSIDE),
    "COMMIT": Point("coordinator", 2, OUTSIDE),
    "dispatch": Point("coordinator", 2, INSIDE),
    "relay send": Point("relay", 1, OUTSIDE),
    "relay mark": Point("relay", 1, OUTSIDE),
}


SURVIVED = ("start", "relay send")
"""Exceptions there are a node's or a sink's, and end no process."""


def cells() -> Iterator[Any]:
    everything = "LOCKSTEP_TEST_ALL_CRASH_POINTS" in os.environ
    one_after_the_other = 0
    for name, point in POINTS.items():
        for accident in point.accidents:
            for number, store in enumerate(STORES):
                if everything or number == one_after_the_other % len(STORES):
                    yield pytest.param(name, accident, store, id=f"{name}-{accident}-{store}")
            one_after_the_other += 1


@pytest.fixture
def cluster_on(redis_server: RedisServer, tmp_path: Path) -> Iterator[Any]:
    """Starts a cluster over a store of this kind."""
    undo = []

    def cluster_on(store: str) -> Cluster:
        if store == "sqlite":
            url = f"sqlite:///{tmp_path}/runs.db"
            open_store(url).close()
        else:
            database = Database({"postgres": POSTGRES, "mysql": MYSQL}[store], f"lockstep_test_{os.getpid()}_crash")
            undo.append(database.drop)
            url = database.url
        cluster = Cluster(url, redis_server.url, tmp_path)
        undo.append(cluster.close)
        return cluster

    yield cluster_on
    for each in reversed(undo):
        each()


class Cast:
    """Who is needed, one of each role; one of them is doomed, and replaced when it has ended."""

    def __init__(self, cluster: Cluster, doomed: str, command: list[str]) -> None:
        self._cluster = cluster
        self._doomed = doomed
        self.deaths = 0
        self._processes = {
            role: self._start(role, command if role == doomed else None) for role in ("coordinator", "relay", "worker")
        }

    def _start(self, role: str, command: list[str] | None = None) -> Process:
        arguments = {
            "coordinator": ["coordinator", "--store", self._cluster.store_url],
            "relay": ["relay", "--store", self._cluster.store_url, "--sink", "redis"],
            "worker": ["worker", "--concurrency", "4"],
        }[role]
        process = self._cluster.spawn(*arguments, **({} if command is None else {"command": command}))
        (self._cluster.workers if role == "worker" else self._cluster.coordinators).append(process)
        return process

    def replace_the_dead(self) -> None:
        if self._processes[self._doomed].poll() is not None:
            self.deaths += 1
            self._processes[self._doomed] = self._start(self._doomed)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("point", "accident", "store"), list(cells()))
def test_an_accident_changes_nothing(
    cluster_on: Any, ledger: Ledger, tmp_path: Path, point: str, accident: str, store: str
) -> None:
    # given processes of which one will meet with an accident, and a run
    cluster: Cluster = cluster_on(store)
    if accident == "exception":
        cluster.deaths |= {1}  # What an unforeseen one ends a process with.
    happened = tmp_path / "happened"
    role, number, _ = POINTS[point]
    cast = Cast(cluster, role, [sys.executable, str(PROGRAM), point, accident, str(number), str(happened)])
    cluster.until(cluster.leases, "the coordinator takes part")
    options = Options(retry=RetryPolicy(initial_seconds=0.0))
    run = cluster.client.submit("told", {"ledger": str(ledger)}, options=options)

    # when that has happened, and whoever ended is replaced
    def has_ended() -> bool:
        cast.replace_the_dead()
        return run.row().status in FINISHED and happened.exists() and happened.read_text() == f"{accident}\n"

    cluster.until(has_ended, "the accident happens and the run ends")

    # then it ends as an undisturbed one, each event is published, in order
    assert run.result()["seen"] == [0, 1, 2]
    starts = ledger.counts()
    assert run.row().state_hash == embedded_hash("told", {"ledger": str(ledger)})
    stream = cluster.names.events_of(run.run_id)
    published = lambda: [json.loads(fields[b"data"]) for _, fields in cluster.redis.xrange(stream)]  # noqa: E731
    cluster.until(lambda: cast.replace_the_dead() or len(published()) == len(ENTRIES), "all events are published")
    assert published() == list(ENTRIES)
    # and each node ran once, but where its task came twice, or its worker ended before it could send what others had returned
    twice = (point, accident) in (("enqueue", "twice"), ("result sent", "kill"), ("result sent", "exception"))
    assert set(starts.values()) <= ({1, 2} if twice else {1}), starts
    assert len(starts) == len(ENTRIES)
    # and what is stored is what its nodes have returned, and nothing is left in Redis
    graph = load_graph(f"{FLOWS}:told").compile()
    assert list(violations(cluster.client.reader, {graph.hash: graph})) == []
    cluster.until(lambda: not whereabouts(cluster.redis_url, cluster.namespace).claimed, "nobody holds a task any more")
    looks = [whereabouts(cluster.redis_url, cluster.namespace) for _ in range(2)]
    assert list(check_tasks(cluster.client.reader, *looks)) == []
    cluster.until(
        lambda: cluster.queued() == 0 and not int(cluster.redis.get(cluster.names.depth("default")) or 0),
        "no reservation is left",
    )
    with closing(open_store(cluster.store_url)) as opened:
        cluster.until(lambda: cast.replace_the_dead() or not opened.outbox.waiting(), "the relay has marked all")
    # and nobody has died of anything else
    mortal = accident == "kill" or (accident == "exception" and point not in SURVIVED)
    cluster.until(lambda: cast.replace_the_dead() or cast.deaths == mortal, "the doomed one dies, and nobody else")
