"""Lockstep, embedded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.bench.contenders.child import Job, measure
from tests.bench.shapes import SHAPES, Counter

from lockstep import END, START, Engine, Graph


@contextmanager
def opened(job: Job) -> Iterator[Callable[[str], Any]]:
    graph = SHAPES[job.shape](Graph(Counter), START, END, **job.parameters)
    url = "memory://" if job.settings["store"] == "memory" else f"sqlite:///{job.directory}/lockstep.db"
    if job.settings.get("wait"):
        url += "?synchronous=full"
    with Engine(graph, url) as engine:
        yield lambda run_id: engine.invoke({"n": 0}, run_id=run_id)


if __name__ == "__main__":
    measure(opened, ["lockstep-graph", "SQLAlchemy"])
