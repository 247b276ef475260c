"""Runs of subgraphs over real processes: any worker executes them, and whoever dies, nothing of them runs twice or is lost."""

from __future__ import annotations

import pytest
from tests.distributed.conftest import PATIENCE_SECONDS, Cluster, Ledger, embedded_hash

from lockstep import RunInterruptedError


def test_subgraphs_are_executed_by_all_workers_and_give_the_same_bytes(cluster: Cluster, ledger: Ledger) -> None:
    cluster.coordinator()
    cluster.coordinator()
    for _ in range(3):
        cluster.worker("--concurrency", "2")
    given = {"ledger": str(ledger), "width": 6, "steps": 4}
    runs = [cluster.client.submit("nests", given) for _ in range(4)]
    for run in runs:
        assert run.result(PATIENCE_SECONDS)["seen"] == [0, 1, 2, 3] * 6

    starts = ledger.starts()
    assert len(starts) == len(set(start.item for start in starts)) == 4 * 6 * 4
    assert len({start.pid for start in starts}) == 3
    assert {run.row().state_hash for run in runs} == {embedded_hash("nests", given)}


def test_what_dies_under_a_subgraph_takes_nothing_with_it(cluster: Cluster, ledger: Ledger) -> None:
    # given subgraphs under way
    coordinator, worker = cluster.coordinator(), cluster.worker()
    run = cluster.client.submit("nests", {"ledger": str(ledger), "width": 4, "steps": 30, "delay_ms": 20})
    cluster.until(lambda: len(ledger) > 10, "they are under way")

    # when everybody dies, and others come
    cluster.kill(coordinator)
    cluster.kill(worker)
    before = cluster.journalled_of(*(child for child in run.children()))
    starts = ledger.counts()
    cluster.coordinator()
    cluster.worker()

    # then all end as they would have, and no node with a stored result has run again
    assert run.result(2 * PATIENCE_SECONDS)["seen"] == list(range(30)) * 4
    again = {item for item, count in ledger.counts().items() if count > starts[item] and item in before}
    assert again == set()
    assert len(list(run.children())) == 4


def test_a_question_of_a_subgraph_survives_everybody(cluster: Cluster, ledger: Ledger) -> None:
    coordinator, worker = cluster.coordinator(), cluster.worker()
    run = cluster.client.submit("asks_below", {"ledger": str(ledger)})
    cluster.until(lambda: run.status == "interrupted", "it waits")
    cluster.kill(coordinator)
    cluster.kill(worker)
    with pytest.raises(RunInterruptedError, match="below/ask"):
        run.result()
    cluster.coordinator()
    cluster.worker()
    one, other = run.interrupts()
    assert (one.node_id, other.node_id) == ("below/ask", "below/ask_apart")
    run.resume({one.id: 7, other.id: 3})
    state = run.result(PATIENCE_SECONDS)
    assert (state["n"], state["width"], state["seen"]) == (7, 3, [0, 1, 2, 3, 4])


def test_cancelling_reaches_the_nodes_of_subgraphs(cluster: Cluster, ledger: Ledger) -> None:
    cluster.coordinator()
    cluster.worker()
    run = cluster.client.submit("nests", {"ledger": str(ledger), "width": 2, "steps": 100, "gate": str(ledger.path) + "-never"})
    cluster.until(lambda: len(ledger) == 2, "both are under way")
    run.cancel("enough")
    cluster.until(lambda: [child.status.value for child in run.children()] == ["cancelled"] * 2, "they are cancelled")
    assert run.status == "cancelled"
    (ledger.path.parent / (ledger.path.name + "-never")).touch()  # The threads of the nodes end with it.


def test_what_a_subgraph_streams_on_a_worker_reaches_who_follows_its_parent(cluster: Cluster) -> None:
    cluster.coordinator()
    cluster.worker()
    run = cluster.client.submit("speaks_below", {"width": 3})
    events = [event for event in run.stream(["custom"]) if event.data is not None]
    assert [(event.node_id, event.step_id, event.data["number"]) for event in events] == [
        ("below/say", 1, number) for number in range(3)
    ]
    assert run.result()["n"] == 3
