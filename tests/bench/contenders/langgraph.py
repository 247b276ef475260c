"""LangGraph with a checkpointer, set up as its documentation shows; nothing is tuned, for better or for worse."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph

from tests.bench.contenders.child import Job, Run, measure
from tests.bench.shapes import SHAPES, Counter


@contextmanager
def opened(job: Job) -> Iterator[Run]:
    in_memory = job.settings["saver"] == "memory"
    saving = nullcontext(InMemorySaver()) if in_memory else SqliteSaver.from_conn_string(f"{job.directory}/langgraph.db")
    with saving as saver:
        if not in_memory and saver.conn.execute("PRAGMA synchronous").fetchone() != (2,):
            sys.exit("this SQLite does not wait for the disk by default (synchronous=FULL); the comparison would be unfair")
        graph = SHAPES[job.shape](StateGraph(Counter), START, END, job.steps).compile(checkpointer=saver)

        def run(run_id: str) -> object:
            config = {"configurable": {"thread_id": run_id}, "recursion_limit": job.steps + 1}
            return graph.invoke({"n": 0}, config, durability=job.settings["durability"])

        yield run


if __name__ == "__main__":
    measure(opened, ["langgraph", "langgraph-checkpoint-sqlite"])
