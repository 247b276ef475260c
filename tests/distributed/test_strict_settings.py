"""The promises under settings as hard as can be: queues of one task, one slot, everything delivered twice, short leases."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.conftest import FLOWS, Cluster, Ledger, Process, assert_as_embedded
from tests.history import violations
from tests.servers import MYSQL, POSTGRES

from lockstep import Run
from lockstep.cli.load import load_graph

PROGRAM = Path(__file__).parent / "programs" / "strict.py"
SETTINGS = {
    "depth 1": ("", ["--queue-depth", "1"], []),
    "one slot": ("", [], ["--concurrency", "1"]),
    "redeliver": ("redeliver", [], []),
    "short leases": ("lease", [], []),
    "all": ("redeliver,lease", ["--queue-depth", "1"], ["--concurrency", "1"]),
}


def start(cluster: Cluster, settings: str) -> tuple[list[Process], list[Process]]:
    """Two coordinators and two workers under these settings."""
    named, of_coordinator, of_worker = SETTINGS[settings]
    command = [sys.executable, str(PROGRAM), named]
    coordinators = [
        cluster.spawn("coordinator", "--store", cluster.store_url, *of_coordinator, command=command) for _ in range(2)
    ]
    cluster.coordinators += coordinators
    cluster.until(lambda: len(cluster.leases()) == 2, "the coordinators take part")
    workers = [cluster.spawn("worker", *of_worker, command=command) for _ in range(2)]
    cluster.workers += workers
    return coordinators, workers


def submit(cluster: Cluster, ledger: Ledger, count: int) -> dict[Run, tuple[str, dict[str, Any]]]:
    chain = {"steps": 5, "delay_ms": 5.0, "ledger": str(ledger)}
    fan = {"width": 10, "delay_ms": 5.0, "ledger": str(ledger)}
    shapes: list[tuple[str, dict[str, Any]]] = [("chain", chain), ("fan", fan)]
    return {
        cluster.client.submit(name, value, run_id=f"{name}-{number}"): (name, value)
        for number in range(count)
        for name, value in shapes
    }


def assert_history(cluster: Cluster) -> None:
    graphs = {graph.hash: graph for graph in (load_graph(f"{FLOWS}:{name}").compile() for name in ("chain", "fan"))}
    assert list(violations(cluster.client.reader, graphs)) == []


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("settings", "database"),
    [*[(settings, POSTGRES) for settings in SETTINGS], ("all", MYSQL)],
    ids=[*SETTINGS, "all on MySQL"],
    indirect=["database"],
)
def test_runs_end_as_embedded_and_each_node_runs_once(cluster: Cluster, ledger: Ledger, settings: str) -> None:
    start(cluster, settings)
    runs = submit(cluster, ledger, 5)
    for run in runs:
        run.result(120)
    starts = ledger.counts()
    assert_as_embedded(runs)
    assert len(starts) == 5 * (5 + 10)
    assert set(starts.values()) == {1}  # What was handed back was not started.
    if "redeliver" in settings or settings == "all":
        assert min(start.delivery for start in ledger.starts() if start.run_id.startswith(("chain", "fan"))) == 2
    assert_history(cluster)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("settings", ["short leases", "all"])
def test_runs_end_as_embedded_though_somebody_dies(cluster: Cluster, ledger: Ledger, settings: str) -> None:
    # given runs under way
    coordinators, workers = start(cluster, settings)
    runs = submit(cluster, ledger, 5)
    cluster.until(lambda: len(ledger) > 10, "some nodes have run")
    # when a worker and a coordinator are killed, and a coordinator is suspended for longer than its lease
    cluster.kill(workers[0])
    cluster.kill(coordinators[0])
    coordinators[1].send_signal(signal.SIGSTOP)
    cluster.coordinator()
    cluster.worker()
    cluster.until(lambda: cluster.lease_of(coordinators[1]) is None, "the suspended one has lost its lease")
    coordinators[1].send_signal(signal.SIGCONT)
    # then the runs end as if nothing had been
    assert_as_embedded(runs)
    assert_history(cluster)
