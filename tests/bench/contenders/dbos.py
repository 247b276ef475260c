"""DBOS: a workflow that calls steps, in this process, as its tutorial shows; `start_workflow` begins them in the background.

A fan-out is `asyncio.gather` over steps, which its tutorial gives for steps in parallel; a queue, which it gives for many
functions at once, is looked into once a second.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from dbos import DBOS, SetWorkflowID, WorkflowHandle
from tests.bench import shapes
from tests.bench.contenders.child import Job, Runner, measure
from tests.bench.shapes import State


@DBOS.step()
def count(state: State) -> State:
    return shapes.count(state)


@DBOS.workflow()
def chain(state: State, steps: int) -> State:
    for _ in range(steps):
        state = count(state)
    return state


@DBOS.step()
async def split(state: State) -> State:
    return shapes.split(state)


@DBOS.step()
async def leaf(number: int) -> State:
    return shapes.leaf(number)


@DBOS.step()
async def join(state: State) -> State:
    return shapes.join(state)


@DBOS.workflow()
async def fan(state: State, width: int) -> State:
    state = {**state, **await split(state)}
    leaves = await asyncio.gather(*[leaf(number) for number in range(width)], return_exceptions=True)
    state["found"] = [number for one in leaves for number in one["found"]]
    return {**state, **await join(state)}


WORKFLOWS = {"chain": chain, "fan": fan}


@contextmanager
def opened(job: Job) -> Iterator[Runner]:
    DBOS(config={"name": "bench", "system_database_url": job.postgres, "log_level": "WARNING"})
    DBOS.launch()

    def begin(run_id: str) -> WorkflowHandle[State]:
        with SetWorkflowID(run_id):
            return DBOS.start_workflow(WORKFLOWS[job.shape], job.begin, **job.parameters)

    try:
        yield Runner(begin, lambda handles: [handle.get_result() for handle in handles])
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    measure(opened, ["dbos"])
