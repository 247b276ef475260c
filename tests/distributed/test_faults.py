"""Whatever dies, stops or forgets: runs go on elsewhere, end with the embedded bytes, and no stored result is made again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.distributed.conftest import (
    FLOWS,
    PATIENCE_SECONDS,
    Cluster,
    Figure,
    Ledger,
    assert_as_embedded,
)
from tests.distributed.flows import DEATH
from tests.servers import MYSQL, POSTGRES, PostgresServer, RedisServer

from lockstep import PoisonError, Run
from lockstep.broker.connection import ANSWER_TIMEOUT_SECONDS
from lockstep.broker.presence import BEAT_SECONDS, BEATS_TO_MISS
from lockstep_coordinator.items import MAX_REDELIVERIES
from lockstep_coordinator.lease import holder_name, is_dead

OUTAGE_SECONDS = 20.0
"""How long a server stays away."""

Submitted = dict[Run, tuple[str, dict[str, Any]]]


def submit_many(cluster: Cluster, ledger: Ledger, chains: int, fans: int) -> Submitted:
    """Runs that take a while, of both shapes."""
    chain = {"steps": 40, "delay_ms": 20.0, "ledger": str(ledger)}
    fan = {"width": 60, "delay_ms": 60.0, "ledger": str(ledger)}
    wanted = [("chain", chain, f"chain-{n}") for n in range(chains)] + [("fan", fan, f"fan-{n}") for n in range(fans)]
    return {cluster.client.submit(name, value, run_id=run_id): (name, value) for name, value, run_id in wanted}


# --- workers ------------------------------------------------------------------------------------------------------------------


def test_tasks_of_a_killed_worker_run_elsewhere(cluster: Cluster, ledger: Ledger, gate: Path, figure: Figure) -> None:
    # given a worker whose slots are full of tasks that wait for the gate, and more in the queue
    cluster.coordinator()
    victim = cluster.worker("--concurrency", "4")
    value = {"width": 12, "ledger": str(ledger), "gate": str(gate)}
    run = cluster.client.submit("fan", value)
    cluster.until(lambda: len(ledger) == 4, "all slots are taken")
    started = {start.item for start in ledger.starts()}
    # when it is killed, and another one is there
    cluster.worker("--concurrency", "12")
    cluster.until(lambda: len(ledger) == 12, "the other one takes what is left")
    cluster.kill(victim)
    killed = time.monotonic()
    # then the tasks that it had start again
    cluster.until(lambda: 2 in ledger.deliveries(), "a task is handed out again")
    figure("seconds from the kill of a worker to the first redelivered start", time.monotonic() - killed)
    cluster.until(lambda: ledger.deliveries().count(2) == 4, "all are")
    figure("seconds from the kill of a worker to the last redelivered start", time.monotonic() - killed)
    # and only they; and the run ends as if nothing had happened
    gate.touch()
    run.result(PATIENCE_SECONDS)
    assert {start.item for start in ledger.starts() if start.delivery == 2} == started
    assert len(ledger) == 16
    assert_as_embedded({run: ("fan", value)})


def test_a_stopped_worker_counts_as_dead_and_its_late_results_are_dropped(
    cluster: Cluster, ledger: Ledger, gate: Path, figure: Figure
) -> None:
    # given a worker with running tasks, and another one that has nothing to do
    cluster.coordinator()
    stopped = cluster.worker("--concurrency", "4")
    value = {"width": 4, "ledger": str(ledger), "gate": str(gate)}
    run = cluster.client.submit("fan", value)
    cluster.until(lambda: len(ledger) == 4, "the tasks run")
    cluster.worker("--concurrency", "4")
    name = cluster.worker_name(stopped) or ""
    # when it is stopped for longer than three beats
    stopped.send_signal(signal.SIGSTOP)
    since = time.monotonic()
    # then the other one runs its tasks, and the run ends
    cluster.until(lambda: ledger.deliveries().count(2) == 4, "the tasks run elsewhere")
    figure("seconds from SIGSTOP of a worker to the last redelivered start", time.monotonic() - since)
    gate.touch()
    run.result(PATIENCE_SECONDS)
    version = run.row().version
    # when it goes on, and sends what it has
    assert cluster.redis.hlen(cluster.names.claims(name)) == 4
    stopped.send_signal(signal.SIGCONT)
    cluster.until(lambda: not cluster.redis.exists(cluster.names.claims(name)), "it has sent its results")
    results = cluster.names.results(run.row().partition_id)
    cluster.until(lambda: not cluster.redis.xlen(results), "the coordinator has taken them in")
    # then nothing has changed, and it works as before
    assert run.row().version == version
    assert sorted(ledger.deliveries()) == [1] * 4 + [2] * 4
    cluster.terminate(cluster.workers[1])
    assert_as_embedded({run: ("fan", value), cluster.client.submit("fan", {"width": 9}): ("fan", {"width": 9})})


def test_late_results_of_a_step_under_way_count_once(cluster: Cluster, ledger: Ledger, gate: Path) -> None:
    # given tasks that were handed out again because their worker was stopped, and both copies still run
    cluster.coordinator()
    stopped = cluster.worker("--concurrency", "4")
    value = {"width": 8, "gated_from": 2, "ledger": str(ledger), "gate": str(gate)}
    run = cluster.client.submit("fan", value)
    cluster.until(lambda: len(ledger) == 6, "two are done, four run")
    stopped.send_signal(signal.SIGSTOP)
    cluster.worker("--concurrency", "8")
    cluster.until(lambda: ledger.deliveries().count(2) == 4, "the other one runs all")
    # when all copies end at about the same time
    stopped.send_signal(signal.SIGCONT)
    gate.touch()
    # then each counts once
    assert_as_embedded({run: ("fan", value)})


def test_a_node_that_holds_the_interpreters_lock_does_not_make_its_worker_look_dead(
    cluster: Cluster, ledger: Ledger, figure: Figure
) -> None:
    # given two workers
    graphs = (f"{FLOWS}:holding",)
    cluster.coordinator(graphs=graphs)
    cluster.worker(graphs=graphs)
    cluster.worker(graphs=graphs)
    # when a node keeps all threads of its worker from running, for longer than a worker may be silent
    value = {"hold_ms": 10_000, "ledger": str(ledger)}
    assert value["hold_ms"] > 1000 * (BEATS_TO_MISS * BEAT_SECONDS + 2)
    since = time.monotonic()
    assert cluster.client.submit("holding", value).result(PATIENCE_SECONDS)["n"] == 1
    figure("seconds of a run whose node holds the lock for 10 s", time.monotonic() - since)
    # then it was handed out once
    assert ledger.deliveries() == [1]


def test_a_node_that_ends_its_worker_is_poison_and_its_batch_mates_are_not(
    cluster: Cluster, ledger: Ledger, gate: Path, figure: Figure
) -> None:
    # given a worker, and a node that is known to be short, so that its tasks travel together
    cluster.deaths.add(DEATH)
    cluster.coordinator()
    cluster.worker("--concurrency", "1")
    cluster.client.submit("fan", {"width": 50}).result(PATIENCE_SECONDS)
    # when one of 20 always ends its worker
    value = {"width": 20, "dying": 7, "ledger": str(ledger)}
    since = time.monotonic()
    poisoned = cluster.client.submit("fan", value)
    mate = cluster.client.submit("fan", {"width": 20})

    def ended() -> bool:
        for process in list(cluster.workers):
            if process.poll() is not None:
                assert process.returncode == DEATH, cluster.said()
                cluster.workers.remove(process)
                cluster.worker("--concurrency", "1")
        return poisoned.status == "failed"

    cluster.until(ended, "the run ends", 120)
    figure("seconds until a task is given up that has ended six workers", time.monotonic() - since)
    # then its run fails once it was handed out again as often as allowed
    error = poisoned.error
    assert isinstance(error, PoisonError)
    assert error.node_id == "leaf"
    tries = ledger.counts()
    assert tries.most_common(1)[0][1] == 1 + MAX_REDELIVERIES
    # and what shared a job with it is done, whoever's it is
    assert len(cluster.journalled(poisoned)) == 1 + 19
    assert max(tries[item] for item in cluster.journalled(poisoned)) <= 2
    assert_as_embedded({mate: ("fan", {"width": 20})})


def test_a_worker_whose_beats_end_beats_again(cluster: Cluster, ledger: Ledger, gate: Path) -> None:
    # given a worker with running tasks, and another one that would get them
    cluster.coordinator()
    worker = cluster.worker("--concurrency", "2")
    value = {"width": 2, "ledger": str(ledger), "gate": str(gate)}
    run = cluster.client.submit("fan", value)
    cluster.until(lambda: len(ledger) == 2, "the tasks run")
    cluster.worker("--concurrency", "2")
    # when the process that beats for it is killed
    [beating] = cluster.beating(worker)
    os.kill(beating, signal.SIGKILL)
    # then another one does, and the worker keeps its tasks
    cluster.until(lambda: cluster.beating(worker) not in ([], [beating]), "another process beats")
    cluster.pass_time(worker, BEAT_SECONDS * (BEATS_TO_MISS + 2))
    gate.touch()
    run.result(PATIENCE_SECONDS)
    assert ledger.deliveries() == [1, 1]


def test_a_worker_is_dead_when_it_is_also_if_what_its_node_has_forked_lives_on(
    cluster: Cluster, ledger: Ledger, gate: Path
) -> None:
    # given a worker whose node has forked a process, which has a copy of all that the worker had open
    graphs = (f"{FLOWS}:forking",)
    cluster.coordinator(graphs=graphs)
    worker = cluster.worker(graphs=graphs)
    run = cluster.client.submit("forking", {"ledger": str(ledger), "gate": str(gate)})
    cluster.until(lambda: len(ledger) == 1, "the node runs")
    # when the worker is killed
    cluster.worker(graphs=graphs)
    cluster.kill(worker)
    # then its task runs elsewhere
    cluster.until(lambda: ledger.deliveries() == [1, 2], "the task is handed out again")
    gate.touch()
    assert run.result(PATIENCE_SECONDS)["n"] == 1


# --- coordinators -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "database"),
    [("on the same host", POSTGRES), ("on another host", POSTGRES), ("on another host", MYSQL)],
    ids=["on the same host", "on another host", "on another host, on MySQL"],
    indirect=["database"],
)
def test_a_killed_coordinators_runs_are_moved_by_another(
    cluster: Cluster, ledger: Ledger, gate: Path, figure: Figure, where: str
) -> None:
    # given two coordinators and runs of both, in the middle of things
    first, second = cluster.coordinator(), cluster.coordinator()
    cluster.worker("--concurrency", "4")
    chains = submit_many(cluster, ledger, chains=16, fans=0)
    cluster.until(lambda: {cluster.owner_of(run) for run in chains} == {first, second}, "both have some")
    cluster.until(lambda: cluster.commits() > 100, "the runs are under way")
    dead = cluster.lease_of(first)
    if where == "on another host":
        cluster.move_to_another_host(first)
    # when one coordinator is killed
    before = {item for run in chains for item in cluster.journalled(run)}
    theirs = [run for run in chains if cluster.owner_of(run) is first]
    assert theirs
    cluster.kill(first)
    killed = time.monotonic()
    stored = {run: run.row().version for run in theirs}
    # then the other one commits its runs' steps
    cluster.until(lambda: any(run.row().version > stored[run] for run in theirs), "another one commits")
    figure(f"seconds from the kill of a coordinator ({where}) to another's commit of its runs", time.monotonic() - killed)
    assert cluster.lease_of(second) is not None
    assert dead not in cluster.leases()
    # and nothing ran twice: neither what was stored before, nor what was handed out
    for run in chains:
        run.result(PATIENCE_SECONDS)
    starts = ledger.counts()
    assert {starts[item] for item in before} == {1}
    assert set(starts.values()) == {1}
    assert_as_embedded(chains)


def test_a_takeover_hands_out_nothing_that_waits_or_runs(cluster: Cluster, ledger: Ledger, gate: Path) -> None:
    # given a run of which some items are done, some run, and some wait in the queue
    first = cluster.coordinator()
    cluster.worker("--concurrency", "4")
    value = {"width": 30, "gated_from": 10, "ledger": str(ledger), "gate": str(gate)}
    run = cluster.client.submit("fan", value, thread_id="thread")
    cluster.until(lambda: len(cluster.journalled(run)) == 11, "ten leaves are done")
    cluster.until(lambda: len(ledger) == 14, "four run")
    assert cluster.queued() == 16
    # when its coordinator is killed, and another one has loaded the run: it moves a run of the same partition
    second = cluster.coordinator()
    cluster.kill(first)
    other = cluster.client.submit("chain", {"steps": 1}, thread_id="thread")
    cluster.until(lambda: cluster.owner_of(run) is second, "the partition has changed hands")
    cluster.until(lambda: other.status == "running", "the other one moves its runs")
    # then each item has been handed out once, also when all is over
    gate.touch()
    run.result(PATIENCE_SECONDS)
    assert ledger.deliveries() == [1] * 30
    assert_as_embedded({run: ("fan", value)})


def test_a_worker_that_is_handed_what_it_has_gives_all_of_it_up(cluster: Cluster, ledger: Ledger, gate: Path) -> None:
    # given a worker that was stopped while nobody looked: the next coordinator knows nothing of its task
    first = cluster.coordinator()
    worker = cluster.worker("--drain-seconds", "600")
    name = cluster.worker_name(worker) or ""
    value = {"steps": 1, "ledger": str(ledger), "gate": str(gate)}
    run = cluster.client.submit("chain", value)
    cluster.until(lambda: len(ledger) == 1, "the task runs")
    worker.send_signal(signal.SIGSTOP)
    cluster.terminate(first)
    silent = BEAT_SECONDS * BEATS_TO_MISS + 1
    cluster.until(lambda: cluster.now() > cluster.last_beat(worker) + silent, "the worker counts as dead")
    cluster.coordinator()
    cluster.until(lambda: cluster.queued() == 1, "the task is handed out anew")
    # when it goes on, and gets the task once more
    worker.send_signal(signal.SIGCONT)
    cluster.until(lambda: cluster.redis.hlen(cluster.names.claims(name)) == 2, "it has both")
    gate.touch()
    # then the run ends, and the worker holds nothing, so it can end
    assert_as_embedded({run: ("chain", value)})
    cluster.until(lambda: not cluster.redis.exists(cluster.names.claims(name)), "nothing is claimed")
    cluster.terminate(worker)


def test_a_process_of_another_place_is_not_taken_for_dead() -> None:
    # given a holder whose process id is another process's here
    place, pid, started = holder_name().rsplit(":", 2)
    host, boot, namespace = place.split("/")
    assert not is_dead(f"{place}:{pid}:{started}")
    assert is_dead(f"{place}:{pid}:1")
    # then that says something only in the same namespace of process ids, on the same machine since it was started
    for other in (f"other/{boot}/{namespace}", f"{host}/00000000/{namespace}", f"{host}/{boot}/1"):
        assert not is_dead(f"{other}:{pid}:1")


def test_a_coordinator_that_was_stopped_for_longer_than_its_lease_disturbs_nobody(cluster: Cluster, ledger: Ledger) -> None:
    # given two coordinators with runs under way
    first, second = cluster.coordinator(), cluster.coordinator()
    cluster.worker("--concurrency", "4")
    runs = submit_many(cluster, ledger, chains=16, fans=2)
    cluster.until(lambda: {cluster.owner_of(run) for run in runs} == {first, second}, "both have some")
    lease = cluster.lease_of(first)
    # when one is stopped until the other one has taken over, and then goes on
    first.send_signal(signal.SIGSTOP)
    cluster.until(lambda: lease not in cluster.leases(), "its partitions are taken")
    first.send_signal(signal.SIGCONT)
    # then it takes part again under a new lease, and all is right
    cluster.until(lambda: cluster.lease_of(first) not in (None, lease), "it has a new lease")
    assert_as_embedded(runs)


# --- servers ------------------------------------------------------------------------------------------------------------------


def test_redis_may_forget_everything_at_any_moment(cluster: Cluster, ledger: Ledger, figure: Figure) -> None:
    # given many runs under way, over two coordinators and two workers
    seed = time.time_ns() % 1_000_000
    figure("seed of the moments", seed)
    cluster.coordinator()
    cluster.coordinator()
    cluster.worker("--concurrency", "8")
    cluster.worker("--concurrency", "8")
    runs = submit_many(cluster, ledger, chains=20, fans=20)
    total = 20 * 40 + 20 * 60
    # when Redis forgets everything, now and then
    moments = sorted(Random(seed).sample(range(total * 8 // 10), 4))
    for moment in moments:
        cluster.until(lambda moment=moment: len(ledger) >= moment, "the runs go on")  # type: ignore[misc]
        cluster.redis.flushall()
    # then all runs end as if it had not
    since = time.monotonic()
    for run in runs:
        run.result(2 * PATIENCE_SECONDS)
    figure("seconds from the last FLUSHALL of four to the end of 40 runs", time.monotonic() - since)
    # and no node ran twice: the workers have said again what they have, and sent again what they had sent
    assert set(ledger.counts().values()) == {1}
    assert_as_embedded(runs)


def test_what_waits_while_redis_forgets_is_not_poison(cluster: Cluster, ledger: Ledger, gate: Path) -> None:
    # given tasks that wait, since the only slot is taken
    cluster.coordinator()
    cluster.worker("--concurrency", "1")
    value = {"width": 3, "ledger": str(ledger), "gate": str(gate)}
    run = cluster.client.submit("fan", value)
    cluster.until(lambda: len(ledger) == 1 and cluster.queued() == 2, "two wait")
    # when Redis forgets them more often than a task may end its worker, each time a while ago
    for number in range(MAX_REDELIVERIES + 2):
        with cluster.redis.pipeline() as pipe:
            pipe.flushall()
            pipe.set(cluster.names.marker, f"{number}:{int(cluster.now() * 1000) - 60_000}")
            pipe.execute()
        cluster.until(lambda: cluster.queued() >= 2, "they are handed out again")
    # then all goes on
    gate.touch()
    assert_as_embedded({run: ("fan", value)})


def assert_alive(cluster: Cluster) -> None:
    assert all(process.poll() is None for process in (*cluster.coordinators, *cluster.workers)), cluster.said()


def test_a_redis_that_was_away_and_has_lost_everything(
    database: Any, tmp_path: Path, ledger: Ledger, gate: Path, figure: Figure
) -> None:
    # given runs under way, over a Redis of their own
    server = RedisServer()
    cluster = Cluster(database.url, server.url, tmp_path)
    try:
        cluster.coordinator()
        cluster.coordinator()
        worker = cluster.worker("--concurrency", "8")
        cluster.worker("--concurrency", "8")
        slow = {"width": 4, "gate": str(gate), "ledger": str(ledger)}
        held = cluster.client.submit("fan", slow)
        cluster.until(lambda: len(ledger) == 4, "some tasks will run all the time")
        runs = {held: ("fan", slow), **submit_many(cluster, ledger, chains=10, fans=10)}
        cluster.until(lambda: len(ledger) > 300, "the runs are under way")
        # when it is killed, and comes back later with nothing
        server.stop()
        time.sleep(OUTAGE_SECONDS)
        assert_alive(cluster)
        known = len(ledger)
        server.start()
        back = time.monotonic()
        # then everything goes on by itself, in the same processes
        cluster.until(lambda: len(ledger) > known, "nodes start again")
        figure("seconds from the return of Redis to the next start of a node", time.monotonic() - back)
        cluster.pass_time(worker, BEAT_SECONDS * (BEATS_TO_MISS + 2))
        gate.touch()
        for run in runs:
            run.result(PATIENCE_SECONDS)
        assert_alive(cluster)
        # and no node ran twice: the workers have said again what they have, and sent again what they had sent
        figure("starts beyond one for each item", len(ledger) - 10 * 40 - 10 * 60 - 4)
        assert set(ledger.counts().values()) == {1}
        assert_as_embedded(runs)
        # and the workers are on RQ's lists again
        assert cluster.redis.scard(f"{cluster.names.rq}:workers") == 2
    finally:
        cluster.close()
        server.stop()


def test_a_redis_that_hangs(database: Any, tmp_path: Path, ledger: Ledger, figure: Figure) -> None:
    # given runs under way, over a Redis of their own
    server = RedisServer()
    cluster = Cluster(database.url, server.url, tmp_path)
    try:
        cluster.coordinator()
        cluster.coordinator()
        cluster.worker("--concurrency", "8")
        cluster.worker("--concurrency", "8")
        runs = submit_many(cluster, ledger, chains=10, fans=10)
        cluster.until(lambda: len(ledger) > 300, "the runs are under way")
        # when it answers nobody for longer than anybody waits, and then carries out what was asked, for nobody
        server.signal(signal.SIGSTOP)
        time.sleep(2.5 * ANSWER_TIMEOUT_SECONDS)
        known = len(ledger)
        server.signal(signal.SIGCONT)
        back = time.monotonic()
        # then everything goes on by itself, in the same processes
        cluster.until(lambda: len(ledger) > known, "nodes start again")
        figure("seconds from when Redis answers again to the next start of a node", time.monotonic() - back)
        for run in runs:
            run.result(PATIENCE_SECONDS)
        assert_alive(cluster)
        figure("starts beyond one for each item", len(ledger) - 10 * 40 - 10 * 60)
        assert_as_embedded(runs)
    finally:
        cluster.close()
        server.stop()


@pytest.mark.parametrize("role", ["coordinator", "worker"])
def test_a_process_can_be_ended_while_redis_is_away(database: Any, tmp_path: Path, role: str) -> None:
    # given a process that has lost its Redis
    server = RedisServer()
    cluster = Cluster(database.url, server.url, tmp_path)
    try:
        process = cluster.coordinator() if role == "coordinator" else cluster.worker("--drain-seconds", "1")
        server.stop()
        cluster.until(lambda: "Redis" in cluster.said(), "it has noticed")
        # when it is told to end, then it does
        cluster.terminate(process)
        assert cluster.lease_of(process) is None
    finally:
        cluster.close()


def test_a_database_that_was_away(redis_server: RedisServer, tmp_path: Path, ledger: Ledger, figure: Figure) -> None:
    # given runs under way, over a PostgreSQL of their own
    server = PostgresServer()
    cluster = Cluster(server.url, redis_server.url, tmp_path)
    try:
        cluster.coordinator()
        cluster.coordinator()
        cluster.worker("--concurrency", "8")
        runs = submit_many(cluster, ledger, chains=10, fans=10)
        cluster.until(lambda: len(ledger) > 300, "the runs are under way")
        # when it is stopped in the middle of transactions, and comes back later
        server.stop("immediate")
        time.sleep(OUTAGE_SECONDS)
        assert_alive(cluster)
        server.start()
        back, stored = time.monotonic(), cluster.commits()
        # then everything goes on by itself, in the same processes
        cluster.until(lambda: cluster.commits() > stored, "steps are stored again")
        figure("seconds from the return of PostgreSQL to the next commit", time.monotonic() - back)
        for run in runs:
            run.result(PATIENCE_SECONDS)
        assert_alive(cluster)
        # and no node ran twice: the workers have kept the results
        figure("starts beyond one for each item", len(ledger) - 10 * 40 - 10 * 60)
        assert set(ledger.counts().values()) == {1}
        assert_as_embedded(runs)
    finally:
        cluster.close()
        server.close()


def test_everything_may_die_at_once(redis_server: RedisServer, tmp_path: Path, ledger: Ledger, figure: Figure) -> None:
    # given runs under way
    server = PostgresServer()
    cluster = Cluster(server.url, redis_server.url, tmp_path)
    try:
        cluster.coordinator()
        cluster.worker("--concurrency", "8")
        runs = submit_many(cluster, ledger, chains=10, fans=10)
        cluster.until(lambda: len(ledger) > 300, "the runs are under way")
        # when all processes are killed, the database among them, and Redis forgets everything
        before = {item for run in runs for item in cluster.journalled(run)}
        for process in (*cluster.coordinators, *cluster.workers):
            process.kill()
        server.stop("immediate")
        cluster.redis.flushall()
        started = len(ledger)
        server.start()
        # and started again
        back, stored = time.monotonic(), cluster.commits()
        cluster.coordinator()
        cluster.worker("--concurrency", "8")
        cluster.until(lambda: cluster.commits() > stored, "steps are stored again")
        figure("seconds from the start of all processes to the next commit", time.monotonic() - back)
        # then the runs end, and nothing that was stored is made again
        for run in runs:
            run.result(PATIENCE_SECONDS)
        assert before
        assert not before & {start.item for start in ledger.starts()[started:]}
        figure("starts beyond one for each item", len(ledger) - 10 * 40 - 10 * 60)
        assert_as_embedded(runs)
    finally:
        cluster.close()
        server.close()
