"""Lockstep, embedded."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from tests.bench.contenders.child import Job, Runner, measure
from tests.bench.contenders.stored import Stored
from tests.bench.shapes import TICKS

from lockstep import END, START, Engine, Graph, Send


@contextmanager
def opened(job: Job) -> Iterator[Runner]:
    begin = job.begin
    graph = job.shaped.build(Graph(job.shaped.state), START, END, Send, **job.parameters)
    with Engine(graph, _url(job)) as engine:
        if not job.postgres:
            yield Runner(lambda run_id: engine.invoke(begin, run_id=run_id), latency_ms=lambda: _latency_of_last_run(job))
            return
        with Stored(job.postgres) as stored:
            yield stored.runner(lambda run_id: engine.submit(begin, run_id=run_id))


def _latency_of_last_run(job: Job) -> dict[str, float]:
    """Of a long run, the median of early steps, and that of the last ones."""
    if job.shape != "loop":
        return {}
    steps = [1000 * (after - before) for before, after in pairwise(TICKS[-job.parameters["steps"] :])]
    return {"early": statistics.median(steps[100:1100]), "late": statistics.median(steps[-1000:])}


def _url(job: Job) -> str:
    match job.settings["store"]:
        case "memory":
            return "memory://"
        case "sqlite":
            return f"sqlite:///{job.directory}/lockstep.db" + ("?synchronous=full" if job.settings.get("wait") else "")
        case _:
            return job.postgres


if __name__ == "__main__":
    measure(opened, ["lockstep-graph", "SQLAlchemy", "psycopg"])
