"""The client and the commands around it: submit, follow, explain, metrics."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.request
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from tests.distributed.conftest import COMMAND, FLOWS, Cluster
from tests.servers import Database, free_port

from lockstep import (
    Client,
    ConfigurationError,
    NodeFailedError,
    RunCancelledError,
    RunExistsError,
    RunNotFoundError,
    StoreUnavailableError,
    UnknownGraphError,
)
from lockstep.broker.inspection import whereabouts
from lockstep.core.lifecycle import RunStatus
from lockstep.explain import explain
from lockstep.store.sql import SqlStore


def command(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], env=cluster.environment(), capture_output=True, text=True, timeout=60)


def test_submit_gives_the_run_that_has_the_id(cluster: Cluster) -> None:
    # given a coordinator and a worker
    cluster.coordinator()
    cluster.worker()
    # when a run is submitted twice, and once with another input
    first = cluster.client.submit("chain", {"steps": 2}, run_id="one")
    again = cluster.client.submit("chain", {"steps": 2}, run_id="one")
    with pytest.raises(RunExistsError):
        cluster.client.submit("chain", {"steps": 3}, run_id="one")
    # then there is one run
    assert first.result(30) == again.result(30) == {"n": 2, "seen": [0, 1], "steps": 2}
    assert [run.run_id for run in cluster.client.runs()] == ["one"]
    assert [len(step.tasks) for step in first.history()] == [0, 1, 1]
    assert cluster.client.delete("one")


def test_a_run_that_is_submitted_with_the_caller_s_data_begins_when_both_are_committed(cluster: Cluster) -> None:
    # given a coordinator and a worker, and a transaction of the caller's in which a run is submitted
    cluster.coordinator()
    cluster.worker()
    engine = create_engine(cluster.store_url)
    with engine.connect() as connection:
        run = cluster.client.submit("chain", {"steps": 2}, run_id="one", connection=connection)
        # then it is not there before the commit, and another input is refused within the transaction too
        with pytest.raises(RunNotFoundError):
            cluster.client.run("one")
        with pytest.raises(RunExistsError):
            cluster.client.submit("chain", {"steps": 3}, run_id="one", connection=connection)
        # and when it is committed, then it runs
        connection.commit()
        assert run.result(30) == {"n": 2, "seen": [0, 1], "steps": 2}
        # and what is rolled back never does
        cluster.client.submit("chain", {"steps": 2}, run_id="two", connection=connection)
        connection.rollback()
    engine.dispose()
    assert cluster.client.submit("chain", {"steps": 1}, run_id="two").result(30)["n"] == 1


def test_asyncio_twins(cluster: Cluster) -> None:
    cluster.coordinator()
    cluster.worker()

    async def main() -> tuple[dict[str, object], list[int]]:
        run = await cluster.client.asubmit("chain", {"steps": 3})
        steps = [event.step_id async for event in run.astream()]
        return await run.aresult(30), steps

    result, steps = asyncio.run(main())
    assert result["n"] == 3
    assert steps == [0, 1, 2, 3]


def test_graph_that_nobody_has_loaded(cluster: Cluster) -> None:
    with pytest.raises(UnknownGraphError, match="there is none yet"):
        cluster.client.submit("chain", {"steps": 1})
    cluster.coordinator()
    with pytest.raises(UnknownGraphError, match="there are asks, asks_below, audit, chain, ends, fan, nests, pays, rests,"):
        cluster.client.submit("nothing", {})


def test_client_refuses_a_store_that_is_one_process_s_own() -> None:
    with pytest.raises(ConfigurationError, match="memory://"):
        Client("memory://")


def test_input_that_does_not_fit_fails_the_run(cluster: Cluster) -> None:
    cluster.coordinator()
    run = cluster.client.submit("chain", {"stepz": 1})
    with pytest.raises(Exception, match="stepz"):
        run.result(30)
    assert run.status is RunStatus.FAILED


def test_failed_run_goes_on_after_a_retry(cluster: Cluster, tmp_path: Path) -> None:
    # given a run whose node fails: it cannot write its ledger
    cluster.coordinator()
    cluster.worker()
    folder = tmp_path / "later"
    run = cluster.client.submit("chain", {"steps": 2, "ledger": str(folder / "ledger")})
    with pytest.raises(NodeFailedError, match="FileNotFoundError"):
        run.result(30)
    # when the reason is gone and somebody retries it
    folder.mkdir()
    run.retry()
    # then it ends well
    assert run.result(30)["n"] == 2


def test_cancel_from_the_command_line(cluster: Cluster, tmp_path: Path) -> None:
    cluster.coordinator()
    cluster.worker()
    run = cluster.client.submit("chain", {"steps": 2, "gate": str(tmp_path / "gate")})
    cluster.until(lambda: run.status is RunStatus.RUNNING, "it runs")
    done = command(
        cluster, "cancel", run.run_id, "--reason", "enough", "--store", cluster.store_url, "--redis", cluster.redis_url
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(RunCancelledError, match="enough"):
        run.result(30)
    (tmp_path / "gate").touch()


def test_submit_and_wait_on_the_command_line(cluster: Cluster) -> None:
    cluster.coordinator()
    cluster.worker()
    urls = ("--store", cluster.store_url, "--redis", cluster.redis_url)
    waited = command(cluster, "submit", "chain", "--input", '{"steps": 2}', "--run-id", "x", "--wait", "--json", *urls)
    assert waited.returncode == 0, waited.stderr
    assert json.loads(waited.stdout)["state"] == {"n": 2, "seen": [0, 1], "steps": 2}
    submitted = command(cluster, "submit", "chain", "--input", '{"steps": 2}', "--run-id", "y", *urls)
    assert submitted.stdout == "y\n"


def explained(cluster: Cluster, run_id: str) -> tuple[str | None, list[tuple[str, str | None]], str]:
    [row] = cluster.client.reader.find_runs(run_ids=[run_id])
    found = explain(cluster.client.reader, row, whereabouts(cluster.redis_url, cluster.namespace))
    return found.owner, [(item.state, item.where) for item in found.items], " / ".join(found.findings)


def test_explain_says_where_tasks_are_and_what_is_missing(cluster: Cluster, tmp_path: Path) -> None:
    # given a run without a worker
    coordinator = cluster.coordinator()
    gate = tmp_path / "gate"
    run = cluster.client.submit("fan", {"width": 3, "gate": str(gate)}, run_id="w")
    cluster.until(lambda: explained(cluster, "w")[1] == [("queued", "default")], "its first task is queued")
    assert "no worker serves queue 'default'" in explained(cluster, "w")[2]
    # when a worker comes with two slots, then two leaves are with it and one waits
    cluster.worker("--concurrency", "2")
    cluster.until(lambda: whereabouts(cluster.redis_url, cluster.namespace).workers, "the worker says its name")
    [name] = [worker.name for worker in whereabouts(cluster.redis_url, cluster.namespace).workers]
    wanted = [("claimed", name), ("claimed", name), ("queued", "default")]
    cluster.until(lambda: explained(cluster, "w")[1] == wanted, "the leaves are where they are")
    # when the coordinator dies, then nobody owns the run
    cluster.kill(coordinator)
    shown = command(cluster, "explain", "w", "--store", cluster.store_url, "--redis", cluster.redis_url)
    assert shown.returncode == 0, shown.stderr
    assert "2 claimed, 1 queued" in shown.stdout
    # and with a new one it ends
    cluster.coordinator()
    gate.touch()
    assert run.result(60)["seen"] == [0, 1, 2]
    assert explained(cluster, "w")[1:] == ([], "")


def test_explain_says_what_items_wait_for_that_are_not_handed_out(cluster: Cluster, tmp_path: Path) -> None:
    # given a queue of two tasks, a slot, and five leaves that wait for the gate
    cluster.coordinator("--queue-depth", "2")
    cluster.worker("--concurrency", "1")
    run = cluster.client.submit("fan", {"width": 5, "gate": str(tmp_path / "gate")}, run_id="w")
    states = lambda: [state for state, _ in explained(cluster, "w")[1]]  # noqa: E731
    cluster.until(lambda: states() == ["claimed", "queued", "queued", "owner", "owner"], "all that can be is handed out")
    # then explain says what the others wait for
    assert "2 items are not handed out" in explained(cluster, "w")[2]
    assert "wait for room in their queue ('default' holds 2)" in explained(cluster, "w")[2]
    (tmp_path / "gate").touch()
    run.result(60)


def test_explain_names_the_version_that_no_worker_has(cluster: Cluster) -> None:
    # given a worker with another graph
    cluster.coordinator()
    cluster.worker(graphs=(f"{FLOWS}:fan",))
    run = cluster.client.submit("chain", {"steps": 2}, run_id="x")
    # then explain says so, and no attempt is lost once a worker has it
    cluster.until(lambda: "no worker has loaded version" in explained(cluster, "x")[2], "explain says it")
    cluster.worker()
    run.result(60)
    assert {task.attempt for step in run.history() for task in step.tasks} == {1}


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        lines = reply.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def test_metrics_of_both_roles(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a coordinator and a worker with a port each, and more leaves than slots
    ports = free_port(), free_port()
    plain = cluster.environment()
    monkeypatch.setattr(cluster, "environment", lambda: {**plain, "LOCKSTEP_METRICS_PORT": str(ports[0])})
    cluster.coordinator()
    monkeypatch.setattr(cluster, "environment", lambda: {**plain, "LOCKSTEP_METRICS_PORT": str(ports[1])})
    cluster.worker("--concurrency", "2")
    gate = tmp_path / "gate"
    run = cluster.client.submit("fan", {"width": 5, "gate": str(gate)})
    # then both tell how many tasks wait; the coordinator how many are out, the worker how many run
    depth = 'langgraph_queue_depth{queue="default"}'
    wanted = [(3.0, 5.0), (3.0, 2.0)]

    def told() -> list[tuple[float | None, float]]:
        pages = [metrics(port) for port in ports]
        return [(page.get(depth), page["langgraph_inflight_nodes"]) for page in pages]

    cluster.until(lambda: told() == wanted, "the metrics tell the truth")
    assert metrics(ports[0])['lockstep_oldest_task_seconds{queue="default"}'] > 0
    assert metrics(ports[1])["lockstep_slots"] == 2
    gate.touch()
    run.result(60)
    cluster.until(lambda: metrics(ports[0])["langgraph_inflight_nodes"] == 0.0, "nothing is in flight any more")
    assert metrics(ports[0])['lockstep_ended_runs_total{error="",status="succeeded"}'] == 1.0


def test_a_session_that_the_server_ends_is_one_clear_error(database: Database) -> None:
    # given a transaction whose session the server ends, as after a process was suspended for too long
    store = SqlStore(database.url)
    with pytest.raises(StoreUnavailableError, match="terminating connection"), store._access.writing() as connection:
        connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
    # then the next one works
    assert store.find_runs() == []
    store.close()
