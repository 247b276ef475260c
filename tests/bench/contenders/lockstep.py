"""Lockstep, embedded."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.contenders.child import Job, Runner, measure
from tests.bench.contenders.stored import Stored

from lockstep import END, START, Engine, Graph, Send


@contextmanager
def opened(job: Job) -> Iterator[Runner]:
    graph = job.shaped.build(Graph(job.shaped.state), START, END, Send, **job.parameters)
    with Engine(graph, _url(job)) as engine:
        if not job.postgres:
            yield Runner(lambda run_id: engine.invoke(job.shaped.begin, run_id=run_id))
            return
        with Stored(job.postgres) as stored:
            yield stored.runner(lambda run_id: engine.submit(job.shaped.begin, run_id=run_id))


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
