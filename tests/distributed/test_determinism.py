"""Distributed runs give the bytes that embedded ones give, however many workers there are and whoever finishes first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.conftest import AUDIT, FLOWS, Cluster
from tests.servers import MYSQL, POSTGRES

from lockstep import Engine
from lockstep.cli.load import load_graph
from lockstep.core.frontier import decode_frontier

RUNS = 25
"""For each number of workers from 1 to 4: 100 of 100."""

INPUTS: list[tuple[str, str, dict[str, Any]]] = [
    ("audit", f"{AUDIT}:graph", {"only": ["pip", "redis", "rq", "sqlalchemy"]}),
    ("fan", f"{FLOWS}:fan", {"width": 40, "delay_ms": 20.0}),
    ("chain", f"{FLOWS}:chain", {"steps": 5, "delay_ms": 5.0}),
]


def embedded_hash(reference: str, value: dict[str, Any], run_id: str) -> bytes | None:
    with Engine(load_graph(reference)) as engine:
        run = engine.submit(value, run_id=run_id)
        run.result()
        return run.row().state_hash


@pytest.mark.parametrize(
    ("workers", "database"),
    [(1, POSTGRES), (2, POSTGRES), (3, POSTGRES), (4, POSTGRES), (2, MYSQL)],
    ids=["1", "2", "3", "4", "2 on MySQL"],
    indirect=["database"],
)
def test_hash_equals_the_embedded_one(cluster: Cluster, workers: int) -> None:
    # given a coordinator and some workers
    cluster.coordinator()
    for _ in range(workers):
        cluster.worker("--concurrency", "4")
    # when each graph is run many times at once, under the ids of an embedded run each
    names = [(name, reference, value, f"{name}-{n}") for name, reference, value in INPUTS for n in range(RUNS)]
    runs = [cluster.client.submit(name, value, run_id=run_id) for name, _, value, run_id in names]
    for run in runs:
        run.result(120)
    # then the hashes are those of the embedded runs: they don't depend on the run_id, for no node uses ctx.rng for its delta
    wanted = {name: embedded_hash(reference, value, f"{name}-0") for name, reference, value in INPUTS}
    assert [run.row().state_hash for run in runs] == [wanted[name] for name, *_ in names]


def test_wide_fan_out_merges_in_edge_order(cluster: Cluster, tmp_path: Path) -> None:
    # given 4 workers, and leaves that finish in an order of their own
    cluster.coordinator()
    for _ in range(4):
        cluster.worker()
    # when 2,000 of them are sent out
    ledger = tmp_path / "ledger"
    state = cluster.client.submit("fan", {"width": 2000, "delay_ms": 20.0, "ledger": str(ledger)}).result(120)
    # then their results stand in the order of the edges, each ran once, and all workers took part
    assert state["seen"] == list(range(2000))
    lines = [line.split() for line in ledger.read_text().splitlines()]
    assert len({path for _, path, _, _ in lines}) == len(lines) == 2000
    assert len({pid for *_, pid in lines}) == 4


def test_tasks_are_enqueued_in_ascending_order_key(cluster: Cluster) -> None:
    # given workers for the first node's queue alone, so that what is enqueued for the others stays to be seen
    graphs = (f"{FLOWS}:wide",)
    cluster.coordinator(graphs=graphs)
    for _ in range(2):
        cluster.worker("--queue", "default", graphs=graphs)
    # when two runs fan out
    wide = [cluster.client.submit("wide", {"width": 60}, run_id=f"wide-{n}") for n in range(2)]
    cluster.until(lambda: tasks_in(cluster, "wide") == 120, "all leaves are enqueued")
    # then each run's tasks stand in the queue in ascending order_key
    queued = [json.loads(entry) for entry in identities_in(cluster, "wide")]
    for run in wide:
        paths = [path for tasks in queued for run_id, path, _ in tasks if run_id == run.run_id]
        frontier = decode_frontier(cluster.client.reader.steps(run.run_id, 1, 1)[0].frontier, 1)
        assert paths == [item.path.hex() for item in sorted(frontier.items, key=lambda item: item.order_key)]
    # and once somebody serves that queue, both end
    cluster.worker("--queue", "wide", graphs=graphs)
    assert [run.result(60)["seen"] for run in wide] == [list(range(60))] * 2


def identities_in(cluster: Cluster, queue: str) -> list[bytes]:
    """What each job in a queue is for, first to last."""
    jobs = cluster.redis.lrange(cluster.names.queue(queue), 0, -1)
    return [tasks for job in jobs if (tasks := cluster.redis.hget(cluster.names.job(job.decode()), "tasks"))]


def tasks_in(cluster: Cluster, queue: str) -> int:
    return sum(len(json.loads(entry)) for entry in identities_in(cluster, queue))
