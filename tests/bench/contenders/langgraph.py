"""LangGraph with a checkpointer, set up as its documentation shows; nothing is tuned, for better or for worse."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from tests.bench.contenders.child import Job, measure
from tests.bench.shapes import SHAPES, Counter


@contextmanager
def opened(job: Job) -> Iterator[Callable[[str], Any]]:
    in_memory, durability = job.settings["saver"] == "memory", job.settings["durability"]
    saving = nullcontext(InMemorySaver()) if in_memory else SqliteSaver.from_conn_string(f"{job.directory}/langgraph.db")
    with saving as saver:
        if not in_memory and saver.conn.execute("PRAGMA synchronous").fetchone() != (2,):
            sys.exit("this build of SQLite does not wait for the disk unless told to; LangGraph's rows would promise too much")
        graph = SHAPES[job.shape](StateGraph(Counter), START, END, **job.parameters).compile(checkpointer=saver)
        config = {"recursion_limit": 10_000}
        yield lambda run_id: graph.invoke({"n": 0}, {**config, "configurable": {"thread_id": run_id}}, durability=durability)


if __name__ == "__main__":
    measure(opened, ["langgraph", "langgraph-checkpoint-sqlite"])
