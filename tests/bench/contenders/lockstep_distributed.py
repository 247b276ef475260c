"""Lockstep, distributed: a coordinator and a worker as processes of their own, runs submitted by a Client in this one."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.contenders import roles
from tests.bench.contenders.child import THREADS, Job, Runner, measure
from tests.bench.contenders.stored import Stored

from lockstep import Client, UnknownGraphError

LOCKSTEP = [sys.executable, "-c", "from lockstep.cli import main; main(prog_name='lockstep')"]
GRAPH = "tests/bench/contenders/lockstep_graph.py:graph"
START_SECONDS = 30
"""How long the coordinator may take to load the graph."""


@contextmanager
def opened(job: Job) -> Iterator[Runner]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")},
        "LOCKSTEP_NAMESPACE": job.namespace,
        "LOCKSTEP_METRICS_PORT": "0",
        "BENCH_LOCKSTEP_GRAPH": json.dumps([job.shape, job.parameters]),
    }
    coordinator = [*LOCKSTEP, "coordinator", "--store", job.postgres, "--redis", job.redis, "--graphs", GRAPH]
    worker = [*LOCKSTEP, "worker", "--redis", job.redis, "--graphs", GRAPH, "--concurrency", str(THREADS)]
    with (
        roles.running(job, environment, coordinator=coordinator, worker=worker) as running,
        Client(job.postgres, redis_url=job.redis, namespace=job.namespace) as client,
        Stored(job.postgres, running.check) as stored,
    ):
        _wait_until_ready(client, job, running)
        yield stored.runner(lambda run_id: client.submit("bench", job.begin, run_id=run_id))


def _wait_until_ready(client: Client, job: Job, running: roles.Roles) -> None:
    """Until the first run has ended: then the coordinator has loaded the graph, and the worker takes tasks."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        running.check()
        try:
            client.submit("bench", job.begin, run_id="first").result(START_SECONDS)
            return
        except UnknownGraphError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    measure(opened, ["lockstep-graph", "SQLAlchemy", "psycopg", "redis", "rq"])
