"""A run that is cancelled, or has failed, reaches the nodes that still run on other machines."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import Any, TypedDict

import pytest
from tests.contract.brokers import task
from tests.distributed.conftest import PATIENCE_SECONDS, Cluster, Ledger

from lockstep import START, Context, Graph, RunCancelledError
from lockstep.records import HandedBack, Task, TaskResult
from lockstep_worker.executor import Executor


class State(TypedDict, total=False):
    n: int


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_cancellation_reaches_nodes_that_run_whatever_they_run_in(cluster: Cluster, ledger: Ledger, gate: Path) -> None:
    cluster.coordinator()
    worker = cluster.worker()
    run = cluster.client.submit("ends", {"ledger": str(ledger), "gate": str(gate)})
    other = cluster.client.submit("ends", {"ledger": f"{ledger}-other", "gate": f"{gate}-other"})
    theirs = Ledger(Path(f"{ledger}-other"))
    cluster.until(lambda: len(ledger) == 3 and len(theirs) == 3, "all nodes have started")

    run.cancel("enough")
    with pytest.raises(RunCancelledError, match="enough"):
        run.result(60)

    # then the thread is told, the coroutine is cancelled, the process is killed, and their slots are free
    said = lambda: sorted(gate.read_text().splitlines())  # noqa: E731
    cluster.until(lambda: said() == ["no variables", "suspended", "watchful"], "the nodes are told")
    [isolated] = {start.pid for start in ledger.starts()} - {worker.pid}
    cluster.until(lambda: cluster.claimed(worker) == 3, "the worker holds what the other run has, and no more")
    # and the other run's go on
    assert Path(f"{gate}-other").read_text().splitlines() == ["no variables"]
    assert {start.pid for start in theirs.starts()} - {worker.pid} != {isolated}
    assert not is_alive(isolated)
    other.cancel("the test ends")
    cluster.until(lambda: cluster.claimed(worker) == 0, "nothing is left")


def test_what_has_started_after_a_run_was_cancelled_goes_on() -> None:
    # given two nodes of a run: one that began before it failed, and one that a retry has begun
    started, release = threading.Semaphore(0), threading.Event()
    cancelled: list[int] = []

    def watchful(number: int, ctx: Context) -> None:
        started.release()
        while not ctx.cancelled and not release.wait(0.01):
            pass
        if ctx.cancelled:
            cancelled.append(number)
            raise OSError("whatever a node does that is told to end")

    compiled = Graph(State).add_node("watchful", watchful).add_edge(START, "watchful").compile()
    waiting: deque[Task] = deque()
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    executor = Executor(
        {compiled.hash: compiled}, 2, "w", lambda: waiting.popleft() if waiting else None, answers.put, lambda chunk: None
    )
    with closing(executor):
        between = 0.0
        for number in (1, 2):
            between = time.perf_counter()
            waiting.append(
                task(str(number), node_id="watchful", graph_hash=compiled.hash, payload=b"%d" % number, delivery=number)
            )
            executor.pump()
            assert started.acquire(timeout=PATIENCE_SECONDS)

        # when that is learned of
        executor.cancel("run-1", between)
        first = answers.get(timeout=PATIENCE_SECONDS)
        release.set()
        second = answers.get(timeout=PATIENCE_SECONDS)

    # then the first one ends, and is handed back: that is no failure of the node; the other one is not disturbed
    assert (type(first), first.delivery) == (HandedBack, 1)
    assert (type(second), second.delivery, second.failure) == (TaskResult, 2, None)
    assert cancelled == [1]
