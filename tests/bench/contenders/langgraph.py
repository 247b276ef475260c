"""LangGraph with a checkpointer, set up as its documentation shows; nothing is tuned, for better or for worse.

It has no background: a call of `invoke` carries its run out. A PostgresSaver lets one thread in at a time, even where it is
given a pool of connections; so each thread has a saver with a connection of its own, the fastest of the three ways.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from tests.bench.contenders.child import Job, Runner, measure
from tests.bench.shapes import State


@contextmanager
def opened(job: Job) -> Iterator[Runner]:
    with ExitStack() as stack:
        saver = _saver(job, stack)
        own = threading.local()

        def invoke(run_id: str) -> State:
            if not hasattr(own, "graph"):
                graph = job.shaped.build(StateGraph(job.shaped.state), START, END, Send, **job.parameters)
                own.graph = graph.compile(checkpointer=saver())
            config = {"recursion_limit": 10_000, "configurable": {"thread_id": run_id}}
            state: State = own.graph.invoke(job.begin, config, durability=job.settings["durability"])
            return state

        yield Runner(invoke)


def _saver(job: Job, stack: ExitStack) -> Callable[[], Any]:
    """What gives a thread its saver."""
    match job.settings["saver"]:
        case "memory":
            return InMemorySaver
        case "sqlite":
            sqlite = stack.enter_context(SqliteSaver.from_conn_string(f"{job.directory}/langgraph.db"))
            if sqlite.conn.execute("PRAGMA synchronous").fetchone() != (2,):
                sys.exit(
                    "this build of SQLite does not wait for the disk unless told to; LangGraph's rows would promise too much"
                )
            return lambda: sqlite
        case _:
            with PostgresSaver.from_conn_string(job.postgres) as first:
                first.setup()
            return lambda: stack.enter_context(PostgresSaver.from_conn_string(job.postgres))


if __name__ == "__main__":
    measure(opened, ["langgraph", "langgraph-checkpoint-sqlite", "langgraph-checkpoint-postgres"])
