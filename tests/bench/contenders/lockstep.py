"""Lockstep, embedded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.bench.contenders.child import Job, measure
from tests.bench.shapes import SHAPES, Counter

from lockstep import END, START, Engine, Graph
from lockstep.store.commit import GroupCommit


@contextmanager
def opened(job: Job) -> Iterator[Callable[[str], Any]]:
    if job.settings.get("wait"):
        # A connection begins with synchronous=FULL; left alone it stays so. There is no public option for this.
        GroupCommit._choose_durability = lambda *_: None  # type: ignore[method-assign]
    graph = SHAPES[job.shape](Graph(Counter), START, END, **job.parameters)
    url = "memory://" if job.settings["store"] == "memory" else f"sqlite:///{job.directory}/lockstep.db"
    with Engine(graph, url) as engine:
        yield lambda run_id: engine.invoke({"n": 0}, run_id=run_id)


if __name__ == "__main__":
    measure(opened, ["lockstep-graph", "SQLAlchemy"])
