"""A copy of the database, taken while runs go on, is all that is needed to go on from it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import sqlalchemy as sa
from tests.distributed.conftest import PATIENCE_SECONDS, Cluster, Figure, Ledger, assert_as_embedded

from lockstep import Client
from lockstep.fsck import check_store


def test_runs_go_on_from_a_restored_copy(cluster: Cluster, ledger: Ledger, tmp_path: Path, figure: Figure) -> None:
    # given a copy that was taken while runs were under way, and went on after it
    cluster.coordinator()
    cluster.worker()
    values = [
        ("chain", {"steps": 40, "delay_ms": 40}),
        ("fan", {"width": 20, "delay_ms": 100}),
        ("nests", {"width": 3, "steps": 9}),
    ]
    for number in range(9):
        graph, value = values[number % 3]
        cluster.client.submit(graph, {**value, "ledger": str(ledger)}, run_id=f"run-{number}")
    cluster.until(lambda: len(ledger) > 20, "they are under way")
    url = sa.make_url(cluster.store_url).set(drivername="postgresql")
    plain, dump = url.render_as_string(hide_password=False), tmp_path / "copy.dump"
    programs = {name: shutil.which(name) for name in ("pg_dump", "pg_restore")}
    assert all(programs.values()), programs
    subprocess.run([str(programs["pg_dump"]), "--format=custom", f"--file={dump}", plain], check=True)
    cluster.until(lambda: len(ledger) > 60, "they went on")
    for process in (*cluster.coordinators, *cluster.workers):
        cluster.kill(process)

    # when it is restored in the place of what is there, and others start
    subprocess.run([str(programs["pg_restore"]), "--clean", "--if-exists", f"--dbname={plain}", str(dump)], check=True)
    for key in cluster.redis.scan_iter(f"{cluster.namespace}:*"):
        cluster.redis.delete(key)
    assert list(check_store(cluster.client.reader)) == []
    cluster.coordinator()
    cluster.worker()

    # then all end as if nothing had been
    with Client(cluster.store_url, redis_url=cluster.redis_url, namespace=cluster.namespace) as client:
        runs = {client.run(f"run-{number}"): values[number % 3] for number in range(9)}
        for run in runs:
            run.result(2 * PATIENCE_SECONDS)
        figure("nodes that ran again", sum(count - 1 for count in ledger.counts().values()))
        assert_as_embedded({run: (graph, {**value, "ledger": str(ledger)}) for run, (graph, value) in runs.items()})
