"""What waits for time, or for another run, waits on when the coordinator that knew of it has died."""

from __future__ import annotations

import time

from tests.distributed.conftest import PATIENCE_SECONDS, Cluster, Ledger

from lockstep import Run
from lockstep.explain import explain

SLEEP_SECONDS = 3.0


def sleeps(run: Run) -> bool:
    """Whether its sleep is stored."""
    return [item.state for item in explain(run.backend.reader, run.row(), None, time.time()).items] == ["timer"]


def test_a_node_sleeps_on_when_everybody_has_died(cluster: Cluster, ledger: Ledger) -> None:
    # given a node that sleeps, and nobody is left
    coordinator, worker = cluster.coordinator(), cluster.worker()
    run = cluster.client.submit("rests", {"ledger": str(ledger), "delay_ms": SLEEP_SECONDS * 1000})
    cluster.until(lambda: sleeps(run), "it sleeps")
    began = cluster.now()
    cluster.kill(coordinator)
    cluster.kill(worker)

    # when others come
    cluster.coordinator()
    cluster.worker()

    # then it wakes at its time: it was called twice, before its sleep and after it
    assert run.result(PATIENCE_SECONDS)["n"] == 1
    assert len(ledger) == 2
    assert cluster.now() - began >= SLEEP_SECONDS - 1.0  # It had slept for a while when that was seen.


def test_runs_of_a_thread_follow_each_other_when_their_coordinator_dies(cluster: Cluster, ledger: Ledger) -> None:
    # given a run that is under way in its thread, and two that wait behind it
    coordinator = cluster.coordinator()
    cluster.worker()
    given = {"ledger": str(ledger), "delay_ms": SLEEP_SECONDS * 1000}
    first = cluster.client.submit("rests", given, thread_id="thread")
    cluster.until(lambda: sleeps(first), "it sleeps")
    others = [cluster.client.submit("rests", {"delay_ms": 0}, thread_id="thread", run_id=f"run{number}") for number in (1, 2)]

    # when their coordinator dies, and another one takes over
    cluster.kill(coordinator)
    cluster.coordinator()

    # then each goes on from what the one before has left
    states = [run.result(PATIENCE_SECONDS) for run in (first, *others)]
    assert [state["n"] for state in states] == [1, 2, 3]
    assert states[-1]["seen"] == [0, 1, 2]
