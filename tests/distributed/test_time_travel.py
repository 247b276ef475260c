"""Runs are changed and forked from the command line, under coordinators and workers elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.distributed.conftest import COMMAND, PATIENCE_SECONDS, Cluster, Ledger


def command(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **cluster.environment()}
    urls = ("--store", cluster.store_url, "--redis", cluster.redis_url)
    return subprocess.run(
        [*COMMAND, *arguments, *urls], env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )


def test_a_run_is_changed_and_forked_by_the_command_line(cluster: Cluster, ledger: Ledger, tmp_path: Path) -> None:
    # given a run that waits, in which somebody answers in place of a node
    cluster.coordinator()
    cluster.worker()
    run = cluster.client.submit("asks", {"ledger": str(ledger)}, run_id="run")
    cluster.until(lambda: run.status == "interrupted", "it waits")
    refused = command(cluster, "update", "run", "--update", '{"topic": 1}')
    assert refused.returncode == 2 and "unknown field 'topic'" in refused.stderr
    step = run.row().step_id
    changed = command(cluster, "update", "run", "--update", '{"n": 5, "width": 6}', "--as-node", "beside")
    assert (changed.returncode, changed.stdout) == (0, f"{step + 1}\n"), changed.stderr
    assert run.result(PATIENCE_SECONDS) == {"ledger": str(ledger), "n": 5, "width": 6, "seen": []}

    # when it is forked from where it had waited, then the fork waits, too
    forked = command(cluster, "fork", "run", "--step", str(step), "--update", '{"n": 9}', "--run-id", "fork")
    assert (forked.returncode, forked.stdout) == (0, "fork\n"), forked.stderr
    fork = cluster.client.run("fork")
    cluster.until(lambda: fork.status == "interrupted", "it waits")
    assert [asked.node_id for asked in fork.interrupts()] == ["ask", "ask_apart"]
    assert fork.state(0)["n"] == 9
    # and both are seen to belong together
    shown = subprocess.run(
        [*COMMAND, "show", "fork", "--json", "--store", cluster.store_url],
        env={**os.environ, **cluster.environment()},
        capture_output=True,
        text=True,
    )
    assert json.loads(shown.stdout)["origin"] == {"run_id": "run", "step_id": step}
    assert [one.run_id for one in run.forks()] == ["fork"]
    assert [one.run_id for one in cluster.client.run("fork").forks()] == []
