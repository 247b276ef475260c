"""Distributed runs give the bytes that embedded ones give, however many workers there are and whoever finishes first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.distributed.conftest import AUDIT, FLOWS, Cluster

from lockstep import Engine
from lockstep.cli.load import load_graph

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


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
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
