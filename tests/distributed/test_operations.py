"""What operators do and see: stopping, suspending, bounds, RQ's tools, errors at the start, what stays in Redis."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.distributed.conftest import (
    COMMAND,
    FLOWS,
    PATIENCE_SECONDS,
    Cluster,
    Figure,
    Ledger,
    assert_as_embedded,
)
from tests.servers import free_port

from lockstep import Run
from lockstep.broker.beat import RQ_WORKER_TTL_SECONDS
from lockstep.broker.presence import BEAT_SECONDS, BEATS_TO_MISS
from lockstep.store import schema

FAN, CHAIN, SIDES = f"{FLOWS}:fan", f"{FLOWS}:chain", f"{FLOWS}:sides"
PASSWORD = "s3cret"
SILENCE_SECONDS = BEAT_SECONDS * BEATS_TO_MISS
IN_FLIGHT = 24
RESTART_ROUNDS = int(os.environ.get("LOCKSTEP_TEST_RESTART_ROUNDS", "2"))
"""How often everything is restarted under load."""


def is_stopping(cluster: Cluster) -> bool:
    return "stopping" in cluster.said()


# --- SIGTERM ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["the worker", "all its processes"])
def test_a_worker_that_is_told_to_stop_finishes_what_runs(cluster: Cluster, ledger: Ledger, gate: Path, told: str) -> None:
    # given a worker with running tasks, more of them in the queue, and then another worker
    cluster.coordinator()
    worker = cluster.worker("--concurrency", "4", "--drain-seconds", "60")
    value = {"width": 10, "ledger": str(ledger), "gate": str(gate)}
    run = cluster.client.submit("fan", value)
    cluster.until(lambda: len(ledger) == 4, "all slots are taken")
    # when it is told to stop, perhaps as a service is: with all its processes
    for pid in [worker.pid, *(cluster.beating(worker) if told == "all its processes" else [])]:
        os.kill(pid, signal.SIGTERM)
    cluster.until(lambda: is_stopping(cluster), "it stops")
    other = cluster.worker("--concurrency", "10")
    cluster.until(lambda: len(ledger) == 10, "the other one takes what waits")
    cluster.pass_time(worker, SILENCE_SECONDS + 2)
    # then it finishes its tasks, ends well, and nothing ran twice
    assert worker.poll() is None
    gate.touch()
    assert worker.wait(PATIENCE_SECONDS) == 0, cluster.said()
    run.result(PATIENCE_SECONDS)
    assert ledger.deliveries() == [1] * 10
    assert [start.pid for start in ledger.starts()] == [worker.pid] * 4 + [other.pid] * 6
    assert_as_embedded({run: ("fan", value)})


def test_a_worker_hands_back_what_takes_too_long(cluster: Cluster, ledger: Ledger, gate: Path, figure: Figure) -> None:
    # given a worker with running tasks, and another one
    cluster.coordinator()
    worker = cluster.worker("--concurrency", "4", "--drain-seconds", "0.5")
    value = {"width": 4, "ledger": str(ledger), "gate": str(gate)}
    run = cluster.client.submit("fan", value)
    cluster.until(lambda: len(ledger) == 4, "the tasks run")
    cluster.worker("--concurrency", "4")
    # when it is told to stop, and its tasks don't end in time
    since = time.monotonic()
    cluster.terminate(worker)
    figure("seconds to end with --drain-seconds 0.5", time.monotonic() - since)
    # then they run elsewhere at once
    cluster.until(lambda: ledger.deliveries().count(2) == 4, "the tasks run elsewhere")
    figure("seconds from SIGTERM to the last start elsewhere", time.monotonic() - since)
    gate.touch()
    run.result(PATIENCE_SECONDS)
    assert len(ledger) == 8
    assert_as_embedded({run: ("fan", value)})


@pytest.mark.parametrize("when", ["at once", "while it finishes"])
def test_a_second_signal_ends_a_worker_at_once(cluster: Cluster, ledger: Ledger, gate: Path, figure: Figure, when: str) -> None:
    # given a worker with a running task
    cluster.coordinator()
    worker = cluster.worker()
    run = cluster.client.submit("chain", {"steps": 1, "ledger": str(ledger), "gate": str(gate)})
    cluster.until(lambda: len(ledger) == 1, "the task runs")
    # when it is told twice
    worker.send_signal(signal.SIGTERM)
    if when == "while it finishes":
        cluster.until(lambda: is_stopping(cluster), "it stops")
    since = time.monotonic()
    while worker.poll() is None:
        # Two signals that are pending at the same time are one; so again.
        worker.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    figure("seconds from the second signal to the end", time.monotonic() - since)
    # then it ends without having waited, and its task runs elsewhere
    assert worker.returncode == 128 + signal.SIGTERM
    cluster.workers.remove(worker)
    cluster.worker()
    cluster.until(lambda: ledger.deliveries() == [1, 2], "the task runs elsewhere")
    gate.touch()
    run.result(PATIENCE_SECONDS)


def test_a_coordinator_that_is_told_to_stop_leaves_its_runs_to_another(
    cluster: Cluster, ledger: Ledger, figure: Figure
) -> None:
    # given two coordinators, each with runs
    first, second = cluster.coordinator(), cluster.coordinator()
    cluster.worker()
    value = {"steps": 60, "delay_ms": 20.0, "ledger": str(ledger)}
    runs = {cluster.client.submit("chain", value): ("chain", value) for _ in range(16)}
    cluster.until(lambda: cluster.commits() > 50, "the runs are under way")
    theirs = [run for run in runs if cluster.owner_of(run) is first]
    assert theirs
    # when one is told to stop
    since = time.monotonic()
    cluster.terminate(first)
    figure("seconds to end", time.monotonic() - since)
    versions = {run: run.row().version for run in theirs}
    # then the other one moves its runs, and no node has run twice
    cluster.until(lambda: any(run.row().version > versions[run] for run in theirs), "the other one moves them")
    figure("seconds from SIGTERM to the other's first commit", time.monotonic() - since)
    for run in runs:
        run.result(PATIENCE_SECONDS)
    assert set(ledger.counts().values()) == {1}
    assert second.poll() is None
    assert_as_embedded(runs)


@pytest.mark.timeout(300)
def test_everything_is_restarted_under_load_and_nobody_notices(cluster: Cluster, ledger: Ledger, figure: Figure) -> None:
    # given coordinators and workers, and somebody who keeps some runs going
    coordinators = [cluster.coordinator() for _ in range(2)]
    workers = [cluster.worker("--concurrency", "4") for _ in range(4)]
    value = {"steps": 10, "delay_ms": 40.0, "ledger": str(ledger)}
    runs: dict[Run, tuple[str, dict[str, Any]]] = {}
    ended = threading.Event()

    def submit() -> None:
        while not ended.is_set():
            going = [cluster.client.submit("chain", value) for _ in range(IN_FLIGHT)]
            runs.update(dict.fromkeys(going, ("chain", value)))
            for run in going:
                run.result(2 * PATIENCE_SECONDS)

    load = threading.Thread(target=submit)
    load.start()
    # when all of them are restarted, one after the other, again and again
    since = time.monotonic()
    try:
        cluster.until(lambda: cluster.commits() > 20, "the runs are under way")
        for _ in range(RESTART_ROUNDS):
            for number in range(2):
                cluster.terminate(coordinators[number])
                coordinators[number] = cluster.coordinator()
            for number in range(4):
                cluster.terminate(workers[number])
                workers[number] = cluster.worker("--concurrency", "4")
    finally:
        ended.set()
        load.join(4 * PATIENCE_SECONDS)
    # then all runs have succeeded, no node has started twice, and no attempt was lost
    figure("restarts", 6 * RESTART_ROUNDS)
    figure("seconds", time.monotonic() - since)
    figure("runs", len(runs))
    assert len(runs) > IN_FLIGHT
    assert_as_embedded(runs)
    assert set(ledger.counts().values()) == {1}
    with cluster.reading() as connection:
        assert connection.execute(select(schema.journal.c.run_id).where(schema.journal.c.kind == "failed")).all() == []


# --- RQ's tools ---------------------------------------------------------------------------------------------------------------


def rq(cluster: Cluster, command: str, *arguments: str) -> str:
    """What RQ's command line says."""
    program = [sys.executable, "-c", "from rq.cli import main; main()"]
    environment = {**cluster.environment(), "RQ_KEY_PREFIX": cluster.names.rq}
    done = subprocess.run(
        [*program, command, *arguments, "--url", cluster.redis_url], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def info(cluster: Cluster) -> tuple[dict[str, tuple[int, int]], dict[int, tuple[str, str]]]:
    """What `rq info` shows: waiting and executing jobs of each queue, state and queues of each worker by its process id."""
    said = rq(cluster, "info", "--raw")
    queues = re.findall(r"^queue (\S+) (\d+), (\d+) executing, 0 finished, 0 failed$", said, re.MULTILINE)
    workers = re.findall(r"^worker \S+ \(\S+ \S+ (\d+)\) (\S+) (.*)\. jobs:", said, re.MULTILINE)
    return (
        {name: (int(waiting), int(executing)) for name, waiting, executing in queues},
        {int(pid): (state, names) for pid, state, names in workers},
    )


def test_rq_info_shows_what_there_is(cluster: Cluster, ledger: Ledger, gate: Path, figure: Figure) -> None:
    # given a worker for each of two queues, and an idle one for both
    cluster.coordinator(graphs=(SIDES,))
    for_left = cluster.worker("--concurrency", "2", "--queue", "left", graphs=(SIDES,))
    for_right = cluster.worker("--concurrency", "3", "--queue", "right", graphs=(SIDES,))
    value = {"ledger": str(ledger), "gate": str(gate)}
    # when there is more to do than they have slots
    runs = [cluster.client.submit("sides", value) for _ in range(7)]
    cluster.until(lambda: len(ledger) == 5, "all slots are taken")
    cluster.until(lambda: cluster.queued("left") + cluster.queued("right") == 9, "the rest waits")
    # then RQ tells what is in the queues, and what the workers do
    busy = {for_left.pid: ("busy", "left"), for_right.pid: ("busy", "right")}
    cluster.until(lambda: info(cluster) == ({"left": (5, 2), "right": (4, 3)}, busy), f"not {info(cluster)}")
    # and when one is killed, it forgets it, and that its jobs are executed
    cluster.kill(for_left)
    since = time.monotonic()
    cluster.until(lambda: info(cluster)[1].keys() == {for_right.pid}, "the dead worker is off the list")
    figure("seconds from the kill of a worker until `rq info` shows it no more", time.monotonic() - since)
    assert time.monotonic() - since < 2 * RQ_WORKER_TTL_SECONDS
    cluster.until(lambda: info(cluster)[0] == {"left": (7, 0), "right": (4, 3)}, f"not {info(cluster)}")
    # and when all is done, another one is idle, and all queues are empty
    gate.touch()
    both = cluster.worker("--queue", "left", "--queue", "right", graphs=(SIDES,))
    for run in runs:
        run.result(PATIENCE_SECONDS)
    idle = {for_right.pid: ("idle", "right"), both.pid: ("idle", "left, right")}
    cluster.until(lambda: info(cluster) == ({"left": (0, 0), "right": (0, 0)}, idle), f"not {info(cluster)}")


def test_suspended_workers_start_nothing(cluster: Cluster, ledger: Ledger, gate: Path) -> None:
    # given a worker with a running task
    cluster.coordinator()
    worker = cluster.worker()
    value = {"steps": 3, "ledger": str(ledger), "gate": str(gate)}
    run = cluster.client.submit("chain", value)
    cluster.until(lambda: len(ledger) == 1, "the task runs")
    # when RQ's workers are suspended, and the task ends
    rq(cluster, "suspend")
    cluster.until(lambda: info(cluster)[1][worker.pid][0] == "suspended", "it is shown as suspended")
    gate.touch()
    cluster.until(lambda: cluster.queued() == 1, "its result is stored, and the next task waits")
    late = cluster.client.submit("fan", {"width": 3, "ledger": str(ledger)})
    cluster.until(lambda: cluster.queued() == 2, "so does that of another run")
    another = cluster.worker()
    # then nothing starts, in no worker
    cluster.pass_time(worker, SILENCE_SECONDS)
    assert len(ledger) == 1
    assert {state for state, _ in info(cluster)[1].values()} == {"suspended"}
    assert info(cluster)[1].keys() == {worker.pid, another.pid}
    # and when they may go on, all does
    rq(cluster, "resume")
    assert_as_embedded({run: ("chain", value), late: ("fan", {"width": 3, "ledger": str(ledger)})})


# --- bounds -------------------------------------------------------------------------------------------------------------------


class Sampler:
    """Looks at a queue again and again, in a thread."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stopping = threading.Event()
        self.seen: list[int] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.seen.append(self._cluster.queued())

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()


def test_a_queue_never_holds_more_than_its_depth(cluster: Cluster, figure: Figure) -> None:
    # given two coordinators that share a queue for 8 tasks, and slow leaves
    first, second = (cluster.coordinator("--queue-depth", "8") for _ in range(2))
    cluster.worker("--concurrency", "4")
    cluster.worker("--concurrency", "4")
    value = {"width": 190, "delay_ms": 10.0}
    # when several runs send out many, so many that both coordinators have some
    with Sampler(cluster) as sampler:
        runs = {cluster.client.submit("fan", value): ("fan", value) for _ in range(16)}
        owners = {cluster.owner_of(run) for run in runs}
        for run in runs:
            run.result(PATIENCE_SECONDS)
    # then there are never more than 8 in the queue, which is full most of the time
    figure("samples of the queue", len(sampler.seen))
    figure("samples that found it full", sampler.seen.count(8))
    assert owners == {first, second}
    assert max(sampler.seen) == 8
    assert_as_embedded(runs)


def metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        lines = page.read().decode().splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(f"{name} ")))


def test_one_slot_and_depth_one_get_through_and_each_refused_item_counts_once(
    cluster: Cluster, ledger: Ledger, gate: Path
) -> None:
    # given room for one task in the queue and one in the worker
    port, width = free_port(), 12
    cluster.coordinator("--queue-depth", "1", LOCKSTEP_METRICS_PORT=str(port))
    cluster.worker("--concurrency", "1")
    value = {"width": width, "ledger": str(ledger), "gate": str(gate)}
    # when a run sends out more, and the first does not end
    run = cluster.client.submit("fan", value)
    cluster.until(lambda: len(ledger) == 1, "one leaf runs")
    cluster.until(lambda: cluster.queued() == 1, "the next one waits")
    # then two have been refused: the second when the first was taken, the third when the second was. Nobody asks for those
    # behind them, and asking again counts nothing.
    name = "langgraph_backpressure_events_total"
    cluster.until(lambda: metric(port, name) == 2, "two are refused")
    cluster.pass_time(cluster.workers[0], 4)
    assert metric(port, name) == 2
    assert metric(port, "langgraph_inflight_nodes") == 2
    # and in the end each but the first has been, once
    gate.touch()
    assert_as_embedded({run: ("fan", value)})
    assert metric(port, name) == width - 1


@pytest.mark.parametrize("owner", ["one coordinator", "another coordinator"])
def test_a_large_run_does_not_starve_a_small_one(cluster: Cluster, figure: Figure, owner: str) -> None:
    # given little room, and a run of 2,000 leaves under way
    cluster.coordinator("--queue-depth", "4")
    if owner == "another coordinator":
        cluster.coordinator("--queue-depth", "4")
    cluster.worker("--concurrency", "2")
    value = {"width": 2000, "delay_ms": 10.0}
    large = cluster.client.submit("fan", value, thread_id="0")
    cluster.until(lambda: len(cluster.journalled(large)) > 20, "the large run is under way")
    # when a run of one leaf comes, to the same coordinator or another one
    small_value = {"width": 1}
    same = owner == "one coordinator"
    candidates = (cluster.client.submit("fan", small_value, thread_id=str(number)) for number in range(1, 101))
    small = next(run for run in candidates if (cluster.owner_of(run) is cluster.owner_of(large)) is same)
    since = time.monotonic()
    small.result(PATIENCE_SECONDS)
    done = len(cluster.journalled(large))
    figure("seconds that the small run took", time.monotonic() - since)
    figure("leaves of the large run that were done by then", done)
    # then it ends long before the large one
    assert done < 1000
    assert_as_embedded({small: ("fan", small_value), large: ("fan", value)})


# --- graphs -------------------------------------------------------------------------------------------------------------------


def test_a_worker_refuses_what_it_does_not_know_and_no_attempt_is_lost(cluster: Cluster, ledger: Ledger) -> None:
    # given a worker that knows another graph only
    cluster.coordinator()
    ignorant = cluster.worker(graphs=(FAN,))
    value = {"steps": 3, "ledger": str(ledger)}
    run = cluster.client.submit("chain", value)
    cluster.until(lambda: run.status == "running", "the run has begun")
    # when it is handed the tasks of a graph that it does not know, for a while
    cluster.pass_time(ignorant, 4)
    assert not len(ledger)
    assert run.status == "running"
    # and then there is one that does
    cluster.worker(graphs=(CHAIN,))
    # then the run ends, at the first attempt
    run.result(PATIENCE_SECONDS)
    row = schema.journal.c
    with cluster.reading() as connection:
        metas = connection.execute(select(row.meta).where(row.run_id == run.run_id)).scalars().all()
    assert [json.loads(meta)["attempt"] for meta in metas] == [1, 1, 1]
    assert len(ledger) == 3
    assert_as_embedded({run: ("chain", value)})


def test_a_worker_refuses_each_task_of_a_batch(cluster: Cluster) -> None:
    # given tasks that are known to be short, so that they travel together, and one slot in a worker that does not know them
    coordinator = cluster.coordinator()
    value = {"steps": 1}
    wise = cluster.worker("--concurrency", "1", graphs=(CHAIN,))
    for _ in range(5):
        cluster.client.submit("chain", value).result(PATIENCE_SECONDS)
    cluster.terminate(wise)
    ignorant = cluster.worker("--concurrency", "1", graphs=(FAN,))
    cluster.pass_time(ignorant, 2)
    # when many runs begin in one moment: the same item of each, so all have the same path
    coordinator.send_signal(signal.SIGSTOP)
    runs = {cluster.client.submit("chain", value): ("chain", value) for _ in range(20)}
    coordinator.send_signal(signal.SIGCONT)
    cluster.until(lambda: "pending" not in {run.status.value for run in runs}, "all have begun")
    cluster.pass_time(ignorant, 2)
    # then none has failed, and all end when there is a worker that knows them
    assert {run.status.value for run in runs} == {"running"}
    cluster.worker(graphs=(CHAIN,))
    assert_as_embedded(runs)


def test_a_worker_needs_neither_the_database_nor_its_drivers(cluster: Cluster, tmp_path: Path) -> None:
    # given a worker that has no store's address, and in whose process importing a driver fails
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for module in ("sqlalchemy", "psycopg", "alembic", "sqlite3"):
        (stubs / f"{module}.py").write_text(f"raise RuntimeError('a worker has imported {module}')\n")
    paths = os.pathsep.join([str(stubs), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, "-c", "import sqlalchemy"], env={"PYTHONPATH": str(stubs)}, check=True, capture_output=True
        )
    cluster.coordinator()
    paths = os.pathsep.join([str(stubs), *filter(None, [os.environ.get("PYTHONPATH")])])
    assert not [name for name in cluster.environment() if name.startswith("LOCKSTEP_STORE")]
    worker = cluster.worker(PYTHONPATH=paths)
    # then it works, and ends well
    value = {"width": 20}
    run = cluster.client.submit("fan", value)
    assert_as_embedded({run: ("fan", value)})
    cluster.terminate(worker)


def test_a_run_waits_while_no_coordinator_has_its_graph(cluster: Cluster) -> None:
    # given a graph that was loaded once, and by now only a coordinator with another one is there
    cluster.terminate(cluster.coordinator(graphs=(CHAIN,)))
    other = cluster.coordinator(graphs=(FAN,))
    worker = cluster.worker()
    # when runs of both graphs are submitted
    value = {"steps": 2}
    waiting = {cluster.client.submit("chain", value): ("chain", value) for _ in range(20)}
    cluster.client.submit("fan", {"width": 2}).result(PATIENCE_SECONDS)
    cluster.pass_time(worker, 4)
    # then those that nobody can move wait, and hold up nobody
    assert {run.status.value for run in waiting} == {"pending"}
    # and when there is a coordinator that has their graph, it moves them
    cluster.coordinator(graphs=(CHAIN,))
    cluster.terminate(other)
    assert_as_embedded(waiting)


# --- what stays ---------------------------------------------------------------------------------------------------------------


def test_what_stays_in_redis_when_all_has_ended(cluster: Cluster, ledger: Ledger, gate: Path) -> None:
    # given runs of all kinds: done, failed, cancelled while they ran or waited; workers that ended well and badly
    cluster.coordinator("--queue-depth", "8")
    killed = cluster.worker("--concurrency", "2")
    value = {"width": 40, "ledger": str(ledger), "gate": str(gate)}
    done, cancelled = cluster.client.submit("fan", value), cluster.client.submit("fan", value)
    large = cluster.client.submit("chain", {"steps": 3, "seen": list(range(5000))})
    cluster.until(lambda: len(ledger) >= 2, "tasks run")
    cluster.kill(killed)
    cancelled.cancel("enough")
    cluster.worker()
    gate.touch()
    done.result(PATIENCE_SECONDS)
    large.result(PATIENCE_SECONDS)
    cluster.until(lambda: cancelled.status == "cancelled", "it is cancelled")
    # when all is over, and the processes have ended
    cluster.until(lambda: not cluster.queued() and not cluster.claimed(cluster.workers[1]), "the queue is empty")
    results = [cluster.names.results(f"p{number:02d}") for number in range(16)]
    cluster.until(lambda: not any(cluster.redis.xlen(stream) for stream in results), "all results are taken in")
    for process in [*cluster.workers[1:], *cluster.coordinators]:
        cluster.terminate(process)
    # then what is left has an end, or is one of a fixed number of small keys
    names = cluster.names
    permanent = {names.marker, names.epochs, names.queues, names.depth("default"), names.bell("default"), names.beats, *results}
    permanent |= {f"{names.rq}:workers", f"{names.rq}:workers:default"}
    keys: Any = cluster.redis.keys(f"{cluster.namespace}:*")
    left = {key.decode() for key in keys if cluster.redis.ttl(key) == -1}
    assert left <= permanent
    assert cluster.redis.get(names.depth("default")) == b"0"
    assert cluster.redis.llen(names.bell("default")) <= 1
    assert not cluster.redis.exists(names.refused("default"))


# --- errors at the start ------------------------------------------------------------------------------------------------------


def attempt(cluster: Cluster, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    """How a command that should fail at once ends, and what it says."""
    done = subprocess.run(
        [*COMMAND, *arguments], env={**cluster.environment(), **environment}, capture_output=True, text=True, timeout=60
    )
    assert not done.stdout
    assert PASSWORD not in done.stderr
    return done.returncode, done.stderr.splitlines()


def nobody_at(scheme: str, user: str) -> tuple[str, str]:
    """An address with a password where nothing answers, and what may be shown of it."""
    rest = f"@127.0.0.1:{free_port()}/0"
    return f"{scheme}://{user}:{PASSWORD}{rest}", f"{scheme}://{user}:***{rest}"


def test_unreachable_redis(cluster: Cluster) -> None:
    url, shown = nobody_at("redis", "")
    for arguments in (["worker"], ["coordinator", "--store", cluster.store_url]):
        code, [line] = attempt(cluster, *arguments, "--graphs", FAN, "--redis", url)
        assert code == 4
        assert line.startswith("BrokerUnavailableError:")
        assert shown in line


def test_unreachable_database(cluster: Cluster) -> None:
    url, shown = nobody_at("postgresql+psycopg", "user")
    for arguments in (["coordinator", "--graphs", FAN, "--redis", cluster.redis_url], ["submit", "fan"]):
        code, [line] = attempt(cluster, *arguments, "--store", url)
        assert code == 4
        assert line.startswith("StoreUnavailableError:")
        assert shown in line


def test_taken_metrics_port(cluster: Cluster) -> None:
    port = free_port()
    cluster.coordinator(LOCKSTEP_METRICS_PORT=str(port))
    for arguments in (["worker"], ["coordinator", "--store", cluster.store_url]):
        code, [line] = attempt(
            cluster, *arguments, "--graphs", FAN, "--redis", cluster.redis_url, LOCKSTEP_METRICS_PORT=str(port)
        )
        assert code == 2
        assert line.startswith("ConfigurationError:")
        assert f"port {port} cannot be opened" in line and "LOCKSTEP_METRICS_PORT" in line


def test_coordinators_remove_what_finished_long_ago(cluster: Cluster) -> None:
    # given a finished run, and one that waits for a worker
    first = cluster.coordinator()
    worker = cluster.worker()
    cluster.client.submit("chain", {"steps": 1}, run_id="finished").result(60)
    cluster.terminate(worker)
    waiting = cluster.client.submit("chain", {"steps": 1}, run_id="waiting")
    cluster.until(lambda: waiting.status == "running", "it has begun")
    cluster.terminate(first)
    # when a coordinator keeps nothing, then the finished one goes, and the other goes on
    cluster.coordinator(LOCKSTEP_RETENTION="0s")
    cluster.until(lambda: [run.run_id for run in cluster.client.runs()] == ["waiting"], "the finished run is removed")
    cluster.worker()
    assert waiting.result(60)["n"] == 1
