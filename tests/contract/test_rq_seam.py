"""RQ is the transport and the operators' view: what we rely on of the installed release, and what its tools see of us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.contract.brokers import LARGE_STATE, PATIENCE_SECONDS, RedisWorld, outstanding, task, tasks
from tests.core.test_wire import decode_job
from tests.servers import RedisServer

from lockstep.wire import JOB_FUNCTION

COMMAND = [sys.executable, "-c", "from lockstep.cli import main; main(prog_name='lockstep')"]
AUDIT = Path(__file__).parents[2] / "docs" / "examples" / "audit.py"
PROGRAM = Path(__file__).parent / "programs" / "rq_seam.py"
SEAM = {
    "request_stop",
    "check_for_suspension",
    "should_run_maintenance_tasks",
    "dequeue_job_and_maintain_ttl",
    "execute_job",
    "heartbeat",
    "register_birth",
    "teardown",
}
"""All that our worker overrides."""

Ask = Callable[..., Any]
T = TypeVar("T")


@pytest.fixture
def world(redis_server: RedisServer) -> Iterator[RedisWorld]:
    with RedisWorld(redis_server.url) as world:
        yield world


@pytest.fixture
def rq(world: RedisWorld) -> Ask:
    """Asks RQ in a process of its own, in which it has the prefix of the world."""

    def ask(*question: str) -> Any:
        command = [sys.executable, "-W", "error", str(PROGRAM), world.url, world.namespace, *question]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


def test_our_keys_are_rq_s(world: RedisWorld, rq: Ask) -> None:
    names = world.names
    assert rq("keys") == {
        "queues": names.queues,
        "queue": names.queue("default"),
        "job": names.job("id"),
        "workers": f"{names.rq}:workers",
        "worker": names.rq_worker("w"),
        "suspended": names.suspended,
        "running": names.running_prefix + "default",
    }


def test_our_jobs_are_rq_s(world: RedisWorld, rq: Ask) -> None:
    # given tasks in a queue, one of which a worker has taken
    broker, started = world.broker(), datetime.now(UTC)
    broker.offer([*tasks("a", 3), task("b", state=LARGE_STATE)])
    [claimed] = world.worker().claim()
    # when RQ looks at the queue
    seen = rq("jobs")
    # then it counts and lists the jobs that are there, and knows the one that runs
    assert seen["queues"] == ["default"]
    assert seen["count"] == 3
    assert [job["id"] for job in seen["jobs"]] == world.job_ids()
    assert seen["running"] == [claimed.job_id]
    # and reads of each what it is
    for job in seen["jobs"]:
        assert job["function"] == JOB_FUNCTION
        assert job["keywords"] == {}
        assert (job["status"], job["origin"], job["description"]) == ("queued", "default", "lockstep: 1 task(s)")
        for moment in (job["created_at"], job["enqueued_at"]):
            assert timedelta(0) <= datetime.fromisoformat(moment) - started < timedelta(minutes=5)
    # and its arguments are our tasks
    arguments = [job["arguments"] for job in seen["jobs"]]
    data = [json.dumps([JOB_FUNCTION, None, argument, {}]).encode() for argument in arguments]
    decoded = [message.task(LARGE_STATE) for one in data for message in decode_job(one)]
    assert [(one.path, one.queue, one.delivery) for one in decoded] == [
        (one.path, one.queue, one.delivery) for one in [*tasks("a", 3)[1:], task("b")]
    ]


def test_what_rq_empties_is_counted_and_handed_out_anew(world: RedisWorld, rq: Ask) -> None:
    # given a full queue
    broker = world.settled(world.broker(3))
    offered = tasks("a", 3)
    broker.offer(offered)
    # when an operator empties it
    assert rq("empty") == 3
    # then the next sweeps notice that it holds nothing, and what is lost
    assert broker.lost() == []
    assert broker.depth("default") == 0
    assert broker.lost() == [outstanding(one) for one in offered]


def test_workers_that_rq_suspends_take_nothing(world: RedisWorld, rq: Ask) -> None:
    # given a task
    worker = world.worker()
    world.broker().offer([task("a")])
    # when an operator suspends the workers, then it waits until they may go on
    rq("suspend")
    assert worker.claim() == []
    rq("resume")
    assert worker.take() == [task("a")]


def test_a_worker_of_rq_s_that_takes_our_job_says_that_it_cannot(world: RedisWorld, rq: Ask) -> None:
    # given a task, and no worker of ours
    broker = world.settled(world.broker())
    broker.offer([task("a")])
    [job_id] = world.job_ids()
    # when one of RQ's own takes it by mistake
    outcome = rq("work_by_mistake")
    # then the job fails, and says who should have taken it
    assert (outcome["status"], outcome["failed"]) == ("failed", [job_id])
    assert "RuntimeError: tasks of Lockstep are executed by `lockstep worker`, not by an RQ worker" in outcome["said"]
    # and the task is handed out anew
    assert [broker.lost(), broker.lost()] == [[], [outstanding(task("a"))]]
    assert broker.depth("default") == 0


def test_what_we_override_is_there_and_takes_the_same(rq: Ask) -> None:
    # given all that our worker overrides, then it is what is listed
    seam = rq("seam")
    assert seam.keys() == SEAM
    # and each has the parameters of RQ's, in the same order, with the same defaults
    assert {name: ours for name, (_, ours) in seam.items()} == {name: theirs for name, (theirs, _) in seam.items()}


def executed(number: int) -> list[list[str]]:
    """How the loop calls us for a job."""
    return [
        ["check_for_suspension"],
        ["dequeue_job_and_maintain_ttl"],
        ["execute_job", f"job {number}", f"queue {number}"],
        ["heartbeat"],
    ]


def test_rq_s_loop_calls_what_we_override(rq: Ask) -> None:
    # given a worker that records its calls, and gets two jobs and then none
    seen = rq("loop")
    # then each job is executed with its queue, followed by a heartbeat, and none ends the loop
    assert seen["calls"] == [
        ["register_birth"],
        *executed(1),
        *executed(2),
        ["check_for_suspension"],
        ["dequeue_job_and_maintain_ttl"],
        ["teardown"],
    ]
    # and nobody is left on RQ's list
    assert seen["workers"] == 0


def test_a_signal_asks_us_to_stop_and_the_loop_ends_before_the_next_job(rq: Ask) -> None:
    # given a worker that gets SIGTERM while it executes its first job
    seen = rq("loop", "signal")
    # then it is asked to stop, may finish, and gets no other job
    calls = executed(1)
    calls.insert(3, ["request_stop"])
    assert seen["calls"] == [["register_birth"], *calls, ["check_for_suspension"], ["teardown"]]
    assert (seen["left"], seen["workers"]) == (2, 0)


def test_an_error_of_ours_ends_the_loop_so_it_must_be_begun_anew(rq: Ask) -> None:
    # given a worker whose execute_job raises
    seen = rq("loop", "error")
    # then work() returns as if it had been told to: that is why `WorkerProcess.run` asks whether it was
    assert seen["calls"] == [["register_birth"], *executed(1)[:3], ["teardown"]]
    assert (seen["left"], seen["workers"]) == (2, 0)


def test_our_worker_is_on_rq_s_list_whatever_the_server_forgets(world: RedisWorld, rq: Ask) -> None:
    # given a worker of ours
    environment = {**os.environ, "LOCKSTEP_NAMESPACE": world.namespace, "LOCKSTEP_METRICS_PORT": "0"}
    flags = ["--redis", world.url, "--graphs", f"{AUDIT}:graph", "--queue", "default", "--queue", "gpu"]
    with subprocess.Popen([*COMMAND, "worker", *flags], env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            state = until(lambda: states(world))
            # then RQ's tools see it, and what it serves
            [seen] = rq("workers")
            assert seen == {"name": seen["name"], "pid": process.pid, "queues": ["default", "gpu"], "state": "idle"}
            assert state == ["idle"]
            # and whether it is suspended
            rq("suspend")
            until(lambda: states(world) == ["suspended"])
            # and see it again after the server has forgotten it
            world.redis.flushall()
            until(lambda: states(world) == ["idle"])
            assert rq("workers") == [seen]
        finally:
            process.terminate()
    # and no more when it has ended
    assert process.returncode == 0
    assert rq("workers") == []


def states(world: RedisWorld) -> list[str]:
    """The states of all workers that have one, where RQ has them."""
    keys = world.redis.smembers(f"{world.names.rq}:workers")
    return [state.decode() for key in keys if (state := world.redis.hget(key, "state")) and state != b"started"]


def until(condition: Callable[[], T]) -> T:
    """Wait for something that happens in another process."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never happens"
        time.sleep(0.01)
    return value
