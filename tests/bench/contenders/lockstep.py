"""Lockstep, embedded."""

from collections.abc import Iterator
from contextlib import contextmanager

from lockstep import END, START, Engine, Graph
from tests.bench.contenders.child import Job, Run, measure
from tests.bench.shapes import SHAPES, Counter


@contextmanager
def opened(job: Job) -> Iterator[Run]:
    if job.settings.get("every_commit_waits"):
        wait_at_every_commit()
    graph = SHAPES[job.shape](Graph(Counter, name=job.shape), START, END, job.steps)
    url = "memory://" if job.settings["store"] == "memory" else f"sqlite:///{job.directory}/lockstep.db"
    with Engine(graph, url) as engine:
        yield lambda run_id: engine.invoke({"n": 0}, run_id=run_id)


def wait_at_every_commit() -> None:
    """Keep synchronous=FULL, which each connection begins with, instead of choosing it commit by commit. No public option does."""
    from lockstep.store.commit import GroupCommit

    GroupCommit._choose_durability = lambda self, cursor, transitions: None  # type: ignore[method-assign]


if __name__ == "__main__":
    measure(opened, ["lockstep-graph", "sqlalchemy"])
