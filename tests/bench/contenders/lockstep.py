"""Lockstep, embedded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

from tests.bench.contenders.child import Job, measure
from tests.bench.shapes import SHAPES, Counter

from lockstep import END, START, Engine, Graph
from lockstep.store.sqlite import SqliteCommit


@contextmanager
def opened(job: Job) -> Iterator[Callable[[str], Any]]:
    graph = SHAPES[job.shape](Graph(Counter), START, END, **job.parameters)
    url = "memory://" if job.settings["store"] == "memory" else f"sqlite:///{job.directory}/lockstep.db"
    with waiting_for_each_commit() if job.settings.get("wait") else nullcontext(), Engine(graph, url) as engine:
        yield lambda run_id: engine.invoke({"n": 0}, run_id=run_id)


def waiting_for_each_commit() -> Any:
    """Leave synchronous=FULL, with which connections begin, as it is. No option does this, so it reaches into the store."""
    return patch.object(SqliteCommit, "_choose_durability", lambda *_: None)


if __name__ == "__main__":
    measure(opened, ["lockstep-graph", "SQLAlchemy"])
