"""A run waits for people while every process dies, and the answers come by the client and by the command line."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from tests.distributed.conftest import COMMAND, PATIENCE_SECONDS, Cluster, Ledger

from lockstep import RunInterruptedError
from lockstep.broker.inspection import whereabouts
from lockstep.explain import explain


def command(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **cluster.environment()}
    urls = ("--store", cluster.store_url)
    return subprocess.run(
        [*COMMAND, *arguments, *urls], env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )


def test_answers_reach_a_run_whose_every_process_has_died(cluster: Cluster, ledger: Ledger) -> None:
    # given a run that waits for two answers, and nobody is left
    coordinator, worker = cluster.coordinator(), cluster.worker()
    run = cluster.client.submit("asks", {"ledger": str(ledger)}, run_id="run")
    cluster.until(lambda: run.status == "interrupted", "it waits")
    cluster.kill(coordinator)
    cluster.kill(worker)
    one, other = run.interrupts()
    assert [(asked.node_id, asked.value) for asked in (one, other)] == [("ask", {"may I": "go on"}), ("ask_apart", "how wide")]
    with pytest.raises(RunInterruptedError, match="how wide"):
        run.result()
    shown = json.loads(command(cluster, "show", "run", "--json").stdout)
    assert shown["status"] == "interrupted"
    assert [asked["id"] for asked in shown["interrupts"]] == [one.id, other.id]
    [row] = cluster.client.reader.find_runs(run_ids=["run"])
    findings = explain(cluster.client.reader, row, whereabouts(cluster.redis_url, cluster.namespace)).findings
    assert any(f"it waits for answers to {one.id}, {other.id}" in finding for finding in findings)

    # when one answer comes by the command line, the other by the client, and others are there by then
    sent = command(cluster, "resume", "run", "--redis", cluster.redis_url, "--answer", f"{one.id}=7")
    assert sent.returncode == 0, sent.stderr
    cluster.coordinator()
    cluster.worker()
    cluster.until(lambda: [asked.id for asked in run.interrupts()] == [other.id], "the answer is taken in")
    run.resume(3)

    # then the run ends, only the node that had asked ran twice, and what it had recorded before was not done again
    state = run.result(PATIENCE_SECONDS)
    assert (state["n"], state["width"], state["seen"]) == (7, 3, [0, 1, 2, 3, 4])
    assert sorted(ledger.counts().values()) == [1, 1, 1, 1, 1, 1, 2]
    assert [item for item, count in ledger.counts().items() if count == 1 and item[1].endswith(":recorded")]
